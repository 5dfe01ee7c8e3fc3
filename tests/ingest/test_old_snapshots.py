"""Snapshots that are older than what is kept go from the spool, and nothing of what they told goes with them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ingest.collectors.sacct_command import Cells
from ingest.collectors.slurm import Snapshots
from ingest.collectors.snapshots import KEYS, write_hours
from ingest.collectors.spool import HEADERS
from ingest.follow import Follower, FollowPlan, Round
from ingest.lake import Lake
from ingest.manifest import NO_PART
from ingest.old_snapshots import find_removable
from ingest.pipeline import ingest as ingest_once
from ingest.removal import Removal
from ingest.runner import SerialRunner
from ingest.sources.sacct_files import FORMAT
from ingest.sources.spool_files import is_segment
from tests.lakes import in_order
from tests.spool_files import NODE, START_S, gpu_cells, make_spool, write_segment

KEPT_DAYS, DAYS = 10, 40
DAY_S, HOUR_S = 86_400, 3600
MIDNIGHT_S = datetime.fromtimestamp(START_S, UTC).replace(hour=0, minute=0, second=0, microsecond=0).timestamp()


class Site:
    """A spool with a follower and collectors of Prometheus and Slurm, all by one clock that a test moves."""

    def __init__(self, folder: Path, *, keep_days: float | None = KEPT_DAYS) -> None:
        self.spool, self.lake = make_spool(folder / "spool"), folder / "lake"
        self.now_s = MIDNIGHT_S
        self.keep_s = None if keep_days is None else keep_days * DAY_S
        self.slurm = Snapshots(self.spool)
        self.start_follower()

    def start_follower(self) -> None:
        plan = FollowPlan(self.spool, self.lake, keep_s=self.keep_s)
        self.follower = Follower(plan, wall=lambda: self.now_s, monotonic=lambda: self.now_s)

    def hour(self, begin_s: float) -> None:
        """Let Prometheus tell of an hour: an idle GPU and its node."""
        gpu = [gpu_cells(begin_s + at - START_S, None) for at in (0, 15, 3500)]
        node = [[NODE, begin_s + at, None, None, 1.5, None, None, None, None] for at in (0, 300)]
        for kind, rows in (("gpu", gpu), ("node", node)):
            names = HEADERS[kind].split(",")
            cells = [["" if value is None else str(value) for value in row] for row in rows]
            keyed = {tuple(row[names.index(name)] for name in KEYS[kind]): row for row in cells}
            write_hours(self.spool, kind, f"site-{'node' if kind == 'node' else 'dcgm'}", keyed)

    def day(self, number: int) -> None:
        """Let a day go by, and what is told and taken on it."""
        begin_s = MIDNIGHT_S + number * DAY_S
        self.hour(begin_s + 12 * HOUR_S)
        self.slurm.update([job(1, MIDNIGHT_S), *(job(100 + n, MIDNIGHT_S + n * DAY_S, ended=True) for n in (number,))])
        self.now_s = begin_s + 13 * HOUR_S
        self.round()
        self.round()

    def round(self) -> Round:
        done = self.follower.round()
        assert (done.problem, done.refused, done.quarantined, done.unnoted) == ("", 0, 0, "")
        return done

    def files(self) -> list[str]:
        found = (path.relative_to(self.spool).as_posix() for path in self.spool.glob("*/*") if path.is_file())
        return sorted(name for name in found if "-follower-" not in name)

    def rows(self, table: str) -> pl.DataFrame:
        lake = Lake(self.lake)
        assert lake.check().problems == ()
        return in_order(lake.scan(table).collect())


def job(number: int, submit_s: float, *, ended: bool = False) -> Cells:
    """An attempt of a job as sacct tells it: one that ended within a minute, or one that goes on."""
    state, end = ("COMPLETED", str(int(submit_s) + 60)) if ended else ("RUNNING", "Unknown")
    cells = dict.fromkeys(FORMAT, "") | {"JobIDRaw": str(number), "JobID": str(number), "Cluster": "c", "State": state}
    return cells | {"Submit": str(int(submit_s)), "Start": str(int(submit_s)), "End": end, "ExitCode": "0:0"}


def stamps(names: Iterable[str], folder: str) -> list[str]:
    return [name for name in names if name.startswith(f"{folder}/")]


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Forty days that went by; what the tests do to them changes nothing."""
    site = Site(tmp_path_factory.mktemp("month"))
    for number in range(DAYS):
        site.day(number)
    return site


@pytest.mark.slow
def test_in_forty_days_the_spool_stays_small_and_the_lake_has_all_that_it_keeps(month):
    files = month.files()
    assert [len(stamps(files, folder)) for folder in ("gpu", "node")] == [KEPT_DAYS + 1] * 2
    # the first day has a job that runs to this day
    assert stamps(files, "jobs")[0] == f"jobs/c-{datetime.fromtimestamp(MIDNIGHT_S, UTC):%Y-%m-%d}.sacct.txt"
    assert len(stamps(files, "jobs")) == KEPT_DAYS + 2
    kept_from = datetime.fromtimestamp(MIDNIGHT_S, UTC) + timedelta(days=DAYS - 1 - KEPT_DAYS)
    samples = month.rows("gpu_samples")
    assert samples.height == 3 * (KEPT_DAYS + 1)
    assert samples["time"].min() >= kept_from
    assert month.rows("gpu_minutes")["n"].sum() == 3 * DAYS
    assert month.rows("node_samples").height == 2 * DAYS
    assert sorted(month.rows("jobs")["job_id"]) == [1, *range(100, 100 + DAYS)]
    assert month.rows("quarantine").is_empty()
    # nor does what lake and follower remember of them grow
    known = [name for name in Lake(month.lake).inputs()["name"] if "-follower-" not in name]
    assert len(known) <= len(files) + 3
    assert len(json.loads((month.spool / ".follower.json").read_text())["removed"]) <= 4


@pytest.mark.slow
def test_after_forty_days_the_spool_can_be_ingested_again_and_collected_again(month):
    before = {table: month.rows(table) for table in ("gpu_samples", "node_samples", "jobs", "job_stats", "gpu_minutes")}
    files = month.files()
    for number in range(DAYS):  # Prometheus and sacct are asked for all of it again
        month.hour(MIDNIGHT_S + number * DAY_S + 12 * HOUR_S)
    anew = [job(1, MIDNIGHT_S), *(job(100 + n, MIDNIGHT_S + n * DAY_S, ended=True) for n in range(DAYS))]
    assert Snapshots(month.spool).update(anew) == (0, ())
    assert month.files() == files
    for _ in range(2):
        report = ingest_once(str(month.spool), month.lake, runner=SerialRunner())
        assert (report.files_refused, report.rows_quarantined) == (0, 0)
    for table, rows in before.items():
        assert_frame_equal(month.rows(table), rows)


def test_a_job_that_ends_after_long_is_taken_and_its_day_goes_later(tmp_path):
    site = Site(tmp_path, keep_days=2)
    for number in range(5):
        site.day(number)
    first = stamps(site.files(), "jobs")[0]
    end_s = int(MIDNIGHT_S + 4.5 * DAY_S)
    site.slurm.update([job(1, MIDNIGHT_S, ended=True) | {"End": str(end_s)}])
    there = []
    for number in range(5, 9):
        site.now_s = MIDNIGHT_S + number * DAY_S
        site.slurm.update([job(100 + number, site.now_s, ended=True)])
        site.round()
        site.round()
        there.append(first in site.files())
    assert there == [True, True, False, False]
    ended = site.rows("jobs").filter(pl.col("job_id") == 1)
    assert ended["end_time"].to_list() == [datetime.fromtimestamp(end_s, UTC)]


def test_an_hour_that_grew_and_was_not_taken_yet_stays(tmp_path, monkeypatch):
    """A collector completes an hour between the ingest and the removal."""
    site = Site(tmp_path, keep_days=2)
    site.day(0)
    old = site.spool / stamps(site.files(), "node")[0]
    site.now_s += 3 * DAY_S
    site.hour(site.now_s)
    site.round()
    look_after = Follower._look_after

    def grow(follower: Follower) -> tuple[int, int]:
        old.write_text(old.read_text() + f"{NODE},{MIDNIGHT_S + 13 * HOUR_S - 1:.0f},,,2.5,,,,\n")
        return look_after(follower)

    with monkeypatch.context() as patch:
        patch.setattr(Follower, "_look_after", grow)
        site.round()
    assert old.exists()
    site.round()
    assert not old.exists()
    assert site.rows("node_samples")["load"].to_list().count(2.5) == 1


def test_without_keep_samples_every_snapshot_stays(tmp_path):
    site = Site(tmp_path, keep_days=None)
    for number in (0, 20, 40):
        site.day(number)
    assert [len(stamps(site.files(), folder)) for folder in ("gpu", "node", "jobs")] == [3, 3, 4 - 1]


def test_an_old_file_that_cannot_be_taken_and_others_than_collectors_write_stay(tmp_path):
    site = Site(tmp_path, keep_days=2)
    site.day(0)
    strange = {
        "node/prometheus-site-node-20201124T23Z.csv": "something,else\n1,2\n",
        "gpu/prometheus-mine.csv": (site.spool / stamps(site.files(), "gpu")[0]).read_text(),
        "jobs/nov-2020-11-24.sacct.txt": (
            "JobIDRaw|JobID|State|Submit|Start|End\n9|9|COMPLETED|1600000000|1600000001|1600000002\n"
        ),
    }
    for name, text in strange.items():
        (site.spool / name).write_text(text)
    for number in range(1, 5):
        site.now_s = MIDNIGHT_S + number * DAY_S
        site.hour(site.now_s)
        assert site.follower.round().problem == ""
        assert site.follower.round().problem == ""
    assert {*strange} < {*site.files()}
    assert [name[-8:] for name in stamps(site.files(), "node")] == ["T23Z.csv", *["T00Z.csv"] * 3]
    assert 9 in site.rows("jobs")["job_id"].to_list()


@pytest.mark.parametrize("where", ["after the note", "after the removal"])
def test_a_follower_that_is_killed_around_the_removal_loses_nothing(where, tmp_path, monkeypatch):
    class KilledError(BaseException):
        pass

    note = Removal._note

    def die_noting(removal: Removal) -> str:
        done = note(removal)
        if any(not is_segment(name) for name in removal.names):
            raise KilledError
        return done

    def die_removing(folder: Path) -> None:
        if folder.name != "events":
            raise KilledError

    site = Site(tmp_path, keep_days=2)
    site.day(0)
    jobs = site.rows("jobs")
    site.hour(site.now_s + 3 * DAY_S)
    site.slurm.update([job(200, site.now_s + 3 * DAY_S, ended=True)])
    site.now_s += 4 * DAY_S
    site.round()
    old = [name for name in site.files() if f"{datetime.fromtimestamp(MIDNIGHT_S, UTC):%Y%m%dT}" in name]
    assert len(old) == 2
    with monkeypatch.context() as patch:
        if where == "after the note":
            patch.setattr(Removal, "_note", die_noting)
        else:
            patch.setattr("ingest.removal.sync_folder", die_removing)
        with pytest.raises(KilledError):
            site.follower.round()
    assert {*old} <= {*site.files()} if where == "after the note" else not {*old} & {*site.files()}
    site.hour(MIDNIGHT_S + 12 * HOUR_S)  # a collector that is asked for all of it again
    site.start_follower()
    write_segment(site.spool, "node", 1, [[NODE, site.now_s, "0:3|", 0.0005, 1.5, 90_000, None, None, None]])
    site.round()
    site.round()
    assert not {*old} & {*site.files()}
    site.hour(site.now_s - HOUR_S)
    site.round()
    assert site.rows("node_samples").height == 2 * 3 + 1
    assert site.rows("gpu_samples").height == 6
    assert {*jobs["job_id"]} < {*site.rows("jobs")["job_id"]}
    assert not {*old} & {*Lake(site.lake).inputs()["name"]}


def test_a_collector_that_was_away_for_long_still_knows_since_when(tmp_path):
    """It goes on from the newest account of a day, which stays however old it is."""
    site = Site(tmp_path, keep_days=2)
    site.slurm.update([job(7, MIDNIGHT_S, ended=True)])
    for number in range(3):
        site.now_s = MIDNIGHT_S + 30 * number * DAY_S
        site.round()
    assert len(stamps(site.files(), "jobs")) == 1
    assert Snapshots(site.spool).newest_s is not None


def test_a_snapshot_stays_while_the_lake_has_samples_of_it_or_would_have_to_read_it_again():
    pieces = pl.DataFrame(
        {
            "input": ["a\nb", "c", "d"],
            "table": ["node_samples", "gpu_samples", "gpu_samples"],
            "part": ["node.parquet", "gpu.parquet", NO_PART],
        }
    )
    assert find_removable({"a", "c", "d"}, pieces, gone=()) == {"d"}
    assert find_removable({"a", "b", "c", "d"}, pieces, gone=()) == {"a", "b", "d"}
    assert find_removable({"a", "c", "d"}, pieces, gone={"b"}) == {"a", "d"}
