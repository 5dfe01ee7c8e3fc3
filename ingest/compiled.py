"""The functions of `ingest/sources/_quick.c`, where they were compiled when jobwatt was installed."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, Any]
Int32Array = np.ndarray[Any, np.dtype[np.int32]]

LIBRARY: Final = Path(__file__).parent / "sources" / "_quick.so"

MOST_HUNDREDTHS: Final = 2**18
"""Hundredths are looked for under this number of them."""

_NEWLINE = ord("\n")
_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
_ARGUMENTS: Final[dict[str, tuple[Any, ...]]] = {
    "jobwatt_count_newlines": (_POINTER, _LONG),
    "jobwatt_pack_deltas": (_POINTER, _LONG, _POINTER),
    "jobwatt_number_values": (_POINTER, _LONG, _INT, _POINTER, _POINTER, _POINTER),
    "jobwatt_hundredths": (_POINTER, _LONG, ctypes.c_float, _POINTER),
}


@cache
def compiled() -> ctypes.CDLL | None:
    """Return the library, or None where there is none."""
    try:
        return ctypes.CDLL(str(LIBRARY)) if LIBRARY.exists() else None
    except OSError:  # built for another machine
        return None


@cache
def is_available() -> bool:
    """Return whether all functions are there: a library of an older jobwatt lacks some."""
    return all(hasattr(compiled(), name) for name in _ARGUMENTS)


@cache
def _function(name: str) -> Any:
    """Return a function; raises AttributeError where it is not there."""
    function = getattr(compiled(), name)
    function.restype, function.argtypes = _LONG, _ARGUMENTS[name]
    return function


def count_newlines(text: bytes | memoryview) -> int:
    """Return the newlines in a text; numpy counts them where nothing is compiled."""
    view = np.frombuffer(text, np.uint8)
    if not is_available():
        return int(np.count_nonzero(view == _NEWLINE))
    return int(_function("jobwatt_count_newlines")(view.ctypes.data, len(view)))


def pack_deltas(values: Array) -> bytes:
    """Return whole numbers of shape (n,) as Parquet's DELTA_BINARY_PACKED."""
    values = np.ascontiguousarray(values, np.int64)
    out = np.empty(9 * len(values) + 1024, np.uint8)
    size = _function("jobwatt_pack_deltas")(values.ctypes.data, len(values), out.ctypes.data)
    return out[:size].tobytes()


def number_values(values: Int32Array, width: int) -> tuple[Int32Array, Array] | None:
    """Return the different ones among values in [0, width) in order, and for each value which of these it is.

    The latter are bytes, or 16 bits where more than 256 values are met; None where more than 65,536 are.
    """
    n = len(values)
    numbers, met = np.zeros(width, np.uint16), np.empty(min(n, width), np.int32)
    codes = np.empty(n, np.uint16)
    pointers = (numbers.ctypes.data, met.ctypes.data, codes.ctypes.data)
    values = np.ascontiguousarray(values, np.int32)
    count = int(_function("jobwatt_number_values")(values.ctypes.data, n, width, *pointers))
    if count < 0:
        return None
    return met[:count], codes.view(np.uint8)[:n] if count <= 256 else codes


def hundredths(values: np.ndarray[Any, np.dtype[np.float32]]) -> Int32Array | None:
    """Return values as whole hundredths; None where one is not exactly the nearest number to such, or less than 0."""
    out = np.empty(len(values), np.int32)
    values = np.ascontiguousarray(values, np.float32)
    most = MOST_HUNDREDTHS / 100
    whole = _function("jobwatt_hundredths")(values.ctypes.data, len(values), most, out.ctypes.data)
    return out if whole and not np.signbit(values).any() else None
