"""Feature parts come into a lake, and go with the samples that they were made of.

They are written beside the lake's staging, since an ingest clears that while an extraction may be running for hours,
and are taken in by a commit like any other: the lake is locked for that moment only. What changed meanwhile is left
out: a series counts as it was planned only while the index has the same pieces of it. An ingest that brings or replaces
samples of a series removes its windows in the same commit.

A part of ``feature_series`` has the name of the part of ``features`` that holds its windows. Small ones of a variant
are merged when the lake is looked after (`ingest.maintenance`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import polars as pl

from ingest.errors import LakeBusyError
from ingest.feature_schemas import CONTEXT_MARGIN_S, FEATURE_SERIES, feature_schema, features_in, variant_of
from ingest.head import STAGING, Head, LakePart, finish_moves, write_head, writing
from ingest.manifest import NO_PART, read_pieces_of
from ingest.migrate import migrate
from ingest.part_writer import write_table
from ingest.parts import read_part
from ingest.reconcile import FORGOTTEN
from ingest.records import Part
from ingest.schemas import SERIES_KEY, TABLES

BUSY_S: Final = 60.0
"""So long a commit waits for another process that writes the lake, unless it is told otherwise."""

CONTEXT_TABLES: Final = frozenset({"cpu_samples", "node_samples"})
"""Where context comes from."""

INDEX_COLUMNS: Final = ("table", "part", "row_start", "rows", *SERIES_KEY, "first_time", "last_time")
"""What an extraction needs to know of a piece."""

SMALL_BYTES: Final = 4 << 20
"""Windows and series of a task that are smaller together are small parts."""

MERGED_BYTES: Final = 16 << 20
"""Small parts are merged until they have this many bytes together."""

_KEY: Final = list(SERIES_KEY)
_PLACE: Final = ["table", "part", "row_start", "rows"]


@dataclass(frozen=True, slots=True)
class FeatureResult:
    """What one task wrote of a variant, and the files of the pieces that it was planned on: its own, and the nodes'.

    ``features`` is None where no series gave a window.
    """

    variant: str
    cluster: str
    pieces: str
    index: str
    series: Part
    features: Part | None
    has_context: bool = False
    node_pieces: str = ""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a commit took: rows of ``features``; series, those without a window and those that changed meanwhile."""

    generation: int
    windows: int
    series: int
    short: int
    changed: int


def commit_features(lake: Path, results: Sequence[FeatureResult], *, busy_s: float = BUSY_S) -> Taken:
    """Take what tasks wrote into the lake, except what is of series that are not as they were planned any more.

    Raises
    ------
    LakeBusyError
        If another process writes the lake for longer than ``busy_s``; nothing has changed then, so try again later.
    LakeError
        If the lake cannot be written; nothing has changed then.
    """
    with _patient(lake, busy_s) as found:
        head = migrate(lake, found)
        adoption = _Adoption(lake, head, lake / STAGING / f"run-{head.generation + 1:06d}-{os.getpid()}")
        windows = series = short = changed = 0
        for result in results:
            rows = planned = read_part(result.series.path)
            if head.pieces != result.index:
                rows = _touched_since(lake, head, result, planned).leaves(planned)
            changed += planned.height - rows.height
            if not rows.height:
                continue
            adoption.add(result, rows if rows.height < planned.height else None)
            windows, series = windows + int(rows["windows"].sum()), series + rows.height
            short += rows.filter(pl.col("windows") == 0).height
        head = adoption.publish()
    return Taken(head.generation, windows, series, short, changed)


@contextmanager
def _patient(lake: Path, busy_s: float) -> Iterator[Head]:
    """Hold the lake's lock, waiting a while for whoever has it."""
    until_s = time.monotonic() + busy_s
    with ExitStack() as held:
        while True:
            try:
                head = held.enter_context(writing(lake))
                break
            except LakeBusyError:
                if time.monotonic() >= until_s:
                    raise
                time.sleep(0.05)
        yield head


def _touched_since(lake: Path, head: Head, result: FeatureResult, rows: pl.DataFrame) -> Touched:
    """Return what was brought or taken away since a task was planned, of that on which its series depend.

    Parameters
    ----------
    rows : those series, as of `FEATURE_SERIES`
    """
    planned = _planned(result)
    now = read_pieces_of(lake, head, result.cluster, (*INDEX_COLUMNS, "input")).filter(pl.col("part") != NO_PART)
    tables = {"gpu_samples", *planned["table"], *(CONTEXT_TABLES if result.has_context else ())}
    is_theirs = pl.col("job_id").is_in(rows["job_id"].unique().implode()) | (pl.col("table") == "node_samples")
    differs = _differing(planned, now.filter(pl.col("table").is_in(sorted(tables)) & is_theirs))
    of = {table: differs.filter(pl.col("table") == table) for table in ("gpu_samples", *CONTEXT_TABLES)}
    first, last = pl.lit(rows["first_time"].min()), pl.lit(rows["last_time"].max())
    nodes = of["node_samples"].select(pl.col("first_time").fill_null(first), pl.col("last_time").fill_null(last))
    jobs = frozenset(of["cpu_samples"]["job_id"].drop_nulls().to_list())
    return Touched(of["gpu_samples"].select(_KEY), jobs, tuple(nodes.unique().iter_rows()))


def _differing(planned: pl.DataFrame, now: pl.DataFrame) -> pl.DataFrame:
    """Return the pieces that only one of both has, but for those that were merged into others.

    Small parts are merged when their input files are forgotten (`ingest.maintenance`). Pieces of one series, or of the
    nodes, that meet in time hold what they held before if they have as many rows, from and to the same times.
    """
    gone = planned.join(now, on=_PLACE, how="anti").with_columns(comes=pl.lit(False), is_final=pl.lit(True))
    is_merged = pl.col("input") == FORGOTTEN
    come = now.join(planned, on=_PLACE, how="anti").with_columns(comes=pl.lit(True), is_final=is_merged).drop("input")
    both = pl.concat([gone, come]).sort("table", *_KEY, "first_time")
    comes, first, last = pl.col("comes"), pl.col("first_time"), pl.col("last_time")
    starts = (first > last.cum_max().shift().over("table", *_KEY)).fill_null(True)
    is_same = (
        pl.col("is_final").all()
        & (pl.when(comes).then("rows").otherwise(-pl.col("rows")).sum() == 0)
        & (first.filter(comes).min() == first.filter(~comes).min())
        & (last.filter(comes).max() == last.filter(~comes).max())
    )
    return both.with_columns(run=starts.cum_sum()).filter(~is_same.fill_null(False).over("run"))


def _planned(result: FeatureResult) -> pl.DataFrame:
    """Return the pieces that a task was planned on, those whose rows are kept."""
    files = [result.pieces, *filter(None, [result.node_pieces])]
    return pl.concat([read_part(path, columns=INDEX_COLUMNS) for path in files]).filter(pl.col("part") != NO_PART)


class _Adoption:
    """Staged parts on their way to their places."""

    def __init__(self, root: Path, head: Head, folder: Path) -> None:
        self._root, self._head, self._folder = root, head, folder
        self._moves: dict[str, str] = {}
        self._parts: list[LakePart] = []
        self._number = 0

    def add(self, result: FeatureResult, kept: pl.DataFrame | None) -> None:
        """Take in a task's parts, only the rows of the series in ``kept`` unless it is None."""
        name = f"part-{self._head.generation + 1:06d}-{self._number:05d}.parquet"
        self._number += 1
        series, features = result.series, result.features
        if kept is not None:
            series = write_rows(Path(f"{series.path}.kept"), "feature_series", kept)
            if features is not None:
                left = read_part(features.path).join(kept, on=_KEY, how="semi", maintain_order="left")
                features = write_rows(Path(f"{features.path}.kept"), "features", left) if left.height else None
        self._adopt(series, f"feature_series/cluster={result.cluster}/{name}", result.cluster)
        if features is not None:
            self._adopt(features, f"features/{result.variant}/cluster={result.cluster}/{name}", result.cluster)

    def _adopt(self, part: Part, file: str, cluster: str) -> None:
        staged = self._folder / f"{len(self._moves):06d}.parquet"
        staged.parent.mkdir(parents=True, exist_ok=True)
        Path(part.path).replace(staged)
        self._moves[file] = staged.relative_to(self._root).as_posix()
        self._parts.append(LakePart(part.table, cluster, file, part.rows, part.bytes))

    def publish(self) -> Head:
        """Commit, if anything was taken in, and return the state."""
        if not self._parts:
            return self._head
        head = replace(
            self._head,
            generation=self._head.generation + 1,
            parts=(*self._head.parts, *self._parts),
            moves=self._moves,
            removes=(),
        )
        return finish_moves(self._root, write_head(self._root, head))


def write_rows(path: Path, table: str, frame: pl.DataFrame) -> Part:
    """Write rows of ``features`` (of one variant) or ``feature_series`` as one part, durably."""
    schema = FEATURE_SERIES if table == "feature_series" else feature_schema(features_in(frame))
    return write_table(path, schema, frame)


# -- what an ingest changes --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Touched:
    """What an ingest brings or takes away, as far as features depend on it: what it removes, and what comes too late.

    ``series`` are keys of GPU samples. ``jobs`` are those with other CPU samples, ``spans`` times with other node
    samples; only variants with context care.
    """

    series: pl.DataFrame
    jobs: frozenset[int] = frozenset()
    spans: tuple[tuple[datetime, datetime], ...] = ()

    def leaves(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return the rows of `FEATURE_SERIES` that are true still."""
        margin = timedelta(seconds=CONTEXT_MARGIN_S)
        context = pl.col("job_id").is_in(sorted(self.jobs))
        for first, last in _joined([(first - margin, last + margin) for first, last in self.spans]):
            context |= (pl.col("first_time") <= last) & (pl.col("last_time") >= first)
        others = rows.join(self.series, on=_KEY, how="anti", maintain_order="left")
        return others.filter(~(pl.col("has_context") & context))


def _joined(spans: Sequence[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    """Return the spans in the order of time, those that meet as one."""
    found: list[tuple[datetime, datetime]] = []
    for first, last in sorted(spans):
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(last, found[-1][1])
        else:
            found.append((first, last))
    return found


def split_stale(
    root: Path, parts: Sequence[LakePart], touched: Touched
) -> Iterator[tuple[int, LakePart, pl.DataFrame]]:
    """Yield each feature part of one cluster of which something is not true any more, and what of it still is.

    With them comes a number that a part of ``feature_series`` shares with the part of its windows.
    """
    windows_of = {_file_name(part): part for part in parts if part.table == "features"}
    for number, part in enumerate(part for part in parts if part.table == "feature_series"):
        rows = read_part(root / part.file)
        stays = touched.leaves(rows)
        if stays.height == rows.height:
            continue
        yield number, part, stays
        if windows := windows_of.get(_file_name(part)):
            kept = read_part(root / windows.file)
            yield number, windows, kept.join(stays, on=_KEY, how="semi", maintain_order="left")


def _file_name(part: LakePart) -> str:
    """Return what a part of ``feature_series`` and that of its windows are both called."""
    return part.file.rpartition("/")[2]


# -- small parts -------------------------------------------------------------------------------------------------------


def small_pairs(parts: Iterable[LakePart]) -> dict[str, list[tuple[LakePart, ...]]]:
    """Return the small parts of ``feature_series`` of one cluster, each with that of its windows, by variant.

    Those of which no series gave a window, of whatever variant, are under ''.
    """
    windows_of: dict[str, LakePart] = {}
    series: list[LakePart] = []
    for part in parts:
        if part.table == "features":
            windows_of[_file_name(part)] = part
        elif part.table == "feature_series":
            series.append(part)
    found: dict[str, list[tuple[LakePart, ...]]] = {}
    for part in series:
        windows = windows_of.get(_file_name(part))
        pair = (part,) if windows is None else (part, windows)
        if sum(one.bytes for one in pair) < SMALL_BYTES:
            found.setdefault("" if windows is None else variant_of(windows.file), []).append(pair)
    return found


def merged_parts(
    root: Path, pairs: Sequence[tuple[LakePart, ...]]
) -> Iterator[tuple[list[LakePart], list[tuple[str, pl.DataFrame]]]]:
    """Yield small parts of one variant that go, and what comes for them: folder below the root, and rows by key."""
    for group in _groups(pairs):
        if len(group) > 1:
            come = []
            for parts in zip(*group, strict=True):
                key = TABLES[parts[0].table].key
                rows = pl.concat([read_part(root / part.file) for part in parts]).sort(key, maintain_order=True)
                come.append((parts[0].file.rpartition("/")[0], rows))
            yield [part for pair in group for part in pair], come


def _groups(pairs: Sequence[tuple[LakePart, ...]]) -> Iterator[list[tuple[LakePart, ...]]]:
    group: list[tuple[LakePart, ...]] = []
    held = 0
    for pair in pairs:
        group.append(pair)
        held += sum(part.bytes for part in pair)
        if held >= MERGED_BYTES:
            yield group
            group, held = [], 0
    yield group
