"""Where compiled kernels are kept, and whether they are there: known without importing numba, which takes a second.

The folder's name tells of everything that the code depends on: the sources of all kernels, since one that calls another
holds that one's code, the versions of Python and numba, and the processor. So code of other sources is never loaded,
and code that is there is never out of date.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).parent
"""The folder in and below which the modules are that have kernels."""

_PREFIX: Final = "kernels-"
_DECORATED = re.compile(r"^@(?:loose_)?kernel$", re.MULTILINE)
_PROCESSOR = re.compile(
    r"^(?:vendor_id|cpu family|model|model name|stepping|flags|Features|CPU \w+)\s*:.*$", re.MULTILINE
)


def cache_folder(sources: Path = SOURCES, environment: Mapping[str, str] = os.environ) -> Path:
    """Return where the compiled kernels of the modules in a folder are kept.

    That is in `$NUMBA_CACHE_DIR`; else in ``__pycache__`` beside the modules; else, where that cannot be written (an
    installation that belongs to somebody else), in a folder of the user's.
    """
    name = f"{_PREFIX}{_checksum_of(sources)}-{_checksum_of_machine(environment)}"
    if chosen := environment.get("NUMBA_CACHE_DIR"):
        return Path(chosen) / f"jobwatt-{name}"
    beside = sources / "__pycache__"
    if os.access(beside if beside.exists() else sources, os.W_OK | os.X_OK) and (
        beside.is_dir() or not beside.exists()
    ):
        return beside / name
    above = Path(environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME", "~")).expanduser() / ".cache")
    return above / "jobwatt" / name


def _kernel_sources(sources: Path) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of each module that has kernels, and of the one that says how they are compiled."""
    for path in sorted(sources.rglob("*.py")):
        content = path.read_bytes()
        if path.name == "kernel.py" or _DECORATED.search(content.decode("utf-8")):
            yield path.relative_to(sources).as_posix(), content


def _checksum_of(sources: Path) -> str:
    found = hashlib.sha256()
    for name, content in _kernel_sources(sources):
        found.update(f"{name}\0{len(content)}\0".encode() + content)
    return found.hexdigest()[:16]


def _checksum_of_machine(environment: Mapping[str, str]) -> str:
    """Return a checksum of what compiles and of the processor that it compiles for."""
    chosen = [f"{name}={value}" for name, value in sorted(environment.items()) if name.startswith("NUMBA_CPU")]
    parts = [sys.implementation.cache_tag, version("numba"), version("llvmlite"), _processor(), *chosen]
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:8]


@cache
def _processor() -> str:
    """Return what tells this machine's processor from others that have not all of its instructions."""
    told = ""
    with suppress(OSError):  # not Linux
        told = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").partition("\n\n")[0]
    return "\n".join([platform.machine(), platform.processor(), *_PROCESSOR.findall(told)])


FOLDER: Final = cache_folder()
"""Where this process keeps its kernels: those of the sources as they were when it began."""


def is_compiled(set_name: str, folder: Path = FOLDER) -> bool:
    """Return whether the kernels of a feature set were all compiled, for this machine."""
    return _stamp(set_name, folder).exists()


def note_compiled(set_name: str, folder: Path = FOLDER) -> None:
    """Note that the kernels of a feature set are all kept; beside the modules, drop those of earlier sources.

    Where nothing can be kept nothing is noted, and each process compiles for itself.
    """
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        _stamp(set_name, folder).touch()
    if folder.parent.name == "__pycache__":
        same_sources = folder.name.rpartition("-")[0]
        for other in folder.parent.glob(f"{_PREFIX}*"):
            if other.name.rpartition("-")[0] != same_sources:
                shutil.rmtree(other, ignore_errors=True)


@contextmanager
def compiling(wait: Callable[[], None], folder: Path = FOLDER) -> Iterator[None]:
    """Hold the right to compile, which one process of this machine has at a time, until it ends, however it ends.

    Where nothing can be kept, or locked, each process compiles for itself.

    Parameters
    ----------
    wait : called before waiting for another process
    """
    with ExitStack() as held:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context((folder / "LOCK").open("a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                wait()
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _stamp(set_name: str, folder: Path) -> Path:
    return folder / f"{set_name}.compiled"
