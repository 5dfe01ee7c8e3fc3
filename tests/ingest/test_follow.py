"""A spool followed into a lake: what is taken is removed and forgotten, whatever happens in between."""

from __future__ import annotations

import fcntl
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import ingest.follow
from app.cli import run
from app.following import parse_age_s
from ingest.errors import SourceError, SpoolError
from ingest.follow import Follower, FollowPlan, Round, Teller, follow
from ingest.lake import Lake
from ingest.pipeline import ingest as ingest_once
from ingest.removal import Removal
from ingest.runner import SerialRunner
from tests.lakes import in_order
from tests.spool_files import NODE, START_S, gpu_cells, make_spool, write_named, write_segment

ROOT = Path(__file__).parents[2]


class Clock:
    """Both clocks, which a test moves; a leap moves the one on the wall alone."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.leapt_s = 0.0

    def __call__(self) -> float:
        return START_S + self.seconds + self.leapt_s

    def monotonic(self) -> float:
        return self.seconds

    def leap(self, seconds: float) -> None:
        self.leapt_s += seconds


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return make_spool(tmp_path / "spool")


def follower(spool: Path, clock: Clock | None = None, **options: Any) -> Follower:
    clock = clock or Clock(100)
    return Follower(FollowPlan(spool, spool.parent / "lake", **options), wall=clock, monotonic=clock.monotonic)


def segments(spool: Path) -> list[str]:
    """The closed segments, those of the follower's own events left out."""
    return sorted(p.relative_to(spool).as_posix() for p in spool.glob("*/*.csv") if "-follower-" not in p.name)


def lake_of(spool: Path) -> Lake:
    lake = Lake(spool.parent / "lake")
    assert lake.check().problems == ()
    return lake


def times(lake: Lake, job_id: int = 7) -> list[float]:
    """Seconds of a job's samples, in the order in which they are read."""
    return [round(t.timestamp() - START_S, 3) for t in lake.read_series(job_id)["time"]]


# -- what a round does -------------------------------------------------------------------------------------------------


def test_what_is_taken_is_removed_and_then_forgotten(spool):
    one = follower(spool)
    for number in range(3):
        write_segment(spool, "gpu", number, [gpu_cells(number * 10 + s, 7) for s in range(3)])
        done = one.round()
        assert (done.problem, done.segments, done.rows) == ("", 1, 3)
        assert segments(spool) == []
    lake = lake_of(spool)
    assert times(lake) == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    names = [name for name in lake.inputs()["name"] if name.startswith("gpu/")]
    assert [name[-10:] for name in names] == ["000002.csv"]
    assert lake.scan("gpu_minutes").collect()["n"].to_list() == [9]


def test_snapshots_stay_and_are_taken_when_they_change(spool):
    one = follower(spool)
    name = "gpu/prometheus-dcgm-20261124T23.csv"
    write_named(spool, name, [gpu_cells(0, 7)])
    one.round()
    write_named(spool, name, [gpu_cells(0, 7), gpu_cells(15, 7)])
    write_segment(spool, "node", 1, [[NODE, START_S, "0:3|", 0.0005, 1.5, 90_000, None, None, None]])
    assert one.round().problem == ""
    assert segments(spool) == [name]
    assert times(lake_of(spool)) == [0, 15]


def test_the_minutes_of_other_hours_stay_when_a_snapshot_grows(spool):
    """A file goes, others of its series stay: the minutes of those, and those that they share with it, are kept."""
    one = follower(spool)
    earlier, later = (f"gpu/prometheus-dcgm-2026112{hour}Z.csv" for hour in ("4T23", "5T00"))
    write_named(spool, earlier, [gpu_cells(0, 7), gpu_cells(15, 7), gpu_cells(60, 7)])
    write_named(spool, later, [gpu_cells(75, 7), gpu_cells(200, 7)])
    one.round()
    write_named(spool, later, [gpu_cells(75, 7), gpu_cells(200, 7), gpu_cells(210, 7)])
    assert one.round().problem == ""
    fresh = spool.parent / "anew"
    ingest_once(str(spool), fresh, runner=SerialRunner())
    assert times(lake_of(spool)) == [0, 15, 60, 75, 200, 210]
    minutes = [in_order(lake.scan("gpu_minutes").collect()) for lake in (lake_of(spool), Lake(fresh))]
    assert minutes[1]["n"].sum() == 6
    assert_frame_equal(minutes[0], minutes[1])


def test_the_lag_is_that_of_the_newest_sample_and_becomes_an_event(spool):
    clock = Clock(42)
    one = follower(spool, clock)
    write_segment(spool, "gpu", 1, [gpu_cells(0, 7), gpu_cells(30, None)])
    done = one.round()
    assert done.lag_s == pytest.approx(12)
    assert done.line() == "follower: 1 segments, 2 rows, lag 12.0 s"
    clock.seconds = 50
    assert one.round().segments == 0  # its own event is none of the collector's segments
    events = lake_of(spool).scan("collector_events").select("collector", "event", "count", "seconds").collect()
    assert events.rows() == [("follower", "lag", 2, 12.0)]


def test_an_idle_follower_changes_nothing(spool):
    one = follower(spool, clock := Clock(42))
    write_segment(spool, "gpu", 1, [gpu_cells(0, 7)])
    one.round()
    one.round()
    generation = lake_of(spool).generation
    for _ in range(3):
        clock.seconds += 100
        assert one.round().rows == 0
    assert lake_of(spool).generation == generation


def test_a_segment_that_is_still_written_is_left_to_its_collector(spool):
    path = write_segment(spool, "gpu", 1, [gpu_cells(0, 7), gpu_cells(1, 7)])
    left_open = path.rename(path.with_name(path.name + ".open"))
    with (spool / "LOCK").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert follower(spool).round().segments == 0
        assert left_open.exists()


def test_a_segment_that_a_killed_collector_left_open_is_closed_and_taken(spool):
    path = write_segment(spool, "gpu", 1, [gpu_cells(0, 7), gpu_cells(1, 7)])
    left_open = path.rename(path.with_name(path.name + ".open"))
    with left_open.open("a") as file:
        file.write("1795563790.1,n1,7")
    assert follower(spool).round().rows == 2
    assert times(lake_of(spool)) == [0, 1]
    assert list(spool.glob("gpu/*")) == []


@pytest.mark.parametrize(("of", "where"), [(Removal, "remove"), (Follower, "_look_after"), (Follower, "_lag_s")])
def test_a_round_that_dies_after_the_commit_takes_nothing_twice(of, where, spool, monkeypatch):
    class KilledError(BaseException):
        pass

    def die(*_: object) -> None:
        raise KilledError

    write_segment(spool, "gpu", 1, [gpu_cells(s, 7) for s in range(3)])
    with monkeypatch.context() as patch:
        patch.setattr(of, where, die)
        with pytest.raises(KilledError):
            follower(spool).round()
    write_segment(spool, "gpu", 2, [gpu_cells(s, 7) for s in range(3, 6)])
    assert follower(spool).round().problem == ""
    assert segments(spool) == []
    assert times(lake_of(spool)) == [0, 1, 2, 3, 4, 5]
    assert lake_of(spool).scan("quarantine").collect().is_empty()


def test_names_that_were_removed_but_not_forgotten_are_forgotten_by_the_next_follower(spool):
    write_segment(spool, "gpu", 1, [gpu_cells(0, 7)])
    follower(spool).round()
    assert len(json.loads((spool / ".follower.json").read_text())["removed"]) == 1
    write_segment(spool, "gpu", 2, [gpu_cells(1, 7)])
    follower(spool).round()
    names = [name for name in lake_of(spool).inputs()["name"] if name.startswith("gpu/")]
    assert [name[-10:] for name in names] == ["000002.csv"]


def test_a_removed_segment_stays_in_the_lake_when_a_snapshot_of_its_gpu_grows(spool):
    """Were the two joined, its rows would go with the snapshot's."""
    one = follower(spool)
    write_named(spool, "gpu/prometheus-dcgm-20261124T23.csv", [gpu_cells(0, 7), gpu_cells(15, 7)])
    write_segment(spool, "gpu", 1, [gpu_cells(s, 7) for s in (5, 10)])
    one.round()
    write_named(spool, "gpu/prometheus-dcgm-20261124T23.csv", [gpu_cells(s, 7) for s in (0, 15, 30)])
    write_segment(spool, "node", 2, [[NODE, START_S, "0:3|", 0.0005, 1.5, 90_000, None, None, None]])
    one.round()
    assert times(lake_of(spool)) == [0, 5, 10, 15, 30]


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_round_that_fails_is_said_and_tried_again(spool, monkeypatch):
    write_segment(spool, "gpu", 1, [gpu_cells(0, 7)])
    clock = Clock(100)
    one = follower(spool, clock)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "part-1.parquet")

    with monkeypatch.context() as patch:
        patch.setattr(ingest.follow, "ingest", full)
        failed = one.round()
    assert failed.line().startswith("follower: [Errno 28] No space left on device")
    assert failed.line().endswith(": 'part-1.parquet' [disk_full]; trying again")
    assert len(segments(spool)) == 1
    assert one.round().segments == 1
    events = lake_of(spool).scan("collector_events").select("event", "collector").collect()
    assert events.rows() == [("error", "follower")]


def test_a_broken_segment_stays_and_the_others_are_taken(spool):
    write_segment(spool, "gpu", 1, [gpu_cells(0, 7)])
    broken = write_segment(spool, "gpu", 2, [])
    broken.write_text("something,else\n1,2\n")
    done = follower(spool).round()
    assert (done.segments, done.refused) == (1, 1)
    assert segments(spool) == [broken.relative_to(spool).as_posix()]
    assert "1 files refused (gpu/" in done.line()
    assert done.refusal.startswith(f"{broken.relative_to(spool).as_posix()}: missing_column ")


def test_what_is_no_spool_is_not_followed(tmp_path):
    with pytest.raises(SourceError, match=r"is no spool .*; start a collector: jobwatt collect --spool"):
        follow(FollowPlan(tmp_path, tmp_path / "lake"), Event(), print)


@pytest.mark.parametrize("text", ["30", "d", "-1d", "0h", "infd", "", "3 weeks"])
def test_an_age_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="give a"):
        parse_age_s(text)


@pytest.mark.parametrize(
    "options",
    [["--follow", "--slurm"], ["--follow", "--workers", "4"], ["--keep-samples", "3d"], ["--follow", "--force"]],
)
def test_options_that_do_not_go_together_are_refused(options, spool):
    assert run(["lake", "ingest", str(spool), "--lake", str(spool.parent / "lake"), *options]) == 2


def test_the_loop_ends_after_the_round_in_which_it_was_told_to(spool):
    write_segment(spool, "gpu", 1, [gpu_cells(0, 7)])
    stop, said = Event(), []

    def say(line: str) -> None:
        said.append(line)
        stop.set()

    follow(FollowPlan(spool, spool.parent / "lake", every_s=0.01), stop, say, wall=Clock(10))
    assert said == ["follower: 1 segments, 1 rows, lag 10.0 s"]


def test_a_follower_with_nothing_to_do_says_so_every_ten_minutes_and_a_new_trouble_at_once():
    said: list[str] = []
    teller = Teller(said.append)
    rounds = [
        (0, Round(rows=3, segments=1, lag_s=1.0)),
        (10, Round(lag_s=11.0)),
        (20, Round(lag_s=21.0, refused=1, refusal="gpu/a.csv: missing_column")),
        (30, Round(lag_s=31.0, refused=1, refusal="gpu/a.csv: missing_column")),
        (40, Round(problem="no space left")),
        (50, Round(problem="no space left")),
        (60, Round(lag_s=61.0)),
        (650, Round(lag_s=651.0)),
        (660, Round(lag_s=661.0)),
        (670, Round(lag_s=1.0, snapshots=2)),
    ]
    for now_s, done in rounds:
        teller.tell(done, now_s)
    assert said == [
        "follower: 1 segments, 3 rows, lag 1.0 s",
        "follower: idle, lag 21.0 s, 1 files refused (gpu/a.csv: missing_column)",
        "follower: no space left; trying again",
        "follower: idle, lag 61.0 s",
        "follower: idle, lag 661.0 s",
        "follower: 0 segments, 0 rows, 2 snapshots, lag 1.0 s",
    ]


def test_the_lag_is_that_of_the_nodes_of_this_spool_and_its_event_names_them(spool, tmp_path):
    """A collector that died is not to be hidden by those of other nodes that feed the same cluster."""
    clock = Clock(100)
    write_segment(spool, "gpu", 1, [gpu_cells(0, 7)], node="login-2")
    one = follower(spool, clock)
    gpu = write_segment(spool, "gpu", 2, [gpu_cells(40, 7, node="login-2")], node="login-2")
    other = make_spool(tmp_path / "other")
    write_segment(other, "gpu", 1, [gpu_cells(99, 8)])
    Follower(FollowPlan(other, tmp_path / "lake"), wall=clock, monotonic=clock.monotonic).round()
    assert one.round().lag_s == pytest.approx(60)
    assert not gpu.exists()
    assert follower(spool, clock).round().lag_s == pytest.approx(60)
    told = lake_of(spool).scan("collector_events").filter(pl.col("event") == "lag").select("node").collect()
    assert told["node"].to_list() == ["login-2"]


@pytest.mark.parametrize("kind", ["gpu", "node"])
def test_a_spool_of_prometheus_alone_lags_by_its_own_nodes_after_a_restart_too(spool, tmp_path, kind):
    """Its files are snapshots, whose names do not tell the node: a Prometheus that fell silent is not to be hidden."""
    clock = Clock(100)
    cells = {"gpu": gpu_cells(40, None, node="n7"), "node": ["n7", START_S + 40, *[None] * 7]}[kind]
    hour = datetime.fromtimestamp(START_S + 40, UTC).strftime("%Y%m%dT%HZ")
    write_named(spool, f"{kind}/prometheus-site-{hour}.csv", [cells])
    other = make_spool(tmp_path / "other")
    write_segment(other, "gpu", 1, [gpu_cells(99, 8)])
    Follower(FollowPlan(other, tmp_path / "lake"), wall=clock, monotonic=clock.monotonic).round()
    one = follower(spool, clock)
    assert one.round().lag_s == pytest.approx(60)
    clock.seconds = 130
    assert one.round().lag_s == pytest.approx(90)
    assert follower(spool, clock).round().lag_s == pytest.approx(90)
    events = lake_of(spool).scan("collector_events").select("collector", "event", "seconds").collect()
    assert events.rows() == [("follower", "lag", 60.0)]


@pytest.mark.parametrize("damage", [b"1795,n7" + b",1" * 40, b"\xff\xfe\0,n7\xff,,0", b'1795,"n7,,0'], ids=repr)
def test_a_damaged_line_of_a_snapshot_is_set_apart_and_does_not_end_the_rounds(spool, damage):
    path = write_named(spool, "gpu/prometheus-site-20261124T00Z.csv", [gpu_cells(40, None, node="n7")])
    path.write_bytes(path.read_bytes() + damage + b"\n")
    one = follower(spool, Clock(100))
    done = one.round()
    assert (done.problem, done.quarantined, done.lag_s) == ("", 1, pytest.approx(60))
    assert one.round().problem == ""


def test_samples_of_the_future_do_not_hide_that_nothing_comes(spool):
    clock = Clock(100)
    one = follower(spool, clock)
    write_segment(spool, "gpu", 1, [gpu_cells(s, 7) for s in (10, 20, 30, 86_400)])
    done = one.round()
    assert done.lag_s == pytest.approx(70)
    assert done.line().endswith("lag 70.0 s, samples up to 86300 s later than now")
    clock.seconds = 400
    assert one.round().lag_s == pytest.approx(370)


def test_notes_that_may_not_be_read_are_one_clear_line(spool):
    (spool / ".follower.json").mkdir()
    with pytest.raises(SpoolError, match=r"follower\.json: Is a directory; .* run it as the user that did before"):
        follower(spool)


# -- many small parts, old samples -------------------------------------------------------------------------------------


def day(number: float) -> float:
    """Seconds from the first sample to so many days after the midnight that follows it."""
    midnight = datetime.fromtimestamp(START_S, UTC).replace(hour=0, minute=0, second=0) + timedelta(days=1 + number)
    return midnight.timestamp() - START_S


def fill(spool: Path, one: Follower, rounds: int, at: float = 0.0, clock: Clock | None = None) -> None:
    """Let a follower take segments of a job and of an idle GPU, one after another, a minute apart by its clock."""
    for number in range(rounds):
        begin = at + number * 10
        rows = [gpu_cells(begin + s, 7) for s in range(10)] + [gpu_cells(begin + s, None, 1) for s in range(10)]
        write_segment(spool, "gpu", int(begin) + 1, rows)
        profile = [7, "batch", NODE, "0", 10, START_S + begin, 2_000_000, 9.5, 95.0, 1024, 4096, 12, 0.5, 0.25]
        write_segment(spool, "process", int(begin) + 1, [profile])
        if clock is not None:
            clock.seconds += 60
        assert one.round().problem == ""


def rolled_up(lake: Lake) -> list[pl.DataFrame]:
    return [in_order(lake.scan(name).collect()) for name in ("job_stats", "gpu_minutes")]


def test_small_parts_are_merged_and_nothing_else_changes(spool):
    one = follower(spool, clock := Clock(100), compact_after=5)
    fill(spool, one, 5, clock=clock)
    before = [lake_of(spool).scan(name).collect() for name in ("gpu_samples", "cpu_samples")]
    stats = rolled_up(lake_of(spool))
    fill(spool, one, 3, at=50, clock=clock)
    lake = lake_of(spool)
    assert len(lake.paths("gpu_samples")) <= 5
    assert len(lake.paths("cpu_samples")) <= 5
    assert times(lake) == list(range(80))
    assert lake.scan("cpu_samples").collect().height == 8
    early = lake.scan("gpu_samples").filter(pl.col("time") < datetime.fromtimestamp(START_S + 50, UTC)).collect()
    assert_frame_equal(in_order(early), in_order(before[0]))
    assert [frame.height for frame in rolled_up(lake)] == [stats[0].height, 4]


def test_a_merged_part_holds_one_day(spool):
    one = follower(spool, clock := Clock(day(1)), compact_after=3)
    fill(spool, one, 5, at=day(0) - 25, clock=clock)
    lake = lake_of(spool)
    merged = [pl.read_parquet(path)["time"].dt.date().n_unique() for path in lake.paths("gpu_samples")]
    assert 1 in merged
    assert times(lake) == [round(day(0) - 25 + s, 3) for s in range(50)]


def test_old_samples_go_and_the_roll_ups_stay(spool):
    clock = Clock(day(0.5))
    one = follower(spool, clock, keep_s=86_400.0, compact_after=3)
    fill(spool, one, 4, at=day(0) - 200)  # the day before
    fill(spool, one, 4, at=day(0) + 100)
    stats = rolled_up(lake_of(spool))
    assert lake_of(spool).scan("gpu_samples").collect().height == 160
    clock.seconds = day(1.5)
    assert one.round().rows_dropped == 84
    lake = lake_of(spool)
    assert times(lake) == [round(day(0) + 100 + s, 3) for s in range(40)]
    assert lake.scan("cpu_samples").collect().height == 4
    for found, expected in zip(rolled_up(lake), stats, strict=True):
        assert_frame_equal(found, expected)
    assert one.round().rows_dropped == 0


def test_a_wall_clock_that_leaps_forward_drops_no_samples(spool):
    clock = Clock(day(0.5))
    one = follower(spool, clock, keep_s=86_400.0, compact_after=3)
    fill(spool, one, 2, at=day(0) + 100)
    clock.leap(400 * 86_400)
    assert one.round().rows_dropped == 0
    assert len(times(lake_of(spool))) == 20
    clock.leap(-400 * 86_400)
    clock.seconds += 3 * 86_400
    assert one.round().rows_dropped == 42


def test_a_node_that_boots_with_its_clock_ahead_drops_nothing_and_says_so(spool):
    clock = Clock(day(0.5))
    fill(spool, follower(spool, clock, keep_s=86_400.0), 2, at=day(0) + 100)
    (spool / ".retention.json").unlink(missing_ok=True)  # the first start with retention: the lake's newest counts
    clock.leap(400 * 86_400)
    for _ in range(2):
        one = follower(spool, clock, keep_s=86_400.0)
        done = one.round()
        assert done.rows_dropped == 0
        assert done.doubt.startswith("the clock is 400.")
        assert "days ahead of what it should be" in done.doubt
        assert done.line().endswith(done.doubt)
    assert len(times(lake_of(spool))) == 20
    clock.seconds += 60
    assert one.round().doubt == done.doubt
    told = lake_of(spool).scan("collector_events").filter(pl.col("detail").str.contains("clock_step")).collect()
    assert told.height >= 1
    clock.leap(-400 * 86_400)
    assert one.round().doubt == ""


def test_a_clock_that_has_said_so_for_a_day_is_believed(spool):
    clock = Clock(day(0.5))
    one = follower(spool, clock, keep_s=86_400.0)
    fill(spool, one, 2, at=day(0) + 100)
    clock.leap(40 * 86_400)
    dropped = [one.round().rows_dropped]
    for _ in range(23):
        clock.seconds += 3600
        dropped.append(one.round().rows_dropped)
    assert sum(dropped) == 0
    clock.seconds += 3600
    assert one.round().rows_dropped == 42


def test_a_clock_that_was_behind_at_the_start_is_believed_when_it_is_set_right(spool):
    clock = Clock(day(0.5))
    fill(spool, follower(spool, clock, keep_s=86_400.0), 2, at=day(0) + 100)
    clock.seconds += 2 * 86_400
    clock.leap(-3000 * 86_400)
    one = follower(spool, clock, keep_s=86_400.0)
    assert "behind what it should be" in one.round().doubt
    clock.leap(3000 * 86_400 - 1.5 * 86_400)
    clock.seconds += 10
    assert one.round().doubt == ""


def test_after_old_samples_went_a_job_goes_on_as_if_they_were_there(spool, tmp_path):
    clock = Clock(day(0.5))
    one = follower(spool, clock, keep_s=86_400.0, compact_after=2)
    rows = [gpu_cells(day(0) - 12 + s, 7, power_draw_W=100 + s) for s in range(40)]
    cuts = [(0, 5), (5, 10), (10, 20), (20, 30)]
    for number, (begin, end) in enumerate(cuts):
        write_segment(spool, "gpu", number, rows[begin:end])
        one.round()
    clock.seconds = day(1.5)
    assert one.round().rows_dropped == 10
    write_segment(spool, "gpu", 8, rows[30:38])
    write_segment(spool, "gpu", 9, rows[36:40])  # overlaps: the series is joined anew, its old minutes are not
    one.round()
    whole = make_spool(tmp_path / "whole")
    write_segment(whole, "gpu", 1, rows)
    ingest_once(str(whole), tmp_path / "at-once", runner=SerialRunner())
    for found, expected in zip(rolled_up(lake_of(spool)), rolled_up(Lake(tmp_path / "at-once")), strict=True):
        assert_frame_equal(found, expected, check_exact=False, rel_tol=1e-6)
