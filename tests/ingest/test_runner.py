from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.cli import run
from ingest import runner as runners
from ingest.errors import JobwattError
from ingest.pipeline import ingest
from ingest.runner import DaskRunner, PoolRunner, Runner, SerialRunner, SlurmRunner, make_slurm_cluster
from ingest.synthetic import make_archive
from tests.lakes import Tables, assert_same_tables, read_tables
from tests.runner_tasks import (
    describe_worker,
    die_at_three,
    double,
    fill_disk_at_zero,
    import_absent,
    sleep,
    sleep_a_minute,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Jobs of one and of several GPUs and nodes, one of them requeued, and a CPU job."""
    root = tmp_path_factory.mktemp("runner") / "archive"
    make_archive(root, rng=5, n_jobs=6, seconds_per_job=(8.0, 30.0), requeued_jobs=1, cpu_only_jobs=1)
    return root


@pytest.fixture(scope="module")
def serial(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """What a lake of the archive holds when one process made it."""
    lake = tmp_path_factory.mktemp("serial") / "lake"
    ingest(str(archive), lake, runner=SerialRunner())
    return read_tables(lake)


def start_dask(workers: int) -> Any:
    """Return a new dask cluster of so many processes."""
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    )


@pytest.fixture(scope="module")
def dask_cluster() -> Iterator[Any]:
    """A dask cluster of two processes."""
    with start_dask(2) as cluster:
        yield cluster


def wait_until_gone(processes: list[psutil.Process], within_s: float) -> list[psutil.Process]:
    """Return those that still run when the time is up; a zombie does not."""
    until = time.monotonic() + within_s
    alive = processes
    while alive and time.monotonic() < until:
        alive = [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        time.sleep(0.01)
    return alive


# -- the same work anywhere --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [SerialRunner, lambda: PoolRunner(2)], ids=["serial", "pool"])
def test_every_spec_has_its_result(make):
    with make() as runner:
        assert sorted(runner.map(double, range(20))) == list(range(0, 40, 2))
        assert list(runner.map(double, [])) == []


def test_a_pool_makes_the_same_lake_as_one_process(archive, serial, tmp_path):
    with PoolRunner(2) as runner:
        ingest(str(archive), tmp_path / "lake", runner=runner)
    assert_same_tables(read_tables(tmp_path / "lake"), serial)


def test_a_dask_cluster_of_separate_processes_makes_the_same_lake(archive, serial, dask_cluster, tmp_path):
    with DaskRunner(dask_cluster.scheduler_address) as runner:
        assert runner.workers == 2
        workers = {pid for pid, *_ in runner.map(describe_worker, range(8))}
        assert len(workers) == 2
        assert os.getpid() not in workers
        ingest(str(archive), tmp_path / "lake", runner=runner)
    assert_same_tables(read_tables(tmp_path / "lake"), serial)


def test_the_command_line_works_on_a_running_dask_cluster(archive, serial, dask_cluster, tmp_path):
    arguments = [str(archive), "--lake", str(tmp_path / "lake"), "--scheduler", dask_cluster.scheduler_address]
    command = [Path(sys.executable).with_name("jobwatt"), "lake", "ingest", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert_same_tables(read_tables(tmp_path / "lake"), serial)


@pytest.mark.parametrize("make", [PoolRunner, SlurmRunner])
def test_no_workers_are_a_wrong_argument(make):
    with pytest.raises(ValueError, match="workers is 0; give 1 or more"):
        make(0)


# -- local processes ---------------------------------------------------------------------------------------------------


def test_local_workers_have_one_thread_each_and_leave_ctrl_c_to_their_parent(monkeypatch):
    monkeypatch.setenv("POLARS_MAX_THREADS", "7")
    with PoolRunner(2) as runner:
        workers = list(runner.map(describe_worker, range(8)))
    assert len({pid for pid, _, _ in workers}) == 2
    assert {(threads, hears) for _, threads, hears in workers} == {("1", False)}
    assert os.environ["POLARS_MAX_THREADS"] == "7"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_warming_up_starts_every_worker_and_waits_for_none():
    with PoolRunner(2) as runner:
        before = set(psutil.Process().children())
        began = time.monotonic()
        runner.warm(sleep)
        assert time.monotonic() - began < 0.5
        started = set(psutil.Process().children()) - before
        assert sum("spawn_main" in " ".join(process.cmdline()) for process in started) == 2
        assert sorted(runner.map(double, range(3))) == [0, 2, 4]


def test_closing_waits_for_no_worker_that_still_warms_up():
    with PoolRunner(2) as runner:
        before = set(psutil.Process().children())
        runner.warm(sleep_a_minute)
        started = list(set(psutil.Process().children()) - before)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert wait_until_gone(started, 2) == []


def test_a_killed_worker_is_one_clear_error_and_the_runner_can_be_used_again():
    with PoolRunner(2) as runner:
        with pytest.raises(JobwattError, match=r"^a worker process was killed \(out of memory\?\)"):
            list(runner.map(die_at_three, range(6)))
        assert sorted(runner.map(double, range(3))) == [0, 2, 4]


def test_nobody_writes_any_more_when_a_task_has_failed(tmp_path):
    with PoolRunner(2) as runner:
        with pytest.raises(OSError, match="No space left"):
            list(runner.map(fill_disk_at_zero, [str(tmp_path / f"file-{i}") for i in range(4)]))
        written = {path: path.read_text() for path in tmp_path.iterdir()}
        time.sleep(0.1)
        assert written
        assert {path: path.read_text() for path in tmp_path.iterdir()} == written


def test_nobody_works_any_more_when_the_results_are_no_longer_wanted():
    with PoolRunner(2) as runner:
        pids = {pid for pid, *_ in runner.map(describe_worker, range(8))}
        workers = [psutil.Process(pid) for pid in pids]
        results = runner.map(sleep, [0.0, 60.0, 60.0])
        assert next(results) == 0.0
        results.close()  # type: ignore[attr-defined]
        assert wait_until_gone(workers, 2) == []


_POOL_SCRIPT = """
import sys
from ingest.runner import PoolRunner
from tests.runner_tasks import describe_worker, sleep

if __name__ == "__main__":
    with PoolRunner(2) as runner:
        try:
            if "--pids" in sys.argv:
                print(*{pid for pid, *_ in runner.map(describe_worker, range(8))}, flush=True)
            print("go", flush=True)
            list(runner.map(sleep, [60.0] * 4))
        except KeyboardInterrupt:
            sys.exit(130)
"""


def start_pool(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    script = folder / "script.py"
    script.write_text(_POOL_SCRIPT)
    return subprocess.Popen(
        [sys.executable, script, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.05, 0.1, 0.3])
def test_ctrl_c_while_workers_start_ends_all_of_them_without_a_word(after_s, tmp_path):
    with start_pool(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        time.sleep(after_s)
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everybody
        _, said = process.communicate(timeout=10)
    assert (process.returncode, said) == (130, "")
    assert wait_until_gone(children, 2) == []


def test_workers_die_with_a_parent_that_is_killed(tmp_path):
    with start_pool(tmp_path, "--pids") as process:
        assert process.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        assert process.stdout.readline() == "go\n"
        process.kill()
        assert len(workers) == 2
        assert wait_until_gone(workers, 2) == []


# -- dask --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mute_port() -> Iterator[int]:
    """A port at which somebody listens and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.mark.parametrize("where", ["refused", "mute", "tcp://no-such-host.invalid:8786", "nonsense", "foo://host:1"])
def test_an_address_without_a_scheduler_is_said_in_one_line_and_soon(where, mute_port, tmp_path, monkeypatch, capfd):
    assert runners.CONNECT_TIMEOUT_S <= 20
    monkeypatch.setattr(runners, "CONNECT_TIMEOUT_S", 0.5)
    address = {"refused": "tcp://127.0.0.1:9", "mute": f"tcp://127.0.0.1:{mute_port}"}.get(where, where)
    began = time.monotonic()
    assert run(["lake", "ingest", str(tmp_path), "--lake", str(tmp_path / "lake"), "--scheduler", address]) == 1
    assert time.monotonic() - began < 3
    gc.collect()  # a half-made client would complain now
    said = capfd.readouterr().err
    assert said.startswith(f"jobwatt: no dask scheduler answers at {address} (")
    assert said.count("\n") == 1
    assert not (tmp_path / "lake").exists()


def test_a_dask_cluster_with_another_jobwatt_is_one_clear_error(dask_cluster, monkeypatch):
    monkeypatch.setattr(runners, "_own_version", lambda: "9.9")
    with pytest.raises(JobwattError, match=r"^the scheduler of the dask cluster at .* has jobwatt .*; install 9.9"):
        DaskRunner(dask_cluster.scheduler_address)


def test_a_module_that_dask_workers_lack_is_one_clear_error(dask_cluster):
    with (
        DaskRunner(dask_cluster.scheduler_address) as runner,
        pytest.raises(JobwattError, match="have no module no_such_module; install this version of jobwatt there"),
    ):
        list(runner.map(import_absent, [1]))


@pytest.mark.slow
def test_a_task_that_kills_its_dask_workers_is_one_clear_error(monkeypatch):
    from distributed.config import config

    monkeypatch.setitem(config["distributed"]["scheduler"], "allowed-failures", 0)
    with (
        start_dask(1) as cluster,
        DaskRunner(cluster.scheduler_address) as runner,
        pytest.raises(JobwattError, match="every dask worker that took one of the tasks died"),
    ):
        list(runner.map(die_at_three, range(6)))


@pytest.mark.slow
def test_a_dask_scheduler_that_goes_away_is_one_clear_error():
    with start_dask(1) as cluster:
        runner: Runner = DaskRunner(cluster.scheduler_address)
        results = runner.map(sleep, [0.0, 60.0])
        assert next(results) == 0.0
        cluster.close()
        with pytest.raises(JobwattError, match="went away before all was done"):
            next(results)
        runner.close()


# -- Slurm -------------------------------------------------------------------------------------------------------------

_SBATCH = """#!/bin/sh
# Slurm's sbatch as far as dask-jobqueue knows it: the job is a process on this machine
if [ "$1" = --test-only ]; then cat >/dev/null; {answer}; exit; fi
number=$$
cp "$1" {folder}/jobs/$number
setsid bash {folder}/jobs/$number >{folder}/log-$number 2>&1 &
echo $! >{folder}/pid-$number
echo "Submitted batch job $number"
"""

_SCANCEL = """#!/bin/sh
for number; do kill -9 -- -$(cat {folder}/pid-$number); done
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put an sbatch and an scancel first that run jobs as local processes; give the folder of what was submitted."""
    (tmp_path / "jobs").mkdir()
    for name, text in (("sbatch", _SBATCH), ("scancel", _SCANCEL)):
        (tmp_path / name).write_text(text.format(folder=tmp_path, answer="exit 0"))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for file in tmp_path.glob("pid-*"):
        if psutil.pid_exists(int(file.read_text())):
            os.killpg(int(file.read_text()), signal.SIGKILL)


def listening(process: psutil.Process) -> set[str]:
    """Return the addresses at which a process and its children listen."""
    family = [process, *process.children(recursive=True)]
    sockets = [each for one in family for each in one.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    return {each.laddr.ip for each in sockets}


def test_a_slurm_job_is_one_process_of_one_thread_with_its_own_settings():
    with make_slurm_cluster(interface="lo", queue="gpu", memory="2GB", walltime="00:10:00") as cluster:
        script = cluster.job_script()
    assert "#SBATCH -p gpu\n" in script
    assert "#SBATCH --cpus-per-task=1\n" in script
    assert "#SBATCH --mem=2G\n" in script
    assert "#SBATCH -t 00:10:00\n" in script
    for name in ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "ARROW_IO_THREADS"):
        assert f"\nexport {name}=1\n" in script
    command = script.strip().splitlines()[-1]
    assert command.startswith(f"{sys.executable} -m distributed.cli.dask_worker tcp://127.0.0.1:")
    assert " --nthreads 1 " in command
    assert " --nworkers" not in command
    assert command.endswith("--dashboard-address 127.0.0.1:0 --interface lo")


def test_a_site_s_own_settings_for_slurm_are_kept(monkeypatch):
    from dask_jobqueue import SLURMCluster
    from distributed.config import config

    assert SLURMCluster is not None  # its import brings the settings' defaults
    site = config["jobqueue"]["slurm"]
    for name, value in {
        "cores": 4,
        "memory": "6GB",
        "queue": "short",
        "job-script-prologue": ["module load x"],
    }.items():
        monkeypatch.setitem(site, name, value)
    with make_slurm_cluster(interface="lo") as cluster:
        script = cluster.job_script()
    assert "#SBATCH -p short\n" in script
    assert "#SBATCH --cpus-per-task=4\n" in script
    assert "#SBATCH --mem=6G\n" in script
    assert "\nmodule load x\nexport POLARS_MAX_THREADS=1\n" in script
    assert " --nthreads 1 " in script
    assert " --nworkers 4 " in script


@pytest.mark.slow
def test_workers_that_are_slurm_jobs_make_the_same_lake_and_listen_to_nobody_outside(archive, serial, slurm):
    with SlurmRunner(2, interface="lo") as runner:
        assert runner.workers == 2
        workers = {pid for pid, *_ in runner.map(describe_worker, range(20))}
        assert os.getpid() not in workers
        jobs = [psutil.Process(int(file.read_text())) for file in slurm.glob("pid-*")]
        assert len(jobs) == 2
        assert set.union(*(listening(process) for process in [psutil.Process(), *jobs])) == {"127.0.0.1"}
        ingest(str(archive), slurm / "lake", runner=runner)
    assert_same_tables(read_tables(slurm / "lake"), serial)
    assert wait_until_gone(jobs, 5) == []


def test_no_slurm_is_said_in_one_line(archive, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(["lake", "ingest", str(archive), "--lake", str(tmp_path / "lake"), "--slurm"]) == 1
    assert capfd.readouterr().err == (
        "jobwatt: there is no sbatch on this machine; run it where Slurm is, or leave --slurm out\n"
    )


def test_a_job_that_slurm_refuses_is_said_in_one_line_with_slurm_s_reason(archive, slurm, capfd):
    refusal = "allocation failure: Invalid partition name specified"
    (slurm / "sbatch").write_text(_SBATCH.format(folder=slurm, answer=f"echo {refusal} >&2; exit 1"))
    assert run(["lake", "ingest", str(archive), "--lake", str(slurm / "lake"), "--slurm"]) == 1
    said = capfd.readouterr().err
    assert said.startswith(f"jobwatt: Slurm refuses a worker's job ({refusal})")
    assert said.count("\n") == 1
    assert list((slurm / "jobs").iterdir()) == []
