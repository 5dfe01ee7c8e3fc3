"""One task of an extraction: the series of a partition of gpu_samples become one part of the lake's features.

Rows are read as they are needed, also those around a window, and windows described a batch at a time, so memory grows
neither with the length of a series or job nor with the number of series.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from features.context import read_cpu_samples, read_node_parts, read_node_samples
from features.describe import Described, describe, put_together
from features.job import context
from features.variant import Variant
from features.windows import cut_series, window_starts_us
from ingest.errors import LakeError
from ingest.feature_commit import FeatureResult, write_rows
from ingest.feature_schemas import FEATURE_SERIES, FEATURES, feature_schema
from ingest.memory import give_back_memory
from ingest.part_writer import PartWriter
from ingest.parts import PartReader, read_part
from ingest.records import Part
from ingest.schemas import GPU_SAMPLES, SERIES_KEY, TIME
from ingest.units import US_PER_S

BATCH_WINDOWS: Final = 256
"""So many windows are described together, fewer where they are long."""

BATCH_BYTES: Final = 8 << 20
"""Windows of one batch have no more bytes than this, unless a single one has."""

READ_ROWS: Final = 262_144
"""So many rows of a series are read at once, unless one window has more."""

GROUP_BYTES: Final = 32 << 20
"""Described windows wait until they have this many bytes, and are a row group then."""


@dataclass(frozen=True, slots=True)
class FeatureTask:
    """A task: which variant, of which series (a Parquet file of pieces), and where the parts go.

    ``index`` is the name of the lake's index that it was planned on, ``node_pieces`` the file of the pieces of
    node_samples, all those of the cluster.
    """

    variant: Variant
    cluster: str
    pieces: str
    index: str
    staging: str
    name: str
    series: int
    windows: int
    node_pieces: str = ""


@dataclass(frozen=True, slots=True)
class TaskDone:
    """What a task did; no result where a part that it needs was taken away by somebody who wrote the lake since.

    Nor is there one where a part is damaged, which ``error`` then says.
    """

    name: str
    windows: int
    result: FeatureResult | None
    error: str = ""


def extract_part(task: FeatureTask) -> TaskDone:
    """Write the features of one partition, and what became of each of its series."""
    extraction = _Extraction(task)
    try:
        result = extraction.run()
    except LakeError as error:
        extraction.discard()
        is_damaged = all(Path(part).exists() for part in extraction.parts)
        return TaskDone(task.name, task.windows, None, str(error) if is_damaged else "")
    except BaseException:
        extraction.discard()
        raise
    give_back_memory()
    return TaskDone(task.name, task.windows, result)


@dataclass(slots=True)
class _Batch:
    """Windows that wait to be described, with the rate, the series and the start of each."""

    values: list[npt.NDArray[np.float32]] = field(default_factory=list)
    samples_per_s: list[npt.NDArray[np.float64]] = field(default_factory=list)
    keys: list[tuple[int, str, int, int]] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(values.nbytes for values in self.values)


class _Extraction:
    """State of one task."""

    def __init__(self, task: FeatureTask) -> None:
        self._task = task
        pieces = read_part(task.pieces).drop("part").rename({"path": "part"})
        self._series = pieces.filter(pl.col("table") == "gpu_samples").partition_by(SERIES_KEY, maintain_order=True)
        self._cpu = pieces.filter(pl.col("table") == "cpu_samples")
        spans = pl.DataFrame([series_span_us(one) for one in self._series], ["start_us", "end_us"], orient="row")
        self._nodes = read_node_parts(task.node_pieces, spans)
        self.parts = [*pieces["part"].drop_nulls().unique(), *self._nodes["path"]]
        self._reader = PartReader()
        self._beside = PartReader(keep=2)
        self._batch = _Batch()
        self._rows: list[dict[str, Any]] = []
        self._waiting: list[tuple[pl.DataFrame, Described]] = []
        self._writer: PartWriter | None = None

    def run(self) -> FeatureResult:
        """Describe every window of every series, and write both parts."""
        for pieces in self._series:
            self._take(pieces)
        self._describe()
        self._flush()
        features = None if self._writer is None else self._writer.close()
        return FeatureResult(
            self._task.variant.name,
            self._task.cluster,
            self._task.pieces,
            self._task.index,
            self._write_series(),
            features,
            has_context=bool(self._task.variant.set.context),
            node_pieces=self._task.node_pieces,
        )

    def discard(self) -> None:
        """Throw the open part away."""
        if self._writer is not None:
            self._writer.discard()

    def _path(self, table: str) -> Path:
        return Path(self._task.staging) / table / f"{self._task.name}.parquet"

    def _write_series(self) -> Part:
        frame = pl.DataFrame(self._rows, schema=FEATURE_SERIES.columns, orient="row")
        return write_rows(self._path("feature_series"), "feature_series", frame)

    def _take(self, pieces: pl.DataFrame) -> None:
        """Cut one series, and note what became of it."""
        variant, spec = self._task.variant, self._task.variant.window
        job_id, node, gpu_index = pieces.select(SERIES_KEY).row(0)
        first_us, last_us = series_span_us(pieces)
        starts_us = window_starts_us(spec, (job_id, node, gpu_index), first_us, last_us)
        reason = None if len(starts_us) else "shorter_than_window"
        there = pieces.filter(pl.col("part").is_not_null())
        if pieces["dropped"].any() and (spec.place != "slide" or not there.height):  # other places: of the whole series
            starts_us, reason = starts_us[:0], "samples_dropped"
        refused = 0
        rows_per_s = int(pieces["rows"].sum()) / max((last_us - first_us) / US_PER_S, 1e-6)
        for chunk in _chunks(starts_us, self._windows_at_once(), round(READ_ROWS / rows_per_s * US_PER_S)):
            beside_us = round((spec.max_gap_s or 0.0) * US_PER_S) + 1 if spec.even else 0
            end_us = int(chunk[-1]) + round(spec.seconds * US_PER_S) + beside_us
            samples = read_span(self._reader, pieces, int(chunk[0]) - beside_us, end_us, variant.channels)
            values, rates, reasons = cut_series(samples, chunk, spec, variant.channels)
            kept = [int(start) for start, why in zip(chunk, reasons, strict=True) if not why]
            self._add(values, rates, [(job_id, node, gpu_index, start_us) for start_us in kept])
            refused += len(chunk) - len(kept)
            reason = reason or next(filter(None, reasons), None)
        self._rows.append(
            {
                **_named(variant),
                **dict(zip(SERIES_KEY, (job_id, node, gpu_index), strict=True)),
                "first_time": pieces["first_time"].min(),
                "last_time": pieces["last_time"].max(),
                "duration_s": (last_us - first_us) / US_PER_S,
                "samples": there["rows"].sum(),
                "windows": len(starts_us) - refused,
                "windows_refused": refused,
                "reason": reason,
                "has_context": bool(variant.set.context),
            }
        )

    def _windows_at_once(self) -> int:
        variant = self._task.variant
        return max(1, min(BATCH_WINDOWS, BATCH_BYTES // (4 * len(variant.channels) * variant.window.n_samples)))

    def _add(
        self,
        values: npt.NDArray[np.float32],
        samples_per_s: npt.NDArray[np.float64],
        keys: list[tuple[int, str, int, int]],
    ) -> None:
        if keys:
            self._batch.values.append(values)
            self._batch.samples_per_s.append(samples_per_s)
            self._batch.keys += keys
            if len(self._batch.keys) >= self._windows_at_once():
                self._describe()

    def _describe(self) -> None:
        """Turn the windows that wait into rows."""
        batch, self._batch = self._batch, _Batch()
        if not batch.keys:
            return
        variant = self._task.variant
        job_id, node, gpu_index, start_us = (list(column) for column in zip(*batch.keys, strict=True))
        rates = np.concatenate(batch.samples_per_s)
        windows = pl.DataFrame(
            {"job_id": job_id, "node": node, "gpu_index": gpu_index, "start_us": start_us, "samples_per_s": rates}
        )
        around = self._context(windows) if variant.set.context else None
        described = describe(np.concatenate(batch.values), rates, variant, around)
        self._waiting.append((windows, described))
        if sum(waiting.nbytes for _, waiting in self._waiting) >= GROUP_BYTES:
            self._flush()

    def _context(self, windows: pl.DataFrame) -> npt.NDArray[np.float64]:
        spans = windows.with_columns(end_us=pl.col("start_us") + round(self._task.variant.window.seconds * US_PER_S))
        cpu = read_cpu_samples(self._beside, self._cpu, spans)
        return context(spans, cpu, read_node_samples(self._nodes, spans))

    def _flush(self) -> None:
        """Write the rows that wait as one row group."""
        if not self._waiting:
            return
        windows, described = zip(*self._waiting, strict=True)
        self._waiting = []
        together = put_together(described)
        if self._writer is None:
            self._writer = PartWriter(self._path("features"), feature_schema(together.schema), stretches=True)
        whose = _whose(self._task.variant, pl.concat(windows), together)
        self._writer.write(whose, more=together.arrays())


def _named(variant: Variant) -> dict[str, Any]:
    """The columns that say which variant a row is of."""
    spec, made = variant.window, variant.set
    return {
        "variant": variant.name,
        "set": made.name,
        "set_version": made.version,
        "window_s": spec.seconds,
        "place": spec.place,
    }


def feature_rows(variant: Variant, windows: pl.DataFrame, described: Described) -> pl.DataFrame:
    """Return rows of ``features``: whose windows they are, then what `describe` made of them.

    Parameters
    ----------
    windows : job_id, node, gpu_index, start_us and samples_per_s, NaN where all samples are of one instant
    """
    columns = pl.DataFrame(pa.table(described.arrays()))
    return _whose(variant, windows, described).hstack(columns)


def _whose(variant: Variant, windows: pl.DataFrame, described: Described) -> pl.DataFrame:
    """Return the columns that every feature table has."""
    literal = [pl.lit(value).alias(name) for name, value in _named(variant).items()]
    start, rate = pl.col("start_us").cast(TIME).alias("window_start"), pl.col("samples_per_s").fill_nan(None)
    reason = pl.Series("reason", described.reasons, dtype=pl.String)
    named = windows.with_columns(start, rate, reason, *literal)
    return named.select(pl.col(name).cast(dtype) for name, dtype in FEATURES.columns.items())


# -- reading -----------------------------------------------------------------------------------------------------------


def series_span_us(pieces: pl.DataFrame) -> tuple[int, int]:
    """Return the times of the first and the last sample of a series."""
    first, last = pieces["first_time"].to_physical().min(), pieces["last_time"].to_physical().max()
    if not isinstance(first, int) or not isinstance(last, int):
        raise LakeError("the index has a series without times; see: jobwatt lake check")
    return first, last


def _chunks(starts_us: npt.NDArray[np.int64], count: int, span_us: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the starts in stretches of at most so many, none of which reaches farther than a span."""
    at = 0
    while at < len(starts_us):
        end = min(at + count, int(np.searchsorted(starts_us, starts_us[at] + span_us, side="right")))
        yield starts_us[at:end]
        at = end


def read_span(
    reader: PartReader, pieces: pl.DataFrame, begin_us: int, end_us: int, channels: Sequence[str]
) -> pl.DataFrame:
    """Return the samples of one series from a time on, end excluded, in the order of time; none where it has a gap.

    Parameters
    ----------
    pieces : the series' pieces, ``part`` a path; they do not overlap
    """
    columns = ["time", *channels]
    first, last = pl.col("first_time").to_physical(), pl.col("last_time").to_physical()
    mine = pieces.filter((first < end_us) & (last >= begin_us)).sort("first_time")
    inside = pl.col("time").to_physical().is_between(begin_us, end_us, closed="left")
    found = [
        frame.filter(inside)
        for part, start, rows in mine.select("part", "row_start", "rows").iter_rows()
        for frame in reader.frames(part, start, rows, columns, around_us=(begin_us, end_us))
    ]
    return pl.concat([GPU_SAMPLES.empty().select(columns), *found])
