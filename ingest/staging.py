"""What one task writes before anything is committed: parts, their pieces, minutes, quarantined rows, counts."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from ingest.disk import Syncing
from ingest.part_writer import PartWriter, write_part
from ingest.parts import write_frame
from ingest.quality import LIMITS
from ingest.records import CountKey, Part
from ingest.rollup import join_minutes
from ingest.schemas import QUARANTINE, SERIES_KEY, TABLES
from ingest.summaries import (
    PIECE_SCHEMA,
    IntArray,
    Summary,
    minutes_frame,
    pieces_frame,
    series_starts,
    stretch_starts,
    summarise,
    whole_numbers,
)

PIECES_SCHEMA: Final[dict[str, pl.DataType]] = {
    "table": pl.String(),
    "part": pl.String(),
    "input": pl.String(),
    "extended": pl.Boolean(),
    "row_start": pl.Int64(),
    "job_id": pl.Int64(),
    "node": pl.String(),
    "gpu_index": pl.Int16(),
    **PIECE_SCHEMA,
}
"""The manifest's index: which rows of which part came from which inputs, and of which series they are.

``input`` has the names of the input files, one a line where several files made one series.
"""

LEAST_STRETCH_ROWS: Final = 4096
"""A part whose first batch has shorter stretches on average packs several into a row group."""

_QUARANTINE_BUFFER_ROWS: Final = 20_000

Rejected = tuple[str, int | None, int, str, str, str, str | None]
"""File, line, rows it stands for, table, reason, detail, raw line."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A point to which `Staging.rollback` can return."""

    parts: int
    pieces: int
    batches: int


@dataclass(frozen=True, slots=True)
class _GpuBatch:
    """Where a batch of GPU samples went (one row a series), and its summary."""

    index: pl.DataFrame
    summary: Summary
    extended: bool


class Staging:
    """Collects one task's output under ``folder``; every path starts with ``name``."""

    def __init__(self, folder: str, name: str) -> None:
        self._folder = Path(folder)
        self._name = name
        self._parts: list[Part] = []
        self._pieces: list[pl.DataFrame] = []
        self._batches: list[_GpuBatch] = []
        self._open: dict[str, PartWriter] = {}
        self._syncing = Syncing()
        self._number: Counter[str] = Counter()
        self._rejected: list[Rejected] = []
        self.counts: Counter[CountKey] = Counter()
        self.null_cells: Counter[tuple[str, str]] = Counter()
        self.rows_out: Counter[str] = Counter()
        self.rows_quarantined: Counter[str] = Counter()

    def store(self, table: str, frame: pl.DataFrame, inputs: Sequence[str], *, extended: bool = False) -> None:
        """Write a batch, itself in key order, to the table's open part; ``frame["file"]`` counts in ``inputs``."""
        if not frame.height:
            return
        is_gpu = table == "gpu_samples"
        starts = _starts(frame, table)
        cuts = stretch_starts(frame, starts) if is_gpu else starts
        stretches = is_gpu and frame.height >= LEAST_STRETCH_ROWS * len(cuts)
        writer = self._writer("gpu_extended" if extended else table, table, stretches)
        first = writer.write(frame, cuts)
        files = frame["file"][starts.tolist()].to_list()
        for file, rows in zip(files, np.diff(starts, append=frame.height).tolist(), strict=True):
            self.rows_out[inputs[file]] += rows
        index = pl.DataFrame(
            {
                "part": [str(writer.path)] * len(starts),
                "input": [inputs[f] for f in files],
                "row_start": starts + first,
            }
        )
        if is_gpu:
            self._batches.append(_GpuBatch(index, summarise(frame, starts), extended))
        else:
            pieces = pl.concat([index, _plain_pieces(frame, starts)], how="horizontal")
            self._pieces.append(pieces.with_columns(pl.lit(table).alias("table")))
        self._count_nulls(frame, inputs)

    def _count_nulls(self, frame: pl.DataFrame, inputs: Sequence[str]) -> None:
        limited = [name for name in frame.columns if name in LIMITS and name != "job_id"]  # an idle GPU has no job
        columns = [name for name in limited if frame[name].null_count()]
        if columns:
            for file, *nulls in frame.group_by("file").agg(pl.col(columns).null_count()).iter_rows():
                for column, n in zip(columns, nulls, strict=True):
                    if n:
                        self.null_cells[inputs[file], column] += n

    def _writer(self, stem: str, table: str, stretches: bool) -> PartWriter:
        if stem in self._open and self._open[stem].stretches and not stretches:
            self._parts.append(self._open.pop(stem).close(self._syncing))  # each short stretch would be a row group
        if stem not in self._open:
            path = self._folder / stem / f"{self._name}-{self._number[stem]:04d}.parquet"
            self._number[stem] += 1
            self._open[stem] = PartWriter(path, TABLES[table], stretches=stretches)
        return self._open[stem]

    def close_parts(self) -> list[Part]:
        """Close the open parts, so that the next batch starts new ones; return them."""
        closed = []
        for stem in list(self._open):
            closed.append(self._open[stem].close(self._syncing))
            del self._open[stem]
        self._parts += closed
        return closed

    def reject(self, rows: Iterable[Rejected]) -> None:
        """Put rows into quarantine."""
        for row in rows:
            self._rejected.append(row)
            self.rows_quarantined[row[0]] += row[2]
            if len(self._rejected) >= _QUARANTINE_BUFFER_ROWS:
                self._flush_rejected()

    def _flush_rejected(self) -> None:
        if self._rejected:
            frame = pl.DataFrame(self._rejected, schema=QUARANTINE.columns, orient="row")
            path = self._folder / "quarantine" / f"{self._name}-{self._number['quarantine']:04d}.parquet"
            self._number["quarantine"] += 1
            self._parts.append(write_part(path, "quarantine", frame))
            self._rejected = []

    def mark(self) -> Mark:
        """Return where the output stands now, with no part open."""
        self.close_parts()
        self._flush_rejected()
        return Mark(len(self._parts), len(self._pieces), len(self._batches))

    def rollback(self, mark: Mark, name: str) -> None:
        """Forget what was written since ``mark`` for the input ``name``."""
        self.close_parts()
        self._rejected = [row for row in self._rejected if row[0] != name]
        for part in self._parts[mark.parts :]:
            Path(part.path).unlink(missing_ok=True)
        del self._parts[mark.parts :], self._pieces[mark.pieces :], self._batches[mark.batches :]
        for counter in (self.rows_out, self.rows_quarantined):
            del counter[name]
        for counts in (self.counts, self.null_cells):
            for key in [key for key in counts if key[0] == name]:
                del counts[key]

    def finish(self, minutes_of: pl.DataFrame | None = None) -> tuple[tuple[Part, ...], str]:
        """Write what is left; return the parts and the path of the pieces ('' where there are none).

        Parameters
        ----------
        minutes_of : keys of the series whose minutes are wanted, all where None
        """
        self.close_parts()
        self._flush_rejected()
        counted = [batch.summary for batch in self._batches if not batch.extended]
        if counted:
            minutes = minutes_frame(counted)
            if minutes_of is not None:
                minutes = minutes.join(minutes_of, on=SERIES_KEY, how="semi", nulls_equal=True)
            if minutes.height:
                path = self._folder / "gpu_minutes" / f"{self._name}.parquet"
                self._parts.append(write_part(path, "gpu_minutes", join_minutes(minutes)))
        if self._batches:
            self._pieces.append(_gpu_pieces(self._batches))
        self._syncing.finish()
        if not self._pieces:
            return tuple(self._parts), ""
        path = self._folder / f"{self._name}.pieces.parquet"
        pieces = conform_pieces(pl.concat(self._pieces, how="diagonal_relaxed"))
        write_frame(path, pieces, durable=False)  # the commit writes the index
        return tuple(self._parts), str(path)

    def discard(self) -> None:
        """Throw the open parts away."""
        for writer in self._open.values():
            writer.discard()
        self._open = {}
        with contextlib.suppress(OSError):  # what brought us here tells more
            self._syncing.finish()


def _gpu_pieces(batches: Sequence[_GpuBatch]) -> pl.DataFrame:
    index = pl.concat([batch.index for batch in batches])
    extended = [batch.extended for batch in batches for _ in range(batch.index.height)]
    pieces = pl.concat([index, pieces_frame([batch.summary for batch in batches])], how="horizontal")
    return pieces.with_columns(pl.lit("gpu_samples").alias("table"), pl.Series("extended", extended))


def conform_pieces(pieces: pl.DataFrame) -> pl.DataFrame:
    """Return pieces with exactly the columns of `PIECES_SCHEMA`, absent ones null."""
    have = set(pieces.columns)
    return pieces.select(
        [(pl.col(n).cast(d) if n in have else pl.lit(None, dtype=d).alias(n)) for n, d in PIECES_SCHEMA.items()]
    ).with_columns(pl.col("extended").fill_null(False))


def _starts(frame: pl.DataFrame, table: str) -> IntArray:
    """Return where pieces start: a new input file, a new series of GPU samples, or another job's CPU samples."""
    file = frame["file"].to_numpy()
    new = np.empty(len(file), np.bool_)
    new[0] = True
    np.not_equal(file[1:], file[:-1], out=new[1:])
    if table == "gpu_samples":
        new[series_starts(frame)] = True
    if table == "cpu_samples":
        job_id = whole_numbers(frame["job_id"])
        new[1:] |= job_id[1:] != job_id[:-1]
    return np.flatnonzero(new)


def _plain_pieces(frame: pl.DataFrame, starts: IntArray) -> pl.DataFrame:
    """Return how many rows a piece has, from when to when, and of which job, as far as the table has these."""
    columns = {"rows": pl.Series(np.diff(starts, append=frame.height))}
    if "time" in frame.columns:
        time_us = whole_numbers(frame["time"])
        columns["first_time"] = pl.Series(np.minimum.reduceat(time_us, starts))
        columns["last_time"] = pl.Series(np.maximum.reduceat(time_us, starts))
        if "job_id" in frame.columns:
            columns["job_id"] = frame["job_id"][starts.tolist()]
    return pl.DataFrame(columns)
