"""One process takes a spool into a lake: real processes, real locks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ingest.spool_lock import FOLLOWER_LOCK
from tests.spool_files import gpu_cells, make_spool, write_segment

JOBWATT = str(Path(sys.executable).with_name("jobwatt"))


def follow(spool: Path, lake: Path) -> subprocess.Popen[str]:
    """Start a follower, and return it once it has said something."""
    command = [JOBWATT, "lake", "ingest", str(spool), "--follow", "--every", "0.2", "--lake", str(lake)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("follower: ")
    return process


def ingest(spool: Path, lake: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [JOBWATT, "lake", "ingest", str(spool), "--lake", str(lake), "--workers", "1", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    found = make_spool(tmp_path / "spool")
    write_segment(found, "gpu", 1, [gpu_cells(0, 7)])
    return found


def test_a_second_follower_and_an_ingest_are_refused_until_the_first_has_died(spool, tmp_path):
    first = follow(spool, tmp_path / "lake")
    try:
        for lake in ("lake", "other"):
            for options in ((), ("--follow",)):
                began_s = time.monotonic()
                refused = ingest(spool, tmp_path / lake, *options)
                assert refused.returncode == 1
                (line,) = refused.stderr.splitlines()
                assert f"process {first.pid} on {os.uname().nodename} into {tmp_path / 'lake'} since" in line
                assert time.monotonic() - began_s < 30
        assert not (tmp_path / "other").exists()
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    write_segment(spool, "gpu", 2, [gpu_cells(1, 7)])
    done = ingest(spool, tmp_path / "lake")
    assert (done.returncode, done.stderr) == (0, "")
    assert (spool / FOLLOWER_LOCK).read_text() == ""


def test_the_lock_is_nothing_that_a_lake_takes(spool, tmp_path):
    (spool / FOLLOWER_LOCK).touch()
    done = ingest(spool, tmp_path / "lake", "--format", "json")
    assert done.returncode == 0
    assert '"ignored_files": []' in done.stdout
