"""Spools for tests: opened on clocks that a test moves, and read back as rows."""

from __future__ import annotations

import csv
from pathlib import Path

from ingest.collectors.spool import HEADERS, Spool
from tests.clocks import Clocks


def open_spool(root: Path, clocks: Clocks | None = None, **options: float) -> Spool:
    """Return a spool of node ``n1`` on the given clocks."""
    clocks = clocks or Clocks()
    return Spool(root, "n1", wall=clocks.wall, monotonic=clocks.monotonic, **options)  # type: ignore[arg-type]


def read_rows(root: Path, kind: str, pattern: str = "*.csv") -> list[dict[str, str]]:
    """Return the rows of all closed segments of a kind, in order of their names; a wrong header fails."""
    rows = []
    for path in sorted(root.glob(f"{kind}/{pattern}")):
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            assert ",".join(reader.fieldnames or ()) == HEADERS[kind], path
            rows += list(reader)
    assert all(None not in row and None not in row.values() for row in rows), "a row with too many or too few cells"
    return rows
