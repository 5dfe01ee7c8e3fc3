"""Typed rows become sorted rows of a table: one series after another, by time, each time once.

Pure. A batch holds rows of several files (``file`` is their ordinal, in the order in which they will be stored). Rows of one
file stay together, since a file's rows are replaced together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from ingest.rollup import IntArray
from ingest.schemas import TABLES

FILE = "file"


@dataclass(frozen=True, slots=True)
class Ordered:
    """A batch in order; rows whose key is taken already; how many were out of order, by file ordinal."""

    frame: pl.DataFrame
    repeated: pl.DataFrame
    out_of_order: dict[int, int]


def order(frame: pl.DataFrame, table: str) -> Ordered:
    """Return the batch sorted by file and the table's key, the second and later rows of a key set apart."""
    key = [name for name in TABLES[table].key if name in frame.columns]
    if table == "gpu_samples" and "job_id" not in frame.columns:
        return _order_gpu(frame)
    disorder = _count_disorder(frame, key) if "time" in key else {}
    by = [FILE, *key]
    ordered = frame.sort(by, maintain_order=True)
    repeat = ordered.select(
        pl.all_horizontal([pl.col(name).eq_missing(pl.col(name).shift()) for name in by])
    ).to_series()
    repeat = repeat.fill_null(False)
    if not repeat.any():
        return Ordered(ordered, ordered.clear(), disorder)
    return Ordered(ordered.filter(~repeat), ordered.filter(repeat), disorder)


def _count_disorder(frame: pl.DataFrame, key: list[str]) -> dict[int, int]:
    series = [FILE, *[name for name in key if name != "time"]]
    back = pl.col("time").diff().over(series) < pl.duration(microseconds=0)
    found = frame.filter(back).group_by(FILE).len()
    return {int(file): int(n) for file, n in found.iter_rows()}


def _order_gpu(frame: pl.DataFrame) -> Ordered:
    """Return the batch sorted by file, gpu_index and time: the common case, quick where samples are in order."""
    file = frame[FILE].cast(pl.Int64).to_numpy()
    code = file * 65_536 + frame["gpu_index"].cast(pl.Int64).to_numpy()
    time_us = frame["time"].cast(pl.Int64).to_numpy()
    sort: IntArray | None = None
    if np.any(code[1:] < code[:-1]):
        sort = np.argsort(code, kind="stable")
        code, time_us = code[sort], time_us[sort]
    same = code[1:] == code[:-1]
    step_us = np.diff(time_us)
    back = same & (step_us < 0)
    disorder: dict[int, int] = {}
    if back.any():
        files, counts = np.unique(code[1:][back] // 65_536, return_counts=True)
        disorder = {int(f): int(n) for f, n in zip(files, counts, strict=True)}
        again = np.lexsort((time_us, code))
        sort = again if sort is None else sort[again]
        time_us = time_us[again]
        step_us = np.diff(time_us)
    repeat = np.concatenate(([False], same & (step_us == 0))) if len(code) else np.empty(0, bool)
    ordered = frame if sort is None else frame[pl.Series(sort)]
    if not repeat.any():
        return Ordered(ordered, ordered.clear(), disorder)
    mask = pl.Series(repeat)
    return Ordered(ordered.filter(~mask), ordered.filter(mask), disorder)
