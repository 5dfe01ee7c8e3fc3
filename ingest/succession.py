"""Which input file of the lake a file succeeds whose name does not say which job it is of (a log, labels, node data).

Every recording has a ``slurm-log.csv``. One that tells of the same jobs as a file that the lake knows is that file,
grown or changed, and takes its place; one that tells of none of them is another recording's, and stands beside it
under a name of its own (``slurm-log.csv@h200-02``). So neither the name of an archive nor its place matters, only what
is in it. A snapshot of sacct is known by its name, rewritten until the last job of its day has ended, and refused if
it lost one.

So it is with what ``nvidia-smi`` wrote, whose logs are rotated: one of which all rows come before or after those that
the lake has of its node's GPUs stands beside them, whatever its name and size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import polars as pl

from ingest.parts import PartReader
from ingest.reconcile import SEPARATOR
from ingest.records import CommitSpec, FileRecord, Held
from ingest.schemas import SERIES_KEY, TIME
from ingest.sources.kinds import KINDS

MARK: Final = "@"
"""Between a file's name and that of the archive from which it came, where the lake has another one of that name, or
that of the node which an option told."""

_ARCHIVE_ENDINGS: Final = (".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar", ".csv.gz", ".csv.zst", ".csv")
_NOUN: Final = {"node": "nodes", "nvidia_smi": "series"}


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
        sizes = dict(self._inputs.filter(pl.col("kind") == kind).select("name", "size").sort("name").iter_rows())
        if not sizes:
            return
        now = _extent(self._fresh, [name], kind)
        shared = [known for known in sizes if _meets(_extent(self._live, [known], kind), now)]
        is_read_otherwise = is_log and name in sizes and self._mark_of(name) != record.checksum.partition("~")[2]
        if is_read_otherwise:
            shared = [name]
        if not shared:
            taken = {*self._inputs["name"], *self.found.names.values()}
            base = name if is_log else name.partition(MARK)[0]
            self.found.names[name] = _free_name(base, self._spec.source_name, taken)
            return
        heir = name if name in shared else shared[0]
        self.found.names[name] = heir
        why = None if self._spec.force else self._loss(record, now, shared, sizes[heir])
        if why is None:
            self.found.succeeded.update(shared)
        else:
            self.found.held[heir] = Held(*why, name, heir)

    def compare(self, record: FileRecord) -> None:
        """Hold a file that is known by its name, and may become shorter, where jobs of it are gone."""
        now = _extent(self._fresh, [record.name], record.kind)
        why = None if self._spec.force else self._loss(record, now, [record.name], size=0)
        if why is not None:
            self.found.held[record.name] = Held(*why, record.name, record.name)

    def _mark_of(self, name: str) -> str:
        """Return with which options the lake has read a file."""
        checksum: str = self._inputs.filter(pl.col("name") == name)["checksum"].item()
        return checksum.partition("~")[2]

    def _loss(self, record: FileRecord, now: pl.DataFrame, shared: list[str], size: int) -> tuple[str, str] | None:
        """Return reason code and detail where the lake would lose by this file, which tells of what ``shared`` told."""
        old = _extent(self._live, shared, record.kind)
        is_log = KINDS[record.kind].is_of_node  # whose rows may be joined with those of others
        lost = old.clear() if is_log else _find_lost(old, now)
        if lost.height:
            noun, example = _NOUN.get(record.kind, "jobs"), " ".join(str(part) for part in lost.row(0))
            gone = f"{lost.height} of {old.height} {noun} are not in it any more, as {example}"
            return "keys_lost", f"{gone}; --force drops them, another --cluster keeps both"
        if record.size < size and len(shared) == 1:
            return "shrunken", f"{record.size} bytes, {size} before"
        return None


def _extent(pieces: pl.DataFrame, names: Sequence[str], kind: str) -> pl.DataFrame:
    """Return what files tell of: a row a job, node or series, with the first and the last time (or nulls)."""
    mine = pieces.filter(pl.col("input").str.split(SEPARATOR).list.set_intersection(list(names)).list.len() > 0)
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
