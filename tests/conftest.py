"""What all tests share: where data is, how Hypothesis searches, and that no test is skipped behind our back."""

from __future__ import annotations

import os
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]

settings.register_profile("deterministic", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("search", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "deterministic"))


@pytest.fixture(scope="session")
def recording() -> Path:
    """Where the recording is that ships with jobwatt: 142 labelled jobs in one compressed archive."""
    return ROOT / "data" / "h200-01.tar.zst"


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """Where other people's recordings are, which are not part of jobwatt."""
    folder = os.environ.get("JOBWATT_REFERENCE_DATA")
    if not folder:
        pytest.skip("JOBWATT_REFERENCE_DATA is not set")
    return Path(folder)


# -- kernels ---------------------------------------------------------------------------------------------------------

_COMPILE = "from tests.conftest import compile_efficient; compile_efficient()"


def compile_efficient() -> None:
    """Compile the kernels of the set `efficient`, or wait for whoever does."""
    from features.sets import find_set
    from features.warming import compile_kernels

    compile_kernels(find_set("efficient"), lambda _: None, here=True)


@pytest.fixture(scope="session")
def kernels() -> None:
    """The kernels of the set `efficient` are compiled, which takes half a minute: once, not in each xdist worker."""
    compile_efficient()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the compilation beside the tests that need no kernels, where others do."""
    is_first = os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0"
    if is_first and any("kernels" in getattr(item, "fixturenames", ()) for item in session.items):
        from features.kernel_cache import is_compiled

        if not is_compiled("efficient") and not session.config.option.collectonly:
            process = subprocess.Popen([sys.executable, "-c", _COMPILE], cwd=ROOT)
            session.config.add_cleanup(lambda: (process.kill(), process.wait()))


# -- skips -------------------------------------------------------------------------------------------------------------


def read_allowed_skips(path: Path) -> list[str]:
    """Return the patterns of a list of skips: one a line, matched against ``test id: reason``; # starts a comment."""
    lines = [line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines()]
    return [line for line in lines if line]


def refused_skips(skipped: list[str], allowed: list[str]) -> list[str]:
    """Return those of ``test id: reason`` that match no pattern."""
    return [line for line in skipped if not any(fnmatchcase(line, pattern) for pattern in allowed)]


def _refused(config: pytest.Config) -> list[str]:
    if not os.environ.get("JOBWATT_STRICT_SKIPS"):
        return []
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = [
        f"{report.nodeid}: {report.longrepr[2].removeprefix('Skipped: ')}"
        for report in (reporter.stats.get("skipped", []) if reporter is not None else [])
    ]
    return refused_skips(skipped, read_allowed_skips(Path(__file__).with_name("allowed_skips.txt")))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that is strict about skips where one is not on the list."""
    if session.exitstatus == pytest.ExitCode.OK and _refused(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name the skips that made the run fail."""
    refused = _refused(config)
    if refused:
        terminalreporter.section("skips that tests/allowed_skips.txt does not allow")
        for line in refused:
            terminalreporter.line(line)
