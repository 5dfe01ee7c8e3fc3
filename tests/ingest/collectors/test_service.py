"""Whole collectors as processes: started, stopped, killed, and what is in the spool afterwards."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from ingest.collectors import run
from ingest.collectors.replay import ReplayBackend, read_recording
from ingest.collectors.run import Options, collect_run, report_lines
from ingest.collectors.service import Plan, Service
from ingest.collectors.spool import SYNC_S, Spool
from ingest.errors import HardwareError, SpoolError
from ingest.lake import Lake
from ingest.pipeline import ingest
from tests.recorded_gpus import write_recording
from tests.recorded_proc import write_cgroup
from tests.spools import read_rows

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Two GPUs, an hour of which can be played without one being lost."""
    return write_recording(tmp_path_factory.mktemp("recording"), silent=(9e9, 9e9))


def command(spool: Path, recording: Path | None, *more: str) -> list[str]:
    words = [sys.executable, "-m", "ingest.collectors", "--spool", str(spool), "--node", "n1", *more]
    return words if recording is None else [*words, "--replay", str(recording)]


@contextmanager
def running(words, **environment):
    """Run a collector; it is killed at the end where it has not ended by then."""
    process = subprocess.Popen(
        words, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **environment}
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(condition, seconds: float = 20.0) -> None:
    deadline_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come about in time"
        time.sleep(0.02)


def has_rows(spool: Path) -> bool:
    return any(path.stat().st_size > 2000 for path in spool.glob("gpu/*"))


def has_begun(spool: Path, before: set[str]) -> bool:
    """Whether a segment that was not there before has a row."""
    return any(path.name not in before and path.read_bytes().count(b"\n") > 1 for path in spool.glob("gpu/*.open"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_with_every_segment_closed(tmp_path, recording, number):
    spool = tmp_path / "spool"
    with running(command(spool, recording, "--process-interval", "1", "--node-interval", "1")) as process:
        wait_for(lambda: has_rows(spool))
        asked_s = time.time()
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")
    assert not list(spool.glob("*/*.open"))
    assert [row["event"] for row in read_rows(spool, "events")][-1] == "stop"
    last_s = max(float(row["timestamp"]) for row in read_rows(spool, "gpu"))
    assert asked_s - last_s < 0.5
    assert {row["gpu_index"] for row in read_rows(spool, "devices")} == {"0", "1"}
    assert float(read_rows(spool, "node")[0]["LoadAvg"]) >= 0


def test_a_burst_of_signals_ends_it_as_one_does(tmp_path, recording):
    spool = tmp_path / "spool"
    with running(command(spool, recording, "--process-interval", "0")) as process:
        wait_for(lambda: has_rows(spool))
        for _ in range(300):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.00005)
        process.communicate(timeout=10)
    assert not list(spool.glob("*/*.open"))


@pytest.mark.slow
def test_twenty_kills_lose_at_most_five_seconds_each_and_never_break_the_spool(tmp_path, recording):
    spool = tmp_path / "spool"
    killed_s: list[float] = []
    for number in range(20):
        with running(command(spool, recording, "--gpu-interval", "0.02", "--process-interval", "0.5")) as process:
            began = {path.name for path in spool.glob("gpu/*")}
            wait_for(lambda began=began: has_begun(spool, began))
            time.sleep(SYNC_S * number / 20)
            process.kill()
            process.wait()
            killed_s.append(time.time())
        for path in spool.glob("*/*.csv"):
            assert path.read_bytes().endswith(b"\n")
    with running(command(spool, recording, "--duration", "0.5")) as process:
        assert process.wait(20) == 0
    assert not list(spool.glob("*/*.open"))
    rows = read_rows(spool, "gpu")
    starts = sorted({name.name[:30] for name in spool.glob("gpu/*.csv")})
    assert len(starts) == 21
    for start, end_s in zip(starts, killed_s, strict=False):
        last_s = max(float(row["timestamp"]) for row in read_rows(spool, "gpu", f"{start}*.csv"))
        assert end_s - last_s < 5.0
    assert len(rows) == len({(row["timestamp"], row["gpu_index"]) for row in rows})
    for kind in ("events", "devices", "process"):
        read_rows(spool, kind)


def test_without_a_driver_there_is_one_line_code_1_and_no_spool(tmp_path):
    words = command(tmp_path / "spool", None)
    # no library of that name can be loaded from an empty folder; where there is one, this machine has a driver
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)
    if done.returncode == 0 or "no NVIDIA driver" not in done.stderr:
        pytest.skip("this machine has an NVIDIA driver")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "no NVIDIA driver answers" in done.stderr
    assert not (tmp_path / "spool").exists()


def test_a_node_without_gpus_is_collected_with_gpu_interval_0(tmp_path):
    words = command(tmp_path, None, "--gpu-interval", "0", "--node-interval", "1", "--duration", "0.3")
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(read_rows(tmp_path, "node")) == 1
    assert not (tmp_path / "gpu").exists()


def test_a_second_collector_says_who_has_the_spool_and_leaves_the_first_alone(tmp_path, recording):
    with running(command(tmp_path, recording)) as process:
        wait_for(lambda: has_rows(tmp_path))
        done = subprocess.run(command(tmp_path, recording), capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 1
        assert f'"pid": {process.pid}' in done.stderr
        process.terminate()
        assert process.wait(20) == 0


def test_times_are_utc_whatever_the_time_zone(tmp_path, recording):
    before_s = time.time()
    with running(command(tmp_path, recording, "--duration", "0.5"), TZ="Asia/Kathmandu") as process:
        assert process.wait(20) == 0
    (segment,) = tmp_path.glob("gpu/*.csv")
    stamp = segment.name.split("-")[1]
    named_s = time.mktime(time.strptime(stamp[:15], "%Y%m%dT%H%M%S")) - time.timezone
    assert abs(named_s - before_s) < 20
    assert all(0 <= float(row["timestamp"]) - before_s < 20 for row in read_rows(tmp_path, "gpu"))


def test_a_labelled_run_has_its_job_label_samples_and_exit_code(tmp_path, recording):
    words = command(tmp_path, recording, "--process-interval", "0.3", "--label", "burn")
    done = subprocess.run(
        [*words, "--", "sh", "-c", "echo $JOBWATT_JOB_ID; sleep 1; exit 3"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "1"},
    )
    assert done.returncode == 3
    job_id = done.stdout.strip()
    assert 1.9e14 < int(job_id) < 2**53
    (label,) = read_rows(tmp_path, "labels")
    assert (label["id_job"], label["model"]) == (job_id, "burn")
    (job,) = read_rows(tmp_path, "jobs")
    assert (job["id_job"], job["state"], job["exit_code"], job["nodelist"]) == (job_id, "5", "768", "['n1']")
    assert job["tres_alloc"].endswith("node=1,gres/gpu=1")
    assert float(job["time_end"]) - float(job["time_start"]) == pytest.approx(1.0, abs=0.9)
    carried = {(row["gpu_index"], row["job_id"]) for row in read_rows(tmp_path, "gpu")}
    assert ("1", job_id) in carried
    assert ("0", "") in carried
    assert ("0", job_id) not in carried
    assert len(read_rows(tmp_path, "process")) >= 3
    assert "GPU 1:" in done.stderr
    assert "J by counter" in done.stderr
    assert "gap " in done.stderr


def test_a_gpu_that_is_lost_is_one_line_on_standard_error(tmp_path):
    recording = write_recording(tmp_path / "recording", silent=(0.3, 9e9))
    done = subprocess.run(
        command(tmp_path / "spool", recording, "--duration", "2.5"),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0
    assert re.fullmatch(r"jobwatt: GPU 1: [^\n]+ \[gpu_lost\]\n", done.stderr)


def test_a_gpu_that_is_not_there_is_refused_before_the_command_runs(tmp_path, recording):
    options = Options(tmp_path / "spool", "n1", replay=recording)
    with pytest.raises(HardwareError, match=r"no GPU 7 here; this collector has 0, 1: give --gpus of those"):
        collect_run(options, "x", ["touch", str(tmp_path / "ran")], gpus=(0, 7))
    assert not (tmp_path / "ran").exists()
    assert read_rows(tmp_path / "spool", "labels") == []


@pytest.mark.parametrize("listed", ["MIG-1a2b", "", "elsewhere"])
def test_a_labelled_run_of_which_no_gpu_is_known_says_so_with_what_the_variable_is(
    tmp_path, recording, monkeypatch, listed
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    options = Options(tmp_path, "n1", Plan(process_interval_s=0, node_interval_s=0), replay=recording)
    report = collect_run(options, "x", ["sleep", "0.3"])
    (line,) = report_lines(report)[1:]
    assert line == (
        f"no GPU is counted as the run's: CUDA_VISIBLE_DEVICES is {listed!r}, and those seen here are 0, 1; give --gpus"
    )
    assert collect_run(Options(tmp_path, "n1", Plan(gpu_interval_s=0)), "x", ["true"]).notices == ()


def test_a_labelled_run_names_its_gpu_that_gave_no_sample(tmp_path, monkeypatch):
    recording = write_recording(tmp_path / "recording", silent=(0.0, 9.0))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    options = Options(tmp_path / "spool", "n1", Plan(process_interval_s=0, node_interval_s=0), replay=recording)
    report = collect_run(options, "x", ["sleep", "0.5"], gpus=(0, 1))
    assert report.gpus == (0, 1)
    first, second = report_lines(report)[1:]
    assert first.startswith("GPU 0: ")
    assert "J by counter" in first
    assert second.startswith("GPU 1: no sample (lost: nothing is recorded")


def test_without_jobwatt_a_run_s_gpus_can_be_given_and_need_a_label(tmp_path, recording):
    for more, code, says in (
        (("--gpus", "1", "--label", "x", "--", "sleep", "0.5"), 0, "GPU 1: "),
        (("--gpus", "one", "--label", "x", "--", "true"), 1, "give numbers, as in 0,1"),
        (("--gpus", "1"), 2, "need --label NAME"),
        (("--", "true"), 2, "need --label NAME"),
    ):
        words = [*command(tmp_path, recording), *more]
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
        assert (done.returncode, says in done.stderr) == (code, True), done.stderr
        assert "GPU 0: " not in done.stderr


def test_ending_a_labelled_run_ends_the_command_and_says_so(tmp_path, recording):
    with running([*command(tmp_path, recording, "--label", "x"), "--", "sleep", "30"]) as process:
        wait_for((tmp_path / "labels").exists)
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM
    (job,) = read_rows(tmp_path, "jobs")
    assert (job["state"], job["exit_code"]) == ("4", "15")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ending_a_labelled_run_ends_what_its_command_started(tmp_path, number):
    words = [*command(tmp_path / "spool", None, "--gpu-interval", "0", "--label", "x"), "--", "bash", "-c"]
    with running([*words, f"sleep 60 & echo $! > {tmp_path}/child; wait; true"]) as process:
        wait_for(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text())
        child = Path("/proc") / (tmp_path / "child").read_text().strip()
        assert child.exists()
        process.send_signal(number)
        assert process.wait(20) == 128 + signal.SIGTERM
    wait_for(lambda: not child.exists() or ") Z " in (child / "stat").read_text())


def test_inside_a_slurm_job_a_labelled_run_is_that_job_and_the_scheduler_tells_of_it(tmp_path, recording):
    words = [*command(tmp_path, recording, "--label", "x"), "--", "true"]
    done = subprocess.run(words, cwd=ROOT, check=False, env={**os.environ, "SLURM_JOB_ID": "4242"}, capture_output=True)
    assert done.returncode == 0
    assert [row["id_job"] for row in read_rows(tmp_path, "labels")] == ["4242"]
    assert not (tmp_path / "jobs").exists()


def run_labels(spool: Path, *labels: str, slurm_id: str, **more: str) -> list[str]:
    """Run a command under each label, one after the other, and return what each said at its end."""
    said = []
    for label in labels:
        words = [*command(spool, None, "--gpu-interval", "0", "--label", label), "--", "true"]
        environment = {**os.environ, "SLURM_JOB_ID": slurm_id, **more}
        done = subprocess.run(words, cwd=ROOT, check=True, env=environment, capture_output=True, text=True)
        said.append(done.stderr)
    return said


def test_a_second_label_in_a_slurm_job_is_a_job_of_its_own_and_the_same_one_again_is_not(tmp_path):
    *_, same, other = run_labels(tmp_path, "a", "a", "b", slurm_id="4242")
    first, second = read_rows(tmp_path, "labels")
    assert (first["id_job"], first["model"], second["model"]) == ("4242", "a", "b")
    assert int(second["id_job"]) > 1e14
    (job,) = read_rows(tmp_path, "jobs")
    assert job["id_job"] == second["id_job"]
    assert "already" not in same
    assert f"job {job['id_job']} (b)" in other
    assert "Slurm's job 4242 is labelled 'a' in this spool already: this run is a job of its own" in other


def test_two_labels_of_a_slurm_job_both_come_into_the_lake(tmp_path):
    run_labels(tmp_path / "spool", "a", "a", "b", slurm_id="4242")
    report = ingest(str(tmp_path / "spool"), tmp_path / "lake")
    assert (report.rows_quarantined, report.files_refused) == (0, 0)
    labels = Lake(tmp_path / "lake").scan("labels").collect()
    assert sorted(labels["label"]) == ["a", "b"]


def test_a_label_of_a_run_that_was_killed_is_known_to_the_next_one(tmp_path):
    spool = tmp_path / "spool"
    words = [*command(spool, None, "--gpu-interval", "0", "--label", "a"), "--", "sleep", "60"]
    process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, "SLURM_JOB_ID": "4242"}, start_new_session=True)
    try:
        wait_for((spool / ".labelled-jobs.json").exists)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    (said,) = run_labels(spool, "b", slurm_id="4242")
    assert "is labelled 'a' in this spool already" in said
    report = ingest(str(spool), tmp_path / "lake")
    assert (report.rows_quarantined, report.files_refused) == (0, 0)
    assert sorted(Lake(tmp_path / "lake").scan("labels").collect()["label"]) == ["a", "b"]


def test_a_step_on_two_nodes_has_its_label_in_the_lake_once(tmp_path):
    reports = []
    for node in ("0", "1"):
        run_labels(tmp_path / node, "a", slurm_id="4242", SLURM_NODEID=node)
        reports.append(ingest(str(tmp_path / node), tmp_path / "lake"))
    assert [(report.rows_quarantined, report.files_refused) for report in reports] == [(0, 0), (0, 0)]
    labels = Lake(tmp_path / "lake").scan("labels").collect()
    assert labels.select("job_id", "label").rows() == [(4242, "a")]
    (other,) = run_labels(tmp_path / "1", "b", slurm_id="4242", SLURM_NODEID="1")
    assert "is labelled 'a' in this spool already" in other


def test_a_slurm_job_number_that_is_none_is_no_slurm_job(tmp_path):
    run_labels(tmp_path, "a", slurm_id="none")
    (label,) = read_rows(tmp_path, "labels")
    (job,) = read_rows(tmp_path, "jobs")
    assert label["id_job"] == job["id_job"]
    assert int(job["id_job"]) > 1e14


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--node-interval", "0.0001"), "an interval is below 0.001 s"),
        (("--gpu-interval", "0", "--process-interval", "0", "--node-interval", "0"), "all intervals are 0"),
        (("--gpu-interval", "-1"), "an interval is below 0"),
        (("--process-interval", "nan"), "no number"),
        (("--label", "x"), "--label needs the COMMAND"),
        (("--label", "", "--", "true"), "the label is empty"),
        (("--label", "x", "--duration", "1", "--", "true"), "--duration is for collecting until stopped"),
    ],
)
def test_intervals_at_which_nothing_could_be_collected_are_refused_and_nothing_is_written(
    tmp_path, capsys, words, says
):
    with pytest.raises(SystemExit) as ended:
        run.main(["--spool", str(tmp_path / "spool"), *words])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "spool").exists()


def test_a_disk_that_fills_up_stops_collecting_with_one_line_and_keeps_what_was_written(tmp_path, recording):
    words = ["sh", "-c", 'ulimit -f 40; exec "$@"', "sh", *command(tmp_path, recording, "--gpu-interval", "0.002")]
    with running(words) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert len(errors.splitlines()) == 1
    assert "no space left" in errors
    assert len(read_rows(tmp_path, "gpu")) > 100
    assert not list(tmp_path.glob("*/*.open"))


def test_a_full_disk_does_not_end_the_command_of_a_labelled_run(tmp_path, recording):
    words = command(tmp_path, recording, "--gpu-interval", "0.002", "--label", "x")
    words = ["sh", "-c", 'ulimit -f 40; exec "$@"', "sh", *words, "--", "sh", "-c", "sleep 4; echo done"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "done\n")
    assert "collecting failed" in done.stderr
    assert "no space left" in done.stderr


def test_after_a_full_disk_a_signal_still_ends_the_command(tmp_path, recording):
    words = command(tmp_path, recording, "--gpu-interval", "0.002", "--label", "x")
    with running(["sh", "-c", 'ulimit -f 40; exec "$@"', "sh", *words, "--", "sleep", "30"]) as process:
        time.sleep(5)
        process.terminate()
        _, errors = process.communicate(timeout=40)
    assert process.returncode == 128 + signal.SIGTERM
    assert "collecting failed" in errors


@pytest.mark.system
def test_a_really_full_disk_keeps_every_row_that_was_synced(tmp_path, recording):
    mount = tmp_path / "small"
    mount.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(mount)], check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting a file system is not permitted here")
    try:
        with running(command(mount / "spool", recording, "--gpu-interval", "0.002")) as process:
            _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "no space left" in errors
        assert len(read_rows(mount / "spool", "gpu")) > 500
        assert not list(mount.glob("spool/*/*.open"))
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_several_jobs_on_one_service_keep_their_own_gpus_and_processes(tmp_path, recording):
    backend = ReplayBackend(read_recording(recording))
    with Service(Spool(tmp_path, "n1"), backend, Plan(process_interval_s=0.2)) as service:
        children = {job: subprocess.Popen(["sleep", "30"]) for job in (1, 2)}
        for job, child in children.items():
            service.begin_job(job, child.pid, (job - 1,))
        time.sleep(0.7)
        for job, child in children.items():
            child.kill()
            service.end_job(job)
            child.wait()
        time.sleep(0.3)
    carried = {(row["gpu_index"], row["job_id"]) for row in read_rows(tmp_path, "gpu")}
    assert {("0", "1"), ("1", "2")} <= carried
    assert carried <= {("0", "1"), ("1", "2"), ("0", ""), ("1", "")}
    assert {row["id_job"] for row in read_rows(tmp_path, "process")} == {"1", "2"}


def test_a_job_s_first_and_last_row_have_the_counter_and_so_have_the_last_rows_of_all(tmp_path, recording):
    backend = ReplayBackend(read_recording(recording))
    with Service(Spool(tmp_path, "n1"), backend, Plan(gpu_interval_s=0.05, process_interval_s=0)) as service:
        time.sleep(0.2)
        service.begin_job(7, os.getpid(), (1,))
        time.sleep(0.4)
        service.end_job(7)
        ended_s = time.time()
        time.sleep(0.2)
    rows = sorted(read_rows(tmp_path, "gpu"), key=lambda row: row["timestamp"])
    counted = [bool(row["energy_mJ"]) for row in rows if row["job_id"] == "7"]
    assert (counted[0], any(counted[1:-1]), counted[-1]) == (True, False, True)
    assert float(max(row["timestamp"] for row in rows if row["job_id"] == "7")) <= ended_s
    for index in "01":
        (*_, last) = [row for row in rows if row["gpu_index"] == index]
        assert last["energy_mJ"] != ""
    (energy,) = service.energy_of(7)
    assert (energy.gpu_index, energy.covered_s) == (1, pytest.approx(0.4, abs=0.3))


@pytest.mark.parametrize(
    ("interval_s", "told_s", "energy_s"), [(0.1, None, 30.0), (1.0, None, 300.0), (0.1, 1.0, 1.0), (1.0, 0.0, 0.0)]
)
def test_the_counter_s_interval_is_spread_over_ticks_unless_it_is_given(interval_s, told_s, energy_s):
    assert Plan(gpu_interval_s=interval_s, energy_interval_s=told_s).energy_s == energy_s


def test_a_collector_that_fails_ends_the_service_which_raises_what_it_was(tmp_path, recording):
    backend = ReplayBackend(read_recording(recording))
    service = Service(Spool(tmp_path, "n1"), backend, Plan(gpu_interval_s=0.01, process_interval_s=0))
    (tmp_path / "gpu").write_text("a file where the folder should be")
    service.start()
    assert service.stopping.wait(20)
    with pytest.raises(SpoolError, match=r"Not a directory|File exists"):
        service.stop()


class Troubled(ReplayBackend):
    """A recording whose driver hangs in a reading, or fails at the end, once a test says so."""

    hangs = False
    broken: Path | None = None
    failure: Exception | None = None

    def __init__(self, recording):
        super().__init__(read_recording(recording))
        self.released = threading.Event()

    def read(self, index, *, with_energy):
        if self.hangs and with_energy:
            self.released.wait(60)
        if with_energy and self.broken is not None and self.broken.exists():
            raise OSError(5, "Input/output error")
        return super().read(index, with_energy=with_energy)

    def close(self):
        if self.failure is not None:
            raise self.failure


@pytest.mark.parametrize("failure", [OSError(5, "Input/output error"), RuntimeError("a bug"), HardwareError("gone")])
def test_whatever_fails_at_the_end_the_command_s_exit_code_is_told(tmp_path, recording, monkeypatch, failure):
    backend = Troubled(recording)
    backend.failure = failure
    monkeypatch.setattr(run, "open_backend", lambda _: backend)
    options = Options(tmp_path, "n1", Plan(process_interval_s=0, node_interval_s=0))
    report = collect_run(options, "x", ["sh", "-c", "exit 3"])
    assert report.exit_code == 3
    assert str(failure) in report.problem
    assert len(report_lines(report)[-1].splitlines()) == 1
    assert not list(tmp_path.glob("*/*.open"))


def test_what_fails_in_the_last_look_at_a_job_does_not_hide_its_exit_code(tmp_path, recording, monkeypatch):
    backend = Troubled(recording)
    backend.broken = tmp_path / "broken"
    monkeypatch.setattr(run, "open_backend", lambda _: backend)
    options = Options(tmp_path / "spool", "n1", Plan(process_interval_s=0, node_interval_s=0))
    report = collect_run(options, "x", ["sh", "-c", f"sleep 0.3; touch {backend.broken}; exit 4"])
    assert report.exit_code == 4
    assert report.problem == "OSError: [Errno 5] Input/output error"


def test_a_driver_that_hangs_at_the_end_of_a_job_holds_nothing_up_and_rows_read_before_are_synced(
    tmp_path, recording, monkeypatch
):
    monkeypatch.setattr("ingest.collectors.service.LAST_LOOK_WITHIN_S", 0.3)
    monkeypatch.setattr("ingest.collectors.service.STOP_WITHIN_S", 1.0)
    monkeypatch.setattr("ingest.collectors.service.SYNC_S", 60.0)
    backend = Troubled(recording)
    service = Service(Spool(tmp_path, "n1"), backend, Plan(gpu_interval_s=0.05, process_interval_s=0))
    service.start()
    service.begin_job(7, os.getpid(), (0,))
    time.sleep(0.4)
    backend.hangs = True
    began_s = time.monotonic()
    service.end_job(7)
    assert time.monotonic() - began_s < 2
    assert service.jobs.assigned == {}
    assert any(row["job_id"] == "7" for row in read_rows(tmp_path, "gpu", "*.open"))
    service.stop()
    assert time.monotonic() - began_s < 5
    backend.released.set()
    details = [row["detail"] for row in read_rows(tmp_path, "events") if row["event"] == "error"]
    assert any("gpu did not end within" in detail for detail in details)


def test_a_disk_that_hangs_does_not_hold_up_the_end_and_is_said(tmp_path, recording, monkeypatch):
    monkeypatch.setattr("ingest.collectors.service.LAST_LOOK_WITHIN_S", 0.3)
    monkeypatch.setattr("ingest.collectors.service.STOP_WITHIN_S", 0.3)
    service = Service(Spool(tmp_path, "n1"), Troubled(recording), Plan(gpu_interval_s=0.05, process_interval_s=0))
    service.start()
    service.begin_job(7, os.getpid(), (0,))
    began_s = time.monotonic()
    with service.spool._syncing:  # as while an fsync does not come back
        service.end_job(7)
        with pytest.raises(SpoolError, match=r"the disk took nothing.*\[disk_error\]"):
            service.stop()
        assert time.monotonic() - began_s < 5


def test_a_file_system_that_hangs_under_the_processes_does_not_hold_up_the_end_of_a_job(
    tmp_path, recording, monkeypatch
):
    monkeypatch.setattr("ingest.collectors.service.LAST_LOOK_WITHIN_S", 0.3)
    with Service(Spool(tmp_path, "n1"), Troubled(recording), Plan(process_interval_s=0)) as service:
        service.begin_job(7, os.getpid(), (0,))
        time.sleep(0.3)
        began_s = time.monotonic()
        with service.process._looking:
            service.end_job(7)
        assert time.monotonic() - began_s < 2
    assert [row["job_id"] for row in read_rows(tmp_path, "gpu") if row["job_id"]][-1] == "7"


def test_the_end_tells_what_it_all_cost(tmp_path, recording):
    backend = ReplayBackend(read_recording(recording))
    with Service(Spool(tmp_path, "n1"), backend, Plan(gpu_interval_s=0.05)):
        time.sleep(0.5)
    (cost,) = [row for row in read_rows(tmp_path, "events") if row["event"] == "cost"]
    assert int(cost["count"]) >= 5
    assert 0 < float(cost["seconds"]) < 5
    assert 5 < float(cost["detail"]) < 4000


def test_a_look_at_processes_that_hangs_does_not_hold_up_the_beginning_of_a_job(tmp_path, recording, monkeypatch):
    monkeypatch.setattr("ingest.collectors.service.LAST_LOOK_WITHIN_S", 0.3)
    plan = Plan(gpu_interval_s=0.05, process_interval_s=0, node_interval_s=0)
    service = Service(Spool(tmp_path, "n1"), Troubled(recording), plan)
    with service, subprocess.Popen(["sleep", "60"]) as child:
        with service.process._looking:  # as while a file of /proc does not come back
            began_s = time.monotonic()
            beginning = threading.Thread(target=service.begin_job, args=(7, child.pid, (0,)), daemon=True)
            beginning.start()
            wait_for(lambda: service.jobs.assigned == {0: 7}, 0.2)
            beginning.join(5)
            assert not beginning.is_alive()
            assert time.monotonic() - began_s < 2
        wait_for(lambda: not service.process._asked)
        child.kill()
        service.end_job(7)
    assert [row["id_job"] for row in read_rows(tmp_path, "process")] == ["7"]  # it was taken when the look came back
    (hanging,) = [row["detail"] for row in read_rows(tmp_path, "events") if row["event"] == "error"]
    assert hanging.startswith("process did not end within")


def test_a_command_that_ends_while_its_beginning_hangs_has_its_exit_code_told(tmp_path, recording, monkeypatch):
    monkeypatch.setattr("ingest.collectors.service.LAST_LOOK_WITHIN_S", 0.3)
    monkeypatch.setattr("ingest.collectors.process.ProcessCollector.add", lambda *_: threading.Event().wait(60))
    monkeypatch.setattr(run, "open_backend", lambda _: Troubled(recording))
    options = Options(tmp_path, "n1", Plan(process_interval_s=0, node_interval_s=0))
    assert collect_run(options, "x", ["sh", "-c", "exit 3"]).exit_code == 3


def test_energy_counters_of_the_host_are_read_between_the_rows_of_the_node(tmp_path, monkeypatch):
    monkeypatch.setattr("ingest.collectors.service.RAPL_EVERY_S", 0.05)
    (tmp_path / "proc").symlink_to("/proc")
    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in (("name", "package-0"), ("energy_uj", "1000000"), ("max_energy_range_uj", "65532610987")):
        (zone / name).write_text(text)
    plan = Plan(gpu_interval_s=0, process_interval_s=0, node_interval_s=300.0, root=tmp_path)
    with Service(Spool(tmp_path / "spool", "n1"), None, plan) as service:
        first_s = service.node._rapl_s
        wait_for(lambda: service.node._rapl_s > first_s + 0.1)


def test_a_labelled_run_tells_no_other_job_of_its_node(tmp_path, monkeypatch):
    sys_tree = tmp_path / "sys"
    write_cgroup(sys_tree, "fs/cgroup/system.slice/n1_slurmstepd.scope/job_43/step_0/user/task_0", [os.getpid()])
    (tmp_path / "proc").symlink_to("/proc")
    plan = Plan(gpu_interval_s=0, process_interval_s=0.1, node_interval_s=0, root=tmp_path)
    report = collect_run(Options(tmp_path / "spool", "n1", plan), "x", ["sleep", "0.5"])
    rows = read_rows(tmp_path / "spool", "process")
    assert len(rows) >= 2
    assert {row["id_job"] for row in rows} == {str(report.job_id)}
