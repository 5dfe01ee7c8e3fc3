"""The next state of the lake, gathered part by part, and published at one stroke.

Everything is written under staging names and made durable first; replacing HEAD is the commit; moves and removals
follow, and whoever comes next finishes them if this process dies in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import polars as pl

from ingest.derive import derive, quality_rows
from ingest.disk import sync_folder
from ingest.errors import LakeError
from ingest.feature_commit import Touched, split_stale, write_rows
from ingest.head import Head, LakePart, finish_moves, write_head
from ingest.manifest import INPUTS_SCHEMA, read_inputs, write_inputs, write_pieces
from ingest.minutes import MINUTE_KEY, meet_spans, minutes_of_pieces, void_spans
from ingest.part_writer import write_part
from ingest.parts import PartReader, read_part, time_range
from ingest.reconcile import Plan
from ingest.records import CommitSpec, CountKey, FileRecord, Part, RewriteResult
from ingest.refusals import Refusals, is_refusal
from ingest.rollup import join_minutes, last_minutes, minutes_after, minutes_without, seam_minutes
from ingest.schemas import GPU_MINUTES, SERIES_KEY, TABLES

MINUTES_ROWS: Final = 131_072
"""A part of gpu_minutes is closed when it has this many rows."""

_REMADE: Final = frozenset({"job_stats", "devices", "quality"})
_JOB_COLUMNS: Final = ("job_id", "attempt", "start_time", "end_time", "gpus", "gpu_type")


class Assembly:
    """Gathers the parts of the next state.

    Parameters
    ----------
    renamed : names of input files as they were scanned, and as the lake knows them, where those differ
    """

    def __init__(self, spec: CommitSpec, rewritten: Sequence[RewriteResult], renamed: Mapping[str, str]) -> None:
        self._spec = spec
        self._rewritten = rewritten
        self._renamed = renamed
        self._root = Path(spec.lake)
        self._paths = {str(self._root / p.file): p for p in spec.head.parts}
        self._generation = spec.head.generation + 1
        self._live = {p.file: p for p in spec.head.parts if p.cluster == spec.cluster}
        self._others = [p for p in spec.head.parts if p.cluster != spec.cluster]
        self._new: list[tuple[LakePart, str]] = []
        self._final: dict[str, str] = {}
        self._number: Counter[str] = Counter()
        self._staged = Path(spec.staging)

    def _adopt(self, part: Part) -> None:
        """Give a staged part its final name."""
        table = part.table
        name = f"part-{self._generation:06d}-{self._number[table]:05d}.parquet"
        self._number[table] += 1
        file = f"{table}/cluster={self._spec.cluster}/{name}"
        self._final[part.path] = file
        staged = Path(part.path).relative_to(self._root).as_posix()
        self._new.append((LakePart(table, self._spec.cluster, file, part.rows, part.bytes), staged))

    def _write(self, table: str, frame: pl.DataFrame) -> None:
        if frame.height:
            path = self._staged / "commit" / f"{table}-{len(self._new):05d}.parquet"
            self._adopt(write_part(path, table, frame))

    def _live_of(self, table: str) -> list[LakePart]:
        return [p for p in self._live.values() if p.table == table]

    def _scanned(self, table: str) -> list[Part]:
        return [part for result in self._spec.results for part in result.parts if part.table == table]

    def _remade(self, table: str) -> list[Part]:
        return [part for result in self._rewritten for part in result.parts if part.table == table]

    def refused(self) -> pl.DataFrame:
        """Return the rows of ``quarantine`` that stand for whole files."""
        return self._quarantined(is_refusal())

    def rejected(self, reason: str) -> pl.DataFrame:
        """Return the rows of ``quarantine`` with a reason code."""
        return self._quarantined(pl.col("reason") == reason)

    def _quarantined(self, wanted: pl.Expr) -> pl.DataFrame:
        found = [read_part(self._root / p.file).filter(wanted) for p in self._live_of("quarantine")]
        return pl.concat(found) if found else TABLES["quarantine"].empty()

    def _read(self, table: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Return a small table of the next state, as far as it is gathered."""
        paths = [self._root / p.file for p in self._live_of(table)]
        paths += [self._root / staged for part, staged in self._new if part.table == table]
        frames = [read_part(path, columns=columns) for path in paths]
        empty = TABLES[table].empty()
        return pl.concat(frames) if frames else empty if columns is None else empty.select(columns)

    def add_samples(self, plan: Plan) -> None:
        """Take the staged parts that stay, and the rewritten ones for those that do not."""
        out = plan.touched_parts | plan.gone_parts
        for path in out:
            if path in self._paths:
                self._live.pop(self._paths[path].file, None)
        staged = [part for result in self._spec.results for part in result.parts]
        staged += [part for result in self._rewritten for part in result.parts]
        for part in staged:
            if part.table not in ("gpu_minutes", "quarantine") and part.path not in out:
                self._adopt(part)

    def add_minutes(self, plan: Plan, fresh: pl.DataFrame, past: pl.DataFrame) -> None:
        """Take the new minutes and drop those of series that were replaced or merged; a bounded number at a time.

        A minute in which one task (or what the lake has) ended and another began is in two parts, and is joined. Where
        a file goes and others of its series stay, the minutes that it lay in are made anew from those.
        Minutes of samples that are not kept any more (``past``) cannot be made anew, and stay.
        """
        kept_until = last_minutes(past.join(plan.void_series, on=SERIES_KEY, how="semi", nulls_equal=True))
        void = void_spans(plan.left)
        remade = minutes_of_pieces(plan.stays, void)
        stays = plan.stays.join(fresh, on=SERIES_KEY, how="semi", nulls_equal=True)
        task_of = {part.path: r.part for r in self._spec.results for part in r.parts} | dict.fromkeys(self._paths, "")
        seams = pl.concat([seam_minutes(pl.concat([stays, fresh]), task_of), remade.select(MINUTE_KEY)]).unique()
        pack, halves = _MinutePack(self._write), [GPU_MINUTES.empty(), remade]
        for part in self._live_of("gpu_minutes") if plan.void_series.height else self._holding(void, seams):
            old = read_part(self._root / part.file)
            left = minutes_without(old, plan.void_series, kept_until)
            left = left.filter(~meet_spans(left, void, pl.col("minute"), pl.col("minute")))
            found = left.join(seams, on=MINUTE_KEY, how="semi", nulls_equal=True)
            if found.height or left.height < old.height:
                del self._live[part.file]
                halves.append(found)
                pack.add(left.join(seams, on=MINUTE_KEY, how="anti", nulls_equal=True))
        for scanned in self._scanned("gpu_minutes"):
            for frame in PartReader(keep=1).frames(scanned.path, 0, scanned.rows):
                rows = minutes_without(frame, plan.merged_series)
                if seams.height:
                    halves.append(rows.join(seams, on=MINUTE_KEY, how="semi", nulls_equal=True))
                    rows = rows.join(seams, on=MINUTE_KEY, how="anti", nulls_equal=True)
                pack.add(rows)
        for merged in self._remade("gpu_minutes"):
            for frame in PartReader(keep=1).frames(merged.path, 0, merged.rows):
                pack.add(minutes_after(frame, kept_until))
        for frame in join_minutes(pl.concat(halves)).iter_slices(MINUTES_ROWS):
            pack.add(frame)
        pack.flush()

    def _holding(self, void: pl.DataFrame, seams: pl.DataFrame) -> list[LakePart]:
        """Return the parts of gpu_minutes that may have some minutes (``void`` has spans of them), by their footers."""
        minutes: list[datetime] = pl.concat([void["first"], void["last"], seams["minute"]]).to_list()
        if not minutes:
            return []
        low, high = min(minutes), max(minutes)
        ranges = ((part, time_range(self._root / part.file, "minute")) for part in self._live_of("gpu_minutes"))
        return [part for part, (first, last) in ranges if first <= high and low <= last]

    def add_quarantine(self, renewed: set[str], refusals: Refusals) -> None:
        """Take the new quarantined rows; those of files that were read anew go."""
        goes = pl.col("file").is_in(sorted(renewed))
        goes |= is_refusal() & pl.col("file").is_in(refusals.stale["file"].unique().implode())
        for part in self._live_of("quarantine"):
            old = read_part(self._root / part.file)
            left = old.filter(~goes)
            if left.height < old.height:
                del self._live[part.file]
                self._write("quarantine", left)
        for result in self._spec.results:
            shift = self._spec.line_shift.get(result.part, 0)
            is_renamed = not self._renamed.keys().isdisjoint(r.name for r in result.files) or result.part == "plan"
            for staged in (part for part in result.parts if part.table == "quarantine"):
                if shift or (is_renamed and self._renamed):
                    names = pl.col("file").replace(self._renamed)
                    self._write("quarantine", read_part(staged.path).with_columns(names, pl.col("line") + shift))
                else:
                    self._adopt(staged)
        for staged in self._remade("quarantine"):
            self._adopt(staged)
        self._write("quarantine", refusals.new)

    def remove_features(self, touched: Touched) -> None:
        """Let go of the features of series whose samples are not those any more; parts that have others are kept."""
        for number, part, stays in split_stale(self._root, list(self._live.values()), touched):
            del self._live[part.file]
            if stays.height:
                file = f"{part.file.rpartition('/')[0]}/part-{self._generation:06d}-{number:05d}.parquet"
                staged = self._staged / "commit" / f"{part.table}-{number:05d}.parquet"
                self.add_features(file, write_rows(staged, part.table, stays))

    def add_features(self, file: str, part: Part) -> None:
        """Take in a staged part of features under a name of its own, since a variant has a folder of its own."""
        staged = Path(part.path).relative_to(self._root).as_posix()
        self._new.append((LakePart(part.table, self._spec.cluster, file, part.rows, part.bytes), staged))

    def swap(self, gone: Iterable[str], staged: Iterable[Part]) -> None:
        """Take staged parts in the place of some of the lake's, which are given by their names below the root."""
        for file in gone:
            del self._live[file]
        for part in staged:
            self._adopt(part)

    def settled(self, pieces: pl.DataFrame) -> pl.DataFrame:
        """Return pieces with the staged parts under their final names."""
        return pieces.with_columns(pl.col("part").replace(self._final))

    def index(self, live: pl.DataFrame, fresh: pl.DataFrame, plan: Plan) -> pl.DataFrame:
        """Return the pieces of the next state, parts under their final names."""
        out = list(plan.touched_parts | plan.gone_parts)
        again = [read_part(r.pieces) for r in self._rewritten if r.pieces]
        every = pl.concat([p.filter(~pl.col("part").is_in(out)) for p in (live, fresh)] + again)
        names = {path: part.file for path, part in self._paths.items()} | self._final
        return every.with_columns(pl.col("part").replace_strict(names, return_dtype=pl.String))

    def add_derived(
        self, index: pl.DataFrame, counts: Counter[CountKey], renewed: set[str], refusals: Refusals
    ) -> list[tuple[str, int]]:
        """Make devices, job statistics and quality anew; return the reason codes that this run added, with counts."""
        jobs, labels = self._read("jobs", _JOB_COLUMNS), self._read("labels", ("job_id",))
        derived = derive(index, jobs, labels, self._read("device_inventory"))
        old = self._read("quality")
        for table in _REMADE:
            for part in self._live_of(table):
                del self._live[part.file]
        new = quality_rows(counts)
        kept = old.filter(~pl.col("file").is_in([*sorted(renewed), ""]))
        for gone in (refusals.stale, new):
            key = ["file", "reason", "detail"] + (["job_id"] if "job_id" in gone.columns else [])
            kept = kept.join(gone, on=key, how="anti", nulls_equal=True)
        self._write("devices", derived.devices)
        self._write("job_stats", derived.job_stats)
        self._write("quality", pl.concat([kept, new, derived.quality]))
        key = ["job_id", "reason", "count"]
        fresh = derived.quality.join(old.filter(pl.col("file") == ""), on=key, how="anti", nulls_equal=True)
        return [(reason, n) for reason, n in pl.concat([new, fresh]).select("reason", "count").iter_rows()]

    def publish(
        self, records: Sequence[FileRecord], index: pl.DataFrame, pieces: pl.DataFrame, forgotten: Iterable[str]
    ) -> Head:
        """Write the index, commit, and finish the moves.

        Parameters
        ----------
        forgotten : names of inputs that the lake does not know any more
        """
        cluster, generation, old = self._spec.cluster, self._generation, self._spec.head
        inputs = _next_inputs(read_inputs(self._root, old), records, cluster, generation, forgotten)
        elsewhere = pieces.filter(pl.col("cluster") != cluster)
        mine = index.select(pl.lit(cluster).alias("cluster"), pl.all())
        parts = [*self._others, *self._live.values(), *(part for part, _ in self._new)]
        head = Head(
            generation,
            tuple(parts),
            write_inputs(self._root, f"inputs-{generation:06d}.parquet", inputs),
            write_pieces(self._root, f"pieces-{generation:06d}.parquet", pl.concat([elsewhere, mine])),
            {part.file: staged for part, staged in self._new},
            tuple(sorted({p.file for p in old.parts} - {p.file for p in parts}))
            + tuple(f"_manifest/{name}" for name in (old.inputs, old.pieces) if name),
            {**old.tres_names, cluster: dict(self._spec.tres_names)},
        )
        for folder in {(self._root / staged).parent for _, staged in self._new}:
            sync_folder(folder)
        write_head(self._root, head)
        return finish_moves(self._root, head)


def _next_inputs(
    inputs: pl.DataFrame, records: Sequence[FileRecord], cluster: str, generation: int, forgotten: Iterable[str]
) -> pl.DataFrame:
    """Return what the lake remembers of every input, those taken now with their new counts."""
    taken = [r for r in records if r.is_taken]
    lost = [r.name for r in taken if not r.is_conserved]
    if lost:
        raise LakeError(f"rows of {lost[0]} do not add up; nothing was committed, please report this")
    rows = [
        (
            cluster,
            r.name,
            r.kind,
            r.size,
            r.checksum,
            r.rows_in,
            r.rows_out,
            r.rows_quarantined,
            r.rows_merged,
            generation,
        )
        for r in taken
    ]
    new = pl.DataFrame(rows, schema=INPUTS_SCHEMA, orient="row")
    goes = (pl.col("cluster") == cluster) & pl.col("name").is_in([r.name for r in taken] + sorted(forgotten))
    return pl.concat([inputs.filter(~goes), new]).sort("cluster", "name")


class _MinutePack:
    """Rows of gpu_minutes that wait until they make a part."""

    def __init__(self, write: Callable[[str, pl.DataFrame], None]) -> None:
        self._write = write
        self._frames: list[pl.DataFrame] = []
        self._rows = 0

    def add(self, rows: pl.DataFrame) -> None:
        """Add rows."""
        self._frames.append(rows)
        self._rows += rows.height
        if self._rows >= MINUTES_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what waits, sorted by key."""
        if self._frames:
            self._write("gpu_minutes", pl.concat(self._frames).sort(GPU_MINUTES.key))
        self._frames, self._rows = [], 0
