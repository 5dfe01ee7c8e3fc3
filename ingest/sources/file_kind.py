"""What a source says of one kind of its files: which column fills which, and how typed rows become a table's rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import polars as pl

from ingest.schemas import TABLES


@dataclass(frozen=True, slots=True)
class Context:
    """What finishing needs to know beside the rows: of the source, and of the piece's place in its file."""

    tres_names: Mapping[int, str] = field(default_factory=dict)
    mem_unit: str = ""


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

    @property
    def is_anonymous(self) -> bool:
        """Whether only the content of such a file tells which it is (`ingest.succession`)."""
        return self.name_pattern is None and not self.is_named

    @property
    def extras(self) -> frozenset[str]:
        """Columns that a row can do without: a bad cell in one of them becomes null, and the row stays."""
        own = {*self.column_map.values(), *TABLES[self.table].key, *self.required, *self.exact}
        return frozenset(self.optional.values()) - own
