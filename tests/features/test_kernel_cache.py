"""Compiled kernels are kept for the sources, versions and processor that they are of, and no others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from features.kernel_cache import cache_folder, compiling, is_compiled, note_compiled

ROOT = Path(__file__).parents[2]

KERNELS = """
import numba

@kernel
def one(x):
    return x
"""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "features"
    (folder / "efficient").mkdir(parents=True)
    (folder / "efficient" / "levels.py").write_text(KERNELS)
    (folder / "kernel.py").write_text("options = 1\n")
    (folder / "windows.py").write_text("no = 'kernel'\n")
    return folder


def test_code_is_kept_beside_the_modules_where_that_can_be_written(sources):
    assert cache_folder(sources, {"HOME": "/nowhere"}).parent == sources / "__pycache__"


def test_where_it_cannot_a_folder_of_the_user_s_has_it_unless_another_was_chosen(sources, tmp_path):
    (sources / "__pycache__").write_text("in the way, as a folder is that may not be written")
    home = {"HOME": str(tmp_path / "home")}
    assert cache_folder(sources, home).parent == tmp_path / "home" / ".cache" / "jobwatt"
    assert cache_folder(sources, {**home, "XDG_CACHE_HOME": "/xdg"}).parent == Path("/xdg/jobwatt")
    assert cache_folder(sources, {**home, "NUMBA_CACHE_DIR": "/chosen"}).parent == Path("/chosen")


@pytest.mark.parametrize("module", ["efficient/levels.py", "kernel.py"])
def test_the_folder_is_another_one_after_an_edit_of_any_kernel_and_the_same_after_a_touch(module, sources):
    first = cache_folder(sources, {})
    for path in sources.rglob("*.py"):
        os.utime(path, (1000, 1000))
    (sources / "windows.py").write_text("no = 'kernel here'\n")
    assert cache_folder(sources, {}) == first
    (sources / module).write_text((sources / module).read_text() + "\n")
    assert cache_folder(sources, {}) != first


def test_the_folder_is_another_one_for_another_processor(sources):
    assert cache_folder(sources, {"NUMBA_CPU_NAME": "generic"}) != cache_folder(sources, {})


def test_a_set_is_compiled_when_that_was_noted_of_it_in_the_folder_of_its_sources(sources):
    folder = cache_folder(sources, {})
    assert not is_compiled("efficient", folder)
    note_compiled("efficient", folder)
    assert is_compiled("efficient", folder)
    assert not is_compiled("intervals", folder)


def test_code_of_earlier_sources_goes_when_the_new_is_compiled(sources):
    earlier, other = cache_folder(sources, {}), cache_folder(sources, {"NUMBA_CPU_NAME": "generic"})
    note_compiled("efficient", earlier)
    note_compiled("efficient", other)
    assert is_compiled("efficient", earlier)
    (sources / "kernel.py").write_text("options = 2\n")
    note_compiled("efficient", cache_folder(sources, {}))
    assert not earlier.exists()
    assert not other.exists()


def test_a_set_whose_folder_cannot_be_made_is_never_noted_and_no_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    note_compiled("efficient", tmp_path / "file" / "kernels")
    assert not is_compiled("efficient", tmp_path / "file" / "kernels")


def test_one_compiles_at_a_time_and_who_waits_for_it_says_so_first(tmp_path):
    said, entered = threading.Event(), threading.Event()

    def other() -> None:
        with compiling(said.set, tmp_path):
            entered.set()

    with compiling(pytest.fail, tmp_path):
        waiting = threading.Thread(target=other)
        waiting.start()
        assert said.wait(10)
        assert not entered.wait(0.1)
    waiting.join(10)
    assert entered.is_set()


def test_who_died_while_it_compiled_keeps_nobody_waiting(tmp_path):
    code = "import os, pathlib; from features.kernel_cache import compiling\n"
    code += f"with compiling(print, pathlib.Path({str(tmp_path)!r})): os._exit(0)"
    run_python(code, ROOT)
    with compiling(pytest.fail, tmp_path):
        pass


def test_where_nothing_can_be_kept_nobody_waits(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with compiling(pytest.fail, tmp_path / "file"), compiling(pytest.fail, tmp_path / "file"):
        pass


# -- in processes of their own -----------------------------------------------------------------------------------------

CALLEE = "from features.kernel import kernel\n\n@kernel\ndef callee(x):\n    return x + {}\n"
CALLER = (
    "from features.callee import callee\nfrom features.kernel import kernel\n\n"
    "@kernel\ndef caller(x):\n    return callee(x)\n"
)


def run_python(code: str, root: Path, cache: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment |= {"PYTHONPATH": str(root)} | ({"NUMBA_CACHE_DIR": str(cache)} if cache else {})
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def copy_of_kernels(root: Path) -> Path:
    """A package `features` of a kernel that calls that of another module."""
    package = root / "features"
    package.mkdir(parents=True)
    for name in ("__init__.py", "kernel.py", "kernel_cache.py"):
        shutil.copy(ROOT / "features" / name, package)
    (package / "callee.py").write_text(CALLEE.format(1))
    (package / "caller.py").write_text(CALLER)
    return package


CALL = (
    "import features.caller as c; r = c.caller(1); import numba\n"
    "print(r, sum(c.caller.stats.cache_hits.values()), numba.config.CACHE_DIR or 'unset')"
)


@pytest.mark.slow
def test_after_an_edit_of_a_kernel_that_it_calls_a_kernel_gives_the_new_value(tmp_path):
    package = copy_of_kernels(tmp_path)
    assert run_python(CALL, tmp_path).split() == ["2", "0", "unset"]
    assert run_python(CALL, tmp_path).split() == ["2", "1", "unset"]
    os.utime(package / "callee.py")
    assert run_python(CALL, tmp_path).split() == ["2", "1", "unset"]
    (package / "callee.py").write_text(CALLEE.format(2))
    assert run_python(CALL, tmp_path).split() == ["3", "0", "unset"]


@pytest.mark.slow
def test_two_installations_of_the_same_sources_share_the_code_in_a_chosen_folder(tmp_path):
    for name, hits in (("one", "0"), ("other", "1")):
        copy_of_kernels(tmp_path / name)
        assert run_python(CALL, tmp_path / name, tmp_path / "kept").split()[:2] == ["2", hits]


COMPILE = "from features.sets import find_set; from features.warming import compile_kernels\n"
COMPILE += "compile_kernels(find_set({set_name!r}), print, here={here})"


@pytest.mark.slow
def test_the_set_of_intervals_is_compiled_alone_and_told_of_once(tmp_path):
    here = COMPILE.format(set_name="intervals", here=True)
    assert run_python(here, ROOT, tmp_path).count("compiling the kernels") == 1
    assert run_python(here, ROOT, tmp_path) == ""
    [folder] = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["LOCK", "features.intervals", "intervals.compiled"]


@pytest.mark.slow
def test_one_process_compiles_and_says_so_and_the_next_finds_the_code(tmp_path):
    apart, here = (COMPILE.format(set_name="efficient", here=here) for here in (False, True))
    assert run_python(apart, ROOT, tmp_path).count("compiling the kernels") == 1
    assert run_python(here, ROOT, tmp_path) == ""
    found = "from features.efficient import compilation_told, efficient; import numpy as np\n"
    found += "with compilation_told(print): efficient(np.ones((1, 1, 64)))"
    assert run_python(found, ROOT, tmp_path) == ""
