"""The plan task: what an archive holds, which table each file feeds, and how the work is cut into scan tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import polars as pl

from ingest.checksum import BLOCK_BYTES, BlockHash, join_blocks
from ingest.errors import SourceError
from ingest.manifest import read_inputs
from ingest.reading import Source, count_rows
from ingest.records import FileRecord, IngestPlan, Known, PlanSpec, ScanFile, ScanResult, ScanSpec, refusal
from ingest.sources import supercloud
from ingest.sources.archive import Listing, Member, list_members, open_member, stream_members
from ingest.sources.inflate import ByteStream, TooLargeError, TruncatedError
from ingest.sources.kinds import KINDS
from ingest.sources.remote import is_url
from ingest.sources.spool_files import SILENT, SPOOL_CLUSTER, classify_spool, find_spool, is_segment
from ingest.staging import Staging
from ingest.succession import MARK

LEAST_TASK_BYTES: Final = 4 * 1024**2
GREATEST_TASK_BYTES: Final = 256 * 1024**2
TASKS_PER_WORKER: Final = 16

MAX_TRES_BYTES: Final = 16 * 1024**2
"""A mapping of names to numbers is not longer than this."""

_READ_BYTES = 1024**2
_UNREAD = (b"", ("unreadable", "it could not be opened"))
_ONE_FILE_A_JOB = frozenset({"cpu", "cpu_summary", "jobs"})
"""Kinds of which a second file of one job (or a second log) is refused; files of GPU samples are joined by time."""


@dataclass(slots=True)
class _Sorted:
    """The files of an archive, sorted by what is to be done with them."""

    files: list[ScanFile] = field(default_factory=list)
    tres: list[Member] = field(default_factory=list)
    refused: list[tuple[Member, str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def plan_ingest(spec: PlanSpec) -> IngestPlan:
    """Return the plan.

    Raises
    ------
    SourceError
        If the source is no archive of a known layout.
    """
    listing = list_members(spec.source, anonymous=spec.anonymous, max_member_bytes=spec.max_member_bytes)
    if listing.refused and not listing.members:
        name, reason, detail = listing.refused[0]
        raise SourceError(
            f"{spec.source}: none of its {len(listing.refused)} files can be taken: {name} ({reason}: {detail})"
        )
    names = [m.plain_name for m in listing.members]
    spool = find_spool(names)
    root = supercloud.find_root(spec.source, names) if spool is None else spool
    members = [m.below(root) for m in listing.members if not root or m.name.startswith(root + "/")]
    classify = supercloud.classify if spool is None else classify_spool
    layout = supercloud.layout_of([m.plain_name for m in members]) if spool is None else SPOOL_CLUSTER
    cluster = spec.cluster or layout
    inputs = _inputs(spec, cluster)
    known = _known(inputs)
    found = _sort(members, known, inputs, classify, spec.smi.node)
    found.ignored += [m.name for m in listing.members if root and not m.name.startswith(root + "/")]
    rows, texts = _look_into(found, spec)
    records = _refused_members(listing, root)
    records += [refusal(m.plain_name, "", reason, detail, rows.get(m.name, 0)) for m, reason, detail in found.refused]
    tres = _Tres(spec, _by_kind(known, inputs).get("tres", []), spec.head.tres_names.get(cluster, {}))
    for member, (data, problem) in texts.items():
        tres.take(member, data, problem)
    files = tres.read_again(found.files)
    template = ScanSpec(
        (), spec.staging, "", "", spec.anonymous, spec.force, tres.names, spec.max_member_bytes, spec.smi
    )
    specs, verify = _cut(files, template, spec)
    total = sum(file.stored_bytes for file in files)
    return IngestPlan(
        cluster,
        tuple(specs),
        tuple(verify),
        (*records, *tres.records),
        tres.found(),
        tuple(found.ignored),
        total,
        template,
    )


def _inputs(spec: PlanSpec, cluster: str) -> pl.DataFrame:
    """Return what the lake remembers of a cluster's input files; no rows for a new lake."""
    return read_inputs(Path(spec.lake), spec.head).filter(pl.col("cluster") == cluster)


def _known(inputs: pl.DataFrame) -> dict[str, Known]:
    rows = inputs.select("size", "checksum", "rows_in", "name", "generation")
    return {known.name: known for known in (Known(*row) for row in rows.iter_rows())}


def _sort(
    members: list[Member], known: dict[str, Known], inputs: pl.DataFrame, classify: Callable[[str], str], node: str
) -> _Sorted:
    found = _Sorted()
    owners = _owners(inputs)
    by_kind = _by_kind(known, inputs)
    seen: set[str] = set()
    for member in members:
        name = member.plain_name
        kind = classify(name)
        if kind == SILENT:
            continue
        parsed = supercloud.parse_name(KINDS[kind], name) if kind in KINDS else None
        alias = ""
        if parsed is not None and KINDS[kind].is_of_node:
            alias = f"{name}{MARK}{node}" if node and not parsed[1] else ""
            parsed = (0, node or parsed[1])
        if kind == "other":
            found.ignored.append(member.name)
        elif name in seen:
            found.refused.append((member, "repeated_member", "compressed and plain, or twice; the first one is taken"))
        elif kind == "tres":
            found.tres.append(member)
        elif kind == "unknown":
            found.refused.append((member, "unknown_file", ""))
        elif parsed is None:
            found.refused.append((member, "bad_file_name", ""))
        elif parsed == (0, "") and KINDS[kind].is_of_node:
            found.refused.append(
                (member, "bad_file_name", "no node in it; name it nvidia-smi-NODE.csv, or give --node")
            )
        elif kind in _ONE_FILE_A_JOB and (owner := owners.setdefault((kind, parsed[0]), name)) != name:
            found.refused.append((member, "series_from_other_file", owner))
        elif KINDS[kind].is_anonymous:
            found.files.append(_anonymous(member, kind, by_kind.get(kind, [])))
        else:
            file = ScanFile(member, kind, *parsed, known.get(alias or name), alias=alias)
            found.files.append(_maybe_rotated(file, by_kind.get(kind, [])) if KINDS[kind].is_of_node else file)
        seen.add(name)
    return found


def _anonymous(member: Member, kind: str, others: list[Known]) -> ScanFile:
    known, rest = (others[0], tuple(others[1:])) if others else (None, ())
    return ScanFile(member, kind, known=known, others=rest, is_anonymous=True)


def _maybe_rotated(file: ScanFile, others: list[Known]) -> ScanFile:
    """Return a log that may be the known one of its name, another one of its node, or the next one after those."""
    same_node = [other for other in others if other != file.known and _node_of(other.name, file.kind) == file.node]
    candidates = [*([file.known] if file.known else []), *same_node]
    known, rest = (candidates[0], tuple(candidates[1:])) if candidates else (None, ())
    return replace(file, known=known, others=rest, is_anonymous=True)


def _node_of(name: str, kind: str) -> str:
    """Return the node of a log by its name in the lake: in the file's own name, or behind the mark."""
    base, _, rest = name.partition(MARK)
    parsed = supercloud.parse_name(KINDS[kind], base)
    return (parsed[1] if parsed else "") or rest.partition(MARK)[0]


def _by_kind(known: dict[str, Known], inputs: pl.DataFrame) -> dict[str, list[Known]]:
    """Return what the lake remembers by kind of file."""
    found: dict[str, list[Known]] = {}
    for name, kind in inputs.select("name", "kind").iter_rows():
        found.setdefault(kind, []).append(known[name])
    return found


def _owners(inputs: pl.DataFrame) -> dict[tuple[str, int], str]:
    """Return which file the lake has the rows of a job from, by kind and job."""
    owners: dict[tuple[str, int], str] = {}
    for name, kind in inputs.filter(pl.col("kind") != "jobs").select("name", "kind").iter_rows():
        if kind in _ONE_FILE_A_JOB and (parsed := supercloud.parse_name(KINDS[kind], name)) is not None:
            owners[kind, parsed[0]] = name
    return owners


def _refused_members(listing: Listing, root: str) -> list[FileRecord]:
    prefix = root + "/" if root else ""
    return [refusal(name.removeprefix(prefix), "", reason, detail, 0) for name, reason, detail in listing.refused]


def _look_into(found: _Sorted, spec: PlanSpec) -> tuple[dict[str, int], dict[Member, tuple[bytes, tuple[str, str]]]]:
    """Return the rows of the refused files by name, and the text of ``tres-mapping.txt`` with what is wrong with it."""
    rows: dict[str, int] = {}
    texts: dict[Member, tuple[bytes, tuple[str, str]]] = dict.fromkeys(found.tres, _UNREAD)
    for member, stream in _open_each([*found.tres, *(member for member, _, _ in found.refused)], spec):
        if member in texts:
            texts[member] = _read_text(stream)
        else:
            rows[member.name] = count_rows(Source(stream), with_header=True)
    return rows, texts


def _open_each(members: list[Member], spec: PlanSpec) -> Iterator[tuple[Member, ByteStream]]:
    limit = spec.max_member_bytes
    streamed = [member for member in members if member.offset == -1]
    if streamed:
        yield from stream_members(spec.source, streamed, anonymous=spec.anonymous, max_member_bytes=limit)
    for member in members:
        if member.offset == -1:
            continue
        try:
            with open_member(member, anonymous=spec.anonymous, max_member_bytes=limit) as stream:
                yield member, stream
        except (FileNotFoundError, PermissionError):  # its rows stay uncounted
            continue


def _read_text(stream: ByteStream) -> tuple[bytes, tuple[str, str]]:
    """Return a small file's bytes, and a reason code with detail where it is damaged or too large."""
    pieces: list[bytes] = []
    try:
        while data := stream.read(_READ_BYTES):
            pieces.append(data)
            if len(pieces) * _READ_BYTES > MAX_TRES_BYTES:
                return b"", ("too_large", f"the limit is {MAX_TRES_BYTES} bytes")
    except TruncatedError as error:
        return b"".join(pieces), ("truncated", str(error))
    except TooLargeError as error:
        return b"", ("too_large", str(error))
    return b"".join(pieces), ("", "")


class _Tres:
    """What ``tres-mapping.txt`` tells, or told when it last came; its rows complete the jobs' rows."""

    def __init__(self, spec: PlanSpec, known: list[Known], remembered: Mapping[int, str]) -> None:
        self._known = known
        self._staging = Staging(spec.staging, "plan")
        self._generation = max((mapping.generation for mapping in known), default=0)
        self._is_changed = False
        self.names = remembered
        self.records: list[FileRecord] = []

    def take(self, member: Member, data: bytes, problem: tuple[str, str]) -> None:
        """Take in one file's text."""
        name = member.plain_name
        text = data.decode("utf-8", "backslashreplace")
        names, bad, rows = supercloud.parse_tres_mapping(text)
        digest = BlockHash()
        digest.update(data)
        checksum = join_blocks(digest.blocks())
        same = next((k for k in self._known if (k.size, k.checksum) == (len(data), checksum)), None)
        record = FileRecord(name, "tres", "new", len(data), checksum, rows_in=rows)
        if problem[0] or not rows:
            reason, detail = problem if problem[0] else ("empty_file", "no names")
            self.records.append(refusal(name, "tres", reason, detail, rows))
            return
        self.names = names
        if same is not None:
            self._generation = same.generation
            self.records.append(replace(record, name=same.name, status="unchanged", rows_unchanged=rows))
        else:
            self._is_changed = True
            self._staging.reject((name, number, 1, "jobs", "wrong_type", "", line) for number, line in bad)
            if bad:
                self._staging.counts[name, None, "wrong_type", ""] += len(bad)
            self.records.append(replace(record, rows_merged=rows - len(bad), rows_quarantined=len(bad)))

    def read_again(self, files: list[ScanFile]) -> list[ScanFile]:
        """Return the files, a log that was read before the mapping was as it is now marked as changed."""
        return [
            replace(
                f,
                known=f.known and self._doubted(f.known),
                others=tuple(self._doubted(known) for known in f.others),
            )
            if f.kind == "jobs"
            else f
            for f in files
        ]

    def _doubted(self, log: Known) -> Known:
        return replace(log, checksum="") if self._is_changed or log.generation < self._generation else log

    def found(self) -> tuple[ScanResult, ...]:
        """Return what was staged."""
        parts, pieces = self._staging.finish()
        return (ScanResult((), parts, pieces, dict(self._staging.counts), 0, "plan"),)


def _cut(files: list[ScanFile], template: ScanSpec, spec: PlanSpec) -> tuple[list[ScanSpec], list[ScanSpec]]:
    streamed = [f for f in files if f.member.offset == -1]
    if streamed:
        return _cut_stream(streamed, template, spec), []
    large = [f for f in files if _can_share(f)]
    shared = {id(f) for f in large}
    small = [f for f in files if id(f) not in shared]
    specs: list[ScanSpec] = []
    verify: list[ScanSpec] = []
    for file in large:
        shares = cut_shares(file)
        todo = [_task(template, (share,), "") for share in shares]
        (verify if file.known else specs).extend(todo)
    size = max(LEAST_TASK_BYTES, sum(f.member.size for f in small) // max(spec.workers * TASKS_PER_WORKER, 1))
    size = min(size, GREATEST_TASK_BYTES)
    for kind, final in sorted({_class(f) for f in small}):
        group = sorted((f for f in small if _class(f) == (kind, final)), key=lambda f: (f.job_id, f.name))
        specs += _group(group, template, size)
    specs.sort(key=lambda s: -sum(f.member.size for f in s.files))
    return (
        [replace(s, part=f"scan-{i:05d}") for i, s in enumerate(specs)],
        [replace(s, part=f"verify-{i:05d}") for i, s in enumerate(verify)],
    )


def _class(file: ScanFile) -> tuple[str, bool]:
    """Return the kind of a file, and whether it may never change: a part has files of one such class."""
    return file.kind, is_segment(file.name)


def _can_share(file: ScanFile) -> bool:
    """Return whether several tasks can read one file: large, its bytes addressable, repeated rows found later."""
    member = file.member
    if member.codec or is_url(member.location):
        return False
    kind = KINDS[file.kind]
    return kind.table == "gpu_samples" and kind.parse is None and member.size > 2 * BLOCK_BYTES


def cut_shares(file: ScanFile) -> list[ScanFile]:
    """Return the shares of a large file, each a whole number of checksum blocks."""
    size = file.member.size
    return [replace(file, start=at, stop=min(at + BLOCK_BYTES, size)) for at in range(0, size, BLOCK_BYTES)]


def _group(files: list[ScanFile], template: ScanSpec, size: int) -> list[ScanSpec]:
    specs: list[ScanSpec] = []
    group: list[ScanFile] = []
    held = 0
    for file in files:
        group.append(file)
        held += max(file.member.size, 1)
        if held >= size:
            specs.append(_task(template, tuple(group), ""))
            group, held = [], 0
    if group:
        specs.append(_task(template, tuple(group), ""))
    return specs


def _cut_stream(files: list[ScanFile], template: ScanSpec, spec: PlanSpec) -> list[ScanSpec]:
    """Return one task a worker: each streams through the archive and takes its share of the files of every kind."""
    location = files[0].member.location
    ordered = sorted(files, key=lambda f: (f.kind, f.job_id, f.name))
    shards = [ordered[i :: spec.workers] for i in range(spec.workers)]
    return [
        replace(_task(template, tuple(shard), f"scan-{i:05d}"), stream=location)
        for i, shard in enumerate(shards)
        if shard
    ]


def _task(template: ScanSpec, files: tuple[ScanFile, ...], part: str) -> ScanSpec:
    return replace(template, files=files, part=part)


def verify_share(spec: ScanSpec) -> tuple[str, int, list[str]]:
    """Return name, start and block digests of one share of a large file."""
    file = spec.files[0]
    digest = BlockHash()
    left = (file.stop or 0) - file.start
    with open_member(file.member, start=file.start, anonymous=spec.anonymous) as stream:
        while left > 0 and (data := stream.read(min(left, 1024**2))):
            digest.update(data)
            left -= len(data)
    if left > 0:
        raise SourceError(f"{file.name} became shorter while it was read; ingest it again")
    return file.name, file.start, digest.blocks()
