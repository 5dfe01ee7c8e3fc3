"""The lake's index: every input file that was taken, and which rows of which part came from it.

Parquet files beside ``HEAD.json``, named by it; a new generation writes new ones.
"""

from __future__ import annotations

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


def read_inputs(root: Path, head: Head) -> pl.DataFrame:
    """Return every input file that the lake remembers."""
    return _read(root, head.inputs) if head.inputs else pl.DataFrame(schema=INPUTS_SCHEMA)


def read_pieces(root: Path, head: Head) -> pl.DataFrame:
    """Return the index of rows: pieces of every part that came from input files, with their cluster."""
    schema = {"cluster": pl.String(), **PIECES_SCHEMA}
    return _read(root, head.pieces) if head.pieces else pl.DataFrame(schema=schema)


def _read(root: Path, name: str) -> pl.DataFrame:
    return read_part(root / MANIFEST / name)


def write_index(root: Path, name: str, frame: pl.DataFrame) -> str:
    """Write inputs or pieces durably under ``name`` and return it; nothing is left of it where that fails."""
    write_frame(root / MANIFEST / name, frame)
    return name
