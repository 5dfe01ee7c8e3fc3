"""What all tests share: where data is, how Hypothesis searches, and that no test is skipped behind our back."""

from __future__ import annotations

import os
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
