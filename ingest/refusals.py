"""Files that are refused whole: which of those refusals are news, and which the lake has noted already. Pure.

Each stands in ``quarantine`` as one row without line and raw text, and in ``quality``. A run that meets the same
refusals again writes nothing; one that meets such a file without its fault takes the row away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import polars as pl

from ingest.records import CountKey, FileRecord
from ingest.schemas import QUARANTINE
from ingest.sources.kinds import KINDS

_CONTENT = ["file", "rows", "table", "reason", "detail"]


@dataclass(frozen=True, slots=True)
class Refusals:
    """Rows of ``quarantine``: those to be written, those that go, and those that are there already and stay."""

    new: pl.DataFrame
    stale: pl.DataFrame
    settled: pl.DataFrame

    @property
    def is_settled(self) -> bool:
        """Whether the lake has noted all of them, and no others of these files."""
        return not self.new.height and not self.stale.height

    def settle(self, records: Iterable[FileRecord]) -> tuple[FileRecord, ...]:
        """Return the records, rows of files that were refused before no longer as quarantined but as unchanged."""
        names = set(self.settled["file"])
        return tuple(
            replace(r, rows_unchanged=r.rows_in, rows_quarantined=0) if r.status == "refused" and r.name in names else r
            for r in records
        )

    def counts(self) -> Counter[CountKey]:
        """Return the new ones as observations; a file whose rows were not counted counts as one."""
        rows = self.new.select("file", "reason", "detail", "rows").iter_rows()
        return Counter({(file, None, reason, detail): max(n, 1) for file, reason, detail, n in rows})

    def settled_reasons(self) -> dict[str, int]:
        """Return the reason codes of those that the lake has already, since they make an ingest partial each time."""
        reasons: Counter[str] = Counter()
        for reason, n in self.settled.select("reason", "rows").iter_rows():
            reasons[reason] += max(n, 1)
        return dict(reasons)


def is_refusal() -> pl.Expr:
    """Return an expression: whether a row of ``quarantine`` stands for a whole file."""
    return pl.col("line").is_null() & pl.col("raw").is_null()


def compare(records: Sequence[FileRecord], old: pl.DataFrame, met: Iterable[str] = ()) -> Refusals:
    """Return what is new about the refused files in ``records``.

    Parameters
    ----------
    old : rows of ``quarantine`` that stand for whole files
    met : further names that this run met, beside those of the records
    """
    now = _rows(records)
    names = {*met, *(record.name for record in records)}
    before = old.filter(pl.col("file").is_in(sorted(names)))
    changed = pl.concat(
        [
            now.join(before, on=_CONTENT, how="anti", nulls_equal=True),
            before.join(now, on=_CONTENT, how="anti", nulls_equal=True),
        ]
    )["file"].unique()
    is_changed = pl.col("file").is_in(changed.implode())
    return Refusals(now.filter(is_changed), before.filter(is_changed), now.filter(~is_changed))


def _rows(records: Iterable[FileRecord]) -> pl.DataFrame:
    rows: Counter[tuple[str, str, str, str]] = Counter()
    for r in records:
        if r.status == "refused":
            rows[r.name, KINDS[r.kind].table if r.kind in KINDS else "", r.reason, r.detail] += r.rows_quarantined
    entries = [(file, None, n, table, reason, detail, None) for (file, table, reason, detail), n in rows.items()]
    return pl.DataFrame(entries, schema=QUARANTINE.columns, orient="row")
