"""Large files that several tasks read: what the shares say, joined to what the whole file says. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ingest.checksum import join_blocks
from ingest.records import FileRecord, IngestPlan, ScanResult, ScanSpec


def join_shares(results: Sequence[ScanResult], specs: Sequence[ScanSpec]) -> tuple[list[ScanResult], list[FileRecord]]:
    """Return the results that stay, and one record a file; shares are added up in the order of their place in it.

    A file of which a share was refused is refused whole: nothing stays of its other shares.
    """
    start = {spec.part: spec.files[0].start for spec in specs if spec.files and spec.files[0].stop is not None}
    whole = [record for result in results if result.part not in start for record in result.files]
    shares: dict[str, list[tuple[int, FileRecord]]] = {}
    for result in results:
        for record in result.files if result.part in start else ():
            shares.setdefault(record.name, []).append((start[result.part], record))
    joined = [_join_records([record for _, record in sorted(found, key=lambda s: s[0])]) for found in shares.values()]
    refused = {record.name for record in joined if record.status == "refused"}
    stay = [r for r in results if r.part not in start or not any(record.name in refused for record in r.files)]
    return stay, whole + joined


def _join_records(shares: Sequence[FileRecord]) -> FileRecord:
    """Return the record of a file from those of its shares, in order."""
    total = next((record for record in shares if record.status == "refused"), shares[0])
    if total.status == "refused":
        return total
    for record in shares[1:]:
        total = total.plus(record)
    blocks = [block for record in shares for block in record.checksum.split(",") if block]
    return replace(total, size=sum(r.size for r in shares), checksum=join_blocks(blocks))


def find_line_shifts(results: Sequence[ScanResult], plan: IngestPlan) -> dict[str, int]:
    """Return for each share task how many lines of its file come before it."""
    starts = {
        spec.part: (spec.files[0].name, spec.files[0].start)
        for spec in (*plan.specs, *plan.verify)
        if spec.files and spec.files[0].stop is not None
    }
    lines: dict[str, list[tuple[int, str, int]]] = {}
    for result in results:
        if result.part in starts and result.files:
            name, start = starts[result.part]
            lines.setdefault(name, []).append((start, result.part, result.files[0].lines))
    shift: dict[str, int] = {}
    for found in lines.values():
        before = 0
        for _, part, n in sorted(found):
            shift[part] = before
            before += n
    return shift
