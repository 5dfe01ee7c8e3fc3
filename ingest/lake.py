"""The lake: committed tables, read lazily or, for one job, through the index.

A `Lake` shows the state that was committed when it was opened; open it again to see a later one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ingest.errors import LakeError
from ingest.head import Head, LakePart, read_head
from ingest.manifest import read_inputs, read_pieces
from ingest.schemas import TABLES, TableSchema

_OPEN_FILES: Final = 64
_INDEX_COLUMNS = ["cluster", "part", "row_start", "rows", "job_id", "node", "gpu_index", "first_time"]


@dataclass(frozen=True, slots=True)
class TableInfo:
    """Size of one table."""

    name: str
    clusters: tuple[str, ...]
    files: int
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class LakeInfo:
    """Size of a lake."""

    root: str
    generation: int
    inputs: int
    tables: tuple[TableInfo, ...]


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a full check of a lake found; no problems means that it is sound."""

    files: int
    rows: int
    problems: tuple[str, ...]


class Lake:
    """A lake at ``root``, as committed.

    Raises
    ------
    LakeError
        If there is none, or its schema is of another version.

    Examples
    --------
    >>> lake = Lake("data/lake/demo")  # doctest: +SKIP
    >>> lake.scan("job_stats").filter(pl.col("energy_j") > 1e6).collect()  # doctest: +SKIP
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._head = read_head(self.root)
        self._index: _SeriesIndex | None = None
        self._files: OrderedDict[str, pq.ParquetFile] = OrderedDict()

    @property
    def generation(self) -> int:
        """Number of the committed state; it grows by one with every run that changed something."""
        return self._head.generation

    @property
    def clusters(self) -> tuple[str, ...]:
        """The clusters that any table has, sorted."""
        return tuple(sorted({part.cluster for part in self._head.parts}))

    def paths(self, table: str, cluster: str | None = None) -> list[Path]:
        """Return the Parquet files of a table."""
        self._schema(table)
        return [self._head.path(self.root, p) for p in self._parts(table, cluster)]

    def scan(self, table: str, cluster: str | None = None) -> pl.LazyFrame:
        """Return a table's committed rows, with a ``cluster`` column beside its own; empty where there are none."""
        schema = self._schema(table)
        frames = []
        for name in self.clusters if cluster is None else (cluster,):
            paths = self.paths(table, name)
            if paths:
                frames.append(pl.scan_parquet(paths, hive_partitioning=False).with_columns(cluster=pl.lit(name)))
        if not frames:
            return schema.empty().with_columns(cluster=pl.lit(None, dtype=pl.String)).lazy()
        return frames[0] if len(frames) == 1 else pl.concat(frames)

    def read_series(
        self,
        job_id: int,
        columns: Sequence[str] | None = None,
        *,
        cluster: str | None = None,
        node: str | None = None,
        gpu_index: int | None = None,
    ) -> pl.DataFrame:
        """Return the GPU samples of one job, sorted by node, gpu_index and time; no rows for an unknown job.

        Parameters
        ----------
        columns : columns of gpu_samples, all where None
        cluster, node, gpu_index : narrow it down

        Notes
        -----
        Goes through the index to the row groups that hold the job, so its cost does not grow with the lake.
        """
        if self._index is None:
            self._index = _SeriesIndex(read_pieces(self.root, self._head), self._head, self.root)
        wanted = self._index.find(job_id, cluster, node, gpu_index)
        tables = [self._read_rows(path, start, rows, columns) for path, start, rows in wanted]
        if not tables:
            empty = self._schema("gpu_samples").empty()
            return empty.select(columns) if columns is not None else empty
        frame = pl.from_arrow(tables[0] if len(tables) == 1 else pa.concat_tables(tables))
        if not isinstance(frame, pl.DataFrame):
            raise TypeError("a table was expected")
        return frame

    def _read_rows(self, path: str, row_start: int, rows: int, columns: Sequence[str] | None) -> pa.Table:
        file = self._open(path)
        ends = self._row_ends(path, file)
        first = int(np.searchsorted(ends, row_start, side="right"))
        last = int(np.searchsorted(ends, row_start + rows, side="left"))
        names = list(columns) if columns is not None else None
        table = file.read_row_groups(list(range(first, last + 1)), columns=names, use_threads=False)
        offset = row_start - (int(ends[first - 1]) if first else 0)
        return table.slice(offset, rows)

    def _open(self, path: str) -> pq.ParquetFile:
        if path in self._files:
            self._files.move_to_end(path)
            return self._files[path]
        file = pq.ParquetFile(path)
        self._files[path] = file
        if len(self._files) > _OPEN_FILES:
            self._files.popitem(last=False)[1].close()
        return file

    def _row_ends(self, path: str, file: pq.ParquetFile) -> Any:
        if self._index is None:
            raise LakeError(f"{self.root}: the index is not loaded")
        if path not in self._index.row_ends:
            meta = file.metadata
            self._index.row_ends[path] = np.cumsum([meta.row_group(i).num_rows for i in range(meta.num_row_groups)])
        return self._index.row_ends[path]

    def inputs(self) -> pl.DataFrame:
        """Return every input file that the lake remembers, with its counts of rows."""
        return read_inputs(self.root, self._head)

    def info(self) -> LakeInfo:
        """Return rows, files and bytes of each table."""
        tables = []
        for name in TABLES:
            parts = self._parts(name, None)
            if parts:
                clusters = tuple(sorted({p.cluster for p in parts}))
                tables.append(
                    TableInfo(name, clusters, len(parts), sum(p.rows for p in parts), sum(p.bytes for p in parts))
                )
        return LakeInfo(str(self.root), self.generation, self.inputs().height, tuple(tables))

    def check(self) -> CheckReport:
        """Return what a full check finds: every part there, readable to the last value, of the counted rows and types."""
        problems: list[str] = []
        rows = 0
        for part in self._head.parts:
            path = self._head.path(self.root, part)
            try:
                file = pq.ParquetFile(path)
                found = sum(batch.num_rows for batch in file.iter_batches(batch_size=65_536))
            except (OSError, pa.ArrowException) as error:
                problems.append(f"{part.file}: cannot be read ({error})")
                continue
            rows += found
            if found != part.rows or path.stat().st_size != part.bytes:
                problems.append(
                    f"{part.file}: {found} rows, {path.stat().st_size} bytes; {part.rows}, {part.bytes} listed"
                )
            missing = set(TABLES[part.table].columns) - set(file.schema_arrow.names)
            if missing:
                problems.append(f"{part.file}: columns missing: {', '.join(sorted(missing))}")
        problems += self._check_index()
        listed = {part.file for part in self._head.parts}
        for table in TABLES:
            for path in sorted((self.root / table).glob("cluster=*/*.parquet")):
                name = path.relative_to(self.root).as_posix()
                if name not in listed:
                    problems.append(f"{name}: not part of the lake; the next ingest removes it")
        return CheckReport(len(self._head.parts), rows, tuple(problems))

    def _check_index(self) -> list[str]:
        inputs = self.inputs()
        accounted = pl.col("rows_out") + pl.col("rows_quarantined") + pl.col("rows_merged")
        lost = inputs.filter(pl.col("rows_in") != accounted)
        problems = [f"{name}: rows do not add up" for name in lost["name"].head(10)]
        pieces = read_pieces(self.root, self._head)
        indexed = dict(pieces.group_by("part").agg(pl.col("rows").sum()).iter_rows())
        for part in self._head.parts:
            if part.file in indexed and indexed[part.file] != part.rows:
                problems.append(f"{part.file}: {part.rows} rows, {indexed[part.file]} in the index")
        return problems

    def _parts(self, table: str, cluster: str | None) -> list[LakePart]:
        return [p for p in self._head.parts if p.table == table and cluster in (None, p.cluster)]

    @staticmethod
    def _schema(table: str) -> TableSchema:
        if table not in TABLES:
            raise ValueError(f"no table {table!r} in a lake; there are {', '.join(TABLES)}")
        return TABLES[table]


class _SeriesIndex:
    """Where each job's GPU samples are: pieces sorted by job, found by bisection."""

    def __init__(self, pieces: pl.DataFrame, head: Head, root: Path) -> None:
        gpu = pieces.filter((pl.col("table") == "gpu_samples") & pl.col("job_id").is_not_null()).select(_INDEX_COLUMNS)
        gpu = gpu.sort("job_id", "cluster", "node", "gpu_index", "first_time")
        self._jobs = gpu["job_id"].to_numpy()
        self._rows = gpu.select("cluster", "node", "gpu_index", "part", "row_start", "rows").rows()
        self._paths = {part.file: str(head.path(root, part)) for part in head.parts if part.table == "gpu_samples"}
        self.row_ends: dict[str, Any] = {}

    def find(
        self, job_id: int, cluster: str | None, node: str | None, gpu_index: int | None
    ) -> list[tuple[str, int, int]]:
        """Return (path, first row, rows) of each stretch of a part; neighbours in one part are joined."""
        first, last = np.searchsorted(self._jobs, [job_id, job_id + 1])
        found: list[tuple[str, int, int]] = []
        for row_cluster, row_node, row_gpu, part, start, rows in self._rows[first:last]:
            if cluster not in (None, row_cluster) or node not in (None, row_node) or gpu_index not in (None, row_gpu):
                continue
            path = self._paths[part]
            if found and found[-1][0] == path and found[-1][1] + found[-1][2] == start:
                found[-1] = (path, found[-1][1], found[-1][2] + rows)
            else:
                found.append((path, start, rows))
        return found
