"""Names of input files that nobody will bring again: their rows stay in the lake, their names need not. Pure."""

from __future__ import annotations

from collections.abc import Collection, Set

import polars as pl

from ingest.reconcile import FORGOTTEN, SEPARATOR, companions


def find_forgettable(names: Collection[str], pieces: pl.DataFrame) -> set[str]:
    """Return those names whose rows were not joined with those of a file that may change yet.

    Were such a file replaced, the others of its series would have to be read again.
    """
    found = set(names)
    if not found:
        return found
    for group in companions(pieces):
        if not group <= {*found, FORGOTTEN}:
            found -= group
    return found


def forget(pieces: pl.DataFrame, names: Set[str]) -> pl.DataFrame:
    """Return the pieces with `FORGOTTEN` in the place of some inputs' names."""
    if not names:
        return pieces
    entries = pieces["input"].unique().to_list()
    known = {entry: _forget(entry.split(SEPARATOR), names) for entry in entries}
    changed = {entry: after for entry, after in known.items() if entry != after}
    return pieces.with_columns(pl.col("input").replace(changed))


def _forget(inputs: list[str], names: Set[str]) -> str:
    return SEPARATOR.join(dict.fromkeys(FORGOTTEN if name in names else name for name in inputs))
