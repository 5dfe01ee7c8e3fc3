"""What is wrong with one part of a lake: by its footer, or by every value of it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import polars as pl
import pyarrow.parquet as pq

from ingest.head import LakePart
from ingest.keys import KeyCheck
from ingest.parts import open_part
from ingest.schemas import TABLES

_ROWS: Final = 65_536
_SERIES_TABLES: Final = frozenset({"gpu_samples", "gpu_minutes"})


def check_footer(path: Path, part: LakePart) -> tuple[int, list[str]]:
    """Return the rows of a part by its footer, and what that says is wrong with it."""
    with open_part(path) as file:
        problems = _missing_columns(file, part)
        rows = file.metadata.num_rows
    return rows, problems + _as_listed(rows, path, part)


def check_part(path: Path, part: LakePart, keys: KeyCheck) -> tuple[int, list[str]]:
    """Return the rows of a part, all of them read, and what is wrong with it; its rows' keys go into ``keys``."""
    schema = TABLES[part.table]
    key = {name: schema.columns[name] for name in schema.key}
    rows = back = 0
    last = pl.DataFrame(schema=key)
    with open_part(path) as file:
        problems = _missing_columns(file, part)
        for batch in file.iter_batches(batch_size=_ROWS):
            rows += batch.num_rows
            if problems:
                continue
            found = pl.DataFrame(batch.select(list(key)), schema=key)
            keys.add(part.table, part.cluster, found)
            if part.table in _SERIES_TABLES:
                found = pl.concat([last, found])
                back += _count_back(found)
                last = found.tail(1)
    problems += _as_listed(rows, path, part)
    if back:
        problems.append(f"the time of a series goes back, or repeats, in {back} places")
    return rows, problems


def _missing_columns(file: pq.ParquetFile, part: LakePart) -> list[str]:
    missing = set(TABLES[part.table].columns) - set(file.schema_arrow.names)
    return [f"columns missing: {', '.join(sorted(missing))}"] if missing else []


def _as_listed(rows: int, path: Path, part: LakePart) -> list[str]:
    size = path.stat().st_size
    if (rows, size) == (part.rows, part.bytes):
        return []
    return [f"{rows} rows, {size} bytes; {part.rows}, {part.bytes} listed"]


def _count_back(keys: pl.DataFrame) -> int:
    """Return how often the last column does not grow where the others stay the same."""
    *series, time = keys.columns
    same = pl.all_horizontal([pl.col(name).eq_missing(pl.col(name).shift()) for name in series])
    return int(keys.select((same & (pl.col(time) <= pl.col(time).shift())).sum()).item())
