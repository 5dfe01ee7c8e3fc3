"""Lakes compared row for row, whatever files their rows lie in."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
from polars.testing import assert_frame_equal

from ingest.lake import Lake
from ingest.schemas import TABLES

Tables = dict[str, pl.DataFrame]


def read_tables(root: Path) -> Tables:
    """Return every row of every table of a lake, sorted by all of its columns."""
    lake = Lake(root)
    return {name: in_order(lake.scan(name).collect()) for name in TABLES}


def read_foreign(root: Path) -> Tables:
    """Return what a reader finds that knows nothing of manifests: all files below each table's folder."""
    tables = {}
    for name, schema in TABLES.items():
        if any((root / name).glob("*/*.parquet")):
            found = pl.read_parquet(root / name / "*/*.parquet", hive_partitioning=True)
            tables[name] = in_order(found.select(*schema.columns, pl.col("cluster").cast(pl.String)))
        else:
            tables[name] = schema.empty().with_columns(cluster=pl.lit(None, dtype=pl.String))
    return tables


def in_order(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the rows sorted by all columns."""
    return frame.sort(frame.columns, nulls_last=True, maintain_order=True)


def assert_same_tables(found: Tables, expected: Tables) -> None:
    """Fail unless both have the same rows in every table."""
    assert found.keys() == expected.keys()
    for name, frame in expected.items():
        assert found[name].height == frame.height, name
        assert_frame_equal(found[name], frame, check_exact=True)


def damage_first_page(path: Path, column: int = 0) -> None:
    """Flip a bit at the end of a column (which, counted from 0) of a part's first row group."""
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(column)
    content = path.read_bytes()
    at = (chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size - 1
    path.write_bytes(content[:at] + bytes([content[at] ^ 8]) + content[at + 1 :])
