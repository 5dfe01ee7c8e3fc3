"""Batches in order, against a plain sort that keeps the first row of each key."""

from __future__ import annotations

from collections import Counter
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


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.one_of(st.none(), st.integers(0, 2)), st.sampled_from("ab"), st.integers(0, 2)),
        min_size=1,
        max_size=30,
    )
)
def test_rows_of_any_other_table_come_by_file_and_key_and_the_first_of_each_key_stays(
    rows: list[tuple[int, int | None, str, int]],
) -> None:
    frame = batch([(file, 0, second) for file, _, _, second in rows]).with_columns(
        pl.Series("job_id", [row[1] for row in rows], dtype=pl.Int64),
        pl.Series("node", [row[2] for row in rows], dtype=pl.String),
        pl.lit("batch").alias("step"),
        pl.lit("0").alias("task"),
    )
    done = order(frame, "cpu_samples")
    keys = [(file, -1 if job is None else job, node, second) for file, job, node, second in rows]
    assert done.frame["came"].to_list() == first_of_key(keys)
    assert sorted([*done.frame["came"], *done.repeated["came"]]) == list(range(len(rows)))
    back: Counter[int] = Counter()
    for at, (*series, second) in enumerate(keys):
        before = [key[-1] for key in keys[:at] if key[:-1] == tuple(series)]
        back[series[0]] += bool(before) and second < before[-1]
    assert done.out_of_order == {file: n for file, n in back.items() if n}


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 1)), min_size=1, max_size=20))
def test_jobs_have_no_order_in_time_and_each_attempt_once(rows: list[tuple[int, int, int]]) -> None:
    frame = pl.DataFrame(
        {
            FILE: pl.Series([row[0] for row in rows], dtype=pl.Int32),
            "job_id": pl.Series([row[1] for row in rows], dtype=pl.Int64),
            "attempt": pl.Series([row[2] for row in rows], dtype=pl.Int32),
            "came": pl.Series(range(len(rows)), dtype=pl.Int64),
        }
    )
    done = order(frame, "jobs")
    assert done.frame["came"].to_list() == first_of_key(rows)
    assert done.out_of_order == {}
