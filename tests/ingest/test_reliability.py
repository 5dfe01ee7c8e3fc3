"""What is left of a lake when an ingest is killed, runs out of space, meets another, or may not write."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from app.cli import run
from ingest.errors import LakeBusyError, LakeError
from ingest.head import Head, read_head, writing
from ingest.lake import Lake
from ingest.pipeline import ingest
from ingest.runner import SerialRunner
from ingest.synthetic import make_archive
from tests.lakes import Tables, assert_same_tables, read_foreign, read_tables
from tests.reliability_driver import DIED, POINTS

ROOT = Path(__file__).parents[2]
KILLS = 50


@dataclass(frozen=True, slots=True)
class Case:
    """A lake that holds an earlier state of an archive, and what it holds before and after the archive is taken in."""

    lake: Path
    archive: Path
    before: Tables
    after: Tables

    def copy_lake(self, to: Path) -> Path:
        """Return a fresh copy of the lake."""
        return Path(shutil.copytree(self.lake, to))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The earlier state lacks some files, and others were shorter; another cluster is in the lake as well."""
    root = tmp_path_factory.mktemp("reliability")
    archive, earlier, other = root / "archive", root / "earlier", root / "other"
    make_archive(archive, rng=1, n_jobs=8, seconds_per_job=(5.0, 15.0))
    make_archive(other, rng=2, n_jobs=2, seconds_per_job=5.0)
    shutil.copytree(archive, earlier)
    for number, path in enumerate(sorted((earlier / "gpu").rglob("*.csv"))):
        if number % 3 == 0:
            path.unlink()
        elif number % 3 == 1:
            lines = path.read_text().splitlines(keepends=True)
            path.write_text("".join(lines[: len(lines) // 2]))
    lines = (earlier / "slurm-log.csv").read_text().splitlines(keepends=True)
    (earlier / "slurm-log.csv").write_text("".join(lines[:5]))
    lake, done = root / "lake", root / "done"
    ingest(str(other), lake, cluster="two", runner=SerialRunner())
    ingest(str(earlier), lake, cluster="one", runner=SerialRunner())
    shutil.copytree(lake, done)
    ingest(str(archive), done, cluster="one", runner=SerialRunner())
    case = Case(lake, archive, read_tables(lake), read_tables(done))
    assert case.after["gpu_samples"].height > case.before["gpu_samples"].height
    return case


def assert_sound(lake: Path, case: Case) -> str:
    """Fail unless the lake reads as before or as after, also to a reader that knows no manifest; say which."""
    head = read_head(lake)
    state, expected = ("before", case.before) if head.generation == 2 else ("after", case.after)
    assert head.generation in (2, 3)
    assert_same_tables(read_tables(lake), expected)
    problems = Lake(lake).check().problems
    is_mixed = any(not (lake / final).exists() for final in head.moves)
    is_mixed |= any((lake / name).exists() for name in head.removes if not name.startswith("_manifest/"))
    if is_mixed:
        assert len(problems) == 1
        assert problems[0].startswith("generation 3 is committed, but ")
    else:
        assert problems == ()
        assert_same_tables(read_foreign(lake), expected)
    return state


def assert_completed_by_a_rerun(lake: Path, case: Case) -> None:
    """Fail unless ingesting once more brings the lake to the same end as if nothing had happened."""
    report = ingest(str(case.archive), lake, cluster="one", runner=SerialRunner())
    assert report.generation == 3
    assert_same_tables(read_tables(lake), case.after)
    assert_same_tables(read_foreign(lake), case.after)
    assert Lake(lake).check().problems == ()
    assert not (lake / "_staging").exists()
    head = read_head(lake)
    assert {path.name for path in (lake / "_manifest").iterdir()} == {"HEAD.json", "LOCK", head.inputs, head.pieces}


def start_driver(case: Case, lake: Path, *points: str) -> subprocess.Popen[str]:
    """Return a process that waits for a line before it ingests."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.reliability_driver", str(case.archive), str(lake), *points],
        cwd=ROOT,
        env={**os.environ, "POLARS_MAX_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def let_go(process: subprocess.Popen[str]) -> None:
    """Wait until the process is ready, and start it."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("\n")
    process.stdin.flush()


# -- killed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "point",
    [
        point if point in ("head-written", "before-removes") else pytest.param(point, marks=pytest.mark.slow)
        for point in POINTS
    ],
)
def test_a_run_that_dies_at_a_step_of_the_commit_leaves_a_lake_that_reads_and_is_completed(point, case, tmp_path):
    lake = case.copy_lake(tmp_path / "lake")
    with start_driver(case, lake, point) as process:
        let_go(process)
        assert process.wait(timeout=30) == DIED
    state = assert_sound(lake, case)
    assert state == ("before" if point in ("before-rewrite", "rewritten", "before-head", "staging-taken") else "after")
    is_pending = bool(read_head(lake).removes)
    assert is_pending == (state == "after" and point != "after-second-head")
    with writing(lake) as head:
        assert (head.moves, head.removes) == ({}, ())
    assert_same_tables(read_foreign(lake), case.before if state == "before" else case.after)
    assert_completed_by_a_rerun(lake, case)


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_leaves_the_lake_as_it_was_or_complete(case, tmp_path):
    rng = random.Random(20_210_301)
    with start_driver(case, case.copy_lake(tmp_path / "undisturbed")) as process:
        let_go(process)
        began = time.monotonic()
        assert process.wait(timeout=60) == 0
        whole_s = time.monotonic() - began
    moments = [rng.uniform(0.0, whole_s) for _ in range(KILLS // 2)]
    moments += [rng.uniform(whole_s * 2 / 3, whole_s) for _ in range(KILLS - KILLS // 2)]
    states = []
    waiting = start_driver(case, case.copy_lake(tmp_path / "lake-0"))
    for number, moment in enumerate(moments):
        lake, process = tmp_path / f"lake-{number}", waiting
        let_go(process)
        time.sleep(moment)
        os.killpg(process.pid, signal.SIGKILL)
        with process:
            process.wait(timeout=10)
        if number + 1 < len(moments):  # its imports go on while this one is looked at
            waiting = start_driver(case, case.copy_lake(tmp_path / f"lake-{number + 1}"))
        states.append(assert_sound(lake, case))
        assert_completed_by_a_rerun(lake, case)
        shutil.rmtree(lake)
    assert set(states) == {"before", "after"}  # else the moments were badly chosen


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["the whole group", "the main process alone"])
def test_the_command_with_two_workers_killed_at_any_moment_leaves_the_lake_as_it_was_or_complete(whom, case, tmp_path):
    rng = random.Random(42)

    def start(lake: Path) -> subprocess.Popen[str]:
        command = [Path(sys.executable).with_name("jobwatt"), "lake", "ingest", case.archive, "--lake", lake]
        return subprocess.Popen(
            [*map(str, command), "--cluster", "one", "--workers", "2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    began = time.monotonic()
    with start(case.copy_lake(tmp_path / "undisturbed")) as process:
        assert process.wait(timeout=60) == 0
    whole_s = time.monotonic() - began
    moments = [rng.uniform(0.2 * whole_s, whole_s) for _ in range(5)]
    moments += [rng.uniform(0.7 * whole_s, whole_s) for _ in range(5)]
    for number, moment in enumerate(moments):
        lake = case.copy_lake(tmp_path / f"lake-{number}")
        process = start(lake)
        time.sleep(moment)
        try:
            family = psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        if process.poll() is None:
            if whom == "the whole group":
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        with process:
            process.wait(timeout=10)
        _, alive = psutil.wait_procs(family, timeout=2)
        assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
        assert_sound(lake, case)
        assert_completed_by_a_rerun(lake, case)
        shutil.rmtree(lake)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "ends", "tries"),
    [
        (signal.SIGINT, (130, "jobwatt: interrupted"), 10),
        (signal.SIGTERM, (143, "jobwatt: terminated"), 5),
    ],
)
def test_ctrl_c_or_sigterm_at_any_moment_leaves_the_lake_as_it_was_or_complete_and_nothing_in_staging(
    sent, ends, tries, case, tmp_path
):
    rng = random.Random(7)
    for number in range(tries):
        lake = case.copy_lake(tmp_path / f"lake-{number}")
        command = [Path(sys.executable).with_name("jobwatt"), "lake", "ingest", str(case.archive), "--lake", str(lake)]
        with subprocess.Popen(
            [*command, "--cluster", "one", "--workers", "2"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            until = time.monotonic() + 30
            while not (lake / "_staging").exists() and process.poll() is None and time.monotonic() < until:
                time.sleep(0.005)
            time.sleep(rng.uniform(0.0, 1.0))
            if process.poll() is None:
                os.killpg(process.pid, sent)
            _, said = process.communicate(timeout=20)
        assert (process.returncode, said.strip()) in (ends, (0, "")), said
        assert not (lake / "_staging").exists()
        assert_sound(lake, case)
        assert_completed_by_a_rerun(lake, case)


# -- two at once -------------------------------------------------------------------------------------------------------


def test_a_second_ingest_is_told_who_writes_and_the_first_is_unharmed(case, tmp_path, capfd):
    lake = case.copy_lake(tmp_path / "lake")
    with writing(lake) as head:
        arguments = ["lake", "ingest", str(case.archive), "--lake", str(lake), "--workers", "1"]
        before = {path: path.stat().st_mtime_ns for path in lake.rglob("*.parquet")}
        assert run(arguments) == 1
        said = capfd.readouterr().err
        assert said.startswith(f"jobwatt: {lake} is being written by process {os.getpid()} on ")
        assert said.count("\n") == 1
        assert {path: path.stat().st_mtime_ns for path in lake.rglob("*.parquet")} == before
        assert head == read_head(lake)
    assert_completed_by_a_rerun(lake, case)


def test_two_first_ingests_at_once_make_one_lake(case, tmp_path):
    lake = tmp_path / "lake"
    drivers = [start_driver(case, lake) for _ in range(2)]
    for process in drivers:
        let_go(process)
    ended = [(process.communicate(timeout=30)[1], process.returncode) for process in drivers]
    codes = sorted(code for _, code in ended)
    assert codes in ([0, 0], [0, 1])
    for said, code in ended:
        assert code == 0 or "LakeBusyError" in said
    assert Lake(lake).check().problems == ()
    assert Lake(lake).info().inputs == sum(path.is_file() for path in case.archive.rglob("*"))


def test_a_first_ingest_that_comes_a_moment_late_takes_nothing_from_the_one_that_writes(case, tmp_path, monkeypatch):
    """The other one takes the lock after this one has seen that there is no lake yet."""
    lake = tmp_path / "lake"
    with contextlib.ExitStack() as other:

        def writing_second(root: Path) -> contextlib.AbstractContextManager[Head]:
            other.enter_context(writing(root))
            (root / "_manifest" / "inputs-000001.parquet").write_text("the other's")
            return writing(root)

        monkeypatch.setattr("ingest.pipeline.writing", writing_second)
        with pytest.raises(LakeBusyError):
            ingest(str(case.archive), lake, runner=SerialRunner())
        assert {path.name for path in (lake / "_manifest").iterdir()} == {"LOCK", "inputs-000001.parquet"}


# -- no room, no permission --------------------------------------------------------------------------------------------


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """Let no file of this process, and of those that it starts, grow past ``n_bytes``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("workers", [1, 2])
def test_no_room_is_one_clear_line_at_every_stage_and_leaves_the_lake_as_it_was(workers, case, tmp_path, capfd):
    arguments = ["lake", "ingest", str(case.archive), "--cluster", "one", "--workers", str(workers)]
    ends = []
    limits = [2**8, 2**11, 2**13, 2**14, 2**20] if workers == 1 else [4_000]
    for limit in limits:
        lake = case.copy_lake(tmp_path / f"lake-{limit}")
        files = sorted(path for path in lake.rglob("*") if path.name != "LOCK")
        capfd.readouterr()
        with largest_file(limit):
            ends.append(run([*arguments, "--lake", str(lake)]))
        if ends[-1] == 0:
            break
        said = capfd.readouterr().err
        assert said.startswith(f"jobwatt: no space left for {lake} (File too large)"), said
        assert said.count("\n") == 1
        assert sorted(path for path in lake.rglob("*") if path.name != "LOCK") == files
        assert assert_sound(lake, case) == "before"
        assert_completed_by_a_rerun(lake, case)
    assert ends[0] == 1
    assert workers == 2 or ends[-1] == 0


@pytest.mark.system
@pytest.mark.parametrize("spare_kib", [8, 40, 80])
def test_a_full_disk_is_one_clear_line_and_leaves_the_lake_as_it_was(spare_kib, case, tmp_path, capfd):
    with mounted(tmp_path / "disk", "size=4m") as disk:
        lake = case.copy_lake(disk / "lake")
        filler = disk / "filler"
        filler.write_bytes(b"\0" * (shutil.disk_usage(disk).free - spare_kib * 1024))
        arguments = ["lake", "ingest", str(case.archive), "--lake", str(lake), "--cluster", "one", "--workers", "1"]
        assert run(arguments) == 1
        said = capfd.readouterr().err
        assert said.startswith(f"jobwatt: no space left for {lake} (No space left on device)"), said
        assert said.count("\n") == 1
        assert not (lake / "_staging").exists()
        assert assert_sound(lake, case) == "before"
        filler.unlink()
        assert_completed_by_a_rerun(lake, case)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Give a file system of its own; the test is skipped where this process may not mount one."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        pytest.skip("mounting a file system is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.system
def test_a_lake_on_a_read_only_file_system_is_read_but_not_written(case, tmp_path, capfd):
    with mounted(tmp_path / "disk", "size=20m") as disk:
        lake = case.copy_lake(disk / "lake")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert_same_tables(read_tables(lake), case.before)
        assert run(["lake", "check", "--lake", str(lake)]) == 0
        capfd.readouterr()
        for target in (lake, disk / "new"):
            assert run(["lake", "ingest", str(case.archive), "--lake", str(target), "--workers", "1"]) == 1
            said = capfd.readouterr().err
            assert said.startswith(f"jobwatt: {target}")
            assert "Read-only file system; nothing was committed" in said
            assert said.count("\n") == 1


@contextmanager
def without_privileges() -> Iterator[None]:
    """Be nobody for a while, where this process is root."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65_534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_a_lake_that_may_not_be_written_is_one_clear_line(case, capfd):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive, lake = Path(shutil.copytree(case.archive, folder / "archive")), case.copy_lake(folder / "lake")
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        for target in (lake, folder / "new"):
            capfd.readouterr()
            with without_privileges():
                code = run(["lake", "ingest", str(archive), "--lake", str(target), "--workers", "1"])
            said = capfd.readouterr().err
            assert code == 1
            assert said.startswith(f"jobwatt: {target}")
            assert "Permission denied; nothing was committed" in said
            assert said.count("\n") == 1
        with without_privileges():
            assert_same_tables(read_tables(lake), case.before)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)


@pytest.mark.parametrize("below", ["", "lake"])
def test_a_lake_that_is_a_file_is_one_clear_line(below, case, tmp_path, capfd):
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(LakeError, match=f"^{file / below} is a file, or below one; give a folder for the lake$"):
        ingest(str(case.archive), file / below, runner=SerialRunner())
    assert run(["lake", "ingest", str(case.archive), "--lake", str(file / below), "--workers", "1"]) in (1, 2)
    assert f"{file / below}" in capfd.readouterr().err
    assert file.read_text() == "kept"


def test_a_place_where_no_folder_can_be_made_is_not_taken_for_a_lake_that_is_being_written(case):
    with pytest.raises(LakeError, match=r"^/proc/jobwatt-lake: no folder can be made there ") as caught:
        ingest(str(case.archive), Path("/proc/jobwatt-lake"), runner=SerialRunner())
    assert not isinstance(caught.value, LakeBusyError)
