"""The rewrite task: one part anew, from pieces that are kept and series that are merged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import polars as pl

from ingest.parts import read_rows
from ingest.reconcile import SEPARATOR, Rewrite
from ingest.records import CountKey, Part
from ingest.schemas import SERIES_KEY
from ingest.sources import supercloud
from ingest.staging import Staging

EXTENDING: Final = ("power_avg_w", "energy_counter_j", "sm_clock_mhz", "mem_clock_mhz", "power_limit_w", "throttle")
"""The columns of gpu_samples that an extended file brings."""


BATCH_ROWS: Final = 131_072
"""Series are stored together until they have this many rows."""


@dataclass(frozen=True, slots=True)
class RewriteSpec:
    """A rewrite and where its output goes."""

    rewrite: Rewrite
    staging: str
    part: str


@dataclass(frozen=True, slots=True)
class RewriteResult:
    """Parts and pieces as of a scan; by input: rows merged, rows whose time was taken, extended rows without a base."""

    parts: tuple[Part, ...]
    pieces: str
    counts: Mapping[CountKey, int]
    merged: Mapping[str, int]
    repeated: Mapping[str, int]
    orphaned: Mapping[str, int]


@dataclass(slots=True)
class _Tally:
    merged: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)
    orphaned: Counter[str] = field(default_factory=Counter)


def rewrite_part(spec: RewriteSpec) -> RewriteResult:
    """Write one part anew in key order and return what became of its rows."""
    rewrite = spec.rewrite
    staging, tally = Staging(spec.staging, spec.part), _Tally()
    batch = _Batch(rewrite.table, staging)
    extended = rewrite.extended.partition_by(SERIES_KEY, as_dict=True, include_key=True)
    based: set[tuple[Any, ...]] = set()
    try:
        for key, pieces, is_merged in _in_order(rewrite):
            if is_merged:
                based.add(key)
                batch.add(*_merge(pieces, extended.get(key), staging, tally))
            else:
                for piece in pieces.iter_rows(named=True):
                    batch.add(_rows_of(piece), piece["input"])
        batch.flush()
        for key, pieces in extended.items():
            if key not in based:
                for piece in pieces.iter_rows(named=True):
                    _orphan(piece["input"], _rows_of(piece), staging, tally)
        parts, index = staging.finish()
    except BaseException:
        staging.discard()
        raise
    return RewriteResult(
        parts, index, dict(staging.counts), dict(tally.merged), dict(tally.repeated), dict(tally.orphaned)
    )


def _in_order(rewrite: Rewrite) -> Iterator[tuple[tuple[Any, ...], pl.DataFrame, bool]]:
    """Yield (series key, its pieces, whether they are to be merged) in the order of the key."""
    by = [*SERIES_KEY, "first_time", "row_start"]
    marked = pl.concat(
        [
            rewrite.kept.with_columns(merged=pl.lit(False), stretch=pl.int_range(pl.len())),
            rewrite.base.with_columns(merged=pl.lit(True), stretch=pl.lit(-1, dtype=pl.Int64)),
        ]
    ).sort(by)
    for pieces in marked.partition_by([*SERIES_KEY, "merged", "stretch"], maintain_order=True):
        key = tuple(pieces.select(SERIES_KEY).row(0))
        yield key, pieces.drop("merged", "stretch"), bool(pieces["merged"][0])


def _rows_of(piece: Mapping[str, Any]) -> pl.DataFrame:
    """Return a piece's rows."""
    return read_rows(piece["part"], piece["row_start"], piece["rows"])


class _Batch:
    """Rows in key order that wait to be stored together."""

    def __init__(self, table: str, staging: Staging) -> None:
        self._table = table
        self._staging = staging
        self._frames: list[pl.DataFrame] = []
        self._inputs: list[str] = []
        self._rows = 0

    def add(self, rows: pl.DataFrame, name: str) -> None:
        """Add the rows of one piece, which came from the inputs in ``name``."""
        self._frames.append(rows.with_columns(file=pl.lit(len(self._inputs), dtype=pl.Int32)))
        self._inputs.append(name)
        self._rows += rows.height
        if self._rows >= BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Store what waits."""
        if self._frames:
            self._staging.store(self._table, pl.concat(self._frames), self._inputs)
            self._frames, self._inputs, self._rows = [], [], 0


def _merge(
    base: pl.DataFrame, extended: pl.DataFrame | None, staging: Staging, tally: _Tally
) -> tuple[pl.DataFrame, str]:
    """Return one series joined, and its inputs: the base by time, each time once, then the extended files' columns."""
    ordered = base.sort("is_live", "input", "part", "row_start", descending=[True, False, False, False])
    inputs = ordered["input"].to_list()
    rows = _rows_of(ordered.row(0, named=True))
    if len(inputs) > 1:
        rows = _join_times(ordered, inputs, staging, tally)
    names = list(dict.fromkeys(name for entry in inputs for name in entry.split(SEPARATOR)))
    based = [name for name in names if supercloud.classify(name) != "gpu_extended"]
    if len(based) > 1:
        for name in based:
            staging.counts[name, base["job_id"][0], "two_files_for_series", ""] += 1
    if extended is not None:
        for piece in extended.sort("input", "part", "row_start").iter_rows(named=True):
            rows = _extend(rows, piece, staging, tally)
            names.append(piece["input"])
    return rows, SEPARATOR.join(dict.fromkeys(names))


def _join_times(ordered: pl.DataFrame, inputs: list[str], staging: Staging, tally: _Tally) -> pl.DataFrame:
    """Return the rows of all pieces by time; of one time the first piece's row is kept."""
    rows = pl.concat(
        [_rows_of(piece).with_columns(source=pl.lit(i)) for i, piece in enumerate(ordered.iter_rows(named=True))]
    ).sort("time", "source", maintain_order=True)
    repeat = rows["time"].is_duplicated() & ~rows["time"].is_first_distinct()
    for source in sorted(rows.filter(repeat)["source"].unique()):
        lost = rows.filter(repeat & (rows["source"] == source))
        name = inputs[source].split(SEPARATOR, maxsplit=1)[0]
        _reject(name, "repeated_time", lost, staging)
        tally.repeated[name] += lost.height
    return rows.filter(~repeat).drop("source")


def _extend(rows: pl.DataFrame, piece: Mapping[str, Any], staging: Staging, tally: _Tally) -> pl.DataFrame:
    extra = _rows_of(piece)
    brings = [name for name in EXTENDING if extra[name].null_count() < extra.height]
    based = extra["time"].is_in(rows["time"].implode())
    _orphan(piece["input"], extra.filter(~based), staging, tally)
    joined = rows.join(extra.select("time", *brings), on="time", how="left", suffix="_new", maintain_order="left")
    tally.merged[piece["input"]] += int(based.sum())
    fresh = [pl.coalesce(f"{name}_new", name).alias(name) for name in brings]
    return joined.with_columns(fresh).drop([f"{name}_new" for name in brings])


def _orphan(name: str, rows: pl.DataFrame, staging: Staging, tally: _Tally) -> None:
    if rows.height:
        _reject(name, "no_base_sample", rows, staging)
        tally.orphaned[name] += rows.height


def _reject(name: str, reason: str, rows: pl.DataFrame, staging: Staging) -> None:
    """Put rows that have been parsed already into quarantine, their values written out."""
    shown = [c for c in rows.columns if c != "source"]
    raws = [
        ",".join(f"{column}={value}" for column, value in zip(shown, row, strict=True) if value is not None)
        for row in rows.select(shown).iter_rows()
    ]
    staging.reject((name, None, 1, "gpu_samples", reason, "", raw) for raw in raws)
    staging.counts[name, rows["job_id"][0], reason, ""] += rows.height
