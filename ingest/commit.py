"""The commit task: what the lake's next state is to be, and, once all is at hand, the commit.

Called again after each answer that asks for something: files to be read again or left out, parts to be written anew. It
decides alike each time, since the same was staged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from ingest.assembly import Assembly
from ingest.attempts import number_in_time
from ingest.derive import missing_counts
from ingest.feature_commit import Touched
from ingest.forgetting import find_forgettable, forget
from ingest.head import LakePart
from ingest.manifest import NO_PART, read_inputs, read_pieces
from ingest.parts import read_part, time_range, write_frame
from ingest.precedence import give_way
from ingest.reconcile import Plan, companions, has_any, reconcile
from ingest.records import CommitResult, CommitSpec, CountKey, FileRecord, Held, RewriteResult, RewriteSpec
from ingest.refusals import compare
from ingest.schemas import SERIES_KEY, TABLES
from ingest.snapshots import without_known_rows
from ingest.sources.kinds import APPENDING, KINDS
from ingest.sources.supercloud import parse_name
from ingest.staging import conform_pieces
from ingest.succession import find_succession


def commit(spec: CommitSpec) -> CommitResult:
    """Bring the lake to its next state, unless something must be done first.

    Raises
    ------
    LakeError
        If a part that is needed is damaged, or somebody else has written the lake.
    """
    root = Path(spec.lake)
    inputs = read_inputs(root, spec.head).filter(pl.col("cluster") == spec.cluster)
    pieces = read_pieces(root, spec.head)
    live, fresh = _live(pieces, spec), _fresh(spec)
    past = pieces.filter((pl.col("cluster") == spec.cluster) & (pl.col("part") == NO_PART)).drop("cluster")
    succession = find_succession(spec, inputs, live, fresh)
    spec, fresh = succession.rename(spec), fresh.with_columns(pl.col("input").replace(succession.names))
    spec, fresh = without_known_rows(spec, live, fresh)
    yielded = give_way(spec, inputs, live, fresh)
    spec, fresh = yielded.spec, yielded.fresh
    scanned = {known: name for name, known in succession.names.items()}
    assembly = Assembly(spec, spec.rewritten or (), succession.names)
    gone = succession.succeeded
    moved = {name for name, known in succession.names.items() if name != known}
    found = _companions(spec.records, inputs, live, gone, moved)
    again, lost = found.again | _waiting(spec.records, fresh, assembly.rejected("no_base_sample")), found.lost
    held = [Held("companion_missing", why, scanned.get(name, name), name) for name, why in found.held.items()]
    held += succession.held.values()
    if held or again:
        return CommitResult(rescan=tuple(sorted(again)), held=tuple(held))
    refusals = compare(spec.records, assembly.refused(), met=(spec.source_name, *succession.names))
    changed = {r.name for r in spec.records if r.is_taken}
    if not changed and refusals.is_settled:
        records = refusals.settle(spec.records)
        rows = _table_rows(spec.head.parts, spec.cluster)
        return CommitResult(spec.head.generation, records=records, tables=rows, reasons=refusals.settled_reasons())
    goes = {r.name for r in spec.records if r.status == "replaced"} | gone | set(lost)
    past = past.filter(~has_any(past, goes))
    plan = reconcile(live, fresh, goes | yielded.renewed.keys(), _appending(spec.records, inputs))
    if plan.rewrites and spec.rewritten is None:
        return CommitResult(rewrites=_rewrite_specs(plan, spec))
    rewritten = spec.rewritten or ()
    assembly = Assembly(replace(spec, results=number_in_time(spec.results)), rewritten, succession.names)
    records = refusals.settle(_settle(spec.records, rewritten))
    renewed = changed | gone | set(lost)
    assembly.add_samples(plan)
    _remove_features(assembly, spec, live, fresh, goes | yielded.renewed.keys())
    assembly.add_minutes(plan, fresh, past)
    assembly.add_quarantine(renewed, refusals)
    forgotten = find_forgettable(spec.forget, live)
    index = forget(pl.concat([assembly.index(live, fresh, plan), past]), forgotten)
    counts = _counts(spec, rewritten)
    counts.update(refusals.counts())
    counts.update({(name, None, "extended_lost", ""): rows for name, rows in lost.items()})
    counts.update(yielded.counts)
    new_quality = assembly.add_derived(index, counts, renewed, refusals)
    known = (*records, *yielded.renewed.values())
    head = assembly.publish(known, index, pieces, gone | set(lost) | forgotten)
    reasons = Counter(refusals.settled_reasons())
    for reason, n in new_quality:
        reasons[reason] += n
    rows_replaced = int(inputs.filter(pl.col("name").is_in(list(goes)))["rows_in"].sum())
    rows = _table_rows(head.parts, spec.cluster)
    return CommitResult(
        head.generation, records=records, tables=rows, reasons=dict(reasons), rows_replaced=rows_replaced
    )


def _live(pieces: pl.DataFrame, spec: CommitSpec) -> pl.DataFrame:
    """Return the pieces of the cluster's parts, with these parts' paths."""
    live = pieces.filter((pl.col("cluster") == spec.cluster) & (pl.col("part") != NO_PART)).drop("cluster")
    return live.with_columns((pl.lit(f"{Path(spec.lake)}/") + pl.col("part")).alias("part"))


def _fresh(spec: CommitSpec) -> pl.DataFrame:
    """Return the pieces of the parts that were staged."""
    new = [read_part(r.pieces) for r in spec.results if r.pieces]
    return conform_pieces(pl.concat(new) if new else pl.DataFrame({"part": []}, schema={"part": pl.String}))


def _remove_features(
    assembly: Assembly, spec: CommitSpec, live: pl.DataFrame, fresh: pl.DataFrame, goes: set[str]
) -> None:
    """Remove the features of what changes, where the lake has any."""
    if any(part.table == "feature_series" for part in spec.head.parts):
        assembly.remove_features(_touched(live, fresh, goes))


def _touched(live: pl.DataFrame, fresh: pl.DataFrame, goes: set[str]) -> Touched:
    """Return what features depend on, of the pieces that come and of those that go."""
    changed = pl.concat([fresh, live.filter(has_any(live, goes))])
    of = {table: changed.filter(pl.col("table") == table) for table in ("gpu_samples", "cpu_samples", "node_samples")}
    jobs = frozenset(of["cpu_samples"]["job_id"].drop_nulls().to_list())
    spans = tuple(time_range(Path(part), "time") for part in of["node_samples"]["part"].unique().sort())
    return Touched(of["gpu_samples"].select(SERIES_KEY).drop_nulls(), jobs, spans)


def _appending(records: Iterable[FileRecord], inputs: pl.DataFrame) -> set[str]:
    """Return the names of the files that go on where others of their series ended."""
    known = inputs.filter(pl.col("kind").is_in(list(APPENDING)))["name"]
    return {*known, *(record.name for record in records if record.kind in APPENDING)}


def _rewrite_specs(plan: Plan, spec: CommitSpec) -> tuple[RewriteSpec, ...]:
    """Write down what each rewrite is to do, and return the tasks."""
    size = {str(Path(spec.lake) / part.file): (part.rows, part.bytes) for part in spec.head.parts}
    size |= {part.path: (part.rows, part.bytes) for result in spec.results for part in result.parts}
    specs = []
    for i, rewrite in enumerate(plan.rewrites):
        name = f"rewrite-{i:05d}"
        path = Path(spec.staging) / "rewrites" / f"{name}.parquet"
        write_frame(path, rewrite.pieces, durable=False)
        n_bytes = 0
        for part, rows in rewrite.pieces.group_by("part").agg(pl.col("rows").sum()).iter_rows():
            n_bytes += size[part][1] * rows // max(size[part][0], 1)
        specs.append(RewriteSpec(rewrite.table, str(path), spec.staging, name, n_bytes))
    return tuple(specs)


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


def _companions(
    records: Iterable[FileRecord], inputs: pl.DataFrame, live: pl.DataFrame, gone: Collection[str], moved: set[str]
) -> _Companions:
    """Return what is to be done; ``moved`` are names that another file has in this source than in the lake."""
    met = {r.name: r for r in records}
    changed = {*gone, *(name for name, record in met.items() if record.status == "replaced")}
    found = _Companions()
    if not changed:
        return found
    known = {name: (kind, rows) for name, kind, rows in inputs.select("name", "kind", "rows_merged").iter_rows()}
    for group in companions(live):
        replaced = group & changed
        absent = {name for name in group - replaced if name not in met}
        refused = {name for name in group - replaced - absent if met[name].status == "refused"}
        away = {name for name in absent if known.get(name, ("", 0))[0] != "gpu_extended"}
        if not replaced:
            continue
        away |= (group - replaced) & moved
        if refused or away:
            why = f"{min(refused)} is refused" if refused else f"{min(away)} is not in this source under its name"
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
