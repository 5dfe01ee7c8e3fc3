"""A wall clock that is set back: rows keep their order, and what they add up to."""

from __future__ import annotations

import inspect
from itertools import pairwise
from pathlib import Path

import pytest

from ingest.collectors.clock import SLEWED_S, SteadyClock, steady_time
from ingest.collectors.gpu import ENERGY_S, GpuCollector, Inventory, JobTable
from ingest.collectors.hardware import GpuReading, NvmlBackend
from ingest.collectors.node import NodeCollector
from ingest.collectors.order import BREAK_S, SeriesOrder, Telling
from ingest.collectors.process import ProcessCollector
from ingest.collectors.replay import ReplayBackend
from ingest.collectors.schedule import Events
from ingest.collectors.spool import Spool
from ingest.quality import MAX_GAP_S
from tests.clocks import Clocks
from tests.small_sources import take
from tests.spool_files import NODE, START_S
from tests.spools import read_rows


@pytest.fixture
def clocks() -> Clocks:
    return Clocks(START_S)


def times(clocks: Clocks, seconds: float, clock: SteadyClock) -> list[float]:
    told = []
    for _ in range(round(seconds * 10)):
        clocks.wait(0.1)
        told.append(clock())
    return told


@pytest.mark.parametrize("step_s", [9.0, 0.5, -0.5, -9.0])
def test_a_step_of_some_seconds_is_followed_by_one_in_a_hundred_and_no_time_comes_twice(step_s, clocks):
    clock = SteadyClock(clocks.wall, clocks.monotonic)
    before = times(clocks, 20, clock)
    assert before[-1] == pytest.approx(clocks.wall())
    clocks.offset_s += step_s
    after = times(clocks, 100 * abs(step_s) + 1, clock)
    steps_s = [later - sooner for sooner, later in pairwise(before + after)]
    assert min(steps_s) == pytest.approx(0.099 if step_s < 0 else 0.1, abs=1e-6)
    assert max(steps_s) == pytest.approx(0.101 if step_s > 0 else 0.1, abs=1e-6)
    assert after[-1] == pytest.approx(clocks.wall())


@pytest.mark.parametrize("step_s", [365 * 86_400.0, 3600.0, 11.0, -30.0, -3600.0, -365 * 86_400.0])
def test_a_longer_step_is_followed_at_once_and_so_is_its_correction(step_s, clocks):
    clock = SteadyClock(clocks.wall, clocks.monotonic)
    clocks.offset_s += step_s
    assert times(clocks, 1, clock)[0] == pytest.approx(START_S + step_s + 0.1)
    clocks.offset_s -= step_s
    assert times(clocks, 1, clock)[0] == pytest.approx(START_S + 1.1)


def test_slewing_is_followed(clocks):
    clock = SteadyClock(clocks.wall, clocks.monotonic)
    for _ in range(1000):
        clocks.wait(0.1)
        clocks.offset_s -= 0.1 * 500e-6
        assert clock() == pytest.approx(clocks.wall(), abs=1e-4)


POWER_W = 400.0


def collect(clocks: Clocks, root: Path, step_s: float) -> float:
    """Collect a job of 300 s at 400 W, the wall clock leaping after 61.2 s; return the last time told, in s."""
    clock = SteadyClock(clocks.wall, clocks.monotonic)
    readings = [GpuReading(time_s=n / 10, power_w=POWER_W, energy_mj=round(n * POWER_W * 100)) for n in range(4000)]
    backend = ReplayBackend({0: readings}, wall=clock, monotonic=clocks.monotonic)
    spool = Spool(root, NODE, wall=clocks.wall, monotonic=clocks.monotonic)
    jobs = JobTable(assigned={0: 7})
    collector = GpuCollector(backend, spool, Events(spool, wall=clock), jobs, monotonic=clocks.monotonic)
    for number in range(3000):
        if number == 612:
            clocks.offset_s += step_s
        collector.tick()
        clocks.wait(0.1)
        if number % 100 == 0:
            spool.sync()
    collector.close()
    spool.close()
    return collector.latest[0].time_s - START_S


@pytest.mark.parametrize("step_s", [0.0, 0.5, -0.5, 9.0, -9.0, 30.0, 3600.0, -30.0, -3600.0])
def test_energies_and_durations_are_right_whatever_the_wall_clock_did(step_s, clocks, tmp_path):
    last_s = collect(clocks, tmp_path / "spool", step_s)
    taken = take(tmp_path / "spool", tmp_path / "lake")
    assert taken.lake.check().problems == ()
    columns = ("energy_j", "covered_gpu_s", "energy_counter_j", "energy_gap_pct", "samples")
    ((energy_j, covered_s, counter_j, gap_pct, samples),) = taken.rows("job_stats", *columns)
    assert energy_j == pytest.approx(POWER_W * covered_s, rel=1e-6)
    unread_s = ENERGY_S if step_s < -300.0 else 0.0  # from the last reading before the step to the first after it
    assert POWER_W * (300.0 - unread_s) <= counter_j + 1.0 <= POWER_W * 300.0 + 2.0
    assert abs(gap_pct) < 1.05
    assert covered_s <= 300.0 * 1.01
    told_twice_s = 30.0 if step_s == -30.0 else 0.0
    assert covered_s >= 300.0 * 0.99 - told_twice_s - BREAK_S - 0.5
    assert samples + taken.report.reasons.get("repeated_time", 0) == rows_told(tmp_path / "spool")
    left_out = [row for row in read_rows(tmp_path / "spool", "events") if row["event"] == "missed"]
    assert sum(int(row["count"]) for row in left_out) == 3001 - rows_told(tmp_path / "spool")
    if abs(step_s) > SLEWED_S:
        assert last_s == pytest.approx(300.0 + step_s, abs=0.001)  # true UTC
    else:
        assert last_s == pytest.approx(300.0, abs=2.4)


def rows_told(spool: Path) -> int:
    return len(read_rows(spool, "gpu"))


def test_a_job_that_begins_after_the_clock_was_set_back_lacks_nothing():
    order = SeriesOrder()
    assert order.place(0, 7, 1000.0) is Telling.WHOLE
    assert order.place(0, 7, 1000.1) is Telling.WHOLE
    assert order.place(0, 7, 1000.0) is Telling.WITHOUT_COUNTER
    assert order.place(0, 8, 900.0) is Telling.WHOLE
    assert order.place(0, 8, 900.1) is Telling.WHOLE
    assert order.place(1, 7, 900.0) is Telling.WHOLE


def test_rows_are_left_out_until_there_is_a_gap_after_what_was_told_before_the_clock_was_set_back():
    order = SeriesOrder()
    told = [order.place(0, None, time_s) for time_s in (960.0, 1000.0, 970.0, 1000.0, 1000.1, 1010.0)]
    within, out = Telling.WITHOUT_COUNTER, Telling.NOT
    assert told == [Telling.WHOLE, Telling.WHOLE, within, within, out, out]
    assert order.place(0, None, 1010.1) is Telling.WHOLE
    assert order.take_left_out(0, None) == 2
    assert order.place(0, None, 1010.2) is Telling.WHOLE
    assert order.take_left_out(0, None) == 0


def test_the_counter_of_what_lies_before_all_that_was_told_counts_once():
    order = SeriesOrder()
    told = [order.place(0, 7, time_s) for time_s in (1000.0, 1001.0, 900.0, 950.0, 1000.5, 1012.0)]
    whole, within = Telling.WHOLE, Telling.WITHOUT_COUNTER
    assert told == [whole, whole, whole, whole, within, within]


@pytest.mark.parametrize("collector", [NvmlBackend, ReplayBackend, NodeCollector, ProcessCollector, Events, Inventory])
def test_every_collector_has_its_times_from_the_one_clock_of_the_process(collector):
    assert inspect.signature(collector).parameters["wall"].default is steady_time


def test_what_is_slewed_and_what_breaks_a_series_is_what_the_lake_takes_for_covered():
    assert SLEWED_S == BREAK_S == MAX_GAP_S
