"""The scan task: reads its files, has their rows stored (`ingest.rows`), and says what became of each file.

Nothing here decides what the lake will hold: that is `ingest.reconcile`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from ingest.checksum import join_blocks
from ingest.reading import PIECE_BYTES, Share, Source, count_rows
from ingest.records import FileRecord, ScanFile, ScanResult, ScanSpec, refusal
from ingest.rows import Rows, SmallFile
from ingest.sources import archive, delimited
from ingest.sources.delimited import Header
from ingest.sources.file_kind import Context
from ingest.sources.inflate import ByteStream
from ingest.sources.supercloud_columns import KINDS
from ingest.staging import Staging

CHUNK_BYTES: Final = 4 * 1024**2
"""How much text of small files is parsed at a time; a file that is longer is a large one."""

_HEADER_BYTES = 256 * 1024
_BLANK_BYTES = 4096
_SEQUENTIAL = frozenset({"jobs", "node", "smi_query", "smi_dmon"})


def scan_files(spec: ScanSpec) -> ScanResult:
    """Return what one task found and staged."""
    scan = _Scan(spec)
    try:
        for file, stream in _open_all(spec, scan):
            scan.read(file, stream)
        return scan.finish()
    except BaseException:
        scan.staging.discard()
        raise


def _open_all(spec: ScanSpec, scan: _Scan) -> Iterator[tuple[ScanFile, ByteStream]]:
    if spec.stream:
        left = {file.member: file for file in spec.files}
        members = archive.stream_members(
            spec.stream, list(left), anonymous=spec.anonymous, max_member_bytes=spec.max_member_bytes
        )
        for member, stream in members:
            yield left.pop(member), stream
        for file in left.values():
            scan.refuse(file, "unreadable", "the archive ends before it", 0)
        return
    for file in spec.files:
        try:
            with archive.open_member(
                file.member,
                start=max(file.start - 1, 0),
                anonymous=spec.anonymous,
                max_member_bytes=spec.max_member_bytes,
            ) as stream:
                yield file, stream
        except FileNotFoundError as error:
            scan.refuse(file, "unreadable", error.strerror or "gone", 0)
        except PermissionError as error:
            scan.refuse(file, "unreadable", error.strerror or "permission denied", 0)


class _Scan:
    """State of one task: its staging, small files that wait, and the records so far."""

    def __init__(self, spec: ScanSpec) -> None:
        self._spec = spec
        self.staging = Staging(spec.staging, spec.part)
        self._records: list[FileRecord] = []
        self._small: list[SmallFile] = []
        self._small_bytes = 0
        self._bytes_read = 0
        self._rows = Rows(self.staging, Context(spec.tres_names, smi=spec.smi))

    def finish(self) -> ScanResult:
        """Parse what waits, close everything, and return the result."""
        self._flush_small()
        parts, pieces = self.staging.finish()
        staging = self.staging
        records = tuple(
            replace(
                record,
                rows_in=staging.rows_out[record.name] + staging.rows_quarantined[record.name],
                rows_out=staging.rows_out[record.name],
                rows_quarantined=staging.rows_quarantined[record.name],
            )
            if record.status in ("new", "replaced")
            else record
            for record in self._records
        )
        return ScanResult(
            records, parts, pieces, dict(staging.counts), self._bytes_read, self._spec.part, dict(staging.null_cells)
        )

    def read(self, file: ScanFile, stream: ByteStream) -> None:
        """Read one file, or one task's share of it."""
        source = Source(stream)
        if file.stop is not None:
            self._read_share(file, source)
        else:
            head = source.fill(CHUNK_BYTES, CHUNK_BYTES if file.member.codec else file.member.size)
            if source.ended:
                self._read_small(file, head, source)
            else:
                self._read_large(file, head, source)
        self._bytes_read += source.hash.size

    def _read_small(self, file: ScanFile, data: bytes, source: Source) -> None:
        if source.problem and (source.problem[0] == "too_large" or b"\n" not in data):
            self.refuse(file, *source.problem, 0)
            return
        if self._is_settled(file, source) or (found := self._header(file, data, source)) is None:
            return
        header, offset = found
        self._records.append(_record(file, header, source, self._spec))
        if source.problem:
            self._rows.count(file, *source.problem)
            self._flush_small()
            self._rows.take(file, header, [data[offset:]], 1 + (offset > 0), source)
            return
        data = data if data.endswith(b"\n") else data + b"\n"
        if len(data) - offset <= _BLANK_BYTES and data[offset:].isspace():
            return
        if file.kind in _SEQUENTIAL:
            self._flush_small()
            self._rows.take(file, header, [data[offset:]], 1 + (offset > 0), source)
            return
        self._small.append(SmallFile(file, header, memoryview(data)[offset:]))
        self._small_bytes += len(data)
        if self._small_bytes >= CHUNK_BYTES:
            self._flush_small()

    def _read_large(self, file: ScanFile, head: bytes, source: Source) -> None:
        found = self._header(file, head, source)
        if found is None:
            return
        header, offset = found
        self._flush_small()
        mark = self.staging.mark()
        self._rows.take(
            file, header, delimited.iter_chunks(source, PIECE_BYTES, head[offset:]), 1 + (offset > 0), source
        )
        if file.known and self._is_settled(file, source):
            self.staging.rollback(mark, file.name)
            return
        if source.problem and source.problem[0] == "too_large":
            self.staging.rollback(mark, file.name)
            self.refuse(file, *source.problem, 0)
            return
        if source.problem:
            self._rows.count(file, *source.problem)
        self._records.append(_record(file, header, source, self._spec))

    def _read_share(self, file: ScanFile, source: Source) -> None:
        """Read the lines that begin in [start, stop) of a file that several tasks share."""
        with archive.open_member(file.member, anonymous=self._spec.anonymous) as top:
            names, offset = delimited.split_header(top.read(_HEADER_BYTES))
        found = self._header(file, b"", source, names=names)
        if found is None:
            return
        share = Share(source, file, offset)
        self._rows.take(file, found[0], share.chunks(), 2 if file.start == 0 else 1, source)
        if source.problem:
            self._rows.count(file, *source.problem)
        blocks = share.hash.blocks()
        self._records.append(
            replace(
                _record(file, found[0], source, self._spec),
                size=share.hash.size,
                checksum=",".join(blocks),
                lines=share.lines,
            )
        )

    def _is_settled(self, file: ScanFile, source: Source) -> bool:
        """Return whether nothing is to be done: the file is as it was, or shorter than it was and not forced."""
        known = file.known
        if known is None:
            return False
        if known.size == source.hash.size and known.checksum == _checksum(file, source, self._spec):
            record = FileRecord(file.name, file.kind, "unchanged", known.size, known.checksum)
            self._records.append(replace(record, rows_in=known.rows_in, rows_unchanged=known.rows_in))
            return True
        if source.hash.size < known.size and not self._spec.force:
            detail = f"{source.hash.size} bytes, {known.size} before"
            record = FileRecord(file.name, file.kind, "refused", known.size, known.checksum)
            record = replace(record, rows_in=known.rows_in, rows_unchanged=known.rows_in)
            self._records.append(replace(record, reason="shrunken", detail=detail))
            return True
        return False

    def refuse(self, file: ScanFile, reason: str, detail: str, rows: int) -> None:
        """Refuse a whole file; its rows count as quarantined."""
        self._records.append(refusal(file.name, file.kind, reason, detail, rows))

    def _header(
        self, file: ScanFile, data: bytes, source: Source, names: list[str] | None = None
    ) -> tuple[Header, int] | None:
        """Return the mapped header and where the rows begin, or None where the file had to be refused."""
        offset = 0
        kind = KINDS[file.kind]
        if names is None and kind.read_header is not None:
            names, offset = kind.read_header(data, self._spec.smi)
        elif names is None:
            names, offset = delimited.split_header(data)
        if not names:
            problem = ("no_header", "") if kind.read_header and data.strip() else ("empty_file", "no header")
            self.refuse(file, *(source.problem or problem), count_rows(data[offset:], source))
            return None
        if any("\r" in name for name in names):
            self.refuse(file, "bad_line_ends", "carriage returns alone", 0)
            return None
        header = delimited.map_header(names, kind.column_map, kind.optional, kind.ignored)
        first_share = file.start == 0
        absent = [n for n in header.missing if kind.column_map.get(n) in kind.required]
        needed = kind.required - set(header.columns)
        if needed:
            if first_share:
                rows = count_rows(data[offset:], source) - (file.stop is not None)
                self.refuse(file, "missing_column", ", ".join(absent or sorted(needed)), rows)
            return None
        if first_share:
            for name in header.missing:
                self._rows.count(file, "missing_column", name)
            for name in header.repeated:
                self._rows.count(file, "repeated_column", name)
            for name in header.unknown:
                self._rows.count(file, "unknown_column", name)
        return header, offset

    def _flush_small(self) -> None:
        waiting, self._small, self._small_bytes = self._small, [], 0
        waiting.sort(key=lambda s: (s.file.kind, s.header.names, s.file.job_id, s.file.name))
        while waiting:
            kind, header = waiting[0].file.kind, waiting[0].header
            n = next((i for i, s in enumerate(waiting) if (s.file.kind, s.header) != (kind, header)), len(waiting))
            self._rows.take_together(KINDS[kind], header, waiting[:n])
            waiting = waiting[n:]


def _record(file: ScanFile, header: Header, source: Source, spec: ScanSpec) -> FileRecord:
    status = "replaced" if file.known else "new"
    checksum = _checksum(file, source, spec)
    return FileRecord(file.name, file.kind, status, source.hash.size, checksum, unknown_columns=header.unknown)


def _checksum(file: ScanFile, source: Source, spec: ScanSpec) -> str:
    """Return the checksum of a file; where its meaning hangs on options, they are part of it."""
    checksum = join_blocks(source.hash.blocks())
    return checksum + spec.smi.mark if KINDS[file.kind].parse is not None else checksum
