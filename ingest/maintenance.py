"""Looking after a lake that grows by small parts: they are merged by day, and samples go when they are old enough.

Through the same commit as an ingest: staged, then HEAD at one stroke. Only parts are merged whose input files are
gone (`ingest.forgetting`), so that no later file has to be taken out of them again. Of GPU samples that go, the summary
of each series stays in the index, so that job statistics and minutes stay as they were.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import polars as pl

from ingest.assembly import Assembly
from ingest.feature_commit import merged_parts, small_pairs, write_rows
from ingest.head import STAGING, Head, LakePart, writing
from ingest.manifest import NO_PART, read_pieces
from ingest.migrate import migrate
from ingest.parts import read_part, time_range, write_frame
from ingest.reconcile import FORGOTTEN
from ingest.records import CommitSpec, Part, RewriteSpec
from ingest.rewrite import rewrite_part
from ingest.rollup import fold_pieces
from ingest.schemas import SERIES_KEY, TABLES
from ingest.staging import Staging, conform_pieces

SMALL_ROWS: Final = 262_144
"""A part of fewer rows is a small one."""

MERGED: Final = (
    *("gpu_samples", "cpu_samples", "node_samples", "collector_events", "device_inventory", "jobs", "labels"),
)
"""Tables whose small parts are merged; the others are written anew with every commit, or pack themselves."""

KEPT_FOR_A_TIME: Final = ("gpu_samples", "cpu_samples")
"""Tables whose rows go when they are old enough."""


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What was done: parts before and after, of those that were touched, and rows that were dropped."""

    parts_before: int = 0
    parts_after: int = 0
    rows_dropped: int = 0


@dataclass(slots=True)
class _Changes:
    """Parts of the lake that go, staged ones that come, the pieces of the next state, and rows dropped.

    Of features, staged parts come with their names below the root.
    """

    pieces: pl.DataFrame
    gone: set[str] = field(default_factory=set)
    come: list[Part] = field(default_factory=list)
    features: list[tuple[str, Part]] = field(default_factory=list)
    rows_dropped: int = 0


def maintain(lake: Path, cluster: str, *, compact_after: int, keep_from: datetime | None = None) -> Upkeep:
    """Merge small parts of a cluster where a table has more than ``compact_after``, and drop old samples.

    Of features, each variant counts as a table.

    Parameters
    ----------
    keep_from : samples of GPUs and processes before this are dropped, piece by piece; all are kept where None

    Raises
    ------
    LakeError, LakeBusyError, OSError
        With nothing changed.
    """
    root = lake.resolve()
    with writing(root) as found:
        head = migrate(root, found)
        work = _Maintenance(root, head, cluster)
        try:
            return work.run(compact_after, keep_from)
        finally:
            work.clean()


class _Maintenance:
    """One round of it, under the lake's lock."""

    def __init__(self, root: Path, head: Head, cluster: str) -> None:
        self._root, self._head, self._cluster = root, head, cluster
        self._folder = root / STAGING / f"run-{head.generation + 1:06d}-{os.getpid()}"
        self._all_pieces = read_pieces(root, head)
        mine = self._all_pieces.filter(pl.col("cluster") == cluster).drop("cluster")
        self._changes = _Changes(mine)
        self._number = 0

    def run(self, compact_after: int, keep_from: datetime | None) -> Upkeep:
        """Drop, merge and commit; nothing is written where nothing is to be done."""
        if keep_from is not None:
            self._drop_gpu(keep_from)
            self._drop_timed("cpu_samples", keep_from)
        for table in MERGED:
            self._merge(table, compact_after)
        self._merge_features(compact_after)
        changes = self._changes
        if not changes.gone:
            return Upkeep()
        names = self._head.tres_names.get(self._cluster, {})
        spec = CommitSpec(str(self._root), str(self._folder), self._cluster, self._head, (), (), tres_names=names)
        assembly = Assembly(spec, (), {})
        assembly.swap(changes.gone, changes.come)
        for file, part in changes.features:
            assembly.add_features(file, part)
        assembly.publish((), assembly.settled(changes.pieces), self._all_pieces, ())
        return Upkeep(len(changes.gone), len(changes.come) + len(changes.features), changes.rows_dropped)

    def clean(self) -> None:
        """Remove what was staged and not taken."""
        shutil.rmtree(self._folder, ignore_errors=True)

    # -- old samples ---------------------------------------------------------------------------------------------------

    def _drop_gpu(self, keep_from: datetime) -> None:
        """Let go of the pieces of GPU samples that ended before a time; parts that have others too are written anew."""
        is_gpu = (pl.col("table") == "gpu_samples") & (pl.col("part") != NO_PART)
        old = self._changes.pieces.filter(is_gpu & (pl.col("last_time") < keep_from))
        if not old.height:
            return
        rest = self._changes.pieces.join(old, on=["part", "row_start"], how="anti", nulls_equal=True)
        touched = old["part"].unique().to_list()
        past = [rest.filter(pl.col("part") == NO_PART), old.with_columns(part=pl.lit(NO_PART))]
        left = rest.filter(pl.col("part").is_in(touched))
        stays = rest.filter((pl.col("part") != NO_PART) & ~pl.col("part").is_in(touched))
        self._changes.pieces = pl.concat([stays, _fold(pl.concat(past))])
        self._changes.gone.update(touched)
        self._changes.rows_dropped += int(old["rows"].sum())
        for _, pieces in left.group_by("part"):
            self._rewrite("gpu_samples", pieces)

    def _drop_timed(self, table: str, keep_from: datetime) -> None:
        """Let go of the rows of another table before a time."""
        for part in self._live(table):
            first, last = time_range(self._root / part.file, "time")
            if first >= keep_from:
                continue
            pieces = self._take(part.file)
            if last < keep_from:
                self._changes.rows_dropped += part.rows
                continue
            staging = self._staging()
            for name, rows in self._rows_of(pieces):
                kept = rows.filter(pl.col("time") >= keep_from)
                self._changes.rows_dropped += rows.height - kept.height
                staging.store(table, kept.with_columns(file=pl.lit(0, pl.Int32)), [name])
            self._finish(staging)

    # -- small parts ---------------------------------------------------------------------------------------------------

    def _merge(self, table: str, compact_after: int) -> None:
        """Merge the small parts of a table by day where they are many, and the larger ones of a day that is over."""
        final = self._final_parts(table)
        parts = [part for part in self._live(table) if part.file in final]
        days = {part.file: self._day(part) for part in parts}
        small = [part for part in parts if part.rows < SMALL_ROWS]
        large = [part for part in parts if part.rows >= SMALL_ROWS]
        newest = max((day for day in days.values() if day is not None), default=None)
        over = [day for day in {days[part.file] for part in large} if day is not None and day != newest]
        for day in sorted(day for day in over if sum(days[part.file] == day for part in large) > 1):
            self._merge_parts(table, [part.file for part in parts if days[part.file] == day])
            small = [part for part in small if days[part.file] != day]
        if len(small) > compact_after:
            self._merge_parts(table, [part.file for part in small])

    def _merge_parts(self, table: str, files: Sequence[str]) -> None:
        pieces = pl.concat([self._take(file) for file in files])
        if table == "gpu_samples":
            by_day = pieces.with_columns(day=pl.col("first_time").dt.truncate("1d")).partition_by("day", as_dict=True)
            for day in sorted(by_day):
                self._rewrite(table, by_day[day].drop("day"))
            return
        rows = pl.concat([frame for _, frame in self._rows_of(pieces)]).sort(TABLES[table].key, maintain_order=True)
        rows = rows.with_columns(file=pl.lit(0, pl.Int32))
        is_timed = "time" in TABLES[table].key
        if is_timed:
            rows = rows.with_columns(day=pl.col("time").dt.date())
        for frame in rows.partition_by("day", include_key=False) if is_timed else [rows]:
            staging = self._staging()
            staging.store(table, frame, [FORGOTTEN])
            self._finish(staging)

    def _merge_features(self, compact_after: int) -> None:
        """Merge the small parts of each variant of features where they are many."""
        for pairs in small_pairs([*self._live("feature_series"), *self._live("features")]).values():
            for gone, come in merged_parts(self._root, pairs) if len(pairs) > compact_after else ():
                self._changes.gone.update(part.file for part in gone)
                name = f"part-{self._head.generation + 1:06d}-{len(self._changes.features):05d}.parquet"
                for folder, rows in come:
                    table = folder.partition("/")[0]
                    staged = self._folder / f"{self._next_name()}.{table}.parquet"
                    self._changes.features.append((f"{folder}/{name}", write_rows(staged, table, rows)))

    def _day(self, part: LakePart) -> datetime | None:
        """Return the day on which a part begins, None where its table has no time."""
        if "time" not in TABLES[part.table].key:
            return None
        first, _ = time_range(self._root / part.file, "time")
        return first.replace(hour=0, minute=0, second=0, microsecond=0)

    def _final_parts(self, table: str) -> set[str]:
        """Return the parts of a table of which no input file can come again."""
        mine = self._changes.pieces.filter(pl.col("table") == table)
        is_final = (pl.col("input") == FORGOTTEN).all()
        return set(mine.group_by("part").agg(is_final.alias("final")).filter("final")["part"])

    # -- writing -------------------------------------------------------------------------------------------------------

    def _live(self, table: str) -> list[LakePart]:
        mine = (part for part in self._head.parts if part.cluster == self._cluster and part.table == table)
        return [part for part in mine if part.file not in self._changes.gone]

    def _take(self, file: str) -> pl.DataFrame:
        """Take a part out of the next state, and return its pieces."""
        pieces = self._changes.pieces
        self._changes.gone.add(file)
        self._changes.pieces = pieces.filter(pl.col("part") != file)
        return pieces.filter(pl.col("part") == file)

    def _rows_of(self, pieces: pl.DataFrame) -> Iterable[tuple[str, pl.DataFrame]]:
        for part, start, rows, name in pieces.select("part", "row_start", "rows", "input").iter_rows():
            yield name, read_part(self._root / part, start, rows)

    def _rewrite(self, table: str, pieces: pl.DataFrame) -> None:
        """Write some pieces of GPU samples as one part, in the order of the key."""
        name = self._next_name()
        path = self._folder / f"{name}.rewrite.parquet"
        absolute = pl.lit(f"{self._root}/") + pl.col("part")
        write_frame(path, pieces.with_columns(absolute.alias("part"), role=pl.lit("kept")), durable=False)
        result = rewrite_part(RewriteSpec(table, str(path), str(self._folder), name, 0))
        self._come(result.parts, result.pieces)

    def _staging(self) -> Staging:
        return Staging(str(self._folder), self._next_name())

    def _next_name(self) -> str:
        self._number += 1
        return f"upkeep-{self._number:05d}"

    def _finish(self, staging: Staging) -> None:
        self._come(*staging.finish())

    def _come(self, parts: Iterable[Part], pieces: str) -> None:
        self._changes.come += parts
        if pieces:
            self._changes.pieces = pl.concat([self._changes.pieces, conform_pieces(read_part(pieces))])


def _fold(past: pl.DataFrame) -> pl.DataFrame:
    """Return one piece a series for rows that are not kept, where their input files are forgotten."""
    is_final = pl.col("input") == FORGOTTEN
    series = past.group_by(SERIES_KEY).agg(is_final.all().alias("final")).filter("final").select(SERIES_KEY)
    final = past.join(series, on=SERIES_KEY, how="semi", nulls_equal=True)
    others = past.join(series, on=SERIES_KEY, how="anti", nulls_equal=True)
    if not final.height:
        return others
    whole = fold_pieces(final).with_columns(
        table=pl.lit("gpu_samples"), part=pl.lit(NO_PART), input=pl.lit(FORGOTTEN), row_start=pl.lit(0, pl.Int64)
    )
    return pl.concat([others, conform_pieces(whole)])
