"""The lake's index: every input file that was taken, and which rows of which part came from it.

Parquet files beside ``HEAD.json``, named by it; a new generation writes new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import polars as pl

from ingest.head import MANIFEST, Head
from ingest.parts import read_part, write_frame
from ingest.staging import PIECES_SCHEMA

INPUTS_SCHEMA: Final[dict[str, pl.DataType]] = {
    "cluster": pl.String(),
    "name": pl.String(),
    "kind": pl.String(),
    "size": pl.Int64(),
    "checksum": pl.String(),
    "rows_in": pl.Int64(),
    "rows_out": pl.Int64(),
    "rows_quarantined": pl.Int64(),
    "rows_merged": pl.Int64(),
    "generation": pl.Int64(),
}

NO_PART: Final = ""
"""The part of a piece whose rows are not kept any more; its summary is, so that the roll-ups stay as they were."""

PIECES_IN_GROUP: Final = 16_384
"""Pieces in a row group; who looks for one job reads one or two of them (`ingest.series_index`)."""

_IN_ORDER: Final = ("job_id", "cluster", "node", "gpu_index", "first_time")


def read_inputs(root: Path, head: Head) -> pl.DataFrame:
    """Return every input file that the lake remembers."""
    return _read(root, head.inputs) if head.inputs else pl.DataFrame(schema=INPUTS_SCHEMA)


def read_pieces(root: Path, head: Head) -> pl.DataFrame:
    """Return the index of rows: pieces of every part that came from input files, with their cluster."""
    schema = {"cluster": pl.String(), **PIECES_SCHEMA}
    return _read(root, head.pieces) if head.pieces else pl.DataFrame(schema=schema)


def read_pieces_of(root: Path, head: Head, cluster: str, columns: Sequence[str]) -> pl.DataFrame:
    """Return some columns of the pieces of one cluster."""
    if not head.pieces:
        return pl.DataFrame(schema={name: PIECES_SCHEMA[name] for name in columns})
    read = read_part(root / MANIFEST / head.pieces, columns=["cluster", *columns])
    return read.filter(pl.col("cluster") == cluster).drop("cluster")


def with_paths(root: Path, head: Head, pieces: pl.DataFrame) -> pl.DataFrame:
    """Return pieces with ``path``, where the bytes of each one's part are now; null where its rows are not kept.

    A part whose move is still due, or is being done in this moment, is found where `Head.path` finds it.
    """
    due = {
        part.file: head.path(root, part).relative_to(root).as_posix() for part in head.parts if part.file in head.moves
    }
    path = pl.concat_str(pl.lit(f"{root}/"), pl.col("part").replace(due))
    return pieces.with_columns(path=pl.when(pl.col("part") != NO_PART).then(path))


def _read(root: Path, name: str) -> pl.DataFrame:
    return read_part(root / MANIFEST / name)


def write_inputs(root: Path, name: str, inputs: pl.DataFrame) -> str:
    """Write the inputs durably under ``name`` and return it; nothing is left of them where that fails."""
    write_frame(root / MANIFEST / name, inputs)
    return name


def write_pieces(root: Path, name: str, pieces: pl.DataFrame) -> str:
    """Write the pieces sorted by job, durably, under ``name`` and return it; nothing is left where that fails."""
    ordered = pieces.sort(_IN_ORDER, nulls_last=True, maintain_order=True)
    write_frame(root / MANIFEST / name, ordered, row_group_rows=PIECES_IN_GROUP)
    return name
