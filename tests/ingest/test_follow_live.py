"""The follower as a process of its own: killed again and again, stopped, and fed by a real collector."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from ingest.errors import LakeError
from ingest.lag import newest_sample
from ingest.lake import Lake
from tests.recorded_gpus import write_recording
from tests.spool_files import NODE, gpu_cells, make_spool, write_segment

JOBWATT = str(Path(sys.executable).with_name("jobwatt"))
KILLS = 20
ROWS = 200


def start(spool: Path, lake: Path, *options: str) -> subprocess.Popen[str]:
    """Start a follower."""
    command = [JOBWATT, "lake", "ingest", str(spool), "--follow", "--every", "0.1"]
    return subprocess.Popen([*command, "--lake", str(lake), *options], stderr=subprocess.PIPE, text=True)


def wait_until(holds: Callable[[], bool], timeout_s: float) -> None:
    """Wait until a condition holds; fail where it does not in time."""
    until_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until_s, "it did not come about in time"
        time.sleep(0.1)


def is_empty(spool: Path) -> bool:
    return not [path for path in spool.glob("*/*.csv") if "-follower-" not in path.name]


@pytest.mark.slow
def test_a_follower_that_is_killed_again_and_again_loses_nothing_and_breaks_nothing(tmp_path):
    rng = random.Random(7)
    spool, lake = make_spool(tmp_path / "spool"), tmp_path / "lake"
    written = 0
    for _ in range(KILLS):
        process = start(spool, lake, "--compact-after", "2")
        begin_s = time.monotonic()
        life_s = rng.uniform(1.0, 4.0)  # the first seconds are imports
        while time.monotonic() - begin_s < life_s:
            rows = [gpu_cells(written * 20 + s / 10, 7, gpu) for gpu in (0, 1) for s in range(ROWS)]
            write_half_written(spool)
            stage_segment(spool, written, rows)
            written += 1
            time.sleep(0.15)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (lake / "_manifest" / "HEAD.json").exists():
            problems = Lake(lake).check().problems
            assert not [each for each in problems if "not part of the lake" not in each and "is committed" not in each]
    last = start(spool, lake, "--compact-after", "2")
    try:
        wait_until(lambda: is_empty(spool), 60)
    finally:
        last.send_signal(signal.SIGTERM)
        _, said = last.communicate(timeout=30)
    assert last.returncode == 0, said
    found = Lake(lake)
    assert found.check().problems == ()
    assert found.scan("gpu_samples").select(pl.len()).collect().item() == written * 2 * ROWS
    assert found.scan("job_stats").collect()["samples"].to_list() == [written * 2 * ROWS]
    assert found.scan("gpu_minutes").select(pl.col("n").sum()).collect().item() == written * 2 * ROWS
    assert found.scan("quarantine").collect().is_empty()
    series = found.read_series(7, ["gpu_index", "time"])
    assert series.equals(series.sort("gpu_index", "time"))


def write_half_written(spool: Path) -> None:
    """Leave half a file behind, as one that is being written; its name is not one of a closed segment."""
    (spool / "gpu").mkdir(exist_ok=True)
    (spool / "gpu" / f".{NODE}.csv.part").write_text("timestamp,no")


def stage_segment(spool: Path, number: int, rows: list[list[object]]) -> None:
    """Write a segment aside and rename it into place, as the collector does."""
    path = write_segment(spool.parent / "aside", "gpu", number, rows)
    path.replace(spool / "gpu" / path.name)


@pytest.mark.slow
def test_from_the_sensor_to_a_lake_that_can_be_read_it_takes_less_than_a_minute(tmp_path):
    spool, lake = tmp_path / "spool", tmp_path / "lake"
    recorded = write_recording(tmp_path / "recorded", 60)
    command = [JOBWATT, "collect", "--spool", str(spool), "--replay", str(recorded)]
    collector = subprocess.Popen([*command, "--node-interval", "5"], stderr=subprocess.PIPE, text=True)
    follower = None
    try:
        wait_until((spool / "spool.json").exists, 20)
        follower = start(spool, lake, "--every", "5")
        lags: list[float] = []
        until_s = time.monotonic() + 75
        while time.monotonic() < until_s:
            time.sleep(1)
            try:
                newest = newest_sample(lake, "live").time
            except LakeError:  # written in this very moment
                continue
            if newest is not None:
                lags.append(time.time() - newest.timestamp())
        assert collector.poll() is None, collector.communicate()[1]
        assert len(lags) > 30
        assert max(lags) < 60, lags
    finally:
        for process in (collector, follower):
            if process is not None:
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=30)
    assert follower is not None
    assert (collector.returncode, follower.returncode) == (0, 0)
    assert Lake(lake).check().problems == ()
    assert json.loads((spool / ".follower.json").read_text())["removed"]
    assert Lake(lake).scan("device_inventory").select(pl.len()).collect().item() >= 1
