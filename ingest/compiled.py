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


@cache
def compiled() -> ctypes.CDLL | None:
    """Return the library, or None where there is none."""
    try:
        return ctypes.CDLL(str(LIBRARY)) if LIBRARY.exists() else None
    except OSError:  # built for another machine
        return None


@cache
def _function(name: str, *arguments: Any) -> Any:
    function = getattr(compiled(), name, None)
    if function is not None:
        function.restype, function.argtypes = _LONG, arguments
    return function


def count_newlines(text: bytes | memoryview) -> int:
    """Return the newlines in a text."""
    view = np.frombuffer(text, np.uint8)
    function = _function("jobwatt_count_newlines", _POINTER, _LONG)
    if function is None:
        return int(np.count_nonzero(view == _NEWLINE))
    return int(function(view.ctypes.data, len(view)))


def pack_deltas(values: Array) -> bytes | None:
    """Return whole numbers of shape (n,) as Parquet's DELTA_BINARY_PACKED; None where nothing is compiled."""
    function = _function("jobwatt_pack_deltas", _POINTER, _LONG, _POINTER)
    if function is None:
        return None
    values = np.ascontiguousarray(values, np.int64)
    out = np.empty(9 * len(values) + 1024, np.uint8)
    return out[: function(values.ctypes.data, len(values), out.ctypes.data)].tobytes()


def number_values(values: Int32Array, width: int) -> tuple[Int32Array, Array] | None:
    """Return the different ones among values in [0, width) in order, and for each value which of these it is.

    The latter are bytes, or 16 bits where more than 256 values are met; None where more than 65,536 are, or where
    nothing is compiled.
    """
    function = _function("jobwatt_number_values", _POINTER, _LONG, _INT, _POINTER, _POINTER, _POINTER)
    if function is None:
        return None
    n = len(values)
    numbers, met = np.zeros(width, np.uint16), np.empty(min(n, width), np.int32)
    codes = np.empty(n, np.uint16)
    pointers = (numbers.ctypes.data, met.ctypes.data, codes.ctypes.data)
    count = int(function(np.ascontiguousarray(values).ctypes.data, n, width, *pointers))
    if count < 0:
        return None
    return met[:count], codes.view(np.uint8)[:n] if count <= 256 else codes


def hundredths(values: np.ndarray[Any, np.dtype[np.float32]]) -> Int32Array | None:
    """Return values as whole hundredths; None where one is not exactly the nearest number to such, or less than 0."""
    function = _function("jobwatt_hundredths", _POINTER, _LONG, ctypes.c_float, _POINTER)
    if function is None:
        return None
    out = np.empty(len(values), np.int32)
    whole = function(np.ascontiguousarray(values).ctypes.data, len(values), MOST_HUNDREDTHS / 100, out.ctypes.data)
    return out if whole and not np.signbit(values).any() else None
