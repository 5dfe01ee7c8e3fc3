"""One process takes a spool into a lake: real processes, real locks."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.errors import SpoolBusyError
from ingest.spool_lock import FOLLOWER_LOCK, taking
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


UNPRIVILEGED = """
import os, resource, sys
from pathlib import Path
from ingest.errors import SpoolError
from ingest.spool_lock import taking_once
spool, files = sys.argv[1], int(sys.argv[2])
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
if files:
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
try:
    with taking_once(spool, Path("/lake"), is_held=False):
        print("went on")
except SpoolError as error:
    print(f"{type(error).__name__}: {error}")
"""


def read_unprivileged(spool: Path, *, files: int = 0) -> str:
    """Take a spool as somebody who may read it and not write it, and return what came of that."""
    command = [sys.executable, "-c", UNPRIVILEGED, str(spool), str(files)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.fixture
def open_spool() -> Iterator[Path]:
    """A spool that everybody may read and nobody (but root) may write."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        spool = make_spool(Path(folder) / "spool")
        spool.chmod(0o555)
        yield spool
        spool.chmod(0o755)


def test_who_may_only_read_a_spool_waits_for_its_follower_all_the_same(open_spool):
    open_spool.chmod(0o755)
    with taking(open_spool, Path("/other"), removes=True):
        open_spool.chmod(0o555)
        (open_spool / FOLLOWER_LOCK).chmod(0o444)
        refused = read_unprivileged(open_spool)
    assert refused.startswith("SpoolBusyError: ")
    assert f"process {os.getpid()} on {socket.gethostname()} into /other" in refused
    assert read_unprivileged(open_spool) == "went on\n"


def test_a_spool_that_cannot_be_written_and_had_no_follower_is_read_without_a_lock(open_spool):
    assert read_unprivileged(open_spool) == "went on\n"
    assert not (open_spool / FOLLOWER_LOCK).exists()


def test_a_lock_file_that_cannot_be_opened_stops_who_would_read_the_spool(open_spool):
    open_spool.chmod(0o755)
    (open_spool / FOLLOWER_LOCK).touch()
    (open_spool / FOLLOWER_LOCK).chmod(0o000)
    open_spool.chmod(0o555)
    assert read_unprivileged(open_spool).startswith("SpoolError: ")
    (open_spool / FOLLOWER_LOCK).chmod(0o644)
    assert "Too many open files" in read_unprivileged(open_spool, files=3)


def test_a_follower_that_was_killed_is_not_named_as_the_holder(spool):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    line = f"process {dead.pid} on {socket.gethostname()} into /lake since 2026-11-24T00:00:00Z\n"
    (spool / FOLLOWER_LOCK).write_text(line)
    with (spool / FOLLOWER_LOCK).open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(SpoolBusyError, match="by another process"), taking(spool, Path("/lake"), removes=False):
            pass
    with taking(spool, Path("/lake"), removes=False):
        assert f"process {os.getpid()} " in (spool / FOLLOWER_LOCK).read_text()
