"""What jobwatt tells of the jobs of a real Slurm, against what Slurm itself tells of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.cli import run
from ingest.lake import Lake
from ingest.pipeline import ingest
from ingest.runner import SerialRunner
from ingest.sources.sacct import parse_text
from ingest.sources.sacct_files import FORMAT
from ingest.sources.sacct_json import parse_json, version
from ingest.synthetic import make_archive
from tests.lakes import assert_same_tables, read_tables
from tests.slurm.cluster import SlurmCluster, wait_until
from tests.small_sources import take

pytestmark = [pytest.mark.slurm, pytest.mark.system]

ODD_NAME = "pipe|and\nnew|line"
FORGED_NAME = "x\n999999|wrap|COMPLETED|0:0|1|2|3|1|gres/gpu=8||"
NOT_IN_OLD_JSON = {"exit_code", "derived_exit_code", "flags"}


@dataclass(frozen=True, slots=True)
class Jobs:
    """Raw ids of jobs that have all come to their end, one of each kind."""

    cluster: SlurmCluster
    done: int
    failed: int
    killed: int
    cancelled: int
    timed_out: int
    odd: int
    requeued: int
    tasks: dict[int, int]
    """Task of the array to its raw id."""

    @property
    def ids(self) -> list[int]:
        """All of them."""
        one = [self.done, self.failed, self.killed, self.cancelled, self.timed_out, self.odd, self.requeued]
        return sorted([*one, *self.tasks.values()])


@pytest.fixture(scope="module")
def timed_out(slurm_cluster: SlurmCluster) -> int:
    """Submit a job whose time is up at once; Slurm looks for such jobs twice a minute, so it is the first of all."""
    job = slurm_cluster.submit("sleep 300", "--time=1")
    wait_until(lambda: slurm_cluster.state(str(job)) == "RUNNING", 20, f"job {job} runs")
    slurm_cluster.run("scontrol", "update", f"JobId={job}", "EndTime=now+1seconds")
    return job


def test_dask_workers_that_are_jobs_of_a_real_slurm_make_the_same_lake(slurm_cluster, timed_out, tmp_path, monkeypatch):
    make_archive(tmp_path / "archive", rng=5, n_jobs=4, seconds_per_job=(8.0, 20.0), requeued_jobs=1, cpu_only_jobs=1)
    ingest(str(tmp_path / "archive"), tmp_path / "local", runner=SerialRunner())
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, slurm_cluster.env[name])
    for name, value in {
        "QUEUE": "debug",
        "MEMORY": "1GB",
        "WALLTIME": "00:05:00",
        "INTERFACE": "lo",
        "LOG_DIRECTORY": str(tmp_path / "log"),
        "LOCAL_DIRECTORY": str(tmp_path / "scratch"),
    }.items():
        monkeypatch.setenv(f"DASK_JOBQUEUE__SLURM__{name}", value)
    monkeypatch.chdir(tmp_path)
    command = [str(Path(sys.executable).with_name("jobwatt")), "lake", "ingest", str(tmp_path / "archive")]
    ended = subprocess.run(
        [*command, "--lake", str(tmp_path / "slurm"), "--slurm", "--workers", "2"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert_same_tables(read_tables(tmp_path / "slurm"), read_tables(tmp_path / "local"))
    names = ["squeue", "--noheader", "--format=%j"]
    wait_until(lambda: "dask-worker" not in slurm_cluster.run(*names), 20, "no worker is left in the queue")
    assert slurm_cluster.run("sacct", "-X", "-n", "-P", "--format=JobName").split().count("dask-worker") == 2


@pytest.fixture(scope="module")
def jobs(slurm_cluster: SlurmCluster, timed_out: int) -> Jobs:
    """Submit one job of each kind and wait until all have ended."""
    slurm = slurm_cluster
    done = slurm.submit("true", "--gres=gpu:v100:1", "--mem=500M", "--time=5")
    failed = slurm.submit("exit 3")
    killed = slurm.submit("kill -SEGV $$")
    cancelled = slurm.submit("sleep 300")
    odd = slurm.submit("true", "--mem-per-cpu=200M", "-c2", "--constraint=blue|green", f"--job-name={ODD_NAME}")
    requeued = slurm.submit("sleep $((SLURM_RESTART_COUNT ? 0 : 300))", "--requeue")
    array = slurm.submit("exit $SLURM_ARRAY_TASK_ID", "--array=0-2", "--gres=gpu:2")
    for job in (cancelled, requeued):
        wait_until(lambda job=job: slurm.state(str(job)) == "RUNNING", 20, f"job {job} runs")  # type: ignore[misc]
    slurm.run("scancel", str(cancelled))
    slurm.run("scontrol", "requeue", str(requeued))
    wait_until(lambda: slurm.state(str(requeued)) == "PENDING", 20, "the requeued job waits")
    # not at once: what is left of the first attempt would end the second one
    slurm.run("scontrol", "update", f"JobId={requeued}", "StartTime=now+5seconds")
    wait_until(lambda: not slurm.run("squeue", "--noheader").strip(), 45, "all jobs have ended")
    known = slurm.run("sacct", "-X", "-n", "-P", "--format=JobID,JobIDRaw", f"--jobs={array}").split()
    tasks = {int(line.split("|")[0].partition("_")[2]): int(line.split("|")[1]) for line in known}
    made = Jobs(slurm, done, failed, killed, cancelled, timed_out, odd, requeued, tasks)
    wait_until(lambda: not unfinished(made), 20, "the accounting knows of all ends")
    return made


def unfinished(jobs: Jobs) -> list[str]:
    """Return the rows of sacct that have no end."""
    rows = jobs.cluster.run("sacct", "-X", "-n", "-P", "--format=JobIDRaw,State,End", f"--jobs={joined(jobs)}")
    return [row for row in rows.splitlines() if row.endswith("Unknown")]


def joined(jobs: Jobs) -> str:
    return ",".join(map(str, jobs.ids))


def collect(jobs: Jobs, spool: Path, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``jobwatt collect-slurm --once`` as a user would."""
    command = [str(Path(sys.executable).with_name("jobwatt")), "collect-slurm", "--spool", str(spool), "--once"]
    return subprocess.run(
        [*command, *options], env={**jobs.cluster.env, **env}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(scope="module")
def lake(jobs: Jobs, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake of what the collector gathered."""
    root = tmp_path_factory.mktemp("gathered")
    ended = collect(jobs, root / "spool", TZ="America/St_Johns")
    assert (ended.returncode, ended.stderr) == (0, "")
    return take(root / "spool", root / "lake").lake


def rows(lake: Lake) -> dict[tuple[int, int], dict[str, Any]]:
    """Return the jobs of a lake by job and attempt."""
    found = lake.scan("jobs").collect().rows(named=True)
    return {(row["job_id"], row["attempt"]): row for row in found}


def test_each_end_of_a_job_is_told_as_what_it_was(jobs, lake):
    found = {key: (row["state"], row["exit_code"]) for key, row in rows(lake).items()}
    assert found[jobs.done, 0] == ("COMPLETED", 0)
    assert found[jobs.failed, 0] == ("FAILED", 3 << 8)
    assert found[jobs.killed, 0] == ("FAILED", 11)
    assert found[jobs.cancelled, 0][0] == "CANCELLED"
    assert found[jobs.timed_out, 0][0] == "TIMEOUT"
    assert rows(lake)[jobs.cancelled, 0]["kill_user"] == os.getuid()


def test_an_array_s_tasks_are_jobs_of_their_own_with_their_raw_ids(jobs, lake):
    assert set(jobs.tasks) == {0, 1, 2}
    for task, job in jobs.tasks.items():
        row = rows(lake)[job, 0]
        assert (row["array_task_id"], row["exit_code"], row["gpus"]) == (task, task << 8, 2)
        assert row["array_job_id"] in jobs.tasks.values()


def test_a_requeued_job_has_two_attempts_and_the_first_says_so(jobs, lake):
    found = rows(lake)
    first, second = found[jobs.requeued, 0], found[jobs.requeued, 1]
    assert (first["state"], first["state_flags"]) == ("PENDING", 1024)
    assert (second["state"], second["state_flags"]) == ("COMPLETED", 0)
    assert first["end_time"] <= second["submit_time"] <= second["start_time"]
    assert (jobs.requeued, 2) not in found


def test_a_name_of_bars_and_lines_makes_no_job_and_breaks_none(jobs, lake, tmp_path):
    text = jobs.cluster.run(
        *("sacct", "-D", "-P", f"--jobs={joined(jobs)}"),
        "--format=JobIDRaw,JobName,State,ExitCode,Submit,Start,End,ReqCPUS,AllocTRES,Constraints",
        SLURM_TIME_FORMAT="%s",
    )
    assert ODD_NAME in text
    (tmp_path / "sacct.txt").write_text(text)
    by_user = rows(take(tmp_path / "sacct.txt", tmp_path / "lake").lake)
    for key, row in rows(lake).items():
        if key[0] in jobs.ids:
            for column in ("state", "exit_code", "submit_time", "start_time", "end_time", "gpus", "constraints"):
                assert by_user[key][column] == row[column], (key, column)
    assert by_user[jobs.odd, 0]["constraints"] == "blue|green"


def test_a_name_that_plays_a_job_makes_none(jobs, tmp_path):
    slurm = jobs.cluster
    job = slurm.submit("true", f"--job-name={FORGED_NAME}")
    columns = "JobIDRaw,JobName,State,ExitCode,Submit,Start,End,ReqCPUS,AllocTRES,Constraints,Comment"
    ask = ["sacct", "-X", "-P", f"--jobs={job},{jobs.done}", f"--format={columns}"]
    wait_until(lambda: "COMPLETED|0:0|1|2|3" in slurm.run(*ask, SLURM_TIME_FORMAT="%s"), 20, "the job is known")
    (tmp_path / "sacct.txt").write_text(slurm.run(*ask, SLURM_TIME_FORMAT="%s"))
    assert set(rows(take(tmp_path / "sacct.txt", tmp_path / "by-user").lake)) == {(jobs.done, 0)}
    assert collect(jobs, tmp_path / "spool").returncode == 0
    by_us = {each for each, _ in rows(take(tmp_path / "spool", tmp_path / "by-us").lake)}
    assert job in by_us
    assert 999999 not in by_us


def test_the_lake_says_what_scontrol_says(jobs, lake):
    for job in jobs.ids:
        said = jobs.cluster.run("scontrol", "--oneliner", "show", "job", str(job), SLURM_TIME_FORMAT="%s")
        mine = next(record for record in re.split(r"\bJobId=", said) if record.startswith(f"{job} "))
        words = dict(word.split("=", 1) for word in mine.split() if "=" in word)
        row = rows(lake)[job, int(words["Restarts"])]
        assert row["state"] == words["JobState"]
        code, signal = map(int, words["ExitCode"].split(":"))
        if row["state"] in ("COMPLETED", "FAILED"):  # of a job that Slurm ended, the controller learns it later
            assert row["exit_code"] == code << 8 | signal
        for column, word in {"submit_time": "SubmitTime", "start_time": "StartTime", "end_time": "EndTime"}.items():
            assert int(row[column].timestamp()) == int(words[word]), (job, column)
        assert (row["node_list"], row["nodes"]) == (words["NodeList"], int(words["NumNodes"]))
        assert row["cpus"] == int(words["NumCPUs"])
        assert words["UserId"].startswith(f"{row['user']}(")
        tres = dict(pair.split("=") for pair in words["TRES"].split(","))
        assert row["gpus"] == int(tres.get("gres/gpu", 0))
        assert row["gpu_type"] == ("v100" if row["gpus"] else None)
        assert f"{row['mem_mib']}M" == tres["mem"]
        limit = words["TimeLimit"]
        assert row["time_limit_s"] is None or limit != "UNLIMITED"


def test_text_and_json_tell_the_same(jobs):
    which = ["sacct", "-D", "-X", f"--jobs={joined(jobs)}"]
    text = parse_text(jobs.cluster.run(*which, "-P", f"--format={','.join(FORMAT)}", SLURM_TIME_FORMAT="%s"))
    answer = jobs.cluster.run(*which, "--json")
    as_json = parse_json(answer)
    assert text.rejected == as_json.rejected == []
    told = version(json.loads(answer))
    assert told >= (0, 0, 38)
    skip = NOT_IN_OLD_JSON if told <= (0, 0, 38) else {"flags"}
    by_text, by_json = ({(r["job_id"], r["submit_epoch_s"]): r for _, _, r in each.rows} for each in (text, as_json))
    assert by_text.keys() == by_json.keys()
    for key, row in by_text.items():
        for column in by_json[key].keys() - skip:
            assert row.get(column) == by_json[key][column], (key, column)


def test_a_second_look_changes_no_file_and_a_new_job_comes_into_its_day_s(jobs, tmp_path):
    spool = tmp_path / "spool"
    assert collect(jobs, spool).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in (spool / "jobs").iterdir()}
    assert collect(jobs, spool).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (spool / "jobs").iterdir()} == before
    first = set(rows(take(spool, tmp_path / "lake").lake))
    new = jobs.cluster.submit("true")
    told = ["sacct", "-X", "-n", "-P", "--format=State", f"--jobs={new}"]
    wait_until(lambda: jobs.cluster.run(*told).strip() == "COMPLETED", 20, "the new job has ended")

    def sees_it() -> bool:  # a span of time shows a job some seconds later than its number does
        return json.loads(collect(jobs, spool, "--format", "json").stdout)["changed"] > 0

    wait_until(sees_it, 20, "sacct shows the new job")
    second = take(spool, tmp_path / "lake")
    assert second.report.files_refused == 0
    assert set(rows(second.lake)) - first == {(new, 0)}


def test_slurm_listens_to_nobody_outside(slurm_cluster):
    family = [psutil.Process(pid) for pid in slurm_cluster.pids]
    sockets = [each for one in family for each in one.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    assert len(sockets) >= 4
    assert {each.laddr.ip for each in sockets} == {"127.0.0.1"}


def test_a_database_that_is_down_is_one_line_and_the_snapshots_stay(jobs, tmp_path, monkeypatch, capfd):
    spool = tmp_path / "spool"
    assert collect(jobs, spool).returncode == 0
    before = {path: path.read_bytes() for path in (spool / "jobs").iterdir()}
    conf = Path(jobs.cluster.env["SLURM_CONF"]).read_text()
    port = next(line for line in conf.splitlines() if line.startswith("AccountingStoragePort="))
    (tmp_path / "slurm.conf").write_text(conf.replace(port, "AccountingStoragePort=9"))
    for name in ("PATH",):
        monkeypatch.setenv(name, jobs.cluster.env[name])
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    assert run(["collect-slurm", "--spool", str(spool), "--once", "--timeout", "5"]) == 1
    said = capfd.readouterr().err
    assert said.startswith("jobwatt: sacct ")
    assert said.count("\n") == 1
    assert {path: path.read_bytes() for path in (spool / "jobs").iterdir()} == before
