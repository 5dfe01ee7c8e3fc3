"""The commit task: from what was staged to the lake's next state, at one stroke.

Everything is written under staging names and made durable first; replacing HEAD is the commit; moves and removals
follow, and whoever comes next finishes them if this process dies in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import polars as pl

from ingest.derive import derive, missing_counts, quality_rows
from ingest.errors import LakeError
from ingest.head import Head, LakePart, finish_moves, sync_folder, write_head
from ingest.manifest import INPUTS_SCHEMA, read_inputs, read_pieces, write_index
from ingest.parts import write_part
from ingest.reconcile import Plan, companions, reconcile
from ingest.records import CommitResult, CommitSpec, CountKey, FileRecord, Part
from ingest.refusals import Refusals, compare, is_refusal
from ingest.rewrite import RewriteResult, RewriteSpec, rewrite_part
from ingest.rollup import join_minutes
from ingest.schemas import TABLES
from ingest.snapshots import find_lost_jobs, without_known_jobs
from ingest.sources.supercloud import KINDS, parse_name
from ingest.staging import conform_pieces, minutes_without

_REMADE: Final = frozenset({"job_stats", "devices", "quality"})


def commit(spec: CommitSpec) -> CommitResult:
    """Bring the lake to its next state, unless some files must be read again, or be left out, first."""
    root = Path(spec.lake)
    inputs = read_inputs(root, spec.head).filter(pl.col("cluster") == spec.cluster)
    pieces = read_pieces(root, spec.head)
    live = pieces.filter(pl.col("cluster") == spec.cluster).drop("cluster")
    paths = {str(root / p.file): p for p in spec.head.parts}
    live = live.with_columns((pl.lit(f"{root}/") + pl.col("part")).alias("part"))
    new = [pl.read_parquet(r.pieces) for r in spec.results if r.pieces]
    fresh = pl.concat(new) if new else conform_pieces(live.clear())
    replaced = {r.name for r in spec.records if r.status == "replaced"}
    if lost_jobs := find_lost_jobs(spec, live, fresh):
        return CommitResult(held=lost_jobs)
    spec, fresh = without_known_jobs(spec, live, fresh)
    builder = _Builder(spec, root, paths)
    found = _companions(spec.records, inputs, companions(live))
    again, lost = found.again | _waiting(spec.records, fresh, builder.rejected("no_base_sample")), found.lost
    if found.held or again:
        return CommitResult(rescan=tuple(sorted(again)), held=found.held)
    refusals = compare(spec.records, builder.refused(), met=(spec.source_name,))
    changed = {r.name for r in spec.records if r.is_taken}
    if not changed and refusals.is_settled:
        records = refusals.settle(spec.records)
        rows = _table_rows(spec.head.parts, spec.cluster)
        return CommitResult(spec.head.generation, records=records, tables=rows, reasons=refusals.settled_reasons())
    plan = reconcile(live, fresh, replaced | set(lost))
    rewritten = [
        rewrite_part(RewriteSpec(rewrite, spec.staging, f"rewrite-{i:05d}")) for i, rewrite in enumerate(plan.rewrites)
    ]
    records = refusals.settle(_settle(spec.records, rewritten))
    renewed = changed | set(lost)
    builder.add_samples(plan, rewritten)
    builder.add_minutes(plan, rewritten)
    builder.add_quarantine(rewritten, renewed, refusals)
    index = builder.index(live, fresh, plan, rewritten)
    counts = _counts(spec, rewritten)
    counts.update(refusals.counts())
    counts.update({(name, None, "extended_lost", ""): rows for name, rows in lost.items()})
    new_quality = builder.add_derived(index, counts, renewed, refusals)
    head = builder.publish(records, index, pieces, set(lost))
    reasons = Counter(refusals.settled_reasons())
    for reason, n in new_quality:
        reasons[reason] += n
    rows = _table_rows(head.parts, spec.cluster)
    return CommitResult(head.generation, records=records, tables=rows, reasons=dict(reasons))


@dataclass(frozen=True, slots=True)
class _Companions:
    """What is to be done about files that share a series with one that changed.

    ``again``: to be read again. ``lost``, with their rows: extended files that are not at hand; they are forgotten,
    since what they had completed goes, and are new when they come again. ``held``, with the reason: changed files that
    cannot be taken, since a companion is refused or not at hand.
    """

    again: set[str] = field(default_factory=set)
    lost: dict[str, int] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)


def _companions(records: Iterable[FileRecord], inputs: pl.DataFrame, groups: Iterable[set[str]]) -> _Companions:
    met = {r.name: r for r in records}
    known = {name: (kind, rows) for name, kind, rows in inputs.select("name", "kind", "rows_merged").iter_rows()}
    found = _Companions()
    for group in groups:
        replaced = {name for name in group if name in met and met[name].status == "replaced"}
        absent = {name for name in group if name not in met}
        refused = {name for name in group - replaced - absent if met[name].status == "refused"}
        away = {name for name in absent if known.get(name, ("", 0))[0] != "gpu_extended"}
        if not replaced:
            continue
        if refused or away:
            why = f"{min(refused)} is refused" if refused else f"{min(away)} is not in this source"
            found.held.update(dict.fromkeys(replaced, why))
        else:
            found.again.update(group - replaced - absent)
            found.lost.update({name: max(known[name][1], 1) for name in absent})
    return found


def _waiting(records: Iterable[FileRecord], fresh: pl.DataFrame, orphans: pl.DataFrame) -> set[str]:
    """Return the extended files of this source, known and unchanged, whose samples lacked what has come now."""
    base = fresh.filter((pl.col("table") == "gpu_samples") & ~pl.col("extended"))
    come = set(base.select("job_id", "node").unique().iter_rows())
    unchanged = {r.name for r in records if r.status == "unchanged"}
    kind = KINDS["gpu_extended"]
    return {name for name in orphans["file"].unique() if name in unchanged and parse_name(kind, name) in come}


def _table_rows(parts: Iterable[LakePart], cluster: str) -> dict[str, int]:
    rows: Counter[str] = Counter()
    for part in parts:
        if part.cluster == cluster:
            rows[part.table] += part.rows
    return {name: rows[name] for name in TABLES if name in rows}


def _settle(records: Sequence[FileRecord], rewritten: Sequence[RewriteResult]) -> tuple[FileRecord, ...]:
    """Return the records with what merging made of their rows: merged, or in quarantine, instead of out."""
    merged, lost, repeated = Counter[str](), Counter[str](), Counter[str]()
    for result in rewritten:
        merged.update(result.merged)
        lost.update(result.orphaned)
        repeated.update(result.repeated)
    settled = []
    for record in records:
        name = record.name
        if record.kind == "gpu_extended" and record.is_taken:
            record = replace(  # noqa: PLW2901
                record,
                rows_out=record.rows_out - merged[name] - lost[name],
                rows_merged=merged[name],
                rows_quarantined=record.rows_quarantined + lost[name],
            )
        if repeated[name] and record.is_taken:
            gone = repeated[name]
            record = replace(  # noqa: PLW2901
                record, rows_out=record.rows_out - gone, rows_quarantined=record.rows_quarantined + gone
            )
        settled.append(record)
    return tuple(settled)


def _counts(spec: CommitSpec, rewritten: Sequence[RewriteResult]) -> Counter[CountKey]:
    counts: Counter[CountKey] = Counter()
    null_cells: Counter[tuple[str, str]] = Counter()
    for result in spec.results:
        counts.update(result.counts)
        null_cells.update(result.null_cells)
    for rewrite in rewritten:
        counts.update(rewrite.counts)
    for (name, _, reason, _), n in counts.items():
        if reason == "mem_unit_unknown":  # these cells have a value, though one that cannot be told
            null_cells[name, "mem_free_kib"] -= n
    counts.update(missing_counts(null_cells, {r.name: r for r in spec.records}))
    return counts


class _Builder:
    """Gathers the parts of the next state."""

    def __init__(self, spec: CommitSpec, root: Path, paths: Mapping[str, LakePart]) -> None:
        self._spec = spec
        self._root = root
        self._paths = paths
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

    def _write(self, table: str, stem: str, frame: pl.DataFrame) -> None:
        if frame.height:
            path = self._staged / "commit" / f"{table}-{stem}.parquet"
            self._adopt(write_part(path, table, frame))

    def _live_of(self, table: str) -> list[LakePart]:
        return [p for p in self._live.values() if p.table == table]

    def refused(self) -> pl.DataFrame:
        """Return the rows of ``quarantine`` that stand for whole files."""
        return self._quarantined(is_refusal())

    def rejected(self, reason: str) -> pl.DataFrame:
        """Return the rows of ``quarantine`` with a reason code."""
        return self._quarantined(pl.col("reason") == reason)

    def _quarantined(self, wanted: pl.Expr) -> pl.DataFrame:
        paths = [self._root / p.file for p in self._live_of("quarantine")]
        if not paths:
            return TABLES["quarantine"].empty()
        return pl.scan_parquet(paths, hive_partitioning=False).filter(wanted).collect()

    def _read(self, table: str) -> pl.DataFrame:
        """Return a small table of the next state, as far as it is gathered."""
        paths = [self._root / p.file for p in self._live_of(table)]
        paths += [self._root / staged for part, staged in self._new if part.table == table]
        frames = [pl.read_parquet(path, hive_partitioning=False) for path in paths]
        return pl.concat(frames) if frames else TABLES[table].empty()

    def add_samples(self, plan: Plan, rewritten: Sequence[RewriteResult]) -> None:
        """Take the staged parts that stay, and the rewritten ones for those that do not."""
        out = plan.touched_parts | plan.gone_parts
        for path in out:
            if path in self._paths:
                self._live.pop(self._paths[path].file, None)
        staged = [part for result in self._spec.results for part in result.parts]
        staged += [part for result in rewritten for part in result.parts]
        for part in staged:
            if part.table not in ("gpu_minutes", "quarantine") and part.path not in out:
                self._adopt(part)

    def add_minutes(self, plan: Plan, rewritten: Sequence[RewriteResult]) -> None:
        """Take the new minutes and drop those of series that were replaced or merged."""
        if plan.void_series.height:
            for part in self._live_of("gpu_minutes"):
                old = pl.read_parquet(self._root / part.file, hive_partitioning=False)
                left = minutes_without(old, plan.void_series)
                if left.height < old.height:
                    del self._live[part.file]
                    self._write("gpu_minutes", f"left-{len(self._new)}", left)
        scanned = [
            minutes_without(pl.read_parquet(part.path), plan.merged_series)
            for result in self._spec.results
            for part in result.parts
            if part.table == "gpu_minutes"
        ]
        merged = [
            pl.read_parquet(part.path).join(
                plan.merged_series, on=plan.merged_series.columns, how="semi", nulls_equal=True
            )
            for result in rewritten
            for part in result.parts
            if part.table == "gpu_minutes"
        ]
        if scanned or merged:
            self._write("gpu_minutes", "new", join_minutes(pl.concat([*scanned, *merged])))

    def add_quarantine(self, rewritten: Sequence[RewriteResult], renewed: set[str], refusals: Refusals) -> None:
        """Take the new quarantined rows; those of files that were read anew go."""
        goes = pl.col("file").is_in(sorted(renewed))
        goes |= is_refusal() & pl.col("file").is_in(refusals.stale["file"].unique().implode())
        for part in self._live_of("quarantine"):
            old = pl.read_parquet(self._root / part.file, hive_partitioning=False)
            left = old.filter(~goes)
            if left.height < old.height:
                del self._live[part.file]
                self._write("quarantine", f"left-{len(self._new)}", left)
        for i, result in enumerate(self._spec.results):
            shift = self._spec.line_shift.get(result.part, 0)
            for staged in (part for part in result.parts if part.table == "quarantine"):
                if shift:
                    rows = pl.read_parquet(staged.path).with_columns(pl.col("line") + shift)
                    self._write("quarantine", f"shifted-{i}-{len(self._new)}", rows)
                else:
                    self._adopt(staged)
        for staged in (part for result in rewritten for part in result.parts):
            if staged.table == "quarantine":
                self._adopt(staged)
        self._write("quarantine", "refused", refusals.new)

    def index(
        self, live: pl.DataFrame, fresh: pl.DataFrame, plan: Plan, rewritten: Sequence[RewriteResult]
    ) -> pl.DataFrame:
        """Return the pieces of the next state, parts under their final names."""
        out = list(plan.touched_parts | plan.gone_parts)
        again = [pl.read_parquet(r.pieces) for r in rewritten if r.pieces]
        every = pl.concat([p.filter(~pl.col("part").is_in(out)) for p in (live, fresh)] + again)
        names = {path: part.file for path, part in self._paths.items()} | self._final
        return every.with_columns(pl.col("part").replace_strict(names, return_dtype=pl.String))

    def add_derived(
        self, index: pl.DataFrame, counts: Counter[CountKey], renewed: set[str], refusals: Refusals
    ) -> list[tuple[str, int]]:
        """Make devices, job statistics and quality anew; return the reason codes that this run added, with counts."""
        jobs = self._read("jobs").select("job_id", "attempt", "start_time", "end_time", "gpu_type")
        derived = derive(index, jobs, self._read("labels"))
        old = self._read("quality")
        for table in _REMADE:
            for part in self._live_of(table):
                del self._live[part.file]
        new = quality_rows(counts)
        kept = old.filter(~pl.col("file").is_in([*sorted(renewed), ""]))
        for gone in (refusals.stale, new):
            key = ["file", "reason", "detail"] + (["job_id"] if "job_id" in gone.columns else [])
            kept = kept.join(gone, on=key, how="anti", nulls_equal=True)
        self._write("devices", "all", derived.devices)
        self._write("job_stats", "all", derived.job_stats)
        self._write("quality", "all", pl.concat([kept, new, derived.quality]))
        key = ["job_id", "reason", "count"]
        fresh = derived.quality.join(old.filter(pl.col("file") == ""), on=key, how="anti", nulls_equal=True)
        return [(reason, n) for reason, n in pl.concat([new, fresh]).select("reason", "count").iter_rows()]

    def publish(
        self, records: Sequence[FileRecord], index: pl.DataFrame, pieces: pl.DataFrame, forgotten: set[str]
    ) -> Head:
        """Write the index, commit, and finish the moves."""
        cluster, generation = self._spec.cluster, self._generation
        inputs = read_inputs(self._root, self._spec.head)
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
        new_inputs = pl.DataFrame(rows, schema=INPUTS_SCHEMA, orient="row")
        same = (pl.col("cluster") == cluster) & pl.col("name").is_in([r.name for r in taken] + sorted(forgotten))
        inputs = pl.concat([inputs.filter(~same), new_inputs]).sort("cluster", "name")
        elsewhere = pieces.filter(pl.col("cluster") != cluster)
        mine = index.select(pl.lit(cluster).alias("cluster"), pl.all())
        parts = [*self._others, *self._live.values(), *(part for part, _ in self._new)]
        old = self._spec.head
        head = Head(
            generation,
            tuple(parts),
            write_index(self._root, f"inputs-{generation:06d}.parquet", inputs),
            write_index(self._root, f"pieces-{generation:06d}.parquet", pl.concat([elsewhere, mine])),
            {part.file: staged for part, staged in self._new},
            tuple(sorted({p.file for p in old.parts} - {p.file for p in parts}))
            + tuple(f"_manifest/{name}" for name in (old.inputs, old.pieces) if name),
        )
        for folder in {(self._root / staged).parent for _, staged in self._new}:
            sync_folder(folder)
        write_head(self._root, head)
        return finish_moves(self._root, head)
