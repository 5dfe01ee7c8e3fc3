"""Which input file of the lake a file succeeds whose name does not say which job it is of (a log, labels, node data).

Every recording has a ``slurm-log.csv``. One that tells of the same jobs as a file that the lake knows is that file,
grown or changed, and takes its place; one that tells of none of them is another recording's, and stands beside it
under a name of its own (``slurm-log.csv@h200-02``). So neither the name of an archive nor its place matters, only what
is in it. A snapshot of sacct is known by its name, rewritten until the last job of its day has ended, and refused if
it lost one.

So it is with what ``nvidia-smi`` wrote, whose logs are rotated: one of which all rows come before or after those that
the lake has of its node's GPUs stands beside them, whatever its name and size. One that has a time in common with some
of them takes the place of the one of its name, and of those that are not at hand, if it has all of their times; it
stands beside those that are at hand as the lake knows them, and joins them. Options (zone, node) may have changed in
between: logs are compared as they would be, were they all read with the new ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import polars as pl

from ingest.extent import FilePieces, are_of, count_found, find_extent, find_lost, key_of, meets
from ingest.reconcile import has_any
from ingest.records import CommitSpec, FileRecord, Held, Known, SmiOptions
from ingest.schemas import SERIES_KEY
from ingest.sources.kinds import KINDS

MARK: Final = "@"
"""Between a file's name and that of the archive from which it came, where the lake has another one of that name, or
that of the node which an option told."""

_ARCHIVE_ENDINGS: Final = (".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar", ".csv.gz", ".csv.zst", ".csv")
_COMPARED: Final = [*(kind for kind, of in KINDS.items() if of.is_anonymous or of.is_of_node), "sacct"]
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
    search.add_logs([r for r in taken if r.kind in KINDS and KINDS[r.kind].is_of_node])
    for record in taken:
        if record.kind in KINDS and KINDS[record.kind].is_anonymous:
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
        compared = inputs.filter(pl.col("kind").is_in(_COMPARED)).sort("name")
        columns = ("size", "checksum", "rows_in", "name")
        self._known = {known[-1]: Known(*known) for known in compared.select(columns).iter_rows()}
        self._rows_out = dict(compared.select("name", "rows_out").iter_rows())
        self._names: defaultdict[str, list[str]] = defaultdict(list)
        self._of_content: defaultdict[tuple[str, int, str], list[str]] = defaultdict(list)
        for kind, name in compared.select("kind", "name").iter_rows():
            self._names[kind].append(name)
            self._of_content[kind, *_content_of(self._known[name])].append(name)
        self._live = FilePieces(live, self._known)
        self._fresh = FilePieces(fresh, {record.name for record in spec.records if record.kind in _COMPARED})
        self._samples = fresh.filter(pl.col("table") == "gpu_samples")
        self._taken = set(inputs["name"])
        self._at_hand = _names_at_hand(spec)
        self.found = Succession()

    def add(self, record: FileRecord) -> None:
        """Find out what one file that is no log of a node succeeds."""
        known = self._names[record.kind]
        if not known:
            return
        shared = self._meeting(record, known)
        if not shared:
            self._set_apart(record)
            return
        why = None if self._spec.force else self._lost_keys(record, shared) or self._fewer(record, shared)
        self._settle(record, shared, why)

    def add_logs(self, records: Sequence[FileRecord]) -> None:
        """Find out what logs of nodes succeed: each itself before others, and none that is itself at hand unchanged."""
        left = [record for record in records if self._names[record.kind]]
        for step in (self._take_same, self._take_self, self._take_others, self._hold):
            left = [record for record in left if not step(record)]
        for record in left:
            self._set_apart(record)

    def _take_same(self, record: FileRecord) -> bool:
        """Let a log that was read with other options before take its own place."""
        same = self._free(self._of_content[record.kind, *_content_of(record)])
        if same:
            is_free = record.name not in self._taken and record.name not in self.found.names.values()
            self._settle(record, [record.name] if record.name in same else same[:1])
            if is_free:
                self.found.names[record.name] = record.name
        return bool(same)

    def _take_self(self, record: FileRecord) -> bool:
        """Let a log that has all rows of the one of its name take its place, and theirs whose rows it has as well."""
        name = record.name
        if name not in self._names[record.kind] or self._is_gone(name) or not self._meeting(record, [name]):
            return False
        if self._loss(record, [name], is_strict=name in self._at_hand) is not None:  # another file has its old rows
            return False
        self._settle(record, self._held_by(record, [name]))
        return True

    def _take_others(self, record: FileRecord) -> bool:
        """Let a log take the places of all logs whose rows it has, unless it lost rows of the one of its name."""
        met = self._met(record)
        if not met or record.name in met:
            return False
        held = self._held_by(record, [])
        if held:
            self._settle(record, held)
        return bool(held)

    def _hold(self, record: FileRecord) -> bool:
        """Refuse a log that meets others and has not all of their rows, or drop these rows where that is forced."""
        if self._take_others(record):
            return True
        met = self._met(record)
        if met:
            self._settle(record, met, None if self._spec.force else self._loss(record, met, is_strict=True))
        return bool(met)

    def _held_by(self, record: FileRecord, own: list[str]) -> list[str]:
        """Return ``own`` with the other logs that go since a log has all of their rows, and as many as all of them."""
        held = list(own)
        for one in self._met(record):
            if one not in held and self._loss(record, [*held, one]) is None:
                held.append(one)
        return held

    def _met(self, record: FileRecord) -> list[str]:
        """Return the logs of the lake with which a log has a time in common and whose places it may take."""
        here = self._live.names_on(self._now(record)["node"].cast(pl.String)) | {record.name}
        free = self._free(sorted(here.intersection(self._names[record.kind])))
        return self._meeting(record, free)

    def _meeting(self, record: FileRecord, names: Sequence[str]) -> list[str]:
        """Return those of some files of the lake that tell of a same job, node or series (and time) as a file does."""
        now = self._now(record)
        return [one for one in names if meets(self._told(one, record, now), now)]

    def _now(self, record: FileRecord) -> pl.DataFrame:
        """Return what a file tells of that was read."""
        return find_extent(self._fresh.of(record.name, record.kind), record.kind)

    def _free(self, names: Sequence[str]) -> list[str]:
        """Return the logs of the lake whose places a log may take: no other has taken them, none is itself at hand."""
        return [one for one in names if one not in self._at_hand and not self._is_gone(one)]

    def _is_gone(self, name: str) -> bool:
        return name in self.found.succeeded or name in self.found.held

    def _settle(self, record: FileRecord, shared: list[str], why: tuple[str, str] | None = None) -> None:
        """Note that a file takes the places of others under the name of one, or that it is refused."""
        heir = record.name if record.name in shared else shared[0]
        self.found.names[record.name] = heir
        if why is None:
            self.found.succeeded.update(shared)
        else:
            self.found.held[heir] = Held(*why, record.name, heir)

    def _set_apart(self, record: FileRecord) -> None:
        """Give a file a name that no other has."""
        base = record.name if KINDS[record.kind].is_of_node else record.name.partition(MARK)[0]
        taken = {*self._taken, *self.found.names.values()}
        self.found.names[record.name] = _free_name(base, self._spec.source_name, taken)

    def compare(self, record: FileRecord) -> None:
        """Hold a file that is known by its name, and may become shorter, where jobs of it are gone."""
        why = None if self._spec.force else self._lost_keys(record, [record.name])
        if why is not None:
            self.found.held[record.name] = Held(*why, record.name, record.name)

    def _told(self, name: str, record: FileRecord, now: pl.DataFrame) -> pl.DataFrame:
        """Return what a file of the lake tells of, a log as if it had been read with the options of ``record``.

        A log whose rows are joined with those of others tells of all their time.
        """
        old = find_extent(self._live.of(name, record.kind), record.kind)
        if not KINDS[record.kind].is_of_node or not now.height:
            return old
        old = self._on_node(old, name, record, now)
        return old.with_columns(self._placed(edge, name, record) for edge in ("first_time", "last_time"))

    def _on_node(self, old: pl.DataFrame, name: str, record: FileRecord, now: pl.DataFrame) -> pl.DataFrame:
        """Return what the log of a file's own name told, of the node that an option tells now."""
        theirs, ours = (_options_of(checksum) for checksum in (self._known[name].checksum, record.checksum))
        if name != record.name or theirs.node == ours.node or not now.height:
            return old
        return old.with_columns(node=pl.lit(now["node"][0], old.schema["node"]))

    def _placed(self, column: str, name: str, record: FileRecord) -> pl.Expr:
        """Return the times of a log of the lake, read in the zone that is told now."""
        theirs, ours = (_options_of(checksum) for checksum in (self._known[name].checksum, record.checksum))
        same = theirs.time_zone == ours.time_zone
        return pl.col(column) if same else _in_zone(pl.col(column), theirs, ours)

    def _loss(self, record: FileRecord, shared: list[str], *, is_strict: bool = False) -> tuple[str, str] | None:
        """Return reason code and detail where the lake would lose rows by a log that takes the places of others.

        Rows that are joined with those of a log that must be read again are compared after that.

        Parameters
        ----------
        is_strict : no other log has their rows, not even those that are joined with others'
        """
        new = self._fresh.of(record.name, record.kind)
        come = {one.name for one in self._spec.records if one.is_taken} | self.found.succeeded
        counted = []
        for name in shared:
            old = self._on_node(self._live.of(name, record.kind), name, record, new)
            placed = self._placed("time", name, record)
            is_own = pl.lit(is_strict) | are_of(shared)
            others = ~are_of([*shared, *(come - self._at_hand)])
            waits = others if name == record.name else pl.lit(has_any(old, self._at_hand))
            counted.append(count_found(old.filter(is_own), new, placed))
            counted.append(count_found(old.filter(~is_own & ~waits), self._samples, placed))
        told = pl.concat(counted)
        lost = told.filter(pl.col("found") < pl.col("rows")).select(SERIES_KEY).unique().sort(SERIES_KEY)
        why = _keys_lost(lost, told.select(SERIES_KEY).n_unique(), record.kind) if lost.height else None
        return self._fewer(record, shared) or why

    def _lost_keys(self, record: FileRecord, shared: list[str]) -> tuple[str, str] | None:
        """Return reason code and detail where the jobs, nodes or series of ``shared`` are not all in a file."""
        now = self._now(record)
        told = pl.concat([self._told(name, record, now) for name in shared])
        old = told.group_by(key_of(told)).agg(pl.col("first_time").min(), pl.col("last_time").max())
        lost = find_lost(old, now)
        return _keys_lost(lost, old.height, record.kind) if lost.height else None

    def _fewer(self, record: FileRecord, shared: list[str]) -> tuple[str, str] | None:
        known = [self._known[name] for name in shared]
        if len(known) == 1 and record.size < known[0].size:
            return "shrunken", f"{record.size} bytes, {known[0].size} before"
        rows = known[0].rows_in if len(known) == 1 else sum(self._rows_out[name] for name in shared)
        if record.rows_in < rows and (len(known) > 1 or KINDS[record.kind].is_of_node):
            return "shrunken", f"{record.rows_in} rows, {rows} before"
        return None


def _keys_lost(lost: pl.DataFrame, n_before: int, kind: str) -> tuple[str, str]:
    """Return reason code and detail for jobs, nodes or series that a file has not any more."""
    example = " ".join(str(part) for part in lost.row(0) if part is not None)
    when = ", or not for all of their time" if kind in _NOUN else ""
    gone = f"{lost.height} of {n_before} {_NOUN.get(kind, 'jobs')} are not in it any more{when}, as {example}"
    return "keys_lost", f"{gone}; --force drops them, another --cluster keeps both"


def _names_at_hand(spec: CommitSpec) -> set[str]:
    """Return the files of the lake that are at hand as they were, under whatever name, or cannot be taken."""
    unchanged = {record.name for record in spec.records if record.status == "unchanged"}
    refused = {record.name for record in spec.records if record.status == "refused"}
    again = {record.name for record in spec.records if record.is_taken and record.scanned}
    return (unchanged - again) | (refused - {record.name for record in spec.records if record.is_taken})


def _content_of(file: FileRecord | Known) -> tuple[int, str]:
    """Return what is the same for two files of one content, with whatever options they are read."""
    return file.size, file.checksum.partition("~")[0]


def _options_of(checksum: str) -> SmiOptions:
    """Return with which options a log was read, by its checksum; the columns are left out."""
    node, zone, _ = (*checksum.partition("~")[2].split("~"), "", "", "")[:3]
    return SmiOptions(node, zone)


def _in_zone(time: pl.Expr, theirs: SmiOptions, ours: SmiOptions) -> pl.Expr:
    """Return times that were read as of one zone as those of another; null for those that its clocks never show."""
    shown = time.dt.convert_time_zone(theirs.time_zone or "UTC").dt.replace_time_zone(None)
    placed = shown.dt.replace_time_zone(ours.time_zone or "UTC", ambiguous="earliest", non_existent="null")
    return placed.dt.convert_time_zone("UTC")


def _free_name(name: str, source: str, taken: set[str]) -> str:
    """Return a name that no input has: the file's own, else with the archive's, else with that and a number."""
    stem = source
    for ending in _ARCHIVE_ENDINGS:
        stem = stem.removesuffix(ending)
    names = [name, f"{name}{MARK}{stem}", *(f"{name}{MARK}{stem}-{n}" for n in range(2, len(taken) + 3))]
    return next(free for free in names if free not in taken)
