"""The minutes of pieces that go: as spans, agreeing with a list of every minute."""

from __future__ import annotations

import resource
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from ingest.minutes import MINUTE_KEY, meet_spans, void_spans
from ingest.schemas import SERIES_KEY, TIME

START = datetime(2026, 11, 24, tzinfo=UTC)
MINUTE = pl.col("minute")


def pieces(rows: list[tuple[int | None, int, datetime, datetime]]) -> pl.DataFrame:
    """Job, GPU, first and last time of each piece."""
    schema = {"job_id": pl.Int64(), "gpu_index": pl.Int16(), "first_time": TIME, "last_time": TIME}
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(node=pl.lit("n1"))


def minutes_at(rows: list[tuple[int | None, int, datetime]]) -> pl.DataFrame:
    schema = {"job_id": pl.Int64(), "gpu_index": pl.Int16(), "minute": TIME}
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(node=pl.lit("n1")).select(MINUTE_KEY)


def listed(left: pl.DataFrame) -> pl.DataFrame:
    """Every minute in which pieces lie, one a row."""
    first, last = (pl.col(name).dt.truncate("1m") for name in ("first_time", "last_time"))
    return left.select(*SERIES_KEY, minute=pl.datetime_ranges(first, last, "1m")).explode("minute").unique()


def test_spans_hold_the_minutes_that_a_list_of_them_holds():
    rng = np.random.default_rng(5)
    rows = []
    for _ in range(60):
        first = START + timedelta(seconds=int(rng.integers(0, 40_000)))
        job = [None, 7, 8][rng.integers(3)]
        rows.append((job, int(rng.integers(2)), first, first + timedelta(seconds=int(rng.integers(0, 900)))))
    left = pieces(rows)
    asked = [(job, gpu, START + timedelta(minutes=n)) for job in (None, 7, 9) for gpu in (0, 1) for n in range(700)]
    minutes = minutes_at(asked)
    spans = void_spans(left)
    found = minutes.filter(meet_spans(minutes, spans, MINUTE, MINUTE)).sort(MINUTE_KEY)
    expected = minutes.join(listed(left), on=MINUTE_KEY, how="semi", nulls_equal=True).sort(MINUTE_KEY)
    assert 0 < found.height < minutes.height
    assert found.equals(expected)


def test_a_piece_meets_a_span_that_begins_inside_it():
    spans = void_spans(pieces([(7, 0, START, START), (7, 0, START + timedelta(hours=2), START + timedelta(hours=3))]))
    hours = [(-1, 1), (1, 4), (0.5, 1), (4, 5), (2.5, 2.6)]
    asked = pieces([(7, 0, START + timedelta(hours=a), START + timedelta(hours=b)) for a, b in hours])
    found = meet_spans(asked, spans, pl.col("first_time"), pl.col("last_time"))
    assert found.to_list() == [True, True, False, False, True]


def test_a_piece_from_1970_to_now_is_one_span_and_costs_next_to_nothing():
    left = pieces([(None, 0, datetime(1970, 1, 1, 0, 1, tzinfo=UTC), START)])
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    spans = void_spans(left)
    minutes = minutes_at([(None, 0, START), (None, 0, START + timedelta(minutes=1)), (None, 1, START)])
    assert meet_spans(minutes, spans, MINUTE, MINUTE).to_list() == [True, False, False]
    assert spans.height == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 100 * 1024
