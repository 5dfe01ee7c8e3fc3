from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ingest.collectors.schedule import ClockWatch, Events, ticks
from tests.clocks import Clocks
from tests.spools import open_spool, read_rows


@pytest.fixture
def clocks():
    """Clocks that end a schedule after ten seconds."""
    return Clocks(until_s=10.0)


@pytest.fixture
def events(tmp_path, clocks):
    """Events into a spool in ``tmp_path``."""
    return Events(open_spool(tmp_path, clocks), wall=clocks.wall)


def read_events(events: Events) -> list[dict[str, str]]:
    events._spool.close()
    return read_rows(events._spool.root, "events")


def test_ticks_keep_to_start_plus_multiples_of_the_interval_however_long_the_work_takes(clocks, events):
    done = []
    for due_s in ticks(0.1, "gpu", events, wait=clocks.wait, monotonic=clocks.monotonic):
        assert clocks.monotonic() == pytest.approx(due_s, abs=1e-9)
        done.append(due_s - 50.0)
        clocks.wait(0.03 if len(done) % 3 else 0.09)
    assert done == pytest.approx([number / 10 for number in range(100)])
    assert read_events(events) == []


def test_a_tick_that_comes_late_is_taken_and_reported(clocks, events):
    done = []
    for _ in ticks(1.0, "gpu", events, wait=clocks.wait, monotonic=clocks.monotonic):
        done.append(clocks.monotonic() - 50.0)
        clocks.wait(1.25 if len(done) == 3 else 0.0)
    assert done == pytest.approx([0, 1, 2, 3.25, 4, 5, 6, 7, 8, 9])
    (event,) = read_events(events)
    assert (event["collector"], event["event"], event["count"]) == ("gpu", "late", "1")
    assert float(event["seconds"]) == pytest.approx(0.25)


def test_a_tick_within_ten_milliseconds_is_not_late(clocks, events):
    for _ in ticks(1.0, "gpu", events, wait=lambda s: clocks.wait(s + 0.009), monotonic=clocks.monotonic):
        pass
    assert read_events(events) == []


def test_ticks_whose_time_has_passed_are_missed_and_never_made_up(clocks, events):
    done = []
    for _ in ticks(1.0, "gpu", events, wait=clocks.wait, monotonic=clocks.monotonic):
        done.append(clocks.monotonic() - 50.0)
        clocks.wait(3.5 if len(done) == 3 else 0.0)
    assert done == pytest.approx([0, 1, 2, 5.5, 6, 7, 8, 9])
    missed, late = read_events(events)
    assert (missed["event"], missed["count"]) == ("missed", "2")  # 3 and 4
    assert float(missed["seconds"]) == pytest.approx(3.5)
    assert (late["event"], float(late["seconds"])) == ("late", pytest.approx(0.5))


def test_the_wall_clock_does_not_move_the_schedule(clocks, events):
    done = []
    for _ in ticks(1.0, "gpu", events, wait=clocks.wait, monotonic=clocks.monotonic):
        done.append(clocks.monotonic() - 50.0)
        clocks.offset_s += 3600.0
    assert done == pytest.approx(list(range(10)))


@pytest.mark.parametrize("leap_s", [3600.0, -3600.0, 0.5, -0.5])
def test_a_leap_of_the_wall_clock_is_recorded_once_with_its_length(clocks, events, leap_s):
    watch = ClockWatch(events, wall=clocks.wall, monotonic=clocks.monotonic)
    clocks.wait(1.0)
    watch.look()
    clocks.offset_s += leap_s
    for _ in range(3):
        clocks.wait(1.0)
        watch.look()
    (event,) = read_events(events)
    assert event["event"] == "clock_step"
    assert float(event["seconds"]) == pytest.approx(leap_s, abs=1e-6)


def test_slewing_is_no_leap(clocks, events):
    watch = ClockWatch(events, wall=clocks.wall, monotonic=clocks.monotonic)
    for _ in range(1000):
        clocks.wait(1.5)
        clocks.offset_s += 1.5 * 500e-6
        watch.look()
    assert read_events(events) == []


def test_an_interval_must_be_longer_than_nothing(events, clocks):
    with pytest.raises(ValueError, match="interval_s is 0"):
        next(ticks(0, "gpu", events, wait=clocks.wait, monotonic=clocks.monotonic))


def test_what_is_to_be_seen_at_once_is_said_with_its_reason_and_the_same_line_once_a_minute(tmp_path, clocks):
    said: list[str] = []
    events = Events(open_spool(tmp_path, clocks), wall=clocks.wall, monotonic=clocks.monotonic, say=said.append)
    events.record("gpu", "late", seconds=0.02)
    for _ in range(130):
        events.record("gpu", "sensor_lost", detail="GPU 1: gone", reason="gpu_lost")
        clocks.wait(1.0)
    events.record("clock", "clock_step", seconds=-30.0, detail="wall clock minus monotonic clock is now 5 s")
    assert said == ["GPU 1: gone [gpu_lost]"] * 3 + ["the wall clock was set by -30.000 s [clock_step]"]
    rows = read_events(events)
    assert len(rows) == 132
    assert rows[1]["detail"] == "gpu_lost: GPU 1: gone"


@pytest.fixture
def _hasty() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before_s)


@pytest.mark.usefixtures("_hasty")
def test_a_line_that_several_threads_have_at_one_time_is_said_once(tmp_path, clocks):
    said: list[str] = []
    events = Events(open_spool(tmp_path, clocks), wall=clocks.wall, monotonic=clocks.monotonic, say=said.append)

    def record() -> None:
        for number in range(400):
            events.record("gpu", "sensor_lost", detail=f"GPU {number}: gone", reason="gpu_lost")

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(record) for _ in range(4)]:
            done.result()
    assert len(said) == len(set(said)) == 400
