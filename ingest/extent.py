"""What input files tell of, by the pieces of their rows: which jobs, nodes or series, when, and at which very times."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

import numpy as np
import polars as pl

from ingest.parts import PartReader
from ingest.reconcile import SEPARATOR
from ingest.schemas import DEVICE_KEY, SERIES_KEY, TIME
from ingest.sources.kinds import KINDS
from ingest.summaries import IntArray, whole_numbers

_DEVICE: Final = list(DEVICE_KEY)
_NO_TIME: Final = np.empty(0, np.int64)


class FilePieces:
    """Pieces by the files whose rows they have, found without a look at all others."""

    def __init__(self, pieces: pl.DataFrame, names: Collection[str]) -> None:
        """Take the pieces; ``names`` are the files that will be asked for."""
        self._pieces = pieces
        numbered = pieces.select("node", at=pl.int_range(pl.len()), name=pl.col("input").str.split(SEPARATOR))
        told = numbered.explode("name").filter(pl.col("name").is_in(list(names)))
        self._at: dict[str, list[int]] = dict(told.group_by("name").agg("at").iter_rows())
        on_node = told.drop_nulls("node").group_by(pl.col("node").cast(pl.String)).agg(pl.col("name").unique())
        self._on_node: dict[str, list[str]] = dict(on_node.iter_rows())

    def of(self, name: str, kind: str) -> pl.DataFrame:
        """Return the pieces that have rows of a file of a kind."""
        mine = self._pieces[pl.Series(self._at.get(name, []), dtype=pl.UInt32)]
        return mine.filter(pl.col("table") == KINDS[kind].table)

    def names_on(self, nodes: Iterable[str]) -> set[str]:
        """Return the files that have rows of any of these nodes."""
        return {name for node in nodes for name in self._on_node.get(node, ())}


def find_extent(mine: pl.DataFrame, kind: str) -> pl.DataFrame:
    """Return what a file tells of: a row a job, node or series, with the first and the last time (or nulls).

    Parameters
    ----------
    mine : the file's pieces
    """
    span = (pl.col("first_time").min(), pl.col("last_time").max())
    if KINDS[kind].table == "gpu_samples":
        return mine.group_by(SERIES_KEY).agg(span)
    key = "node" if kind == "node" else "job_id"
    columns = [key, "time"] if kind == "node" else [key]
    frames = [_spans(frame, key) for frame in _read(mine, columns)]
    empty = pl.DataFrame(schema={key: pl.String if kind == "node" else pl.Int64, "first_time": TIME, "last_time": TIME})
    return pl.concat([empty, *frames]).group_by(key).agg(span)


def _spans(frame: pl.DataFrame, key: str) -> pl.DataFrame:
    time = pl.col("time") if "time" in frame.columns else pl.lit(None, TIME)
    return frame.group_by(key).agg(time.min().alias("first_time"), time.max().alias("last_time"))


def _read(pieces: pl.DataFrame, columns: list[str]) -> Iterable[pl.DataFrame]:
    reader = PartReader()
    for part, start, rows in pieces.sort("part", "row_start").select("part", "row_start", "rows").iter_rows():
        yield from reader.frames(part, start, rows, columns)


def meets(old: pl.DataFrame, now: pl.DataFrame) -> bool:
    """Return whether two files tell of a same job, node or series (at a same time, where there are times)."""
    both = old.join(now, on=key_of(old), suffix="_now", nulls_equal=True)
    apart = (pl.col("first_time") > pl.col("last_time_now")) | (pl.col("last_time") < pl.col("first_time_now"))
    return not both.filter(~apart.fill_null(False)).is_empty()


def find_lost(old: pl.DataFrame, now: pl.DataFrame) -> pl.DataFrame:
    """Return the keys, sorted, of what is in ``old`` and not in ``now``, or only for a part of the time."""
    key = key_of(old)
    both = old.join(now, on=key, suffix="_now", nulls_equal=True)
    less = (pl.col("first_time") < pl.col("first_time_now")) | (pl.col("last_time") > pl.col("last_time_now"))
    whole = both.filter(~less.fill_null(False))
    return old.join(whole, on=key, how="anti", nulls_equal=True).select(key).sort(key)


def key_of(extent: pl.DataFrame) -> list[str]:
    return [name for name in extent.columns if name not in ("first_time", "last_time")]


def count_found(old: pl.DataFrame, new: pl.DataFrame, placed: pl.Expr) -> pl.DataFrame:
    """Return pieces with ``found``: how many of their rows have a time that other pieces of their GPU have as well.

    The times of one GPU are in memory at once, those of the other pieces.

    Parameters
    ----------
    old, new : pieces of GPU samples; `FilePieces` finds them
    placed : the times of ``old`` as they are to be compared
    """
    reader, counted = PartReader(), [old.clear().with_columns(found=pl.lit(0, pl.Int64))]
    for device, pieces in old.sort("part", "row_start").partition_by(_DEVICE, as_dict=True).items():
        mine = new.filter(*(pl.col(name) == value for name, value in zip(_DEVICE, device, strict=True)))
        times = np.unique(np.concatenate([_NO_TIME, *(_micros(frame["time"]) for frame in _read(mine, ["time"]))]))
        found = []
        for part, start, rows in pieces.select("part", "row_start", "rows").iter_rows():
            frames = reader.frames(part, start, rows, ["time"])
            found.append(sum(_count_in(_micros(frame.select(placed).to_series()), times) for frame in frames))
        counted.append(pieces.with_columns(found=pl.Series(found, dtype=pl.Int64)))
    return pl.concat(counted)


def _micros(times: pl.Series) -> IntArray:
    return whole_numbers(times.drop_nulls())


def _count_in(values: IntArray, times: IntArray) -> int:
    """Return how many values are among times, which are sorted."""
    at = np.searchsorted(times, values)
    inside = at < len(times)
    return int(np.count_nonzero(times[at[inside]] == values[inside]))


def are_of(names: Sequence[str]) -> pl.Expr:
    """Return an expression: whether a piece has rows of these files alone."""
    return pl.col("input").str.split(SEPARATOR).list.set_difference(list(names)).list.len() == 0
