"""A spool whose disk is full of what is in the lake already, or will be: the follower makes the room again."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ingest.collectors.spool
import ingest.removal
import ingest.retention
from ingest.collectors.spool import Lock
from ingest.collectors.spool import write_whole as really_write
from ingest.follow import Follower, FollowPlan, close_left_open
from ingest.lake import Lake
from tests.recorded_gpus import write_recording
from tests.spool_files import START_S, gpu_cells, make_spool, write_segment

ROOT = Path(__file__).parents[2]


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """Three segments, none of which is in the lake."""
    made = make_spool(tmp_path / "spool")
    for number in range(3):
        write_segment(made, "gpu", number, [gpu_cells(number * 10 + s, 7) for s in range(3)])
    return made


def fill(monkeypatch: pytest.MonkeyPatch, spool: Path, *, has_room: bool) -> None:
    """Let the disk take no file until a segment was removed, or (``has_room``: False) ever."""
    full = len(list(spool.glob("gpu/*.csv")))

    def write(path: Path, text: str) -> None:
        if not has_room or len(list(spool.glob("gpu/*.csv"))) >= full:
            raise OSError(errno.ENOSPC, "No space left on device")
        really_write(path, text)

    for module in (ingest.removal, ingest.retention):
        monkeypatch.setattr(module, "write_whole", write)


def follower(spool: Path) -> Follower:
    plan = FollowPlan(spool, spool.parent / "lake", keep_s=86_400.0)
    return Follower(plan, wall=lambda: START_S + 100, monotonic=lambda: 100.0)


def rows(lake: Path) -> int:
    return Lake(lake).scan("gpu_samples").collect().height


def test_a_full_spool_is_drained_and_its_note_is_written_with_the_room_made(spool, monkeypatch):
    fill(monkeypatch, spool, has_room=True)
    done = follower(spool).round()
    assert (done.problem, done.unnoted, done.segments, done.rows) == ("", "", 3, 9)
    assert list(spool.glob("gpu/*")) == []
    assert rows(spool.parent / "lake") == 9
    assert ingest.removal.Removal(spool).names != set()


def test_where_the_note_has_no_room_even_then_the_line_names_it_and_nothing_is_taken_twice(spool, monkeypatch):
    with monkeypatch.context() as patch:
        fill(patch, spool, has_room=False)
        done = follower(spool).round()
    assert (done.problem, done.rows) == ("", 9)
    assert list(spool.glob("gpu/*")) == []
    assert f"{spool / '.follower.json'}: No space left on device" in done.line()
    assert done.line().endswith("make room on the spool's disk [disk_full]")
    write_segment(spool, "gpu", 9, [gpu_cells(90, 7)])
    again = follower(spool).round()
    assert (again.problem, again.unnoted) == ("", "")
    assert rows(spool.parent / "lake") == 10


@pytest.fixture
def unwritten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A disk that has no room for a byte of a lock file."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    return


def test_a_lock_is_held_though_the_disk_takes_nothing_and_what_was_left_open_is_closed(spool, unwritten):
    (segment,) = spool.glob("gpu/*000002.csv")
    left = segment.rename(segment.with_name(segment.name + ".open"))
    assert close_left_open(spool) == [segment]
    assert not left.exists()
    Lock(spool).release()


def test_what_was_left_open_waits_where_closing_it_has_no_room(spool, monkeypatch):
    (segment,) = spool.glob("gpu/*000002.csv")
    left = segment.rename(segment.with_name(segment.name + ".open"))

    def full(_: Path) -> list[Path]:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("ingest.follow.recover", full)
        done = follower(spool).round()
        assert (done.problem, done.segments) == ("", 2)
    assert left.exists()
    assert follower(spool).round().problem == ""
    assert (list(spool.glob("gpu/*")), rows(spool.parent / "lake")) == ([], 9)


@pytest.mark.system
def test_a_collector_that_filled_its_disk_goes_on_when_the_follower_has_been_there(tmp_path):
    """A real file system of 160 KiB, filled by the collector itself; the lake lies elsewhere."""
    recording = write_recording(tmp_path / "recording", silent=(9e9, 9e9))
    mount = tmp_path / "small"
    mount.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "none", str(mount)], check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting a file system is not permitted here")
    spool = mount / "spool"
    words = [sys.executable, "-m", "ingest.collectors", "--spool", str(spool), "--node", "n1", "--duration"]
    more = ["--replay", str(recording), "--process-interval", "0", "--node-interval", "0"]
    run = {"cwd": ROOT, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    try:
        filled = subprocess.run([*words, "60", *more, "--gpu-interval", "0.002"], **run, check=False, timeout=90)  # type: ignore[call-overload]
        assert filled.returncode == 1
        assert "[disk_full]" in filled.stderr
        with pytest.raises(OSError, match="No space"):
            (mount / "rest").write_bytes(b"x" * 2**20)
        done = Follower(FollowPlan(spool, tmp_path / "lake")).round()
        assert done.problem == ""
        assert done.rows > 500
        assert list(spool.glob("gpu/*")) == []
        again = subprocess.run([*words, "0.5", *more], **run, check=False, timeout=60)  # type: ignore[call-overload]
        assert (again.returncode, again.stderr) == (0, "")
    finally:
        subprocess.run(["umount", str(mount)], check=True)
