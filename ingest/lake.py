"""The lake: committed tables, read lazily or, for one job, through the index.

A `Lake` shows the state that was committed when it was opened. A later commit may take files of that state away; what
needs them then says so, and the lake is to be opened again. Two states are never mixed in one answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ingest.errors import LakeError
from ingest.feature_schemas import variant_of
from ingest.head import MANIFEST, LakePart, find_parts, read_head
from ingest.keys import KeyCheck, find_overlaps
from ingest.manifest import read_inputs, read_pieces
from ingest.part_check import check_footer, check_part
from ingest.parts import open_part
from ingest.schemas import TABLES, TableSchema
from ingest.series_index import SeriesIndex

_OPEN_FILES: Final = 64
_CHECK_ROWS: Final = 65_536
_SERIES_TABLES: Final = frozenset({"gpu_samples", "gpu_minutes"})


@dataclass(frozen=True, slots=True)
class TableInfo:
    """Size of one table."""

    name: str
    clusters: tuple[str, ...]
    files: int
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class VariantInfo:
    """Size of one variant of ``features``: a set and how its windows were cut."""

    cluster: str
    variant: str
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
        If there is none, or its schema is of another version; later, from any method, if a file of it is damaged, or
        was taken away by a commit since.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._head = read_head(self.root)
        self._index: SeriesIndex | None = None
        self._part_of = {part.file: part for part in self._head.parts}
        self._files: OrderedDict[str, pq.ParquetFile] = OrderedDict()
        self._row_ends: dict[str, Any] = {}

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
        """Return a table's committed rows, with a ``cluster`` column beside its own; empty where there are none.

        Collect it soon: a commit after this call may take a file away that collecting needs. Of ``features``, of which
        every variant has columns of its own, these are the common ones; `scan_features` gives all of one variant.
        """
        schema = self._schema(table)
        frames = []
        for name in self.clusters if cluster is None else (cluster,):
            if table == "features":
                frames += [
                    self._scan(parts).select(*schema.columns, "cluster") for parts in self._variants(name).values()
                ]
            elif parts := self._parts(table, name):
                frames.append(self._scan(parts))
        if not frames:
            return schema.empty().with_columns(cluster=pl.lit(None, dtype=pl.String)).lazy()
        return frames[0] if len(frames) == 1 else pl.concat(frames)

    def scan_features(self, variant: str, cluster: str | None = None) -> pl.LazyFrame:
        """Return the windows of one variant of ``features`` with all of its columns, and ``cluster``.

        Raises
        ------
        LakeError
            If the lake has no such variant; the message lists those it has.
        """
        clusters = self.clusters if cluster is None else (cluster,)
        found = {name: self._variants(name) for name in clusters}
        frames = [self._scan(variants[variant]) for variants in found.values() if variant in variants]
        if not frames:
            known = sorted({name for variants in found.values() for name in variants})
            raise LakeError(
                f"{self.root} has no features called {variant!r}; it has {', '.join(known) or 'none'}: make some with "
                f"jobwatt features extract --lake {self.root}"
            )
        return frames[0] if len(frames) == 1 else pl.concat(frames, how="diagonal_relaxed")

    def variants(self) -> tuple[VariantInfo, ...]:
        """Return what the lake has of features, variant by variant."""
        found = []
        for cluster in self.clusters:
            for name, parts in sorted(self._variants(cluster).items()):
                rows, size = sum(p.rows for p in parts), sum(p.bytes for p in parts)
                found.append(VariantInfo(cluster, name, len(parts), rows, size))
        return tuple(found)

    def _variants(self, cluster: str) -> dict[str, list[LakePart]]:
        """Return the parts of ``features`` by variant."""
        found: dict[str, list[LakePart]] = {}
        for part in self._parts("features", cluster):
            found.setdefault(variant_of(part.file), []).append(part)
        return found

    def _scan(self, parts: Sequence[LakePart]) -> pl.LazyFrame:
        """Return the rows of parts of one table, all of one cluster."""
        paths = [self._head.path(self.root, part) for part in parts]
        if absent := [path for path in paths if not path.exists()]:
            raise self._gone(f"{absent[0]} is missing")
        return pl.scan_parquet(paths, hive_partitioning=False).with_columns(cluster=pl.lit(parts[0].cluster))

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
        columns : columns of gpu_samples in the order wanted, all where None
        cluster, node, gpu_index : narrow it down

        Raises
        ------
        ValueError
            If ``columns`` has a name that gpu_samples does not have, or more than one cluster has such a job: ids of
            two clusters never mix.

        Notes
        -----
        Reads one or two row groups of the index, sorted by job, and those of the parts that hold the job. What grows
        with the lake is opening it: the list of parts, and the index's footer (one entry for each 16,384 pieces).
        """
        schema = self._schema("gpu_samples")
        names = list(schema.columns if columns is None else columns)
        if unknown := [name for name in names if name not in schema.columns]:
            raise ValueError(f"gpu_samples has no column {unknown[0]!r}; it has {', '.join(schema.columns)}")
        with self._as_opened():
            if self._index is None:
                self._index = SeriesIndex(self.root, self._head)
            wanted = self._index.find(job_id, cluster, node, gpu_index)
            tables = [self._read_rows(part, start, rows, names) for part, start, rows in wanted]
        if not tables:
            return schema.empty().select(names)
        frame = pl.from_arrow(tables[0] if len(tables) == 1 else pa.concat_tables(tables))
        if not isinstance(frame, pl.DataFrame):
            raise TypeError("a table was expected")
        return frame

    def _read_rows(self, part: str, row_start: int, rows: int, columns: list[str]) -> pa.Table:
        file, ends = self._open(part)
        first = int(np.searchsorted(ends, row_start, side="right"))
        last = int(np.searchsorted(ends, row_start + rows, side="left"))
        table = file.read_row_groups(list(range(first, last + 1)), columns=columns, use_threads=False).select(columns)
        offset = row_start - (int(ends[first - 1]) if first else 0)
        return table.slice(offset, rows)

    def inputs(self) -> pl.DataFrame:
        """Return every input file that the lake remembers, with its counts of rows."""
        with self._as_opened():
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

    def check(self, *, values: bool = True, progress: Callable[[int, int], None] | None = None) -> CheckReport:
        """Return what a check finds: every part there, readable to its last value, as listed, each key once.

        Parameters
        ----------
        values : without, only the parts' footers are read, which takes moments: that they are there, and as listed
        progress : called with the bytes of the parts that were checked, and of all
        """
        problems: list[str] = []
        rows = 0
        keys = KeyCheck()
        for part in self._each_part(progress):
            path = self._head.path(self.root, part)
            try:
                found, wrong = check_part(path, part, keys) if values else check_footer(path, part)
            except FileNotFoundError as error:
                if self._is_stale():
                    raise self._gone(f"{part.file} is missing") from error
                problems.append(f"{part.file}: missing")
                continue
            except (OSError, pa.ArrowException) as error:
                problems.append(f"{part.file}: cannot be read ({_first_line(error)})")
                continue
            rows += found
            problems += [f"{part.file}: {what}" for what in wrong]
        problems += keys.problems()
        problems += self._check_index()
        problems += self._check_strays()
        problems += self._check_pending()
        return CheckReport(len(self._head.parts), rows, tuple(problems))

    def find_lost(self) -> list[str]:
        """Return the parts that are not there or not of their size, by a look at their sizes alone.

        Nothing where the lake was written since it was opened, since its parts may have been replaced.
        """
        lost = [part.file for part in self._head.parts if _size(self._head.path(self.root, part)) != part.bytes]
        return [] if self._is_stale() else lost

    def _check_strays(self) -> list[str]:
        listed = {*self._head.removes, *(part.file for part in self._head.parts)}
        problems = []
        for path in find_parts(self.root, "*.parquet"):
            name = path.relative_to(self.root).as_posix()
            if name not in listed:
                helps = "the next ingest removes it" if path.name.startswith("part-") else "move it elsewhere"
                problems.append(f"{name}: not part of the lake, but other readers take it for one; {helps}")
        return problems

    def _check_pending(self) -> list[str]:
        now = read_head(self.root)
        moves = sum(not (self.root / final).exists() for final in now.moves)
        removes = sum((self.root / name).exists() for name in now.removes if not name.startswith(f"{MANIFEST}/"))
        if now.generation != self.generation or not (moves or removes):
            return []
        return [
            f"generation {self.generation} is committed, but {moves} files are still to be put in their places and "
            f"{removes} old ones to be removed (an ingest is at it, or was killed): until then readers other than "
            "jobwatt find the wrong files; the next ingest, of anything, finishes it"
        ]

    def _each_part(self, progress: Callable[[int, int], None] | None) -> Iterator[LakePart]:
        """Yield every part, and tell after each how far it is."""
        total_bytes = sum(part.bytes for part in self._head.parts)
        done_bytes = 0
        for part in self._head.parts:
            yield part
            done_bytes += part.bytes
            if progress is not None:
                progress(done_bytes, total_bytes)

    def _check_index(self) -> list[str]:
        try:
            with self._as_opened():
                inputs = read_inputs(self.root, self._head)
                pieces = read_pieces(self.root, self._head)
        except LakeError as error:
            if self._is_stale():
                raise
            return [str(error)]
        accounted = pl.col("rows_out") + pl.col("rows_quarantined") + pl.col("rows_merged")
        lost = inputs.filter(pl.col("rows_in") != accounted)
        problems = [f"{name}: rows do not add up" for name in lost["name"].head(10)]
        problems += find_overlaps(pieces)
        indexed = dict(pieces.group_by("part").agg(pl.col("rows").sum()).iter_rows())
        problems += [
            f"{part.file}: {part.rows} rows, {indexed[part.file]} in the index"
            for part in self._head.parts
            if indexed.get(part.file, part.rows) != part.rows
        ]
        return problems

    def _parts(self, table: str, cluster: str | None) -> list[LakePart]:
        return [p for p in self._head.parts if p.table == table and cluster in (None, p.cluster)]

    @staticmethod
    def _schema(table: str) -> TableSchema:
        if table not in TABLES:
            raise ValueError(f"no table {table!r} in a lake; there are {', '.join(TABLES)}")
        return TABLES[table]

    def _open(self, name: str) -> tuple[pq.ParquetFile, Any]:
        """Return a part's file and where its row groups end; files stay open, since opening costs more than reading."""
        if name in self._files:
            self._files.move_to_end(name)
        else:
            try:
                self._files[name] = open_part(self._head.path(self.root, self._part_of[name]))
            except FileNotFoundError:  # moved to its final place in this very moment, or gone
                self._files[name] = open_part(self.root / name)
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        file = self._files[name]
        if name not in self._row_ends:
            meta = file.metadata
            self._row_ends[name] = np.cumsum([meta.row_group(i).num_rows for i in range(meta.num_row_groups)])
        return file, self._row_ends[name]

    @contextmanager
    def _as_opened(self) -> Iterator[None]:
        """Say what is wrong with the lake where a file of it cannot be read."""
        try:
            yield
        except (OSError, pa.ArrowException, LakeError) as error:
            raise self._gone(_first_line(error)) from error

    def _gone(self, what: str) -> LakeError:
        if self._is_stale():
            return LakeError(
                f"{self.root} was written since it was opened (generation {self.generation}, now "
                f"{read_head(self.root).generation}); open it again"
            )
        return LakeError(f"{self.root} is damaged: {what}; `jobwatt lake check --lake {self.root}` says what else")

    def _is_stale(self) -> bool:
        return read_head(self.root).generation != self.generation


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
