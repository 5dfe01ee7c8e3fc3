"""Runs merged by time agree with a plain sort, however they lie across each other, and few rows are held."""

from __future__ import annotations

import itertools
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from ingest import timemerge
from ingest.parts import PartReader, write_frame
from ingest.timemerge import SOURCE, Run, merge

START = datetime(2021, 1, 1, tzinfo=UTC)


def make_runs(folder: Path, seconds: list[list[int]]) -> list[Run]:
    """One file a run, of the given seconds."""
    runs = []
    for source, found in enumerate(seconds):
        times = [START + timedelta(seconds=s) for s in sorted(found)]
        write_frame(
            folder / f"{source}.parquet",
            pl.DataFrame({"time": times, "value": [source * 1000 + s for s in sorted(found)]}),
            durable=False,
        )
        runs.append(Run(str(folder / f"{source}.parquet"), 0, len(found), times[0], times[-1], source))
    return runs


def seconds_of(frames: list[pl.DataFrame]) -> list[tuple[int, int]]:
    times = pl.concat(frames).select((pl.col("time") - START).dt.total_seconds(), SOURCE)
    return times.rows()


@pytest.mark.parametrize("most_open", [2, 3, 8])
@pytest.mark.parametrize("seed", range(5))
def test_runs_are_merged_as_by_a_sort_whole_times_together(tmp_path, monkeypatch, seed, most_open):
    monkeypatch.setattr(timemerge, "MOST_OPEN", most_open)
    monkeypatch.setattr("ingest.parts.FRAME_ROWS", 5)
    monkeypatch.setattr(timemerge, "FRAME_ROWS", 5)
    rng = random.Random(seed)
    seconds = [rng.sample(range(80), rng.randint(1, 40)) for _ in range(rng.randint(1, 12))]
    frames = list(merge(make_runs(tmp_path, seconds), PartReader(), tmp_path / "spill"))
    expected = sorted((s, source) for source, found in enumerate(seconds) for s in found)
    assert seconds_of(frames) == expected
    for one, other in itertools.pairwise(frames):
        assert one["time"][-1] < other["time"][0]
    assert list(tmp_path.glob("spill*")) == []


def test_no_more_runs_are_open_and_no_more_rows_at_hand_than_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(timemerge, "MOST_OPEN", 4)
    monkeypatch.setattr("ingest.parts.FRAME_ROWS", 10)
    monkeypatch.setattr(timemerge, "FRAME_ROWS", 10)
    opened: list[int] = []
    take = timemerge._Open.take
    now = {"open": 0}

    def counted(self: timemerge._Open, run: Run, reader: PartReader) -> None:
        start(self, run, reader)
        now["open"] += 1
        opened.append(now["open"])

    def taken(self: timemerge._Open, bound: datetime) -> pl.DataFrame:
        found = take(self, bound)
        now["open"] -= not self.frame.height
        return found

    start = timemerge._Open.__init__
    monkeypatch.setattr(timemerge._Open, "__init__", counted)
    monkeypatch.setattr(timemerge._Open, "take", taken)
    one_after_another = make_runs(tmp_path / "a", [list(range(i * 50, i * 50 + 51)) for i in range(20)])
    heights = [frame.height for frame in merge(one_after_another, PartReader(), tmp_path / "spill")]
    assert max(opened) <= 2
    assert max(heights) <= 20
    opened.clear()
    rng = random.Random(1)
    in_no_order = make_runs(tmp_path / "b", [rng.sample(range(2000), 100) for _ in range(20)])
    heights = [frame.height for frame in merge(in_no_order, PartReader(), tmp_path / "spill")]
    assert max(opened) <= 4
    assert max(heights) <= 4 * 15
    assert sum(heights) == 2000
