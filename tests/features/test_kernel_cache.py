from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from features.kernel_cache import cache_folder, is_compiled

ROOT = Path(__file__).parents[2]

KERNELS = """
import numba

@kernel
def one(x):
    return x

@loose_kernel
def other(x):
    return x
"""

TAG = f"py{sys.version_info.major}{sys.version_info.minor}"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "efficient"
    folder.mkdir()
    (folder / "levels.py").write_text(KERNELS)
    os.utime(folder / "levels.py", (1000, 1000))
    return folder


def keep(folder: Path, name: str, at_s: float = 2000.0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"levels.{name}-3.{TAG}.nbi"
    path.write_bytes(b"")
    os.utime(path, (at_s, at_s))


def test_code_is_kept_beside_the_modules_where_that_can_be_written(sources):
    assert cache_folder(sources, {"HOME": "/nowhere"}) == sources / "__pycache__"


def test_where_it_cannot_the_user_s_folder_is_another_one_for_every_version_of_the_sources(sources, tmp_path):
    (sources / "__pycache__").write_text("in the way, as a folder is that may not be written")
    home = {"HOME": str(tmp_path / "home")}
    first = cache_folder(sources, home)
    assert first.parent == tmp_path / "home" / ".cache" / "jobwatt"
    (sources / "levels.py").write_text(KERNELS + "\n")
    assert cache_folder(sources, home) != first
    assert cache_folder(sources, {**home, "XDG_CACHE_HOME": "/xdg"}).is_relative_to("/xdg/jobwatt")
    assert cache_folder(sources, {**home, "NUMBA_CACHE_DIR": "/chosen"}) == Path("/chosen")


def test_all_is_compiled_when_every_kernel_has_code_that_is_newer_than_the_sources(sources):
    beside = sources / "__pycache__"
    assert not is_compiled(sources, {})
    keep(beside, "one")
    assert not is_compiled(sources, {})
    keep(beside, "other", at_s=500.0)
    assert not is_compiled(sources, {})
    keep(beside, "other")
    assert is_compiled(sources, {})


@pytest.mark.slow
def test_one_process_compiles_and_says_so_and_the_next_finds_the_code(tmp_path):
    code = "from features.warming import compile_kernels; compile_kernels(print, here={here})"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def run(here: bool) -> str:
        command = [sys.executable, "-c", code.format(here=here)]
        return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert run(here=False).count("compiling the kernels") == 1
    assert run(here=True) == ""
    found = "from features.efficient import compilation_told, efficient; import numpy as np\n"
    found += "with compilation_told(print): efficient(np.ones((1, 1, 64)))"
    done = subprocess.run([sys.executable, "-c", found], env=environment, cwd=ROOT, capture_output=True, text=True)  # noqa: PLW1510
    assert (done.returncode, done.stdout) == (0, "")
