"""Keys that are taken: by rows of the same file that were stored before, or by any row of a lake."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq

from ingest.batches import Ordered
from ingest.schemas import TABLES

_LAST, _ROW, _ALL = "last", "row", "all"
_SERIES: Final = TABLES["gpu_samples"].key[:-1]


class TakenKeys:
    """The keys of those rows of one file that were stored, batch by batch, each batch as one part.

    Held is the last time of each series (or the greatest job id, where a key has no time): a row beyond it is new. Any
    other row is looked up in the parts that reach over it. So memory grows with the series of a file, not with its
    rows, and a file in order is hardly ever looked up; one in no order at all costs time with the square of its parts.
    """

    def __init__(self, table: str) -> None:
        self._columns = TABLES[table].columns
        self._key = TABLES[table].key
        self._axis = "time" if "time" in self._key else "job_id"
        self._last: pl.DataFrame | None = None
        self._parts: list[tuple[str, Any, Any]] = []

    def set_apart(self, ordered: Ordered) -> Ordered:
        """Return the batch with the rows whose key is taken among the repeated ones."""
        taken = self._find(ordered.frame)
        if not taken.any():
            return ordered
        repeated = pl.concat([ordered.repeated, ordered.frame.filter(taken)], how="diagonal_relaxed")
        return Ordered(ordered.frame.filter(~taken), repeated, ordered.out_of_order)

    def add(self, frame: pl.DataFrame, part: str) -> None:
        """Take in the rows that were stored in a part."""
        self._parts.append((part, frame[self._axis].min(), frame[self._axis].max()))
        last = self._with_series(frame).rename({self._axis: _LAST})
        by = [name for name in last.columns if name != _LAST]
        if self._last is not None:
            last = pl.concat([self._last, last])
        self._last = last.group_by(by).agg(pl.col(_LAST).max())

    def _with_series(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the columns that tell a series (one for all rows where the key has no time), and the axis."""
        if self._axis != "time":
            return frame.select(pl.lit(0, pl.Int8).alias(_ALL), self._axis)
        return frame.select(name for name in self._key if name in frame.columns)

    def _find(self, frame: pl.DataFrame) -> pl.Series:
        """Return which rows of a batch have a key that a stored row has."""
        row = pl.int_range(frame.height, eager=True).alias(_ROW)
        key = [name for name in self._key if name in frame.columns]
        if self._last is None or not frame.height:
            return row.is_null()
        series = [name for name in self._last.columns if name != _LAST]
        rows = self._with_series(frame).with_columns(row)
        late = rows.join(self._last, on=series, nulls_equal=True).filter(pl.col(self._axis) <= pl.col(_LAST))
        if not late.height:
            return row.is_null()
        low, high = late[self._axis].min(), late[self._axis].max()
        wanted = frame.select(key).with_columns(row)[late[_ROW]]
        found = [
            wanted.join(self._read_key(part, key), on=key, how="semi", nulls_equal=True)[_ROW]
            for part, first, last in self._parts
            if first <= high and low <= last
        ]
        return row.is_in(pl.concat(found).implode()) if found else row.is_null()

    def _read_key(self, part: str, key: list[str]) -> pl.DataFrame:
        with pq.ParquetFile(part, page_checksum_verification=True) as file:
            stored = file.read(columns=key, use_threads=False).select(key)
        return pl.DataFrame(stored, schema={name: self._columns[name] for name in key})


class KeyCheck:
    """The keys of all rows that a check of a lake meets, as 64-bit hashes: 8 bytes for each that is no GPU sample.

    Of GPU samples, a part is sorted by series (which is checked apart), and the index tells whether two pieces overlap.
    """

    def __init__(self) -> None:
        self._hashes: defaultdict[tuple[str, str], list[npt.NDArray[np.uint64]]] = defaultdict(list)

    def add(self, table: str, cluster: str, keys: pl.DataFrame) -> None:
        """Take in some rows' keys."""
        if table == "quarantine":
            keys = keys.drop_nulls("line")  # a whole file, or a row whose line is not known
        if table != "gpu_samples":
            self._hashes[table, cluster].append(keys.hash_rows(seed=1).to_numpy())

    def problems(self) -> list[str]:
        """Return of which tables keys occur more than once."""
        found = []
        for (table, cluster), hashes in self._hashes.items():
            every = np.sort(np.concatenate(hashes))
            repeats = int(np.count_nonzero(every[1:] == every[:-1]))
            if repeats:
                found.append(f"{table}/cluster={cluster}: {repeats} rows have the key of another row")
        return found


def find_overlaps(pieces: pl.DataFrame) -> list[str]:
    """Return which clusters have GPU samples of which two pieces of one series overlap in time."""
    series = ["cluster", *_SERIES]
    samples = pieces.filter(pl.col("table") == "gpu_samples").sort(*series, "first_time")
    reached = pl.col("last_time").cum_max().shift().over(series)
    found = samples.filter(pl.col("first_time") <= reached).group_by("cluster").len().sort("cluster")
    return [f"gpu_samples/cluster={cluster}: {n} pieces overlap another of their series" for cluster, n in found.rows()]
