from __future__ import annotations

import polars as pl

from ingest.reconcile import SEPARATOR, companions


def live(*inputs: str) -> pl.DataFrame:
    """Pieces, each of the named inputs."""
    return pl.DataFrame({"input": [entry.replace("+", SEPARATOR) for entry in inputs]}, schema={"input": pl.String})


def test_files_that_share_no_series_have_no_companions():
    assert companions(live("a", "b", "a")) == []
    assert companions(live()) == []


def test_files_that_share_a_series_through_others_are_companions():
    found = companions(live("a+b", "c", "d+e", "b+f", "g+h", "f+g", "d+e"))
    assert sorted(sorted(group) for group in found) == [["a", "b", "f", "g", "h"], ["d", "e"]]
