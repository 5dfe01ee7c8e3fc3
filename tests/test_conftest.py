from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import read_allowed_skips, refused_skips

CONFTEST = Path(__file__).with_name("conftest.py")


def run_pytest(folder: Path, *, strict: bool) -> subprocess.CompletedProcess[str]:
    """Run two skipped tests, one of which the list beside them allows, with a copy of our conftest.py."""
    (folder / "conftest.py").write_bytes(CONFTEST.read_bytes())
    (folder / "allowed_skips.txt").write_text("*: no GPU*  # not everybody has one\n")
    (folder / "test_two.py").write_text(
        "import pytest\n"
        "def test_one(): pytest.skip('no GPU in here')\n"
        "@pytest.mark.skip(reason='broken, later')\n"
        "def test_two(): pass\n"
        "def test_three(): pass\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "JOBWATT_STRICT_SKIPS"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder / "test_two.py")],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=environment | ({"JOBWATT_STRICT_SKIPS": "1"} if strict else {}),
    )


def test_a_skip_that_is_not_on_the_list_fails_a_strict_run_and_is_named(tmp_path):
    done = run_pytest(tmp_path, strict=True)
    assert done.returncode == 1
    said = done.stdout.partition("does not allow")[2]
    assert "test_two.py::test_two: broken, later" in said
    assert "no GPU" not in said


def test_a_run_that_is_not_strict_passes_with_any_skip(tmp_path):
    assert run_pytest(tmp_path, strict=False).returncode == 0


def test_a_skip_is_allowed_by_its_test_or_by_its_reason():
    skipped = ["tests/a.py::test_x: no GPU", "tests/b.py::test_y: no GPU"]
    assert refused_skips(skipped, ["tests/a.py::*"]) == ["tests/b.py::test_y: no GPU"]
    assert refused_skips(skipped, ["*: no GPU"]) == []
    assert refused_skips(skipped, []) == skipped


def test_the_list_of_allowed_skips_is_short_and_says_why():
    path = CONFTEST.with_name("allowed_skips.txt")
    patterns = read_allowed_skips(path)
    assert 1 <= len(patterns) <= 5
    assert all("#" in line for line in path.read_text().splitlines())
    assert "*" not in patterns
