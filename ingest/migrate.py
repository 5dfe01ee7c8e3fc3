"""A lake of an older version brought up: parts that lack columns written anew, the pieces too, HEAD last.

What an older lake could not know is null. A process that dies on the way leaves the lake as it was.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import polars as pl

from ingest.head import MIGRATED, NOW, STAGING, Head, LakePart, finish_moves, read_head, write_head, writing
from ingest.manifest import read_inputs, read_pieces, write_inputs, write_pieces
from ingest.parts import open_part, read_part, reading, write_part
from ingest.schemas import TABLES
from ingest.staging import conform_pieces

GROWN: Final = ("node_samples", "job_parameters", "job_stats")
"""Tables that got columns since the oldest version that is brought up."""


@dataclass(frozen=True, slots=True)
class Migration:
    """A lake's format and schema version before and after, and how many of its files were written anew."""

    lake: str
    format_version_before: int
    schema_version_before: int
    format_version: int
    schema_version: int
    generation: int
    files_written: int


def migrate_lake(lake: Path) -> Migration:
    """Bring a lake to this version, unless it is of it already.

    Raises
    ------
    LakeError, LakeBusyError
        With nothing changed.
    """
    root = lake.resolve()
    read_head(root, older=True)  # where there is no lake none is made
    with writing(root) as before:
        after = migrate(root, before)
    written = len({part.file for part in after.parts} - {part.file for part in before.parts})
    return Migration(str(lake), *before.version, *after.version, after.generation, written)


def migrate(root: Path, head: Head) -> Head:
    """Bring a lake to this version and return its state; for whoever holds the lake's lock.

    Raises
    ------
    LakeError
        If a part that must be written anew is damaged; nothing has changed then.
    """
    if head.version not in MIGRATED:
        return head
    generation = head.generation + 1
    folder = f"{STAGING}/run-{generation:06d}-{os.getpid()}"
    moves: dict[str, str] = {}
    parts: list[LakePart] = []
    for part in head.parts:
        if part.table in GROWN and _lacks_columns(root / part.file, part.table):
            grown = _grow(root, part, f"{folder}/{part.table}-{len(moves):05d}.parquet", generation, len(moves))
            moves[grown.file] = f"{folder}/{part.table}-{len(moves):05d}.parquet"
            parts.append(grown)
        else:
            parts.append(part)
    renamed = {old.file: new.file for old, new in zip(head.parts, parts, strict=True)}
    old = read_pieces(root, head)
    pieces = conform_pieces(old.drop("cluster")).with_columns(pl.col("part").replace(renamed))
    after = replace(
        head,
        generation=generation,
        parts=tuple(parts),
        inputs=write_inputs(root, f"inputs-{generation:06d}.parquet", read_inputs(root, head)),
        pieces=write_pieces(root, f"pieces-{generation:06d}.parquet", pieces.insert_column(0, old["cluster"])),
        moves=moves,
        removes=(
            *sorted(set(renamed) - set(renamed.values())),
            *(f"_manifest/{name}" for name in (head.inputs, head.pieces) if name),
        ),
        version=NOW,
    )
    return finish_moves(root, write_head(root, after))


def _lacks_columns(path: Path, table: str) -> bool:
    with reading(path), open_part(path) as file:
        return not set(TABLES[table].columns) <= set(file.schema_arrow.names)


def _grow(root: Path, part: LakePart, staged: str, generation: int, number: int) -> LakePart:
    """Write a part anew with all columns of its table, and return it under its next name."""
    written = write_part(root / staged, part.table, TABLES[part.table].conform(read_part(root / part.file)))
    file = f"{part.table}/cluster={part.cluster}/part-{generation:06d}-{number:05d}.parquet"
    return LakePart(part.table, part.cluster, file, written.rows, written.bytes)
