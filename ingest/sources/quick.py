"""Clean numeric CSV into typed frames by a small compiled parser, where one was built; else nothing is found quick.

`parse` gives up on the first doubtful line (`_quick.c` says what is doubtful). Then, or where there was no C compiler
when jobwatt was installed, `ingest.sources.delimited` does the work: the same frame, more slowly.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

import numpy as np
import polars as pl

from ingest.compiled import compiled, count_newlines
from ingest.quality import LIMITS, NULL_TOKENS, SENTINELS
from ingest.schemas import TIME
from ingest.sources.delimited import Header, has_sentinel
from ingest.units import US_PER_S

_SKIP, _TIME_US, _WORD = 0, 8, 9
_SENTINEL_TIMES_S = [int(s) for s in SENTINELS if LIMITS["time_epoch_s"][0] <= s <= LIMITS["time_epoch_s"][1]]
_KINDS: Final[dict[pl.DataType, tuple[int, str]]] = {
    pl.UInt8(): (1, "u1"),
    pl.Int16(): (2, "i2"),
    pl.UInt16(): (3, "u2"),
    pl.UInt32(): (4, "u4"),
    pl.Int64(): (5, "i8"),
    pl.Float32(): (6, "f4"),
    pl.Float64(): (7, "f8"),
}
_SPARE_VALUES: Final = 8
"""What the parser may write beyond the last row: eight bytes, at most so many values."""

_MAX_WORDS, _WORD_SLOTS, _WORD_BYTES = 65_535, 131_072, 4 * 1024**2


class _Words(ctypes.Structure):
    _fields_ = (
        ("bytes", ctypes.c_void_p),
        ("capacity", ctypes.c_int64),
        ("used", ctypes.c_int64),
        ("ends", ctypes.c_void_p),
        ("count", ctypes.c_int32),
        ("slots", ctypes.c_void_p),
    )


@cache
def library() -> Any:
    """Return the compiled parser's function, or None where there is none."""
    function = getattr(compiled(), "jobwatt_parse", None)
    if function is None:
        return None
    function.restype = ctypes.c_int64
    function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, *[ctypes.c_void_p] * 4]
    function.argtypes += [ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    return function


def is_available() -> bool:
    """Return whether the compiled parser is there."""
    return library() is not None


def parse(
    bodies: Sequence[bytes | memoryview], header: Header, types: Mapping[str, pl.DataType]
) -> tuple[pl.DataFrame, list[int]] | None:
    """Return the typed frame of all bodies and the rows of each; None on any doubt, or without a compiled parser.

    Parameters
    ----------
    bodies : texts without header, each ending with a newline
    types : type of each column; ``time_epoch_s`` becomes ``time`` (microseconds, exact), texts become categories
    """
    function = library()
    layout = _layout(header, types)
    if function is None or layout is None:
        return None
    kinds, names = layout
    width = header.width
    capacity = sum(count_newlines(body) for body in bodies)
    arrays = [np.empty(capacity + _SPARE_VALUES, dtype) if dtype else None for dtype in names]
    outs = (ctypes.c_void_p * width)(*[array.ctypes.data if array is not None else None for array in arrays])
    limits = [LIMITS.get(column or "", (-np.inf, np.inf)) for column in header.columns]
    lows, highs = (np.array(side, np.float64) for side in zip(*limits, strict=True))
    words, keep = _new_words() if _WORD in kinds else (None, ())
    row, rows = 0, []
    for body in bodies:
        view = np.frombuffer(body, np.uint8)
        done = function(
            view.ctypes.data, len(view), width, kinds.ctypes.data, lows.ctypes.data, highs.ctypes.data, outs, row,
            capacity, ctypes.byref(words) if words is not None else None,
        )  # fmt: skip
        if done < 0:
            return None
        rows.append(done - row)
        row = done
    texts = _read_words(words, keep)
    if any(word in NULL_TOKENS or word != word.strip() for word in texts.cast(pl.String)):
        return None
    columns: dict[str, pl.Series] = {}
    for column, kind, array in zip(header.columns, kinds.tolist(), arrays, strict=True):
        if column is None or array is None:
            continue
        series = pl.Series(array[:row])
        if kind == _TIME_US:
            if any(np.any(array[:row] == second * US_PER_S) for second in _SENTINEL_TIMES_S):
                return None
            columns["time"] = series.cast(TIME)
        else:
            columns[column] = texts.gather(series) if kind == _WORD else series
    frame = pl.DataFrame(columns)
    return None if has_sentinel(frame) else (frame, rows)


def _layout(header: Header, types: Mapping[str, pl.DataType]) -> tuple[np.ndarray[Any, Any], list[str]] | None:
    """Return the kind of each field and the array type of each (''), None where a type is not for this parser."""
    kinds, dtypes = [], []
    for column in header.columns:
        if column is None:
            kind, dtype = _SKIP, ""
        elif column == "time_epoch_s":
            kind, dtype = _TIME_US, "i8"
        elif types[column] == pl.String():
            kind, dtype = _WORD, "i4"
        elif types[column] in _KINDS:
            kind, dtype = _KINDS[types[column]]
        else:
            return None
        kinds.append(kind)
        dtypes.append(dtype)
    return (np.array(kinds, np.int32), dtypes) if header.width > 1 else None


def _new_words() -> tuple[_Words, tuple[Any, ...]]:
    text, ends = np.empty(_WORD_BYTES, np.uint8), np.empty(_MAX_WORDS, np.int32)
    slots = np.zeros(_WORD_SLOTS, np.int32)
    words = _Words(text.ctypes.data, len(text), 0, ends.ctypes.data, 0, slots.ctypes.data)
    return words, (text, ends, slots)


def _read_words(words: _Words | None, keep: tuple[Any, ...]) -> pl.Series:
    if words is None:
        return pl.Series([], dtype=pl.Categorical)
    text, ends, _ = keep
    stops = ends[: words.count].tolist()
    raw = text[: words.used].tobytes().decode("ascii")
    return pl.Series(
        [raw[a:b] for a, b in zip([0, *stops[:-1]], stops, strict=True)] if stops else [], dtype=pl.Categorical
    )
