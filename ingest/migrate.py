"""A lake of an older version brought up: parts that lack columns written anew, the pieces too, HEAD last.

What an older lake could not know is null. A process that dies on the way leaves the lake as it was.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import polars as pl

from ingest.feature_schemas import feature_schema, features_in
from ingest.head import MIGRATED, NOW, STAGING, Head, LakePart, finish_moves, read_head, write_head, writing
from ingest.manifest import read_inputs, read_pieces, write_inputs, write_pieces
from ingest.part_writer import write_table
from ingest.parts import open_part, read_part, reading
from ingest.schemas import TABLES
from ingest.staging import conform_pieces

GROWN: Final = ("node_samples", "job_parameters", "job_stats", "features")
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
    lacking = {p.file for p in head.parts if p.table in GROWN and _lacks_columns(root / p.file, p.table)}
    windows = {_pair(part) for part in head.parts if part.table == "features" and part.file in lacking}
    numbers: dict[tuple[str, str], int] = {}  # a part of feature_series is called as that of its windows
    for part in head.parts:
        if part.file in lacking or (part.table == "feature_series" and _pair(part) in windows):
            paired = part.table in ("features", "feature_series")
            number = numbers.setdefault(_pair(part), len(moves)) if paired else len(moves)
            staged = f"{folder}/{part.table}-{number:05d}.parquet"
            grown = _grow(root, part, staged, f"part-{generation:06d}-{number:05d}.parquet")
            moves[grown.file] = staged
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


def _pair(part: LakePart) -> tuple[str, str]:
    """Return what a part of ``feature_series`` has in common with that of its windows: cluster, and name."""
    return part.cluster, part.file.rpartition("/")[2]


def _grow(root: Path, part: LakePart, staged: str, name: str) -> LakePart:
    """Write a part anew with all columns of its table, and return it under its next name."""
    rows = read_part(root / part.file)
    schema = feature_schema(features_in(rows)) if part.table == "features" else TABLES[part.table]
    written = write_table(root / staged, schema, schema.conform(rows))
    folder = part.file.rpartition("/")[0]
    return LakePart(part.table, part.cluster, f"{folder}/{name}", written.rows, written.bytes)
