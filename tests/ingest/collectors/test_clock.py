"""A wall clock that is set back: rows keep their order, and what they add up to."""

from __future__ import annotations

import inspect
from itertools import pairwise

import pytest

from ingest.collectors.clock import SteadyClock, steady_time
from ingest.collectors.hardware import NvmlBackend
from ingest.collectors.node import NodeCollector
from ingest.collectors.process import ProcessCollector
from tests.clocks import Clocks
from tests.small_sources import take
from tests.spool_files import START_S, gpu_cells, make_spool, write_segment


@pytest.fixture
def clocks() -> Clocks:
    return Clocks(START_S)


def times(clocks: Clocks, seconds: float, clock: SteadyClock) -> list[float]:
    told = []
    for _ in range(round(seconds * 10)):
        clocks.wait(0.1)
        told.append(clock())
    return told


def test_a_wall_clock_that_is_set_back_is_caught_up_with_and_no_time_comes_twice(clocks):
    clock = SteadyClock(clocks.wall, clocks.monotonic)
    before = times(clocks, 20, clock)
    assert before[-1] == pytest.approx(clocks.wall())
    clocks.offset_s -= 30.0
    after = times(clocks, 310, clock)
    every = before + after
    steps_s = [later - sooner for sooner, later in pairwise(every)]
    assert min(steps_s) == pytest.approx(0.09, abs=1e-6)
    assert max(steps_s) == pytest.approx(0.1, abs=1e-6)
    assert after[-1] == pytest.approx(clocks.wall())


def test_a_wall_clock_that_is_set_forward_is_followed_at_once(clocks):
    clock = SteadyClock(clocks.wall, clocks.monotonic)
    clocks.offset_s += 3600.0
    assert times(clocks, 1, clock)[0] == pytest.approx(START_S + 3600.1)


def test_slewing_is_followed(clocks):
    clock = SteadyClock(clocks.wall, clocks.monotonic)
    for _ in range(1000):
        clocks.wait(0.1)
        clocks.offset_s -= 0.1 * 500e-6
        assert clock() == pytest.approx(clocks.wall(), abs=1e-4)


@pytest.mark.parametrize("step_s", [-30.0, -0.55, 0.0])
def test_what_a_job_used_is_told_once_whatever_the_wall_clock_did(clocks, step_s, tmp_path):
    """100 W by the counter, in segments of 20 s; the clock is set back in the second one."""
    spool, clock = make_spool(tmp_path / "spool"), SteadyClock(clocks.wall, clocks.monotonic)
    real_s = 0.0
    for number in range(4):
        rows = []
        for tick in range(200):
            if (number, tick) == (1, 100):
                clocks.offset_s += step_s + 0.05
            clocks.wait(0.1)
            real_s += 0.1
            rows.append(gpu_cells(clock() - START_S, 7, energy_mJ=round(real_s * 1e5)))
        write_segment(spool, "gpu", number, rows)
    taken = take(spool, tmp_path / "lake")
    assert taken.report.reasons == {}
    ((samples, counter_j),) = taken.rows("job_stats", "samples", "energy_counter_j")
    assert samples == 800
    assert counter_j == pytest.approx(100 * (real_s - 0.1), rel=1e-6)


@pytest.mark.parametrize("collector", [NvmlBackend, NodeCollector, ProcessCollector])
def test_every_collector_has_its_times_from_the_one_clock_of_the_process(collector):
    assert inspect.signature(collector).parameters["wall"].default is steady_time
