from __future__ import annotations

import time
from datetime import UTC, datetime

import polars as pl

from ingest.reconcile import SEPARATOR, companions, reconcile
from ingest.staging import conform_pieces


def live(*inputs: str) -> pl.DataFrame:
    """Pieces, each of the named inputs."""
    return pl.DataFrame({"input": [entry.replace("+", SEPARATOR) for entry in inputs]}, schema={"input": pl.String})


def test_files_that_share_no_series_have_no_companions():
    assert companions(live("a", "b", "a")) == []
    assert companions(live()) == []


def test_files_that_share_a_series_through_others_are_companions():
    found = companions(live("a+b", "c", "d+e", "b+f", "g+h", "f+g", "d+e"))
    assert sorted(sorted(group) for group in found) == [["a", "b", "f", "g", "h"], ["d", "e"]]


def test_companions_of_very_many_joined_series_are_found_in_no_time():
    """Each against each would be 800 million comparisons: hours."""
    n = 40_000
    began = time.process_time()
    found = companions(live(*[f"gpu/{i}+gpu_extended/{i}" for i in range(n)], "gpu/1+gpu/0"))
    assert time.process_time() - began < 20
    assert len(found) == n - 1


def test_of_many_parts_each_is_written_anew_from_its_own_pieces():
    n = 1_000
    times = pl.Series([datetime(2021, 1, 1, tzinfo=UTC)] * n)
    pieces = conform_pieces(
        pl.DataFrame(
            {
                "table": ["gpu_samples"] * n,
                "part": [f"p{i:05d}" for i in range(n)],
                "input": [f"gpu/{i}" for i in range(n)],
                "row_start": [0] * n,
                "job_id": range(n),
                "node": ["n"] * n,
                "gpu_index": [0] * n,
                "rows": [1] * n,
                "first_time": times,
                "last_time": times,
            }
        )
    )
    extra = pieces.with_columns(part="x" + pl.col("part"), input="e" + pl.col("input"), extended=pl.lit(True))
    plan = reconcile(pieces, extra, [])
    found = [(rewrite.old, rewrite.pieces.select("part", "role").rows()) for rewrite in plan.rewrites]
    assert found == [(f"p{i:05d}", [(f"p{i:05d}", "base"), (f"xp{i:05d}", "extended")]) for i in range(n)]
