"""Every kind of file that becomes rows of a table, whatever the source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ingest.sources.file_kind import FileKind
from ingest.sources.spool_columns import SPOOL_KINDS
from ingest.sources.supercloud_columns import SUPERCLOUD_KINDS

KINDS: Final[Mapping[str, FileKind]] = {**SUPERCLOUD_KINDS, **SPOOL_KINDS}
"""By name. ``tres-mapping.txt`` is read too: it completes the jobs' rows."""

APPENDING: Final = frozenset({"spool_gpu", "smi_query", "smi_dmon"})
"""Kinds of which each file goes on where another one of the same series ended; only an overlap in time is odd."""

GIVING_WAY: Final[Mapping[str, frozenset[str]]] = {
    "jobs": frozenset({"sacct", "spool_jobs"}),
    "labels": frozenset({"spool_labels"}),
}
"""Table to the kinds of files whose rows are not taken where another file has their key."""
