"""The Makefile builds .venv once, builds it anew after an interruption, and says in a line what it lacks.

Python, pip and uv are stand-ins that write down how they were called; the real ones run wherever `make test` does.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

STAND_IN = """#!/bin/sh
echo "$(basename "$0") $*" >> "$LOG"
case "$*" in
  "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python; cp "$0" .venv/bin/uv ;;
  "$FAIL") exit 1 ;;
esac
"""


class Checkout:
    """A folder with the Makefile and what it looks at, on a machine that has little more than a shell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / "programs"
        self.log = folder / "log"
        self.programs.mkdir(parents=True)
        for name in ("sh", "make", "sed", "rm", "touch", "echo", "mkdir", "cp", "basename", "find"):
            (self.programs / name).symlink_to(str(shutil.which(name)))
        shutil.copy(ROOT / "Makefile", folder)
        for name in re.findall(r"^\$\(READY\): (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()

    def add_python(self, name: str) -> None:
        (self.programs / name).write_text(STAND_IN)
        (self.programs / name).chmod(0o755)

    def make(self, target: str, fail: str = "nothing fails") -> tuple[int, list[str], str]:
        """Return the exit code, the calls of python, pip and uv, and what was said on standard error."""
        self.log.unlink(missing_ok=True)
        done = subprocess.run(
            ["make", target],
            cwd=self.folder,
            env={"PATH": str(self.programs), "LOG": str(self.log), "FAIL": fail},
            capture_output=True,
            text=True,
            check=False,
        )
        calls = self.log.read_text().splitlines() if self.log.exists() else []
        return done.returncode, calls, done.stderr


@pytest.fixture
def checkout(tmp_path):
    checkout = Checkout(tmp_path / "checkout")
    checkout.add_python("python3.11")
    return checkout


INSTALL = "pip install --quiet --python .venv/bin/python --require-hashes --compile-bytecode -r requirements.lock"
OWN = "python -m pip install --quiet --no-deps --no-build-isolation --editable ."


def test_the_first_target_builds_the_environment_and_the_second_does_not(checkout):
    code, calls, _ = checkout.make("test")
    assert code == 0
    assert calls.index("python3.11 -m venv .venv") < calls.index(f"uv {INSTALL}") < calls.index(OWN)
    assert calls[-1] == "python -m pytest -n 2 --dist loadfile -m not slow and not system"
    assert checkout.make("test")[1] == ["python -m pytest -n 2 --dist loadfile -m not slow and not system"]


def test_nothing_but_jobwatt_itself_is_installed_without_a_known_hash(checkout):
    for fail in ("nothing fails", INSTALL):
        installs = [call for call in checkout.make("test", fail=fail)[1] if " install " in call]
        assert [call for call in installs if "--require-hashes" not in call] == [OWN]
        shutil.rmtree(checkout.folder / ".venv")


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-uv.lock"])
def test_every_package_of_a_lock_has_a_version_and_a_hash(lock):
    assert f"-r {lock}" in (ROOT / "Makefile").read_text()
    packages = re.sub(r"^ *#.*\n", "", (ROOT / lock).read_text(), flags=re.MULTILINE)
    for package in re.split(r"\n(?=\w)", packages):
        assert re.match(r"[\w.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", package, re.DOTALL), package


def test_a_newer_lock_is_installed_into_the_environment_that_is_there(checkout):
    checkout.make("test")
    later = (checkout.folder / ".venv/.ready").stat().st_mtime + 10
    os.utime(checkout.folder / "requirements.lock", (later, later))
    _, calls, _ = checkout.make("test")
    assert f"uv {INSTALL}" in calls
    assert "python3.11 -m venv .venv" not in calls


def test_what_was_interrupted_is_built_anew(checkout):
    code, _, _ = checkout.make("test", fail=OWN.removeprefix("python "))
    assert code != 0
    assert not (checkout.folder / ".venv/.ready").exists()
    (checkout.folder / ".venv/half-copied").touch()
    code, calls, _ = checkout.make("test")
    assert code == 0
    assert "python3.11 -m venv .venv" in calls
    assert not (checkout.folder / ".venv/half-copied").exists()


def test_pip_does_the_work_where_uv_does_not_get_through(checkout):
    code, calls, _ = checkout.make("test", fail=INSTALL)
    assert code == 0
    assert "python -m pip install --quiet --require-hashes -r requirements.lock" in calls


def test_python3_will_do_where_there_is_no_python311(tmp_path):
    checkout = Checkout(tmp_path / "checkout")
    checkout.add_python("python3")
    assert "python3 -m venv .venv" in checkout.make("test")[1]


def test_a_machine_without_python_is_told_in_one_line_what_to_install(tmp_path):
    code, _, said = Checkout(tmp_path / "checkout").make("test")
    assert code != 0
    assert said.startswith("make: neither python3.11 nor python3 is Python 3.11 or newer with venv; install it")


def test_help_lists_every_target():
    targets = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()
    done = subprocess.run(
        ["make"], cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True
    )
    assert {line.split()[1] for line in done.stdout.splitlines()} == set(targets)
    assert {"demo", "test", "check", "bench", "clean"} <= set(targets)


def test_check_is_strict_about_skips_and_runs_the_same_tests_as_the_readme(checkout):
    for name in ("ruff", "mypy", "lint-imports"):
        checkout.make("test")
        shutil.copy(checkout.folder / ".venv/bin/uv", checkout.folder / ".venv/bin" / name)
    stand_in = (checkout.folder / ".venv/bin/python").read_text()
    (checkout.folder / ".venv/bin/python").write_text(stand_in.replace("$*", "$* strict=$JOBWATT_STRICT_SKIPS", 1))
    assert checkout.make("check")[1] == [
        "ruff check .",
        "ruff format --check .",
        "mypy ",
        "lint-imports ",
        "python -m pytest -n 2 --dist loadfile -m not slow and not system strict=1",
        "python -m pytest -n 2 --dist loadfile -m slow or system strict=1",
    ]
    assert checkout.make("test")[1] == ["python -m pytest -n 2 --dist loadfile -m not slow and not system strict="]


def test_ci_calls_make_check_without_a_terminal_and_passes_its_exit_code_on(checkout):
    shutil.copytree(ROOT / ".ci", checkout.folder / ".ci")
    (checkout.programs / "make").unlink()
    (checkout.programs / "make").write_text('#!/bin/sh\necho "make $* $JOBWATT_REFERENCE_DATA" > "$LOG"; cat; exit 7\n')
    (checkout.programs / "make").chmod(0o755)
    for name in ("bash", "dirname", "cat", "env"):
        (checkout.programs / name).symlink_to(str(shutil.which(name)))
    environment = {"PATH": str(checkout.programs), "LOG": str(checkout.log), "JOBWATT_REFERENCE_DATA": "/somewhere"}
    done = subprocess.run([checkout.folder / ".ci/run"], env=environment, timeout=20, check=False)
    assert done.returncode == 7
    assert checkout.log.read_text() == "make check /somewhere\n"
