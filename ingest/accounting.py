"""Reading what ``sacct`` printed: text or JSON become staged rows of ``jobs``, and a record of the file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Final

import polars as pl

from ingest import batches
from ingest.checksum import join_blocks
from ingest.errors import SourceError
from ingest.reading import PIECE_BYTES, Source, cut_pieces
from ingest.records import FileRecord, ScanFile, as_known, refusal
from ingest.schemas import JOBS, TIME
from ingest.sources import sacct, slurm_log
from ingest.sources.delimited import BOM, iter_chunks
from ingest.sources.sacct import Parsed, Table
from ingest.sources.sacct_columns import Row
from ingest.sources.sacct_json import parse_json
from ingest.staging import Staging
from ingest.units import US_PER_S

MAX_JSON_BYTES: Final = 256 * 1024**2
"""An answer in JSON has one end and is parsed whole; text has no such limit."""

_HEAD_BYTES: Final = 16 * 1024**2
_TIMES: Final = ("submit", "eligible", "start", "end")
_TYPES: Final[dict[str, pl.DataType]] = {
    **{name: dtype for name, dtype in JOBS.columns.items() if not name.endswith("_time")},
    **{f"{name}_epoch_s": pl.Int64() for name in _TIMES},
}


def take_accounting(file: ScanFile, source: Source, staging: Staging) -> FileRecord:
    """Stage the jobs of one file and return its record.

    A file that became shorter is read all the same: whether it lost a job is seen when it is committed.
    """
    if file.name.endswith(".json"):
        return _take_json(file, source, staging)
    head = source.fill(_HEAD_BYTES, _HEAD_BYTES if file.member.codec else file.member.size)
    if source.ended and (same := _unchanged(file, source)) is not None:
        return same
    line, newline, _ = head.removeprefix(BOM).partition(b"\n")
    if not newline or (source.problem and source.problem[0] == "too_large"):
        return refusal(file.name, file.kind, *(source.problem or ("empty_file", "no header")), 0)
    try:
        table = sacct.parse_header(_decode(line))
    except ValueError as error:
        return refusal(file.name, file.kind, "missing_column", str(error), 0)
    mark = staging.mark()
    taker = _Taker(file, staging)
    begin = len(head) - len(head.removeprefix(BOM)) + len(line) + 1
    end = head.rfind(b"\n") + 1
    chunks = chain(cut_pieces(head[begin:end], PIECE_BYTES), iter_chunks(source, PIECE_BYTES, head[end:]))
    del head
    for parsed in _parse_pieces(table, chunks):
        taker.take(parsed)
    if (same := _unchanged(file, source)) is not None:
        staging.rollback(mark, file.name)
        return same
    if source.problem:
        staging.counts[file.name, None, *source.problem] += 1
    unknown = tuple(sacct.unknown_columns(table))
    for name in unknown:
        staging.counts[file.name, None, "unknown_column", name] += 1
    return replace(taker.record(source), unknown_columns=unknown)


def _take_json(file: ScanFile, source: Source, staging: Staging) -> FileRecord:
    data = source.fill(MAX_JSON_BYTES, MAX_JSON_BYTES if file.member.codec else file.member.size)
    if not source.ended:
        return refusal(file.name, file.kind, "too_large", f"the limit for JSON is {MAX_JSON_BYTES} bytes", 0)
    if (same := _unchanged(file, source)) is not None:
        return same
    if source.problem or not data.strip():
        return refusal(file.name, file.kind, *(source.problem or ("empty_file", "nothing in it")), 0)
    try:
        parsed = parse_json(_decode(data))
    except SourceError as error:
        return refusal(file.name, file.kind, "truncated", str(error), 0)
    taker = _Taker(file, staging)
    taker.take(parsed)
    return taker.record(source)


def _decode(data: bytes) -> str:
    return data.removeprefix(BOM).decode("utf-8", "backslashreplace").replace("\r\n", "\n")


def _unchanged(file: ScanFile, source: Source) -> FileRecord | None:
    """Return the record of a file that is as the lake knows it, None for any other."""
    known = file.known
    if known is None or known.size != source.hash.size or known.checksum != join_blocks(source.hash.blocks()):
        return None
    return as_known(known, file.kind, file.name)


def _parse_pieces(table: Table, chunks: Iterator[bytes]) -> Iterator[Parsed]:
    """Yield the rows of a text piece by piece; a row that a piece may have cut is left for the next one."""
    rest, line = "", 2
    for chunk in chunks:
        text = rest + _decode(chunk)
        *whole, end = text.split("\n")
        rows = list(sacct.split_rows(table, whole, line))
        keep = rows.pop() if rows else (line, "")
        parsed = Parsed()
        sacct.parse_rows(table, rows, parsed)
        yield parsed
        rest = f"{keep[1]}\n{end}" if keep[1] else end
        line = keep[0] if keep[1] else line + len(whole)
    parsed = Parsed()
    *whole, end = rest.split("\n")
    sacct.parse_rows(table, sacct.split_rows(table, whole, line), parsed)
    if end.strip():
        parsed.rejected.append((line + len(whole), "truncated", "the last line does not end", end))
    yield parsed


class _Taker:
    """Numbers the attempts of one file's jobs and stages them."""

    def __init__(self, file: ScanFile, staging: Staging) -> None:
        self._file = file
        self._staging = staging
        self._seen: dict[int, list[int | None]] = {}
        self._cluster: str | None = None
        self._rows_in = 0

    def take(self, parsed: Parsed) -> None:
        """Stage the rows and put the others into quarantine."""
        name = self._file.name
        self._rows_in += len(parsed.rows) + len(parsed.rejected)
        rejected = list(parsed.rejected)
        rows: list[Row] = []
        ordered = sorted(parsed.rows, key=lambda row: (row[2]["job_id"], row[2].get("submit_epoch_s") or 0))
        for number, raw, row in ordered:
            if problem := self._number(row):
                rejected.append((number, problem, "", raw or str(row)))
            else:
                rows.append(row)
        self._staging.reject((name, number, 1, "jobs", *why) for number, *why in sorted(rejected))  # type: ignore[misc]
        counts = dict(parsed.counts)
        for _, reason, *_ in rejected:
            counts[None, reason, ""] = counts.get((None, reason, ""), 0) + 1
        if rows:
            frame = jobs_frame(rows)
            slurm_log.check_times(frame, counts)
            self._staging.close_parts()
            self._staging.store("jobs", frame.with_columns(pl.lit(0, pl.Int32).alias(batches.FILE)), [name])
            self._staging.close_parts()
        for (job_id, reason, detail), n in counts.items():
            self._staging.counts[name, job_id, reason, detail] += n

    def _number(self, row: Row) -> str:
        """Number the attempt of a row; return the reason why it cannot be taken, '' where it can."""
        cluster = row.get("cluster")
        self._cluster = self._cluster or cluster
        if cluster is not None and cluster != self._cluster:
            return "other_cluster"
        submit = row.get("submit_epoch_s")
        before = self._seen.setdefault(row["job_id"], [])
        if before and (submit is None or submit in before):
            return "repeated_row"
        row["attempt"] = len(before)
        before.append(submit)
        if row["attempt"]:
            self._staging.counts[self._file.name, row["job_id"], "requeued", ""] += 1
        return ""

    def record(self, source: Source) -> FileRecord:
        """Return what became of the file."""
        name, staging = self._file.name, self._staging
        record = FileRecord(name, self._file.kind, "replaced" if self._file.known else "new", source.hash.size)
        return replace(
            record,
            checksum=join_blocks(source.hash.blocks()),
            rows_in=self._rows_in,
            rows_out=staging.rows_out[name],
            rows_quarantined=staging.rows_quarantined[name],
        )


def jobs_frame(rows: list[Row]) -> pl.DataFrame:
    """Return rows of ``jobs``; columns that no row tells are null."""
    frame = pl.DataFrame(
        {name: [row.get(name) for row in rows] for name in _TYPES}, schema=_TYPES, orient="col", strict=True
    )
    times = [(pl.col(f"{t}_epoch_s") * US_PER_S).cast(TIME).alias(f"{t}_time") for t in _TIMES]
    return JOBS.conform(frame.with_columns(times))
