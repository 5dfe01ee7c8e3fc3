"""The scan task: reads its files, has their rows stored (`ingest.rows`), and says what became of each file.

Nothing here decides what the lake will hold: that is `ingest.reconcile`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from ingest.accounting import take_accounting
from ingest.checksum import join_blocks
from ingest.errors import JobwattError
from ingest.reading import PIECE_BYTES, Share, Source, count_rows
from ingest.records import FileRecord, ScanFile, ScanResult, ScanSpec, as_known, refusal
from ingest.rows import Rows, SmallFile
from ingest.sources import archive, delimited
from ingest.sources.delimited import Header
from ingest.sources.file_kind import Context, FileKind
from ingest.sources.inflate import ByteStream
from ingest.sources.kinds import KINDS
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
        records = tuple(self._account(record) for record in self._records)
        parts, pieces = self.staging.finish()
        counts, null_cells = dict(self.staging.counts), dict(self.staging.null_cells)
        return ScanResult(records, parts, pieces, counts, self._bytes_read, self._spec.part, null_cells)

    def _account(self, record: FileRecord) -> FileRecord:
        """Return a file's record with what became of its rows, which were counted before any parser saw them."""
        if not record.is_taken:
            return record
        name = record.name
        record = replace(
            record,
            rows_in=record.rows_in - self._rows.blank_lines[name],
            rows_out=self.staging.rows_out[name],
            rows_quarantined=self.staging.rows_quarantined[name],
        )
        if not record.is_conserved:
            raise JobwattError(
                f"{name} has {record.rows_in} rows, but {record.rows_out} were read and {record.rows_quarantined} "
                "rejected; nothing was committed, please report this"
            )
        return record

    def read(self, file: ScanFile, stream: ByteStream) -> None:
        """Read one file, or one task's share of it."""
        source = Source(stream)
        if file.kind == "sacct":
            self._records.append(take_accounting(file, source, self.staging))
        elif file.stop is not None:
            self._read_share(file, source)
        else:
            head = source.fill(CHUNK_BYTES, CHUNK_BYTES if file.member.codec else file.member.size)
            if source.ended:
                self._read_small(file, head, source)
            else:
                self._read_large(file, head, source)
        self._bytes_read += file.stored_bytes or source.hash.size

    def _read_small(self, file: ScanFile, data: bytes, source: Source) -> None:
        if source.problem and (source.problem[0] == "too_large" or b"\n" not in data):
            self.refuse(file, *source.problem, 0)
            return
        if self._is_settled(file, source) or (found := self._header(file, data, source)) is None:
            return
        header, offset = found
        self._records.append(self._record(file, header, source, offset))
        if source.problem:
            self._rows.count(file, *source.problem)
            self._flush_small()
            self._rows.take(file, header, [data[offset:]], 1 + (offset > 0), source)
            return
        data = data if data.endswith(b"\n") else data + b"\n"
        if len(data) - offset <= _BLANK_BYTES and not data[offset:].strip():
            self._rows.blank_lines[file.name] = source.count.lines - (offset > 0)
            return
        if file.kind in _SEQUENTIAL:
            self._flush_small()
            self._rows.take(file, header, [data[offset:]], 1 + (offset > 0), source)
            return
        self._small.append(SmallFile(file, header, memoryview(data)[offset:], source.count.lines - (offset > 0)))
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
        self._records.append(self._record(file, header, source, offset))

    def _read_share(self, file: ScanFile, source: Source) -> None:
        """Read the lines that begin in [start, stop) of a file that several tasks share."""
        with archive.open_member(file.member, anonymous=self._spec.anonymous) as top:
            head = Source(top).read(_HEADER_BYTES)
        found = self._header(file, head, source)
        if found is None:
            return
        header, offset = found
        share = Share(source, file, offset)
        is_first = file.start == 0
        self._rows.take(file, header, share.chunks(), 2 if is_first else 1, source)
        if source.problem and source.problem[0] == "too_large":
            self.refuse(file, *source.problem, 0)
            return
        if source.problem:
            self._rows.count(file, *source.problem)
        record = replace(self._record(file, header, source, offset), rows_in=share.lines - is_first, lines=share.lines)
        self._records.append(replace(record, size=share.hash.size, checksum=",".join(share.hash.blocks())))

    def _is_settled(self, file: ScanFile, source: Source) -> bool:
        """Return whether nothing is to be done: the file is as it was, or shorter than it was and not forced."""
        known = file.known
        if known is None:
            return False
        if (same := file.find_same(source.hash.size, self._checksum(file, source))) is not None:
            self._records.append(as_known(same, file.kind, file.name))
            return True
        if source.hash.size < known.size and not self._spec.force and not file.is_anonymous:
            detail = f"{source.hash.size} bytes, {known.size} before"
            self._records.append(as_known(known, file.kind, file.name, reason="shrunken", detail=detail))
            return True
        return False

    def _record(self, file: ScanFile, header: Header, source: Source, offset: int) -> FileRecord:
        """Return the record of a file whose rows begin at ``offset``: after a line of names, or with its first line."""
        status = "replaced" if file.known else "new"
        size, checksum = source.hash.size, self._checksum(file, source)
        record = FileRecord(file.name, file.kind, status, size, checksum, unknown_columns=header.unknown)
        return replace(record, rows_in=source.count.lines - (offset > 0))

    def _checksum(self, file: ScanFile, source: Source) -> str:
        """Return the checksum of a file; where its meaning hangs on options, they are part of it."""
        checksum = join_blocks(source.hash.blocks())
        return checksum + self._spec.smi.mark if KINDS[file.kind].parse is not None else checksum

    def refuse(self, file: ScanFile, reason: str, detail: str, rows: int) -> None:
        """Refuse a whole file; its rows count as quarantined."""
        self._records.append(refusal(file.name, file.kind, reason, detail, rows))

    def _header(self, file: ScanFile, head: bytes, source: Source) -> tuple[Header, int] | None:
        """Return the mapped header and where the rows begin, or None where the file had to be refused."""
        kind = KINDS[file.kind]
        if kind.read_header is not None:
            names, offset = kind.read_header(head, self._spec.smi)
        else:
            names, offset = delimited.split_header(head)
        header = delimited.map_header(names, kind.column_map, kind.optional, kind.ignored)
        is_first, is_share = file.start == 0, file.stop is not None
        problem, has_rows = _header_problem(head, header, kind, is_whole=source.ended)
        if problem is None:
            if is_first:
                self._count_columns(file, header)
            return header, offset
        if is_first:  # of a file that several tasks share, one refuses it
            read = b"" if is_share else head[offset:]
            rows = count_rows(source, read, with_header=is_share) if has_rows else 0
            self.refuse(file, *(source.problem or problem) if not names else problem, rows)
        return None

    def _count_columns(self, file: ScanFile, header: Header) -> None:
        for reason, found in (
            ("missing_column", header.missing),
            ("repeated_column", header.repeated),
            ("unknown_column", header.unknown),
        ):
            for name in found:
                self._rows.count(file, reason, name)

    def _flush_small(self) -> None:
        waiting, self._small, self._small_bytes = self._small, [], 0
        waiting.sort(key=lambda s: (s.file.kind, s.header.names, s.file.job_id, s.file.name))
        while waiting:
            kind, header = waiting[0].file.kind, waiting[0].header
            n = next((i for i, s in enumerate(waiting) if (s.file.kind, s.header) != (kind, header)), len(waiting))
            self._rows.take_together(KINDS[kind], header, waiting[:n])
            waiting = waiting[n:]


def _header_problem(
    head: bytes, header: Header, kind: FileKind, *, is_whole: bool
) -> tuple[tuple[str, str] | None, bool]:
    """Return why a file with such a header is refused, if it is, and whether it has rows that can be told apart."""
    if not header.names:
        return ("no_header", "") if kind.read_header and head.strip() else ("empty_file", "no header"), True
    if b"\n" not in head and not is_whole:
        return ("too_large", f"a header of over {len(head)} bytes"), False
    if any("\r" in name for name in header.names):
        return ("bad_line_ends", "carriage returns alone"), False
    needed = kind.required - set(header.columns)
    if needed:
        absent = [name for name in header.missing if kind.column_map.get(name) in kind.required]
        return ("missing_column", ", ".join(absent or sorted(needed))), True
    return None, True
