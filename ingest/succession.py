"""Which input file of the lake a file succeeds whose name does not say which job it is of (a log, labels, node data).

Every recording has a ``slurm-log.csv``. One that tells of the same jobs as a file that the lake knows is that file,
grown or changed, and takes its place; one that tells of none of them is another recording's, and stands beside it
under a name of its own (``slurm-log.csv@h200-02``). So neither the name of an archive nor its place matters, only what
is in it. A snapshot of sacct is known by its name, rewritten until the last job of its day has ended, and refused if
it lost one.

So it is with what ``nvidia-smi`` wrote, whose logs are rotated: one of which all rows come before or after those that
the lake has of its node's GPUs stands beside them, whatever its name and size. One that has a time in common with some
of them takes their place if it spans all of their time and has as many rows. Options (zone, node) may have changed in
between: logs are compared as they would be, were they all read with the new ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import polars as pl

from ingest.parts import PartReader
from ingest.reconcile import SEPARATOR
from ingest.records import CommitSpec, FileRecord, Held, Known, SmiOptions
from ingest.schemas import SERIES_KEY, TIME
from ingest.sources.kinds import KINDS

MARK: Final = "@"
"""Between a file's name and that of the archive from which it came, where the lake has another one of that name, or
that of the node which an option told."""

_ARCHIVE_ENDINGS: Final = (".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar", ".csv.gz", ".csv.zst", ".csv")
_NOUN: Final = {"node": "nodes", "nvidia_smi": "series", "smi_query": "GPUs", "smi_dmon": "GPUs"}


@dataclass(slots=True)
class Succession:
    """What becomes of such files.

    ``names``: as scanned, to as the lake will know them. ``succeeded``: the inputs whose rows go. ``held``, by the name
    in the lake: files that cannot be taken, since rows would be lost.
    """

    names: dict[str, str] = field(default_factory=dict)
    succeeded: set[str] = field(default_factory=set)
    held: dict[str, Held] = field(default_factory=dict)

    def rename(self, spec: CommitSpec) -> CommitSpec:
        """Return what was staged, under the names that the lake will know."""
        if all(name == known for name, known in self.names.items()):
            return spec
        results = [
            replace(
                result,
                counts={
                    (self.names.get(name, name), job_id, reason, detail): n
                    for (name, job_id, reason, detail), n in result.counts.items()
                },
                null_cells={(self.names.get(name, name), column): n for (name, column), n in result.null_cells.items()},
            )
            for result in spec.results
        ]
        return replace(spec, results=tuple(results), records=tuple(self._rename(r) for r in spec.records))

    def _rename(self, record: FileRecord) -> FileRecord:
        if not record.is_taken or record.name not in self.names:
            return record
        known = self.names[record.name]
        return replace(record, name=known, status="replaced" if known in self.succeeded else "new")


def find_succession(spec: CommitSpec, inputs: pl.DataFrame, live: pl.DataFrame, fresh: pl.DataFrame) -> Succession:
    """Return what the files in ``spec.records`` succeed.

    Parameters
    ----------
    inputs : what the lake remembers of the cluster's input files
    live, fresh : pieces of the lake's parts, and of what was staged
    """
    search = _Search(spec, inputs, live, fresh)
    taken = [r for r in spec.records if r.is_taken]
    for record in taken:
        if record.kind in KINDS and (KINDS[record.kind].is_anonymous or KINDS[record.kind].is_of_node):
            search.add(record)
        elif record.kind == "sacct" and record.status == "replaced":
            search.compare(record)
    found = search.found
    logs = [found.names.get(r.name, r.name) for r in taken if r.kind == "jobs"]
    suffix = "".join(logs[0].partition(MARK)[1:]) if logs else ""
    for record in taken:
        if record.kind == "tres":  # it goes with the log whose rows it completes
            found.names[record.name] = record.name + suffix
            found.succeeded |= {record.name + suffix} & set(inputs["name"])
    return found


class _Search:
    """Compares files with those of the lake; ``found`` has what came of it."""

    def __init__(self, spec: CommitSpec, inputs: pl.DataFrame, live: pl.DataFrame, fresh: pl.DataFrame) -> None:
        self._spec = spec
        self._inputs = inputs
        self._live = live
        self._fresh = fresh
        self.found = Succession()

    def add(self, record: FileRecord) -> None:
        """Find out what one file succeeds."""
        kind, name = record.kind, record.name
        is_log = KINDS[kind].is_of_node
        known = self._inputs.filter(pl.col("kind") == kind)["name"].sort().to_list()
        if not known:
            return
        now = _extent(self._fresh, [name], kind)
        same = [one for one in known if is_log and _is_content_of(record, self._known(one))]
        shared = same or [one for one in known if _meets(self._told(one, record, now, None), now)]
        given = set(self.found.names.values())
        taken = {*self._inputs["name"], *given}
        heir = name if name in shared or (same and name not in taken) else shared[0] if shared else None
        if heir is None or (is_log and heir in given):  # a copy beside a log that has its place already
            base = name if is_log else name.partition(MARK)[0]
            self.found.names[name] = _free_name(base, self._spec.source_name, taken)
            return
        self.found.names[name] = heir
        why = None if self._spec.force or same else self._loss(record, now, shared)
        if why is None:
            self.found.succeeded.update(shared)
        else:
            self.found.held[heir] = Held(*why, name, heir)

    def compare(self, record: FileRecord) -> None:
        """Hold a file that is known by its name, and may become shorter, where jobs of it are gone."""
        now = _extent(self._fresh, [record.name], record.kind)
        why = None if self._spec.force else self._lost_keys(record, now, [record.name])
        if why is not None:
            self.found.held[record.name] = Held(*why, record.name, record.name)

    def _known(self, name: str) -> Known:
        """Return what the lake remembers of a file."""
        columns = ("size", "checksum", "rows_in", "name")
        return Known(*self._inputs.filter(pl.col("name") == name).select(columns).row(0))

    def _told(self, name: str, record: FileRecord, now: pl.DataFrame, among: Sequence[str] | None) -> pl.DataFrame:
        """Return what a file of the lake tells of, a log as if it had been read with the options of ``record``.

        Parameters
        ----------
        among : with pieces of these files alone; those that have rows of others too are wider than the file is
        """
        old = _extent(self._live, [name], record.kind, among)
        if not KINDS[record.kind].is_of_node or not now.height:
            return old
        theirs, ours = (_options_of(checksum) for checksum in (self._known(name).checksum, record.checksum))
        if name == record.name and theirs.node != ours.node:
            old = old.with_columns(node=pl.lit(now["node"][0], old.schema["node"]))
        if theirs.time_zone == ours.time_zone:
            return old
        return old.with_columns(_in_zone(pl.col(edge), theirs, ours) for edge in ("first_time", "last_time"))

    def _loss(self, record: FileRecord, now: pl.DataFrame, shared: list[str]) -> tuple[str, str] | None:
        """Return reason code and detail where the lake would lose by this file, which tells of what ``shared`` told."""
        if KINDS[record.kind].is_of_node:
            return self._fewer(record, shared) or self._lost_keys(record, now, shared)
        return self._lost_keys(record, now, shared) or self._fewer(record, shared)

    def _lost_keys(self, record: FileRecord, now: pl.DataFrame, shared: list[str]) -> tuple[str, str] | None:
        among = shared if KINDS[record.kind].is_of_node else None  # whose rows may be joined with those of others
        told = pl.concat([self._told(name, record, now, among) for name in shared])
        old = told.group_by(_key(told)).agg(pl.col("first_time").min(), pl.col("last_time").max())
        lost = _find_lost(old, now)
        if not lost.height:
            return None
        example = " ".join(str(part) for part in lost.row(0) if part is not None)
        when = ", or not for all of their time" if record.kind in _NOUN else ""
        noun = _NOUN.get(record.kind, "jobs")
        gone = f"{lost.height} of {old.height} {noun} are not in it any more{when}, as {example}"
        return "keys_lost", f"{gone}; --force drops them, another --cluster keeps both"

    def _fewer(self, record: FileRecord, shared: list[str]) -> tuple[str, str] | None:
        known = [self._known(name) for name in shared]
        if len(known) == 1 and record.size < known[0].size:
            return "shrunken", f"{record.size} bytes, {known[0].size} before"
        rows = sum(one.rows_in for one in known)
        if record.rows_in < rows and (len(known) > 1 or KINDS[record.kind].is_of_node):
            return "shrunken", f"{record.rows_in} rows, {rows} before"
        return None


def _is_content_of(record: FileRecord, known: Known) -> bool:
    """Return whether a file has the very content of one that the lake has, perhaps read with other options."""
    return record.size == known.size and record.checksum.partition("~")[0] == known.checksum.partition("~")[0]


def _options_of(checksum: str) -> SmiOptions:
    """Return with which options a log was read, by its checksum; the columns are left out."""
    node, zone, _ = (*checksum.partition("~")[2].split("~"), "", "", "")[:3]
    return SmiOptions(node, zone)


def _in_zone(time: pl.Expr, theirs: SmiOptions, ours: SmiOptions) -> pl.Expr:
    """Return times that were read as of one zone as those of another; null for those that its clocks never show."""
    shown = time.dt.convert_time_zone(theirs.time_zone or "UTC").dt.replace_time_zone(None)
    placed = shown.dt.replace_time_zone(ours.time_zone or "UTC", ambiguous="earliest", non_existent="null")
    return placed.dt.convert_time_zone("UTC")


def _extent(pieces: pl.DataFrame, names: Sequence[str], kind: str, among: Sequence[str] | None = None) -> pl.DataFrame:
    """Return what files tell of: a row a job, node or series, with the first and the last time (or nulls).

    Parameters
    ----------
    among : pieces that have rows of other files than these are left out
    """
    inputs = pl.col("input").str.split(SEPARATOR)
    mine = pieces.filter(inputs.list.set_intersection(list(names)).list.len() > 0)
    if among is not None:
        mine = mine.filter(inputs.list.set_difference(list(among)).list.len() == 0)
    mine = mine.filter(pl.col("table") == KINDS[kind].table)
    span = (pl.col("first_time").min(), pl.col("last_time").max())
    if KINDS[kind].table == "gpu_samples":
        return mine.group_by(SERIES_KEY).agg(span)
    key = "node" if kind == "node" else "job_id"
    columns = [key, "time"] if kind == "node" else [key]
    frames = [_spans(frame, key) for frame in _read(mine, columns)]
    empty = pl.DataFrame(schema={key: pl.String if kind == "node" else pl.Int64, "first_time": TIME, "last_time": TIME})
    return pl.concat([empty, *frames]).group_by(key).agg(span)


def _spans(frame: pl.DataFrame, key: str) -> pl.DataFrame:
    time = pl.col("time") if "time" in frame.columns else pl.lit(None, TIME)
    return frame.group_by(key).agg(time.min().alias("first_time"), time.max().alias("last_time"))


def _read(pieces: pl.DataFrame, columns: list[str]) -> Iterable[pl.DataFrame]:
    reader = PartReader()
    for part, start, rows in pieces.sort("part", "row_start").select("part", "row_start", "rows").iter_rows():
        yield from reader.frames(part, start, rows, columns)


def _meets(old: pl.DataFrame, now: pl.DataFrame) -> bool:
    """Return whether two files tell of a same job, node or series (at a same time, where there are times)."""
    both = old.join(now, on=_key(old), suffix="_now", nulls_equal=True)
    apart = (pl.col("first_time") > pl.col("last_time_now")) | (pl.col("last_time") < pl.col("first_time_now"))
    return not both.filter(~apart.fill_null(False)).is_empty()


def _find_lost(old: pl.DataFrame, now: pl.DataFrame) -> pl.DataFrame:
    """Return the keys, sorted, of what is in ``old`` and not in ``now``, or only for a part of the time."""
    key = _key(old)
    both = old.join(now, on=key, suffix="_now", nulls_equal=True)
    less = (pl.col("first_time") < pl.col("first_time_now")) | (pl.col("last_time") > pl.col("last_time_now"))
    whole = both.filter(~less.fill_null(False))
    return old.join(whole, on=key, how="anti", nulls_equal=True).select(key).sort(key)


def _key(extent: pl.DataFrame) -> list[str]:
    return [name for name in extent.columns if name not in ("first_time", "last_time")]


def _free_name(name: str, source: str, taken: set[str]) -> str:
    """Return a name that no input has: the file's own, else with the archive's, else with that and a number."""
    stem = source
    for ending in _ARCHIVE_ENDINGS:
        stem = stem.removesuffix(ending)
    names = [name, f"{name}{MARK}{stem}", *(f"{name}{MARK}{stem}-{n}" for n in range(2, len(taken) + 3))]
    return next(free for free in names if free not in taken)
