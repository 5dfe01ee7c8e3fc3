"""What a kind of file is: its table, its columns and types, what its name tells, how its rows become the lake's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import polars as pl

from ingest.records import UNTOLD, SmiOptions
from ingest.schemas import TIME
from ingest.sources import delimited
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
    ``name_pattern`` gives groups ``job`` and ``node`` from the file's name where it tells them. What is not CSV as the
    releases have it comes with its own ``read_header`` (names, and where the rows begin) and ``parse``.
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
    read_header: Callable[[bytes, SmiOptions], tuple[list[str], int]] | None = None
    parse: Callable[[bytes, Header, int, SmiOptions], Parsed] | None = None

    @property
    def is_of_node(self) -> bool:
        """Whether a file is of one node and of no one job, so that its name or an option must tell the node."""
        return self.name_pattern is not None and "job" not in self.name_pattern.groupindex

    def parse_careful(self, body: bytes, header: Header, first_line: int, context: Context) -> Parsed:
        """Return the sound rows of a text with ``line`` and ``raw``, and a reason for each of the others."""
        if self.parse is not None:
            return self.parse(body, header, first_line, context.smi)
        return delimited.parse_careful(
            body, header, self.types, first_line=first_line, required=self.required, exact=self.exact
        )


def epoch_to_time(column: str = "time_epoch_s") -> pl.Expr:
    """Return an expression: seconds since 1970 (float64, exact to a microsecond until 2100) to the lake's time."""
    return (pl.col(column) * US_PER_S).round().cast(pl.Int64).cast(TIME).alias("time")
