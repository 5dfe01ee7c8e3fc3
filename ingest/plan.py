"""The plan task: what an archive holds, which table each file feeds, and how the work is cut into scan tasks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from ingest.checksum import BLOCK_BYTES, BlockHash, join_blocks
from ingest.errors import SourceError
from ingest.head import MANIFEST
from ingest.manifest import read_inputs
from ingest.records import FileRecord, IngestPlan, Known, PlanSpec, ScanFile, ScanSpec
from ingest.sources import supercloud
from ingest.sources.archive import Member, is_url, list_members, open_member

LEAST_TASK_BYTES: Final = 4 * 1024**2
GREATEST_TASK_BYTES: Final = 256 * 1024**2
TASKS_PER_WORKER: Final = 6


def plan_ingest(spec: PlanSpec) -> IngestPlan:
    """Return the plan.

    Raises
    ------
    SourceError
        If the source is no archive of a known layout.
    """
    listing = list_members(spec.source, anonymous=spec.anonymous, max_member_bytes=spec.max_member_bytes)
    root = supercloud.find_root([m.plain_name for m in listing.members])
    members = [m.below(root) for m in listing.members if not root or m.name.startswith(root + "/")]
    ignored = [m.name for m in listing.members if root and not m.name.startswith(root + "/")]
    cluster = spec.cluster or supercloud.layout_of([m.plain_name for m in members])
    known = _known(spec, cluster)
    refused = [(name, reason, detail, 0) for name, reason, detail in listing.refused]
    files: list[ScanFile] = []
    records: list[FileRecord] = []
    tres: dict[int, str] = {}
    for member in members:
        kind = supercloud.classify(member.plain_name)
        if kind == "other":
            ignored.append(member.name)
        elif kind == "tres":
            record, names, bad = _read_tres(member, known.get(member.plain_name), spec)
            records.append(record)
            refused += bad
            tres |= names
        elif kind == "unknown" or (parsed := supercloud.parse_name(supercloud.KINDS[kind], member.plain_name)) is None:
            reason = "unknown_file" if kind == "unknown" else "bad_file_name"
            refused.append((member.plain_name, reason, "", _count_lines(member, spec)))
        else:
            files.append(ScanFile(member, kind, parsed[0], parsed[1], known.get(member.plain_name)))
    template = ScanSpec((), spec.staging, "", "", spec.anonymous, spec.force, tres, spec.max_member_bytes)
    specs, verify = _cut(files, template, spec)
    total = sum(max(f.member.size, 0) for f in files)
    return IngestPlan(
        cluster, tuple(specs), tuple(verify), tuple(records), tuple(refused), tuple(ignored), total, template
    )


def _known(spec: PlanSpec, cluster: str) -> dict[str, Known]:
    if not (Path(spec.lake) / MANIFEST).is_dir():
        return {}
    inputs = read_inputs(Path(spec.lake), spec.head)
    rows = inputs.filter(inputs["cluster"] == cluster).select("name", "size", "checksum", "rows_in")
    return {name: Known(size, checksum, rows_in) for name, size, checksum, rows_in in rows.iter_rows()}


def _read_tres(
    member: Member, known: Known | None, spec: PlanSpec
) -> tuple[FileRecord, dict[int, str], list[tuple[str, str, str, int]]]:
    """Return the record of ``tres-mapping.txt``, whose rows complete the jobs' rows, and its names."""
    data = _read_all(member, spec)
    names, bad, rows = supercloud.parse_tres_mapping(data.decode("utf-8", "backslashreplace"))
    digest = BlockHash()
    digest.update(data)
    checksum = join_blocks(digest.blocks())
    record = FileRecord(member.plain_name, "tres", "new", len(data), checksum, rows_in=rows)
    if known and known.checksum == checksum:
        return replace(record, status="unchanged", rows_unchanged=rows), names, []
    record = replace(record, rows_merged=rows - len(bad), rows_quarantined=len(bad))
    return record, names, [(member.plain_name, "wrong_type", f"line {number}: {text}", 1) for number, text in bad]


def _read_all(member: Member, spec: PlanSpec) -> bytes:
    if member.offset == -1:
        from ingest.sources.archive import stream_members

        for _, stream in stream_members(member.location, [member], anonymous=spec.anonymous):
            return stream.read(-1)
        return b""
    with open_member(member, anonymous=spec.anonymous, max_member_bytes=spec.max_member_bytes) as stream:
        pieces = []
        while data := stream.read(1024**2):
            pieces.append(data)
        return b"".join(pieces)


def _count_lines(member: Member, spec: PlanSpec) -> int:
    """Return the rows of a file that is refused unread (its lines but the header)."""
    if member.offset == -1 or member.codec:
        return 0
    lines, last = 0, b"\n"
    with open_member(member, anonymous=spec.anonymous) as stream:
        while data := stream.read(1024**2):
            lines += data.count(b"\n")
            last = data[-1:]
    return max(lines + (last != b"\n") - 1, 0)


def _cut(files: list[ScanFile], template: ScanSpec, spec: PlanSpec) -> tuple[list[ScanSpec], list[ScanSpec]]:
    streamed = [f for f in files if f.member.offset == -1]
    if streamed:
        return _cut_stream(streamed, template, spec), []
    large = [f for f in files if _can_share(f)]
    shared = set(id(f) for f in large)
    small = [f for f in files if id(f) not in shared]
    specs: list[ScanSpec] = []
    verify: list[ScanSpec] = []
    for file in large:
        shares = cut_shares(file)
        todo = [_task(template, (share,), "") for share in shares]
        (verify if file.known else specs).extend(todo)
    size = max(LEAST_TASK_BYTES, sum(f.member.size for f in small) // max(spec.workers * TASKS_PER_WORKER, 1))
    size = min(size, GREATEST_TASK_BYTES)
    for kind in sorted({f.kind for f in small}):
        group = sorted((f for f in small if f.kind == kind), key=lambda f: (f.job_id, f.name))
        specs += _group(group, template, size)
    specs.sort(key=lambda s: -sum(f.member.size for f in s.files))
    return (
        [replace(s, part=f"scan-{i:05d}") for i, s in enumerate(specs)],
        [replace(s, part=f"verify-{i:05d}") for i, s in enumerate(verify)],
    )


def _can_share(file: ScanFile) -> bool:
    """Return whether several tasks can read one file: large, its bytes addressable, its rows independent."""
    member = file.member
    return file.kind != "jobs" and not member.codec and member.size > 2 * BLOCK_BYTES and not is_url(member.location)


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
