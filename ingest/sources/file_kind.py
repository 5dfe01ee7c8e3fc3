"""What a source says of one kind of its files: which column fills which, and how typed rows become a table's rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import polars as pl

from ingest.records import UNTOLD, SmiOptions
from ingest.schemas import TABLES, TIME
from ingest.sources.delimited import Header, Parsed
from ingest.units import US_PER_S


@dataclass(frozen=True, slots=True)
class Context:
    """What finishing needs to know beside the rows: of the source, and of the piece's place in its file."""

    tres_names: Mapping[int, str] = field(default_factory=dict)
    mem_unit: str = ""
    smi: SmiOptions = UNTOLD


@dataclass(frozen=True, slots=True)
class Finished:
    """Rows of the lake's table, and counts of what was seen: (job_id or None, reason, detail) to how often."""

    frame: pl.DataFrame
    counts: dict[tuple[int | None, str, str], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FileKind:
    """One kind of file.

    ``column_map`` has the release's own columns (their absence is reported), ``optional`` further spellings and extras.
    ``name_pattern`` gives groups ``job`` and ``node`` from the file's name where it tells them. With ``is_named`` the
    name tells no job, but a file is known by it all the same: it occurs once in a cluster, whatever the source.
    What is not CSV as the releases have it comes with its own ``read_header`` (names, and where the rows begin),
    ``parse``, and ``count_rows``, which says how many lines of a text are rows, sound or not.
    """

    name: str
    table: str
    column_map: Mapping[str, str]
    types: Mapping[str, pl.DataType]
    required: frozenset[str]
    finish: Callable[[pl.DataFrame, Context], Finished]
    optional: Mapping[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset({"", "Unnamed: 0"})
    name_pattern: re.Pattern[str] | None = None
    exact: frozenset[str] = frozenset({"job_id"})
    is_named: bool = False
    read_header: Callable[[bytes, SmiOptions], tuple[list[str], int]] | None = None
    parse: Callable[[bytes, Header, int, SmiOptions], Parsed] | None = None
    count_rows: Callable[[bytes], int] | None = None

    @property
    def is_of_node(self) -> bool:
        """Whether a file is of one node and of no one job, so that its name or an option must tell the node."""
        return self.name_pattern is not None and "job" not in self.name_pattern.groupindex

    @property
    def is_anonymous(self) -> bool:
        """Whether only the content of such a file tells which it is (`ingest.succession`)."""
        return self.name_pattern is None and not self.is_named

    @property
    def extras(self) -> frozenset[str]:
        """Columns that a row can do without: a bad cell in one of them becomes null, and the row stays."""
        own = {*self.column_map.values(), *TABLES[self.table].key, *self.required, *self.exact}
        return frozenset(self.optional.values()) - own


def epoch_to_time(column: str = "time_epoch_s") -> pl.Expr:
    """Return an expression: seconds since 1970 (float64, exact to a microsecond until 2100) to the lake's time."""
    return (pl.col(column) * US_PER_S).round().cast(pl.Int64).cast(TIME).alias("time")
