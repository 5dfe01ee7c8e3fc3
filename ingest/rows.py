"""Text of input files becomes stored rows: parsed, ordered, repeats set apart, staged; what is wrong is named.

Files that are short are parsed together and share a part; a long file is read in batches, each a part of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import polars as pl

from ingest import batches
from ingest.compiled import count_newlines
from ingest.keys import TakenKeys
from ingest.reading import Source, count_content, cut_pieces
from ingest.records import ScanFile
from ingest.sources import delimited, quick, slurm_log
from ingest.sources.delimited import Header
from ingest.sources.file_kind import Context, FileKind
from ingest.sources.kinds import KINDS
from ingest.sources.supercloud_columns import LAKE_COLUMN, memory_unit
from ingest.staging import Staging

BATCH_BYTES: Final = 4 * 1024**2
"""How much text of a large file makes one part."""

BATCH_ROWS: Final = 81_920
"""And how many rows at most, or a little more: lines may be short."""

CAREFUL_BYTES: Final = 1024**2
"""How much text is looked at line by line at a time."""

_KEYS_SEEN_TO = frozenset({"gpu_samples", "jobs"})
"""Tables whose repeats are found elsewhere: when series are joined (`ingest.rewrite`), and by numbering attempts."""


@dataclass(frozen=True, slots=True)
class SmallFile:
    """A file that is parsed together with its neighbours; its body has so many lines, blank ones too."""

    file: ScanFile
    header: Header
    body: memoryview
    lines: int


class Rows:
    """Puts rows of files into ``staging``; ``blank_lines`` counts by file the lines that are none."""

    def __init__(self, staging: Staging, context: Context) -> None:
        self._staging = staging
        self._context = context
        self.blank_lines: Counter[str] = Counter()

    def take_together(self, kind: FileKind, header: Header, small: list[SmallFile]) -> None:
        """Store the rows of small files of one kind and header."""
        frame, lines = _parse_bodies([s.body for s in small], header, kind)
        doubtful = set(range(len(small)))
        kept: list[pl.DataFrame] = []
        ordinals = pl.Series(batches.FILE, np.repeat(np.arange(len(small), dtype=np.int32), lines))
        done = kind.finish(frame.with_columns(ordinals), self._context) if frame is not None else None
        if done is not None and not done.counts:  # which file something odd is in is seen when it is read alone
            ordered = batches.order(self._with_key(done.frame, kind, [s.file for s in small]), kind.table)
            doubtful = set(ordered.repeated[batches.FILE].to_list())
            self._count_disorder({f: n for f, n in ordered.out_of_order.items() if f not in doubtful}, small)
            kept.append(ordered.frame.filter(~pl.col(batches.FILE).is_in(doubtful)) if doubtful else ordered.frame)
        for i, (each, rows) in enumerate(zip(small, lines, strict=True)):
            if i in doubtful:
                ordered = batches.order(self._take_doubtful(each, i), kind.table)
                kept.append(self._settle_order(each.file, kind, ordered))
            else:
                self._count_blank(each.file, each.body, each.lines, rows)
        self._store(kind, [s.file for s in small], kept)

    def _take_doubtful(self, small: SmallFile, ordinal: int) -> pl.DataFrame:
        """Return the sound rows of a small file, the others going to quarantine."""
        name, body = small.file.name, bytes(small.body)
        rejected = self._staging.rows_quarantined[name]
        rows = pl.concat([p for p, _ in self._careful(small.file, small.header, body, 2)], how="diagonal_relaxed")
        rejected = self._staging.rows_quarantined[name] - rejected
        self._count_blank(small.file, body, small.lines, rows.height + rejected)
        return rows.with_columns(pl.lit(ordinal, pl.Int32).alias(batches.FILE))

    def _count_blank(self, file: ScanFile, text: bytes | memoryview, lines: int, rows: int) -> None:
        """Count the lines of a text that are none, if there may be any: of ``lines`` a parser made so many ``rows``."""
        if lines != rows:
            count = KINDS[file.kind].count_rows or count_content
            self.blank_lines[file.name] += lines - count(bytes(text))

    def take(self, file: ScanFile, header: Header, chunks: Iterable[bytes], line: int, source: Source) -> None:
        """Store the rows of one file in batches, each a part of its own; ``line`` is the number of the first."""
        kind = KINDS[file.kind]
        self._staging.close_parts()
        frames: list[pl.DataFrame] = []
        texts: list[tuple[bytes, int]] = []
        held = 0
        taken = TakenKeys(kind.table) if kind.table not in _KEYS_SEEN_TO else None
        state = _State(slurm_log.empty_seen(), self._context, taken)
        for chunk in chunks:
            if source.problem and chunk and not chunk.endswith(b"\n"):
                chunk = self._reject_cut_line(file, kind, chunk, line)  # noqa: PLW2901
            if not chunk:
                continue
            rejected = self._staging.rows_quarantined[file.name]
            frames.append(self._typed(file, header, chunk, line, state))
            rejected = self._staging.rows_quarantined[file.name] - rejected
            lines = count_newlines(chunk) + (not chunk.endswith(b"\n"))
            self._count_blank(file, chunk, lines, frames[-1].height + rejected)
            texts.append((chunk, line))
            held += len(chunk)
            line += lines
            if held >= BATCH_BYTES or line - texts[0][1] >= BATCH_ROWS:
                self._store_batch(file, header, frames, texts, state)
                frames, texts, held = [], [], 0
        if frames:
            self._store_batch(file, header, frames, texts, state)

    def count(self, file: ScanFile, reason: str, detail: str, n: int = 1) -> None:
        """Count something odd about a file."""
        self._staging.counts[file.name, file.job_id or None, reason, detail] += n

    def _reject_cut_line(self, file: ScanFile, kind: FileKind, chunk: bytes, line: int) -> bytes:
        """Return the chunk without its last line, which was cut short and goes to quarantine."""
        end = chunk.rfind(b"\n") + 1
        raw = chunk[end:].decode("utf-8", "backslashreplace")
        self._staging.reject([(file.name, line + chunk.count(b"\n"), 1, kind.table, "truncated", "", raw)])
        return chunk[:end]

    def _typed(self, file: ScanFile, header: Header, chunk: bytes, line: int, state: _State) -> pl.DataFrame:
        kind = KINDS[file.kind]
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
        kind = KINDS[file.kind]
        for piece in cut_pieces(body, CAREFUL_BYTES):
            parsed = _parse_careful(piece, header, kind, line, state.context if state else self._context)
            self._staging.reject(
                (file.name, number, 1, kind.table, reason, detail, raw)
                for number, reason, detail, raw in parsed.rejected
            )
            for reason in {r[1] for r in parsed.rejected}:
                self.count(file, reason, "", sum(r[1] == reason for r in parsed.rejected))
            for cells, reason in ((parsed.sentinels, "sentinel"), (parsed.bad_extras, "bad_extra_cell")):
                for parsed_column, n in cells.items():
                    column = LAKE_COLUMN.get(parsed_column, parsed_column)
                    self.count(file, reason, column, n)
                    self._staging.null_cells[file.name, column] -= n
            if state is not None:
                state.learn(parsed.frame)
            done = kind.finish(parsed.frame, state.context if state else self._context)
            self._add_counts(file, done.counts)
            line += piece.count(b"\n")
            yield done.frame, line

    def _numbered(self, file: ScanFile, kind: FileKind, frame: pl.DataFrame, state: _State) -> pl.DataFrame:
        if kind.name != "jobs":
            return frame
        numbered, repeats, state.seen = slurm_log.number_attempts(frame, state.seen)
        self._reject_repeats(file, kind, repeats)
        for (job_id,) in numbered.filter(pl.col("attempt") > 0).select("job_id").iter_rows():
            self._staging.counts[file.name, job_id, "requeued", ""] += 1
        return numbered

    def _store_batch(
        self,
        file: ScanFile,
        header: Header,
        frames: list[pl.DataFrame],
        texts: list[tuple[bytes, int]],
        state: _State,
    ) -> None:
        """Store the pieces of one batch as a part, and empty the list, so that sorting has their room."""
        kind = KINDS[file.kind]
        ordered = state.set_taken_apart(batches.order(_join(kind, frames), kind.table))
        if ordered.repeated.height and kind.name != "jobs":  # once more, to know their lines
            again = [rows for text, line in texts for rows in _with_lines(kind, header, text, line, state.context)]
            ordered = state.set_taken_apart(batches.order(_join(kind, again), kind.table))
        frame = self._settle_order(file, kind, ordered)
        self._store(kind, [file], [frame])
        parts = self._staging.close_parts()
        if state.taken is not None and parts:
            state.taken.add(frame, parts[0].path)

    def _settle_order(self, file: ScanFile, kind: FileKind, ordered: batches.Ordered) -> pl.DataFrame:
        """Count what was out of order, put repeats into quarantine, and return the others."""
        self._reject_repeats(file, kind, ordered.repeated)
        if ordered.out_of_order:
            self.count(file, "out_of_order", "", sum(ordered.out_of_order.values()))
        return ordered.frame

    def _reject_repeats(self, file: ScanFile, kind: FileKind, repeats: pl.DataFrame) -> None:
        if not repeats.height:
            return
        reason = "repeated_time" if "time" in repeats.columns else "repeated_row"
        known = {"line", "raw"} <= set(repeats.columns)
        rejected = []
        for row in repeats.iter_rows(named=True):
            raw = row["raw"] if known and row["raw"] is not None else _render(row)
            rejected.append((file.name, row["line"] if known else None, 1, kind.table, reason, "", raw))
        self._staging.reject(rejected)
        self.count(file, reason, "", repeats.height)

    def _with_key(self, frame: pl.DataFrame, kind: FileKind, files: list[ScanFile]) -> pl.DataFrame:
        """Return the rows with the job that their file's name tells, where the order needs it and no column has it."""
        if kind.name_pattern is None or kind.table == "gpu_samples":
            return frame
        jobs = pl.Series([f.job_id for f in files], dtype=pl.Int64)
        return frame.with_columns(jobs.gather(frame[batches.FILE]).alias("job_id"))

    def _store(self, kind: FileKind, files: list[ScanFile], frames: list[pl.DataFrame]) -> None:
        frames = [frame for frame in frames if frame.height]
        if not frames:
            return
        frame = frames[0]
        if len(frames) > 1:
            frame = pl.concat(frames, how="diagonal_relaxed")
            frame = batches.order(frame, kind.table).frame
        if kind.name_pattern is not None:
            at = frame[batches.FILE]
            columns: list[pl.Series] = []
            if not kind.is_of_node:
                columns.append(pl.Series([f.job_id for f in files], dtype=pl.Int64)[at].alias("job_id"))
            if kind.table == "gpu_samples":
                names = list(dict.fromkeys(f.node for f in files))
                nodes = pl.Series([f.node for f in files], dtype=pl.Enum(names))
                columns.append(nodes[at].alias("node"))
            frame = frame.with_columns(columns)
        self._staging.store(kind.table, frame, [f.name for f in files], extended=kind.name == "gpu_extended")

    def _count_disorder(self, disorder: dict[int, int], small: list[SmallFile]) -> None:
        for i, n in disorder.items():
            self.count(small[i].file, "out_of_order", "", n)

    def _add_counts(self, file: ScanFile, counts: dict[tuple[int | None, str, str], int]) -> None:
        for (job_id, reason, detail), n in counts.items():
            self._staging.counts[file.name, job_id, reason, detail] += n


@dataclass(slots=True)
class _State:
    """What one file's earlier pieces taught: the jobs seen, the unit of its memory column, the keys that are taken."""

    seen: pl.DataFrame
    context: Context
    taken: TakenKeys | None

    def set_taken_apart(self, ordered: batches.Ordered) -> batches.Ordered:
        """Return the batch with rows whose key an earlier batch has among the repeated ones."""
        return ordered if self.taken is None else self.taken.set_apart(ordered)

    def learn(self, frame: pl.DataFrame) -> None:
        """Learn the unit of ``MemoryFreeInactiveKB`` from the first piece that has values."""
        if "mem_free_raw" in frame.columns and not self.context.mem_unit:
            self.context = replace(self.context, mem_unit=memory_unit(frame["mem_free_raw"]))


def _join(kind: FileKind, frames: list[pl.DataFrame]) -> pl.DataFrame:
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
    bodies: Sequence[bytes | memoryview], header: Header, kind: FileKind
) -> tuple[pl.DataFrame | None, list[int]]:
    """Return the typed rows of clean texts and the number of rows of each; None where any of them is doubtful."""
    if kind.parse is not None:
        return None, []
    if kind.table == "gpu_samples" and (found := quick.parse(bodies, header, kind.types)) is not None:
        return found
    rows = [count_newlines(body) for body in bodies]
    text = bytes(bodies[0]) if len(bodies) == 1 else b"".join(bodies)
    frame = delimited.parse_clean(text, header, kind.types, kind.required)
    if frame is None or (frame.height != sum(rows) and len(bodies) > 1):
        return None, rows
    return frame, rows if len(bodies) > 1 else [frame.height]


def _parse_careful(piece: bytes, header: Header, kind: FileKind, line: int, context: Context) -> delimited.Parsed:
    if kind.parse is not None:
        return kind.parse(piece, header, line, context.smi)
    return delimited.parse_careful(
        piece,
        header,
        kind.types,
        first_line=line,
        required=kind.required,
        exact=kind.exact,
        extras=kind.extras,
    )


def _with_lines(kind: FileKind, header: Header, body: bytes, line: int, context: Context) -> Iterator[pl.DataFrame]:
    """Yield the sound rows of a text that has been parsed before, with their line numbers and raw lines."""
    for piece in cut_pieces(body, CAREFUL_BYTES):
        parsed = _parse_careful(piece, header, kind, line, context)
        yield kind.finish(parsed.frame, context).frame
        line += piece.count(b"\n")


def _render(row: dict[str, object]) -> str:
    """Return a row's values as text, where its raw line is no longer at hand."""
    skip = {batches.FILE, "line", "raw"}
    return ",".join(f"{name}={value}" for name, value in row.items() if name not in skip and value is not None)
