"""How the loops of feature sets are compiled: when first called, once for a machine, and not in silence."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core import event

from features.kernel_cache import cache_folder

_Function = TypeVar("_Function", bound=Callable[..., Any])


def kernel(function: _Function) -> _Function:
    """Compile ``function`` when it is first called and keep the code on disk (`features.kernel_cache` says where).

    Division by zero gives infinity or NaN, as in numpy. Nothing is reordered: a sum has the same rounding everywhere.
    """
    return _compiled(function, fastmath=False)


def loose_kernel(function: _Function) -> _Function:
    """Compile as ``kernel`` does, but let sums be added in whatever order is quickest."""
    return _compiled(function, fastmath={"reassoc"})


def _compiled(function: _Function, fastmath: bool | set[str]) -> _Function:
    options: dict[str, Any] = {"error_model": "numpy", "nogil": True, "fastmath": fastmath}
    try:
        return cast(_Function, numba.njit(cache=True, **options)(function))
    except RuntimeError:  # no folder, neither here nor of the user's, where code could be kept: each process compiles
        return cast(_Function, numba.njit(**options)(function))


def drop_stale_code(folder: Path) -> None:
    """Remove compiled kernels that are older than any source beside or below them.

    numba looks at a kernel's own file only: one that calls a kernel of another file would keep that one's old code.
    """
    newest_s = max((source.stat().st_mtime for source in folder.rglob("*.py")), default=0.0)
    for index in folder.rglob("__pycache__/*.nbi"):
        with suppress(OSError):  # gone already, or not ours to remove
            if index.stat().st_mtime <= newest_s:
                index.unlink()


drop_stale_code(Path(__file__).parent)
if cache_folder() != Path(__file__).parent / "__pycache__":  # numba decides by this when a kernel is decorated
    numba.config.CACHE_DIR = str(cache_folder())


class _Compilations(event.Listener):  # type: ignore[misc]  # numba has no types
    """Tells of the first compilation that it sees; kernels that come from the disk are none."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._thread = threading.get_ident()
        self._told = False

    def on_start(self, event: Any) -> None:  # noqa: ARG002  # numba's signature
        if not self._told and threading.get_ident() == self._thread:
            self._told = True
            self._tell("compiling the kernels of the feature sets: up to a minute, once on this machine")

    def on_end(self, event: Any) -> None:
        """Nothing is told."""


@contextmanager
def compilation_told(tell: Callable[[str], None]) -> Iterator[None]:
    """Call ``tell`` with one line if, inside this block, a kernel has to be compiled; say nothing otherwise."""
    with event.install_listener("numba:compile", _Compilations(tell)):
        yield
