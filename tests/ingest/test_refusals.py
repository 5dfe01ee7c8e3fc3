from __future__ import annotations

import polars as pl

from ingest.records import FileRecord, refusal
from ingest.refusals import compare
from ingest.schemas import QUARANTINE

NOTHING = QUARANTINE.empty()


def after(*records: FileRecord, old: pl.DataFrame = NOTHING) -> pl.DataFrame:
    """The refusals that a lake has noted after a run that met these files."""
    found = compare(records, old)
    kept = old.join(found.stale, on=["file", "reason", "detail", "rows"], how="anti", nulls_equal=True)
    return pl.concat([kept, found.new])


def test_a_refusal_is_news_once():
    record = refusal("a.csv", "", "unknown_file", "", 7)
    noted = after(record)
    assert noted.select("file", "reason", "rows", "raw").rows() == [("a.csv", "unknown_file", 7, None)]
    again = compare([record], noted)
    assert again.is_settled
    assert again.settle([record])[0].rows_unchanged == 7
    assert again.settled_reasons() == {"unknown_file": 7}
    assert again.counts() == {}


def test_a_refusal_for_another_reason_or_of_other_rows_takes_the_place_of_the_old_one():
    noted = after(refusal("a.csv", "", "unknown_file", "", 7))
    noted = after(refusal("a.csv", "gpu", "missing_column", "timestamp", 8), old=noted)
    assert noted.select("table", "reason", "detail", "rows").rows() == [
        ("gpu_samples", "missing_column", "timestamp", 8)
    ]


def test_a_file_that_is_met_and_not_refused_takes_its_refusal_away_and_one_that_is_not_met_keeps_it():
    noted = after(refusal("a.csv", "", "unknown_file", "", 7), refusal("b.csv", "gpu", "empty_file", "", 0))
    noted = after(FileRecord("b.csv", "gpu", "new"), old=noted)
    assert noted["file"].to_list() == ["a.csv"]


def test_several_refusals_of_one_name_are_one_for_each_reason():
    records = [refusal("a", "", "unsafe_member", "a link", 0), refusal("a", "", "unsafe_member", "a link", 0)]
    noted = after(*records, refusal("a", "", "unsafe_member", "a device", 0))
    assert noted.height == 2
    assert compare([*records, refusal("a", "", "unsafe_member", "a device", 0)], noted).is_settled


def test_a_file_whose_rows_were_not_counted_counts_as_one():
    found = compare([refusal("a", "", "too_large", "", 0)], NOTHING)
    assert found.counts() == {("a", None, "too_large", ""): 1}
