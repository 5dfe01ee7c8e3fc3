"""A command and what it started, ended as one: real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ingest.collectors.family import end_family
from ingest.collectors.process import read_process, tree

IGNORES = (
    "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True); "
    "time.sleep(60)"
)


def runs(pid: int) -> bool:
    look = read_process(pid, Path("/proc"))
    return look is not None and not look.is_zombie


def start(words: list[str]) -> tuple[subprocess.Popen[str], int]:
    """Start a shell that has a child, and return it with the child's number, which is printed."""
    shell = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert shell.stdout is not None
    return shell, int(shell.stdout.readline())


def wait_for_child(pid: int) -> None:
    """Wait until a shell has begun its first command."""
    until_s = time.monotonic() + 10
    while len(tree(pid, Path("/proc"))) < 2:
        assert time.monotonic() < until_s, "the shell began nothing"
        time.sleep(0.01)


@pytest.fixture
def left() -> Iterator[list[int]]:
    """Numbers of processes that are killed at the end, whatever became of the test."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, 9)


def test_a_shell_s_child_ends_with_it_at_once(left):
    shell, child = start(["bash", "-c", "sleep 60 & echo $!; wait; true"])
    left += [shell.pid, child]
    began_s = time.monotonic()
    end_family(shell.pid, 20.0)
    assert time.monotonic() - began_s < 5
    assert shell.wait(5) == -15
    assert not runs(child)
    assert shell.communicate() == ("", None)


def test_what_ignores_the_request_is_killed_when_its_time_is_up(left):
    shell, child = start(["bash", "-c", f"{sys.executable} -c '{IGNORES}' & wait"])
    left += [shell.pid, child]
    end_family(shell.pid, 0.5)
    assert not runs(child)
    assert shell.wait(5) == -15
    shell.communicate()


def test_what_is_started_while_all_ends_is_killed_too(left):
    shell, child = start(["bash", "-c", "trap 'sleep 60 & echo $!; wait' TERM; sleep 60 & echo $!; wait"])
    left += [shell.pid, child]
    end_family(shell.pid, 0.8)
    later = int(shell.communicate(timeout=10)[0])
    left.append(later)
    assert [runs(pid) for pid in (child, later)] == [False, False]


def test_other_processes_are_left_alone(left):
    other = subprocess.Popen(["sleep", "60"])
    shell, child = start(["bash", "-c", "sleep 60 & echo $!; wait"])
    left += [other.pid, shell.pid, child]
    end_family(shell.pid, 5.0)
    shell.communicate()
    assert runs(other.pid)
    other.kill()
    other.wait()


def test_a_shell_whose_command_is_ended_does_not_go_on_to_its_next_one(left, tmp_path):
    for number in range(12):  # whichever of the two numbers comes first where they are hashed
        shell, _ = start(["bash", "-c", f"echo $$; sleep 60; touch {tmp_path}/{number}"])
        wait_for_child(shell.pid)
        left.append(shell.pid)
        end_family(shell.pid, 5.0)
        assert shell.wait(5) == -15
        shell.communicate()
    assert list(tmp_path.iterdir()) == []
