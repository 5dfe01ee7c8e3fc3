"""Keys that are taken: by rows of the same file that were stored before, or by any row of a lake."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq

from ingest.batches import Ordered
from ingest.schemas import TABLES

_LAST, _ROW, _ALL = "last", "row", "all"
_SERIES: Final = TABLES["gpu_samples"].key[:-1]

HASH: Final = np.dtype([("high", np.uint64), ("low", np.uint64)])
"""128 bits: that two keys of a file share them by chance is not to be expected in the life of this planet."""

MOST_HELD: Final = 262_144
"""A run of more hashes than this (4 MiB) lies on disk."""

MOST_IN_RUN: Final = 1_048_576
"""Runs are not joined beyond this: sorting one takes 16 MiB, and as much again."""

HashArray = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]


class TakenKeys:
    """The keys of those rows of one file that were stored, batch by batch, each batch as one part.

    Held is the last time of each series (or the greatest job id, where a key has no time): a row beyond it is new. Any
    other row is looked up among the hashes of all keys, which are made at the first such row: so memory grows with the
    series of a file, not with its rows, a file in order costs nothing, and one in no order at all no more than sorting.
    """

    def __init__(self, table: str) -> None:
        self._columns = TABLES[table].columns
        self._key = TABLES[table].key
        self._axis = "time" if "time" in self._key else "job_id"
        self._last: pl.DataFrame | None = None
        self._unhashed: list[str] = []
        self._hashes = HashRuns()

    def set_apart(self, ordered: Ordered) -> Ordered:
        """Return the batch with the rows whose key is taken among the repeated ones."""
        taken = self._find(ordered.frame)
        if not taken.any():
            return ordered
        repeated = pl.concat([ordered.repeated, ordered.frame.filter(taken)], how="diagonal_relaxed")
        return Ordered(ordered.frame.filter(~taken), repeated, ordered.out_of_order)

    def add(self, frame: pl.DataFrame, part: str) -> None:
        """Take in the rows that were stored in a part."""
        self._unhashed.append(part)
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
        while self._unhashed:
            part = self._unhashed.pop()
            self._hashes.add(self._hash(self._read_key(part, key)), beside=Path(part))
        at = late[_ROW]
        found = self._hashes.contains(self._hash(frame.select(key)[at]))
        return row.is_in(at.filter(pl.Series(found)).implode())

    def _hash(self, keys: pl.DataFrame) -> HashArray:
        """Return 128 bits for each key."""
        same = keys.select(pl.col(name).cast(self._columns[name]) for name in keys.columns)
        hashes = np.empty(same.height, HASH)
        for half, seed in (("high", 1), ("low", 2)):
            hashes[half] = same.hash_rows(seed=seed).to_numpy()
        return hashes

    def _read_key(self, part: str, key: list[str]) -> pl.DataFrame:
        with pq.ParquetFile(part, page_checksum_verification=True) as file:
            stored = file.read(columns=key, use_threads=False).select(key)
        return pl.DataFrame(stored, schema={name: self._columns[name] for name in key})


class HashRuns:
    """A set of hashes in sorted runs, of which longer ones are on disk: joined two and two, as long as they are alike.

    >>> runs, hashes = HashRuns(), np.array([(5, 1), (3, 1), (4, 1)], HASH)
    >>> runs.add(hashes[:2], beside=Path("unused")), runs.contains(hashes)
    (None, array([ True,  True, False]))
    """

    def __init__(self) -> None:
        self._runs: list[HashArray] = []

    def add(self, hashes: HashArray, *, beside: Path) -> None:
        """Take in hashes; a run that is long lies in a nameless file in the folder of ``beside``."""
        run = hashes[np.argsort(hashes["high"])]
        while self._runs and len(self._runs[-1]) <= 2 * len(run) and len(self._runs[-1]) + len(run) <= MOST_IN_RUN:
            run = np.concatenate([self._runs.pop(), run])
            run = run[np.argsort(run["high"], kind="stable")]
        if len(run):
            self._runs.append(_spill(run, beside.parent) if len(run) > MOST_HELD else run)

    def contains(self, hashes: HashArray) -> BoolArray:
        """Return which of some hashes are in the set."""
        order = np.argsort(hashes["high"])
        asked = hashes[order]
        found = np.zeros(len(hashes), np.bool_)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run["high"], asked["high"]), len(run) - 1)
            found[order] |= run[at] == asked
        return found


def _spill(run: HashArray, folder: Path) -> HashArray:
    """Return an array that lies on disk, and goes with the last reference to it."""
    with tempfile.TemporaryFile(dir=folder) as file:
        run.tofile(file)
        file.flush()
        return np.memmap(file, HASH, mode="r", shape=run.shape)


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
