"""Batches in order, against a plain sort that keeps the first row of each key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from ingest.batches import FILE, order
from ingest.schemas import TIME

START = datetime(2021, 3, 1, tzinfo=UTC)


def batch(rows: list[tuple[int, int, int]]) -> pl.DataFrame:
    """Rows of (file, gpu, second), numbered as they came."""
    return pl.DataFrame(
        {
            FILE: pl.Series([row[0] for row in rows], dtype=pl.Int32),
            "gpu_index": pl.Series([row[1] for row in rows], dtype=pl.Int16),
            "time": pl.Series([START + timedelta(seconds=row[2]) for row in rows], dtype=TIME),
            "came": pl.Series(range(len(rows)), dtype=pl.Int64),
        }
    )


def first_of_key(rows: list[tuple[Any, ...]]) -> list[int]:
    """Return the places of the rows that stay, sorted by key, the first of each."""
    firsts: dict[tuple[Any, ...], int] = {}
    for i, row in enumerate(rows):
        firsts.setdefault(row, i)
    return [firsts[key] for key in sorted(firsts)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 6)), min_size=1, max_size=30))
def test_samples_come_by_file_gpu_and_time_and_each_time_once(rows: list[tuple[int, int, int]]) -> None:
    done = order(batch(rows), "gpu_samples")
    assert done.frame["came"].to_list() == first_of_key(rows)
    assert sorted([*done.frame["came"], *done.repeated["came"]]) == list(range(len(rows)))


@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.integers(1, 10**14)), st.sampled_from("cab"), st.integers(0, 1), st.integers(0, 3)
        ),
        min_size=1,
        max_size=30,
    )
)
def test_interleaved_jobs_come_by_job_node_gpu_and_time(rows: list[tuple[int | None, str, int, int]]) -> None:
    frame = batch([(0, gpu, second) for _, _, gpu, second in rows]).with_columns(
        pl.Series("job_id", [row[0] for row in rows], dtype=pl.Int64),
        pl.Series("node", [row[1] for row in rows], dtype=pl.String),
    )
    done = order(frame, "gpu_samples")
    assert done.frame["came"].to_list() == first_of_key([(job or -1, *rest) for job, *rest in rows])


def test_steps_back_are_counted_by_file_and_steps_between_gpus_are_not() -> None:
    rows = [(0, 0, 1), (0, 1, 0), (0, 0, 2), (1, 0, 5), (1, 0, 3), (1, 0, 4)]
    assert order(batch(rows), "gpu_samples").out_of_order == {1: 1}
