"""One job of several process trees, as data-parallel ranks are: real processes, and what the kernel says they used."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ingest.collectors.process import ProcessCollector
from ingest.collectors.service import Plan, Service
from ingest.collectors.spool import Spool
from tests.recorded_proc import Told, write_cgroup, write_process, write_uptime
from tests.spools import open_spool, read_rows

BURN = "import sys, time\nwhile time.process_time() < {cpu_s}: pass\nprint(flush=True)\nsys.stdin.read({then})"


@contextmanager
def burning(*cpu_s: float, then: str = "1") -> Iterator[list[subprocess.Popen[str]]]:
    """Run ranks that use so much CPU, say that they did, and wait for a letter, or end at once."""
    code = [BURN.format(cpu_s=each, then=then) for each in cpu_s]
    pipe = subprocess.PIPE
    ranks = [subprocess.Popen([sys.executable, "-c", each], stdin=pipe, stdout=pipe, text=True) for each in code]
    try:
        yield ranks
    finally:
        for rank in ranks:
            if rank.returncode is None:
                rank.kill()
            rank.communicate()


def wait_for_cpu(rank: subprocess.Popen[str]) -> None:
    assert rank.stdout is not None
    assert rank.stdout.readline() == "\n"


def reap(rank: subprocess.Popen[str]) -> float:
    """Wait for a rank, and return the CPU seconds that the kernel counted."""
    _, status, usage = os.wait4(rank.pid, 0)
    rank.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def test_two_ranks_are_one_job_whose_intervals_add_up_to_what_both_used(tmp_path):
    """One ends long before the other, and is waited for as a launcher does."""
    plan = Plan(process_interval_s=0.1, node_interval_s=0)
    with Service(Spool(tmp_path, "n1"), None, plan) as service, burning(0.3, 0.6) as (short, long):
        service.begin_job(7, short.pid, (0,))
        service.begin_job(7, long.pid, (1,))
        assert service.jobs.assigned == {0: 7, 1: 7}
        wait_for_cpu(short)
        short.kill()
        os.waitid(os.P_PID, short.pid, os.WEXITED | os.WNOWAIT)
        time.sleep(0.3)  # it is seen as a zombie
        used_s = reap(short)
        wait_for_cpu(long)
        time.sleep(0.3)
        service.end_job(7)
        service.end_job(7)  # a second end of the same job is none
        assert service.jobs.assigned == {}
        long.kill()
        used_s += reap(long)
    rows = read_rows(tmp_path, "process")
    assert len(rows) > 5
    assert {(row["id_job"], row["Step"], row["Series"]) for row in rows} == {("7", "batch", "Task_0")}
    told_s = [float(row["CPUTime"] or 0) for row in rows]
    assert min(told_s) >= 0
    assert sum(told_s) == pytest.approx(used_s, abs=0.05)
    assert float(rows[0]["RSS"]) > 1.5 * float(rows[-1]["RSS"])  # two interpreters, then one


def test_a_rank_that_ran_long_before_it_joined_the_job_makes_no_spike(tmp_path):
    with burning(0.1, 0.8) as (first, second):
        wait_for_cpu(second)
        spool = Spool(tmp_path, "n1")
        collector = ProcessCollector(spool)
        time.sleep(0.05)
        collector.begin()
        collector.add(7, first.pid)
        collector.tick()
        collector.add(7, second.pid)
        time.sleep(0.2)
        collector.tick()
        collector.finish(7)
        spool.close()
    told_s = [float(row["CPUTime"] or 0) for row in read_rows(tmp_path, "process")]
    assert sum(told_s) < 0.5
    assert len(told_s) == 3


def test_a_rank_that_is_its_launchers_child_is_counted_once(tmp_path):
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN.format(cpu_s=0.3, then=1)!r}])"
    spool = Spool(tmp_path, "n1")
    collector = ProcessCollector(spool)
    collector.begin()
    time.sleep(0.05)
    launcher = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        collector.add(7, launcher.pid)
        wait_for_cpu(launcher)
        (rank,) = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        collector.add(7, int(rank))
        collector.tick()
        collector.finish(7)
        spool.close()
        os.killpg(launcher.pid, 9)
    finally:
        launcher.kill()
        launcher.communicate()
    rows = read_rows(tmp_path, "process")
    assert 0.3 <= sum(float(row["CPUTime"] or 0) for row in rows) < 0.55


STEP = "system.slice/n1_slurmstepd.scope/job_42/step_0/user/task_3"


def told(root: Path, *, job_id: int, with_slurm: bool = True) -> list[tuple[str, str, str]]:
    """The rows of one look at a step of job 42 that has a labelled run (10, 11) and a stranger (12), and at job 43."""
    proc, tree = root / "proc", root / "sys"
    write_uptime(proc, 1000.0)
    collector = ProcessCollector(open_spool(root / "spool"), proc, tree, with_slurm=with_slurm)
    collector.begin()
    write_cgroup(tree, f"fs/cgroup/{STEP}", [10, 11, 12])
    write_cgroup(tree, "fs/cgroup/system.slice/n1_slurmstepd.scope/job_43/step_batch/user/task_0", [20])
    for pid, parent in ((10, 1), (11, 10), (12, 1), (20, 1)):
        write_process(proc, Told(pid, parent=parent, started_s=1001.0, cpu_s=float(pid), cgroup=f"0::/{STEP}"))
    collector.add(job_id, 10)
    write_uptime(proc, 1040.0)
    collector.tick()
    collector.spool.close()
    rows = read_rows(root / "spool", "process")
    return sorted((row["id_job"], f"{row['Step']}/{row['Series']}", row["CPUTime"]) for row in rows)


def test_a_labelled_run_in_a_step_is_told_under_that_step_and_task_and_each_of_its_processes_once(tmp_path):
    other = ("43", "batch/Task_0", "20.00")
    assert told(tmp_path, job_id=42) == [("42", "0/Task_3", "21.00"), other]


def test_a_run_under_a_number_of_its_own_takes_its_processes_from_the_slurm_job_s(tmp_path):
    assert told(tmp_path, job_id=7) == [
        ("42", "0/Task_3", "12.00"),
        ("43", "batch/Task_0", "20.00"),
        ("7", "batch/Task_0", "21.00"),
    ]


def test_without_slurm_only_what_was_started_here_is_told(tmp_path):
    assert told(tmp_path, job_id=42, with_slurm=False) == [("42", "0/Task_3", "21.00")]


def test_a_job_that_ended_while_it_waited_for_a_look_stays_ended(tmp_path):
    write_uptime(tmp_path / "proc", 1000.0)
    write_process(tmp_path / "proc", Told(10, started_s=1001.0, cpu_s=1.0))
    collector = ProcessCollector(open_spool(tmp_path / "spool"), tmp_path / "proc", tmp_path / "sys")
    with collector._looking:  # as while a look hangs
        adding = threading.Thread(target=collector.add, args=(7, 10), daemon=True)
        adding.start()
        while not collector._asked:
            time.sleep(0.001)
        collector.finish(7)
    adding.join(10)
    collector.tick()
    collector.spool.close()
    assert read_rows(tmp_path / "spool", "process") == []
