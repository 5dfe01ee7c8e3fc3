"""Typed rows become sorted rows of a table: one series after another, by time, each time once.

Pure. A batch holds rows of several files (``file`` is their ordinal, in the order in which they are to be stored). Rows
of one file stay together, since a file's rows are replaced together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from ingest.schemas import SERIES_KEY, TABLES
from ingest.summaries import IntArray, whole_numbers

FILE = "file"
_DENSE = 1024


@dataclass(frozen=True, slots=True)
class Ordered:
    """A batch in order; rows whose key is taken already; how many were out of order, by file ordinal."""

    frame: pl.DataFrame
    repeated: pl.DataFrame
    out_of_order: dict[int, int]


def order(frame: pl.DataFrame, table: str) -> Ordered:
    """Return the batch sorted by file and the table's key, the second and later rows of a key set apart."""
    if table == "gpu_samples":
        return _order_gpu(frame)
    key = [name for name in TABLES[table].key if name in frame.columns]
    disorder = _count_disorder(frame, key) if "time" in key else {}
    by = [FILE, *key]
    ordered = frame.sort(by, maintain_order=True)
    same_as_before = [pl.col(name).eq_missing(pl.col(name).shift()) for name in by]
    repeat = ordered.select(pl.all_horizontal(same_as_before)).to_series().fill_null(False)
    if not repeat.any():
        return Ordered(ordered, ordered.clear(), disorder)
    return Ordered(ordered.filter(~repeat), ordered.filter(repeat), disorder)


def _count_disorder(frame: pl.DataFrame, key: list[str]) -> dict[int, int]:
    series = [FILE, *[name for name in key if name != "time"]]
    back = pl.col("time").diff().over(series) < pl.duration(microseconds=0)
    found = frame.filter(back).group_by(FILE).len()
    return {int(file): int(n) for file, n in found.iter_rows()}


def _order_gpu(frame: pl.DataFrame) -> Ordered:
    """Return the batch sorted by series and time: quick where samples are in order, as they nearly always are."""
    code, per_file = _series_codes(frame)
    time_us = whole_numbers(frame["time"])
    sort: IntArray | None = None
    if np.any(code[1:] < code[:-1]):
        sort = np.argsort(code, kind="stable")
        code, time_us = code[sort], time_us[sort]
    same = code[1:] == code[:-1]
    step_us = np.diff(time_us)
    back = same & (step_us < 0)
    disorder: dict[int, int] = {}
    if back.any():
        files, counts = np.unique(code[1:][back] // per_file, return_counts=True)
        disorder = {int(f): int(n) for f, n in zip(files, counts, strict=True)}
        again = np.lexsort((time_us, code))
        sort = again if sort is None else sort[again]
        time_us = time_us[again]
        step_us = np.diff(time_us)
    ordered = frame if sort is None else frame[pl.Series(sort)]
    repeat = same & (step_us == 0)
    if not repeat.any():
        return Ordered(ordered, ordered.clear(), disorder)
    mask = pl.Series(np.concatenate(([False], repeat)))
    return Ordered(ordered.filter(~mask), ordered.filter(mask), disorder)


def _series_codes(frame: pl.DataFrame) -> tuple[IntArray, int]:
    """Return a number for each row that orders its file and series, and how many numbers there are for each file."""
    code = whole_numbers(frame[FILE])
    per_file = 1
    for name in SERIES_KEY:
        if name not in frame.columns or not frame.height:
            continue
        column = frame[name]
        if column.dtype == pl.String:
            column = column.cast(pl.Enum(column.unique().sort()))
        values = whole_numbers(column)
        low, high = int(values.min()), int(values.max())
        if low == high:
            continue
        if high - low > _DENSE:
            found, values = np.unique(values, return_inverse=True)
            low, high = 0, len(found) - 1
        code = code * (high - low + 1) + (values - low)
        per_file *= high - low + 1
    return code, per_file
