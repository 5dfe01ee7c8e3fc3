"""The scan task: reads its files, stages sorted parts, and says what became of every row.

Small files of one table are parsed together and share a part; a large file is read in pieces, a part for each batch.
Nothing here decides what the lake will hold: that is `ingest.reconcile`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import polars as pl

from ingest import batches
from ingest.accounting import take_accounting
from ingest.checksum import join_blocks
from ingest.reading import PIECE_BYTES, Share, Source, count_rows, cut_pieces
from ingest.records import FileRecord, ScanFile, ScanResult, ScanSpec, refusal
from ingest.sources import archive, delimited, quick, slurm_log, supercloud
from ingest.sources.delimited import Header
from ingest.sources.inflate import ByteStream
from ingest.staging import Staging

CHUNK_BYTES: Final = 4 * 1024**2
"""How much text of small files is parsed at a time; a file that is longer is a large one."""

BATCH_BYTES: Final = 4 * 1024**2
"""How much text of a large file makes one part."""

CAREFUL_BYTES: Final = 1024**2
"""How much text is looked at line by line at a time."""

_HEADER_BYTES = 256 * 1024
_NEWLINE = ord("\n")
_BLANK_BYTES = 4096
_SEQUENTIAL = frozenset({"jobs", "node"})


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


@dataclass(slots=True)
class _Small:
    """A small file that waits to be parsed with its neighbours."""

    file: ScanFile
    header: Header
    body: memoryview


class _Scan:
    """State of one task: its staging, small files that wait, and the records so far."""

    def __init__(self, spec: ScanSpec) -> None:
        self._spec = spec
        self.staging = Staging(spec.staging, spec.part)
        self._records: list[FileRecord] = []
        self._small: list[_Small] = []
        self._small_bytes = 0
        self._bytes_read = 0
        self._context = supercloud.Context(spec.tres_names)

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

    # -- files -----------------------------------------------------------------------------------------------------

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
        self._bytes_read += source.hash.size

    def _read_small(self, file: ScanFile, data: bytes, source: Source) -> None:
        if source.problem and (source.problem[0] == "too_large" or b"\n" not in data):
            self.refuse(file, *source.problem, 0)
            return
        if self._is_settled(file, source) or (found := self._header(file, data, source)) is None:
            return
        header, offset = found
        self._records.append(_record(file, header, source))
        if source.problem:
            self._count(file, *source.problem)
            self._flush_small()
            self._read_body(file, header, [data[offset:]], 2, source)
            return
        data = data if data.endswith(b"\n") else data + b"\n"
        if len(data) - offset <= _BLANK_BYTES and data[offset:].isspace():
            return
        if file.kind in _SEQUENTIAL:
            self._flush_small()
            self._read_body(file, header, [data[offset:]], 2, source)
            return
        self._small.append(_Small(file, header, memoryview(data)[offset:]))
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
        self._read_body(file, header, delimited.iter_chunks(source, PIECE_BYTES, head[offset:]), 2, source)
        if file.known and self._is_settled(file, source):
            self.staging.rollback(mark, file.name)
            return
        if source.problem and source.problem[0] == "too_large":
            self.staging.rollback(mark, file.name)
            self.refuse(file, *source.problem, 0)
            return
        if source.problem:
            self._count(file, *source.problem)
        self._records.append(_record(file, header, source))

    def _read_share(self, file: ScanFile, source: Source) -> None:
        """Read the lines that begin in [start, stop) of a file that several tasks share."""
        with archive.open_member(file.member, anonymous=self._spec.anonymous) as top:
            names, offset = delimited.split_header(top.read(_HEADER_BYTES))
        found = self._header(file, b"", source, names=names)
        if found is None:
            return
        share = Share(source, file, offset)
        self._read_body(file, found[0], share.chunks(), 2 if file.start == 0 else 1, source)
        if source.problem:
            self._count(file, *source.problem)
        blocks = share.hash.blocks()
        self._records.append(
            replace(_record(file, found[0], source), size=share.hash.size, checksum=",".join(blocks), lines=share.lines)
        )

    def _is_settled(self, file: ScanFile, source: Source) -> bool:
        """Return whether nothing is to be done: the file is as it was, or shorter than it was and not forced."""
        known = file.known
        if known is None:
            return False
        if known.size == source.hash.size and known.checksum == join_blocks(source.hash.blocks()):
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
        if names is None:
            names, offset = delimited.split_header(data)
        if not names:
            self.refuse(file, *(source.problem or ("empty_file", "no header")), count_rows(data[offset:], source))
            return None
        if any("\r" in name for name in names):
            self.refuse(file, "bad_line_ends", "carriage returns alone", 0)
            return None
        kind = supercloud.KINDS[file.kind]
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
                self._count(file, "missing_column", name)
            for name in header.repeated:
                self._count(file, "repeated_column", name)
            for name in header.unknown:
                self._count(file, "unknown_column", name)
        return header, offset

    def _count(self, file: ScanFile, reason: str, detail: str, n: int = 1) -> None:
        self.staging.counts[file.name, file.job_id or None, reason, detail] += n

    # -- rows ------------------------------------------------------------------------------------------------------

    def _flush_small(self) -> None:
        waiting, self._small, self._small_bytes = self._small, [], 0
        waiting.sort(key=lambda s: (s.file.kind, s.header.names, s.file.job_id, s.file.name))
        while waiting:
            kind, header = waiting[0].file.kind, waiting[0].header
            n = next((i for i, s in enumerate(waiting) if (s.file.kind, s.header) != (kind, header)), len(waiting))
            self._parse_small(supercloud.KINDS[kind], header, waiting[:n])
            waiting = waiting[n:]

    def _parse_small(self, kind: supercloud.FileKind, header: Header, small: list[_Small]) -> None:
        frame, lines = _parse_bodies([s.body for s in small], header, kind)
        doubtful = set(range(len(small)))
        kept: list[pl.DataFrame] = []
        if frame is not None:
            ordinals = pl.Series(batches.FILE, np.repeat(np.arange(len(small), dtype=np.int32), lines))
            done = kind.finish(frame.with_columns(ordinals), self._context)
            ordered = batches.order(self._with_key(done.frame, kind, [s.file for s in small]), kind.table)
            doubtful = set(ordered.repeated[batches.FILE].to_list())
            self._count_disorder({f: n for f, n in ordered.out_of_order.items() if f not in doubtful}, small)
            self._add_counts(small[0].file, done.counts)
            kept.append(ordered.frame.filter(~pl.col(batches.FILE).is_in(doubtful)) if doubtful else ordered.frame)
        for i in sorted(doubtful):
            file = small[i].file
            careful = [part for part, _ in self._careful(file, header, bytes(small[i].body), 2)]
            rows = pl.concat(careful, how="diagonal_relaxed").with_columns(pl.lit(i, pl.Int32).alias(batches.FILE))
            kept.append(self._settle_order(file, kind, batches.order(rows, kind.table)))
        self._store(kind, [s.file for s in small], kept)

    def _read_body(self, file: ScanFile, header: Header, chunks: Iterable[bytes], line: int, source: Source) -> None:
        """Read the rows of one file in batches, each a part of its own."""
        kind = supercloud.KINDS[file.kind]
        self.staging.close_parts()
        frames: list[pl.DataFrame] = []
        texts: list[tuple[bytes, int]] = []
        held = 0
        state = _State(slurm_log.empty_seen(), self._context)
        for chunk in chunks:
            if source.problem and not chunk.endswith(b"\n"):
                chunk = self._reject_cut_line(file, kind, chunk, line)  # noqa: PLW2901
                if not chunk:
                    continue
            frames.append(self._typed(file, header, chunk, line, state))
            texts.append((chunk, line))
            held += len(chunk)
            line += chunk.count(b"\n")
            if held >= BATCH_BYTES:
                self._store_batch(file, header, frames, texts, state.context)
                frames, texts, held = [], [], 0
        if frames:
            self._store_batch(file, header, frames, texts, state.context)

    def _reject_cut_line(self, file: ScanFile, kind: supercloud.FileKind, chunk: bytes, line: int) -> bytes:
        """Return the chunk without its last line, which was cut short and goes to quarantine."""
        end = chunk.rfind(b"\n") + 1
        raw = chunk[end:].decode("utf-8", "backslashreplace")
        self.staging.reject([(file.name, line + chunk.count(b"\n"), 1, kind.table, "truncated", "", raw)])
        return chunk[:end]

    def _typed(self, file: ScanFile, header: Header, chunk: bytes, line: int, state: _State) -> pl.DataFrame:
        kind = supercloud.KINDS[file.kind]
        frame, _ = _parse_bodies([chunk], header, kind)
        if frame is not None:
            state.learn(frame)
            done = kind.finish(frame, state.context)
            self._add_counts(file, done.counts)
            rows = done.frame
            if kind.name == "jobs" and slurm_log.number_attempts(rows, state.seen)[1].height:
                rows = pl.concat(_with_lines(kind, header, chunk, line, state.context))
            return self._numbered(file, kind, rows, state)
        pieces = [self._numbered(file, kind, p, state) for p, _ in self._careful(file, header, chunk, line, state)]
        return pl.concat(pieces, how="diagonal_relaxed")

    def _careful(
        self, file: ScanFile, header: Header, body: bytes, line: int, state: _State | None = None
    ) -> Iterator[tuple[pl.DataFrame, int]]:
        """Yield the sound rows of a doubtful piece of text, the others going to quarantine."""
        kind = supercloud.KINDS[file.kind]
        for piece in cut_pieces(body, CAREFUL_BYTES):
            parsed = delimited.parse_careful(
                piece, header, kind.types, first_line=line, required=kind.required, exact=kind.exact
            )
            self.staging.reject(
                (file.name, number, 1, kind.table, reason, detail, raw)
                for number, reason, detail, raw in parsed.rejected
            )
            for reason in {r[1] for r in parsed.rejected}:
                self._count(file, reason, "", sum(r[1] == reason for r in parsed.rejected))
            for parsed_column, n in parsed.sentinels.items():
                column = supercloud.LAKE_COLUMN.get(parsed_column, parsed_column)
                self._count(file, "sentinel", column, n)
                self.staging.null_cells[file.name, column] -= n
            if state is not None:
                state.learn(parsed.frame)
            done = kind.finish(parsed.frame, state.context if state else self._context)
            self._add_counts(file, done.counts)
            line += piece.count(b"\n")
            yield done.frame, line

    def _numbered(self, file: ScanFile, kind: supercloud.FileKind, frame: pl.DataFrame, state: _State) -> pl.DataFrame:
        if kind.name != "jobs":
            return frame
        numbered, repeats, state.seen = slurm_log.number_attempts(frame, state.seen)
        self._reject_repeats(file, kind, repeats)
        for (job_id,) in numbered.filter(pl.col("attempt") > 0).select("job_id").iter_rows():
            self.staging.counts[file.name, job_id, "requeued", ""] += 1
        return numbered

    def _store_batch(
        self,
        file: ScanFile,
        header: Header,
        frames: list[pl.DataFrame],
        texts: list[tuple[bytes, int]],
        context: supercloud.Context,
    ) -> None:
        """Store the pieces of one batch as a part, and empty the list, so that sorting has their room."""
        kind = supercloud.KINDS[file.kind]
        ordered = batches.order(_join(kind, frames), kind.table)
        if ordered.repeated.height and kind.name != "jobs":  # once more, to know their lines
            again = [rows for text, line in texts for rows in _with_lines(kind, header, text, line, context)]
            ordered = batches.order(_join(kind, again), kind.table)
        self._store(kind, [file], [self._settle_order(file, kind, ordered)])
        self.staging.close_parts()

    def _settle_order(self, file: ScanFile, kind: supercloud.FileKind, ordered: batches.Ordered) -> pl.DataFrame:
        """Count what was out of order, put repeats into quarantine, and return the others."""
        self._reject_repeats(file, kind, ordered.repeated)
        if ordered.out_of_order:
            self._count(file, "out_of_order", "", sum(ordered.out_of_order.values()))
        return ordered.frame

    def _reject_repeats(self, file: ScanFile, kind: supercloud.FileKind, repeats: pl.DataFrame) -> None:
        if not repeats.height:
            return
        reason = "repeated_time" if "time" in repeats.columns else "repeated_row"
        known = {"line", "raw"} <= set(repeats.columns)
        rejected = []
        for row in repeats.iter_rows(named=True):
            raw = row["raw"] if known and row["raw"] is not None else _render(row)
            rejected.append((file.name, row["line"] if known else None, 1, kind.table, reason, "", raw))
        self.staging.reject(rejected)
        self._count(file, reason, "", repeats.height)

    def _with_key(self, frame: pl.DataFrame, kind: supercloud.FileKind, files: list[ScanFile]) -> pl.DataFrame:
        """Return the rows with the job that their file's name tells, where the order needs it and no column has it."""
        if kind.name_pattern is None or kind.table == "gpu_samples":
            return frame
        jobs = pl.Series([f.job_id for f in files], dtype=pl.Int64)
        return frame.with_columns(jobs.gather(frame[batches.FILE]).alias("job_id"))

    def _store(self, kind: supercloud.FileKind, files: list[ScanFile], frames: list[pl.DataFrame]) -> None:
        frames = [frame for frame in frames if frame.height]
        if not frames:
            return
        frame = frames[0]
        if len(frames) > 1:
            frame = pl.concat(frames, how="diagonal_relaxed")
            frame = batches.order(frame, kind.table).frame
        if kind.name_pattern is not None:
            jobs = pl.Series([f.job_id for f in files], dtype=pl.Int64)
            at = frame[batches.FILE]
            columns = [jobs[at].alias("job_id")]
            if kind.table == "gpu_samples":
                names = list(dict.fromkeys(f.node for f in files))
                nodes = pl.Series([f.node for f in files], dtype=pl.Enum(names))
                columns.append(nodes[at].alias("node"))
            frame = frame.with_columns(columns)
        self.staging.store(kind.table, frame, [f.name for f in files], extended=kind.name == "gpu_extended")

    def _count_disorder(self, disorder: dict[int, int], small: list[_Small]) -> None:
        for i, n in disorder.items():
            self._count(small[i].file, "out_of_order", "", n)

    def _add_counts(self, file: ScanFile, counts: dict[tuple[int | None, str, str], int]) -> None:
        for (job_id, reason, detail), n in counts.items():
            self.staging.counts[file.name, job_id, reason, detail] += n


@dataclass(slots=True)
class _State:
    """What one file's earlier pieces taught: the jobs seen, and the unit of its memory column."""

    seen: pl.DataFrame
    context: supercloud.Context

    def learn(self, frame: pl.DataFrame) -> None:
        """Learn the unit of ``MemoryFreeInactiveKB`` from the first piece that has values."""
        if "mem_free_raw" in frame.columns and not self.context.mem_unit:
            self.context = replace(self.context, mem_unit=supercloud.memory_unit(frame["mem_free_raw"]))


def _join(kind: supercloud.FileKind, frames: list[pl.DataFrame]) -> pl.DataFrame:
    """Return the frames as one, and empty the list."""
    frame = pl.concat(frames, how="diagonal_relaxed", rechunk=False).with_columns(
        pl.lit(0, pl.Int32).alias(batches.FILE)
    )
    frames.clear()
    if kind.table == "gpu_samples" and "node" in frame.columns:
        names = frame["node"].unique().cast(pl.String).sort()
        frame = frame.with_columns(pl.col("node").cast(pl.Enum(names)))
    return frame


def _parse_bodies(
    bodies: Sequence[bytes | memoryview], header: Header, kind: supercloud.FileKind
) -> tuple[pl.DataFrame | None, list[int]]:
    """Return the typed rows of clean texts and the number of rows of each; None where any of them is doubtful."""
    if kind.table == "gpu_samples" and (found := quick.parse(bodies, header, kind.types)) is not None:
        return found
    rows = [int(np.count_nonzero(np.frombuffer(body, np.uint8) == _NEWLINE)) for body in bodies]
    text = bytes(bodies[0]) if len(bodies) == 1 else b"".join(bodies)
    frame = delimited.parse_clean(text, header, kind.types, kind.required)
    if frame is None or (frame.height != sum(rows) and len(bodies) > 1):
        return None, rows
    return frame, rows


def _with_lines(
    kind: supercloud.FileKind, header: Header, body: bytes, line: int, context: supercloud.Context
) -> Iterator[pl.DataFrame]:
    """Yield the sound rows of a text that has been parsed before, with their line numbers and raw lines."""
    for piece in cut_pieces(body, CAREFUL_BYTES):
        parsed = delimited.parse_careful(
            piece, header, kind.types, first_line=line, required=kind.required, exact=kind.exact
        )
        yield kind.finish(parsed.frame, context).frame
        line += piece.count(b"\n")


def _record(file: ScanFile, header: Header, source: Source) -> FileRecord:
    status = "replaced" if file.known else "new"
    checksum = join_blocks(source.hash.blocks())
    return FileRecord(file.name, file.kind, status, source.hash.size, checksum, unknown_columns=header.unknown)


def _render(row: dict[str, object]) -> str:
    """Return a row's values as text, where its raw line is no longer at hand."""
    skip = {batches.FILE, "line", "raw"}
    return ",".join(f"{name}={value}" for name, value in row.items() if name not in skip and value is not None)
