"""Whole processes, timed and weighed: wall and CPU seconds, and the largest memory of the whole process tree."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
SCRATCH = ROOT / ".bench"
JOBWATT = Path(sys.executable).with_name("jobwatt")
PEERS = Path(__file__).with_name("peers.py")

RSS_EVERY_S = 0.05
PSS_EVERY = 5
"""Shares of pages are dear to ask for: once in so many samples."""


@dataclass(frozen=True, slots=True)
class Run:
    """One process, from its start to its end, its children included; memory is zero where it was not watched."""

    wall_s: float
    cpu_s: float
    output: str
    rss_mib: float = 0.0
    pss_mib: float = 0.0


def run_process(command: Sequence[str], *, watch_memory: bool = False, cores: int | None = None) -> Run:
    """Run a command to its end and return what it took; a command that fails ends the benchmark with its message.

    Parameters
    ----------
    cores : the process tree has so many of this machine's cores, all unless given
    """
    if not Path(command[0]).exists():
        name = Path(command[0]).name
        raise SystemExit(f"{name} is not installed beside this Python; run `make test` once, it sets it up")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        start = time.perf_counter()
        with _on_cores(cores):
            process = subprocess.Popen(command, stdout=stdout, stderr=stderr, cwd=ROOT, env=_as_installed())
        rss, pss = _watch(process) if watch_memory else (0.0, 0.0)
        code = process.wait()
        wall_s = time.perf_counter() - start
        stdout.seek(0)
        stderr.seek(0)
        output, errors = stdout.read(), stderr.read()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if code != 0:
        raise SystemExit(f"{' '.join(command)} ended with {code}:\n{errors[-4000:]}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(wall_s, cpu_s, output, rss, pss)


@contextmanager
def _on_cores(count: int | None) -> Iterator[None]:
    """What is started meanwhile runs on so many cores."""
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(all_cores)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_cores)


def _as_installed() -> dict[str, str]:
    """Return an environment in which modules keep their bytecode, as those of an installed package do."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def run_pairs(
    contestants: Mapping[str, Callable[[], Run]], runs: int, tell: Callable[[str], None]
) -> dict[str, list[Run]]:
    """Run every contestant ``runs`` times in turn, each round in another order, and return their runs by name."""
    names = list(contestants)
    taken: dict[str, list[Run]] = {name: [] for name in names}
    for number in range(runs):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            run = contestants[name]()
            taken[name].append(run)
            tell(f"{name}: {run.wall_s:.2f} s, {run.cpu_s:.2f} CPU s")
    return taken


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Return the median, and the least and the greatest of several values.

    Examples
    --------
    >>> spread([3.0, 1.0, 2.0])
    '2.00 [1.00-3.00]'
    """
    return f"{statistics.median(values):{form}} [{min(values):{form}}-{max(values):{form}}]"


def time_calls(call: Callable[[], object], repeats: int) -> list[float]:
    """Return the milliseconds that each of several calls took, after one that does not count."""
    call()
    taken_ms = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        taken_ms.append((time.perf_counter() - start) * 1e3)
    return taken_ms


def _watch(process: subprocess.Popen[bytes]) -> tuple[float, float]:
    """Return the largest sum of RSS, and of PSS, over the process and its descendants until it ends, in MiB."""
    top = psutil.Process(process.pid)
    rss = pss = 0
    tick = 0
    while process.poll() is None:
        tree = _tree(top)
        rss = max(rss, sum(_bytes(member, "rss") for member in tree))
        if tick % PSS_EVERY == 0:
            pss = max(pss, sum(_bytes(member, "pss") for member in tree))
        tick += 1
        time.sleep(RSS_EVERY_S)
    return rss / 2**20, pss / 2**20


def _tree(top: psutil.Process) -> list[psutil.Process]:
    try:
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _bytes(process: psutil.Process, kind: str) -> int:
    try:
        if kind == "rss":
            return int(process.memory_info().rss)
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return 0
