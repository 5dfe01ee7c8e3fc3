"""The rewrite task: one part anew, from pieces that are kept and series that are merged, a batch of rows at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import polars as pl

from ingest.memory import give_back_heap
from ingest.parts import PartReader, read_part
from ingest.reconcile import SEPARATOR
from ingest.records import RewriteResult, RewriteSpec
from ingest.schemas import SERIES_KEY
from ingest.sources import supercloud
from ingest.staging import Staging
from ingest.timemerge import SOURCE, Run, merge

EXTENDING: Final = ("power_avg_w", "energy_counter_j", "sm_clock_mhz", "mem_clock_mhz", "power_limit_w", "throttle")
"""The columns of gpu_samples that an extended file brings."""

BATCH_ROWS: Final = 32_768
"""Series are stored together until they have this many rows, and longer ones in stretches of about as many."""


@dataclass(slots=True)
class _Tally:
    merged: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)
    orphaned: Counter[str] = field(default_factory=Counter)


def rewrite_part(spec: RewriteSpec) -> RewriteResult:
    """Write one part anew in key order and return what became of its rows.

    Raises
    ------
    LakeError
        If a part that it reads is damaged.
    """
    pieces = read_part(spec.pieces)
    staging, tally = Staging(spec.staging, spec.part), _Tally()
    try:
        _Rewriting(spec, pieces, staging, tally).run()
        base = pieces.filter(pl.col("role") == "base")
        parts, index = staging.finish(minutes_of=base)
    except BaseException:
        staging.discard()
        raise
    return RewriteResult(
        spec.part,
        parts,
        index,
        dict(staging.counts),
        dict(tally.merged),
        dict(tally.repeated),
        dict(tally.orphaned),
        spec.bytes,
    )


class _Rewriting:
    """State of one rewrite: what it reads, and where the rows go."""

    def __init__(self, spec: RewriteSpec, pieces: pl.DataFrame, staging: Staging, tally: _Tally) -> None:
        by_role = {role: pieces.filter(pl.col("role") == role).drop("role") for role in ("kept", "base", "extended")}
        self._kept, self._base = by_role["kept"], by_role["base"]
        self._extended = by_role["extended"].partition_by(SERIES_KEY, as_dict=True)
        self._reader = PartReader()
        self._spill = Path(spec.staging) / "spill" / spec.part
        self._staging = staging
        self._tally = tally
        self._batch = _Batch(spec.table, staging)

    def run(self) -> None:
        """Store every piece and series in the order of the key."""
        merged = self._base.partition_by(SERIES_KEY, as_dict=True)
        for key, at in self._in_order():
            if at < 0:
                self._join(merged[key], self._extended.get(key))
            else:
                piece = self._kept.row(at, named=True)
                for rows in self._rows_of(piece):
                    self._batch.add(rows, piece["input"])
        self._batch.flush()
        for key, pieces in self._extended.items():
            if key not in merged:
                for piece in pieces.iter_rows(named=True):
                    for rows in self._rows_of(piece):
                        self._orphan(piece["input"], rows)

    def _in_order(self) -> Iterator[tuple[tuple[Any, ...], int]]:
        """Yield (series key, row of ``kept``, or -1 for a series to be merged) in the order of the key."""
        by = [*SERIES_KEY, "first_time", "part", "row_start"]
        kept = self._kept.select(*by, at=pl.int_range(pl.len(), dtype=pl.Int64))
        merged = self._base.sort(by).unique(SERIES_KEY, keep="first").select(*by, at=pl.lit(-1, pl.Int64))
        for row in pl.concat([kept, merged]).sort(by).iter_rows():
            yield row[: len(SERIES_KEY)], row[-1]

    def _rows_of(self, piece: Mapping[str, Any]) -> Iterator[pl.DataFrame]:
        return self._reader.frames(piece["part"], piece["row_start"], piece["rows"])

    def _join(self, base: pl.DataFrame, extended: pl.DataFrame | None) -> None:
        """Store one series: the base by time, each time once, then what the extended files bring for it."""
        pieces = base.sort("is_live", "input", "part", "row_start", descending=[True, False, False, False])
        if extended is not None:
            pieces = pl.concat([pieces, extended.sort("input", "part", "row_start")])
        inputs = pieces["input"].to_list()
        self._count_files(inputs[: base.height], base["job_id"][0])
        names = SEPARATOR.join(dict.fromkeys(name for entry in inputs for name in entry.split(SEPARATOR)))
        for frame in merge(_runs(pieces), self._reader, self._spill):
            is_base = frame[SOURCE] < base.height
            rows = self._take_once(frame.filter(is_base).drop(SOURCE), frame.filter(is_base)[SOURCE], inputs)
            for extra in frame.filter(~is_base).partition_by(SOURCE, maintain_order=True):
                rows = self._extend(rows, extra.drop(SOURCE), inputs[extra[SOURCE][0]])
            self._batch.add(rows, names)

    def _count_files(self, inputs: Sequence[str], job_id: int | None) -> None:
        names = dict.fromkeys(name for entry in inputs for name in entry.split(SEPARATOR))
        based = [name for name in names if supercloud.classify(name) != "gpu_extended"]
        if len(based) > 1:
            for name in based:
                self._staging.counts[name, job_id, "two_files_for_series", ""] += 1

    def _take_once(self, rows: pl.DataFrame, source: pl.Series, inputs: Sequence[str]) -> pl.DataFrame:
        """Return the first row of each time; the others go to quarantine."""
        repeat = (rows["time"] == rows["time"].shift()).fill_null(False)
        if not repeat.any():
            return rows
        for one in source.filter(repeat).unique().sort():
            name = inputs[one].split(SEPARATOR, maxsplit=1)[0]
            lost = rows.filter(repeat & (source == one))
            self._reject(name, "repeated_time", lost)
            self._tally.repeated[name] += lost.height
        return rows.filter(~repeat)

    def _extend(self, rows: pl.DataFrame, extra: pl.DataFrame, name: str) -> pl.DataFrame:
        """Return the rows with what an extended file has for their times."""
        based = extra["time"].is_in(rows["time"].implode())
        self._orphan(name, extra.filter(~based))
        self._tally.merged[name] += int(based.sum())
        brings = [column for column in EXTENDING if extra[column].null_count() < extra.height]
        joined = rows.join(extra.select("time", *brings), on="time", how="left", suffix="_new", maintain_order="left")
        fresh = [pl.coalesce(f"{column}_new", column).alias(column) for column in brings]
        return joined.with_columns(fresh).drop([f"{column}_new" for column in brings])

    def _orphan(self, name: str, rows: pl.DataFrame) -> None:
        if rows.height:
            self._reject(name, "no_base_sample", rows)
            self._tally.orphaned[name] += rows.height

    def _reject(self, name: str, reason: str, rows: pl.DataFrame) -> None:
        """Put rows that have been parsed already into quarantine, their values written out."""
        raws = (
            ",".join(f"{column}={value}" for column, value in zip(rows.columns, row, strict=True) if value is not None)
            for row in rows.iter_rows()
        )
        self._staging.reject((name, None, 1, "gpu_samples", reason, "", raw) for raw in raws)
        self._staging.counts[name, rows["job_id"][0], reason, ""] += rows.height


def _runs(pieces: pl.DataFrame) -> list[Run]:
    columns = pieces.select("part", "row_start", "rows", "first_time", "last_time")
    return [
        Run(part, start, rows, first, last, source)
        for source, (part, start, rows, first, last) in enumerate(columns.iter_rows())
    ]


class _Batch:
    """Rows in key order that wait to be stored together."""

    def __init__(self, table: str, staging: Staging) -> None:
        self._table = table
        self._staging = staging
        self._frames: list[pl.DataFrame] = []
        self._inputs: list[str] = []
        self._rows = 0

    def add(self, rows: pl.DataFrame, name: str) -> None:
        """Add rows that came from the inputs in ``name``."""
        if not rows.height:
            return
        if not self._inputs or self._inputs[-1] != name:
            self._inputs.append(name)
        self._frames.append(rows.with_columns(file=pl.lit(len(self._inputs) - 1, dtype=pl.Int32)))
        self._rows += rows.height
        if self._rows >= BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Store what waits."""
        if self._frames:
            self._staging.store(self._table, pl.concat(self._frames), self._inputs)
            self._frames, self._inputs, self._rows = [], [], 0
            give_back_heap()
