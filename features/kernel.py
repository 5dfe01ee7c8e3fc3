"""How the loops of feature sets are compiled: when first called, once for a machine, and not in silence."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast

import numba
from numba.core import caching, event

from features.kernel_cache import FOLDER

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
    made = numba.njit(error_model="numpy", nogil=True, fastmath=fastmath)(function)
    with suppress(RuntimeError):  # no folder, neither here nor of the user's, can be written: each process compiles
        made._cache = _Cache(function)  # as njit(cache=True) does, whose folders are the whole process's or fixed
    return cast(_Function, made)


class _Locator(caching._CacheLocator):  # type: ignore[misc]  # numba has no types
    """Says where the code of one kernel is kept, as numba asks: a folder for each module."""

    def __init__(self, function: Callable[..., Any], source: Path) -> None:
        self._stamp = hashlib.sha256(source.read_bytes()).hexdigest()
        self._line = function.__code__.co_firstlineno
        self._path = FOLDER / function.__module__

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> Self | None:
        """Return the locator of a function; None where nothing can be kept, or it is of no file."""
        try:
            found = cls(py_func, Path(py_file))
            found.ensure_cache_path()
        except OSError:
            return None
        return found

    def get_cache_path(self) -> str:
        return str(self._path)

    def get_source_stamp(self) -> str:
        """The checksum of the function's module; those of all kernels together are in the folder's name."""
        return self._stamp

    def get_disambiguator(self) -> str:
        return str(self._line)


class _CacheOfResults(caching.CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes: ClassVar[list[type]] = [_Locator]


class _Cache(caching.FunctionCache):  # type: ignore[misc]
    _impl_class = _CacheOfResults


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
