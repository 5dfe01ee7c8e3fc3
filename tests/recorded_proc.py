"""Trees as Linux shows them under /proc and /sys, written from a few numbers in the kernel's own format."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Told:
    """What /proc says of one process; times in s, sizes in bytes."""

    pid: int
    parent: int = 1
    command: str = "python"
    state: str = "S"
    cpu_s: float = 0.0
    children_cpu_s: float = 0.0
    faults: int = 0
    children_faults: int = 0
    started_s: float = 100.0
    vm: int = 40 * 2**20
    rss: int = 8 * 2**20
    core: int = 0
    read: int | None = 0
    write: int | None = 0
    cgroup: str = "0::/user.slice"
    environment: bytes | None = None


def write_process(proc: Path, told: Told) -> None:
    """Write one process's files."""
    folder = proc / str(told.pid)
    folder.mkdir(parents=True, exist_ok=True)
    ticks = [round(value * TICKS_PER_S) for value in (told.cpu_s, 0, told.children_cpu_s, 0)]
    fields: list[object] = [told.state, told.parent, told.pid, told.pid, 0, -1, 4194304, 200, 0, told.faults]
    fields += [told.children_faults, *ticks, 20, 0, 1, 0, round(told.started_s * TICKS_PER_S), told.vm]
    fields += [told.rss // PAGE_BYTES, 2**64 - 1, *[0] * 12, 17, told.core, 0, 0, 0, 0, 0]
    (folder / "stat").write_text(f"{told.pid} ({told.command}) {' '.join(map(str, fields))}\n")
    if told.read is not None and told.write is not None:
        text = f"rchar: {told.read}\nwchar: {told.write}\nsyscr: 1\nsyscw: 1\nread_bytes: 0\nwrite_bytes: 0\n"
        (folder / "io").write_text(text + "cancelled_write_bytes: 0\n")
    (folder / "cgroup").write_text(told.cgroup + "\n")
    if told.environment is not None:
        (folder / "environ").write_bytes(told.environment)


def remove_process(proc: Path, pid: int) -> None:
    """Remove what `write_process` wrote."""
    for path in (proc / str(pid)).iterdir():
        path.unlink()
    (proc / str(pid)).rmdir()


def write_uptime(proc: Path, seconds: float) -> None:
    """Write how long the machine has been up."""
    proc.mkdir(parents=True, exist_ok=True)
    (proc / "uptime").write_text(f"{seconds:.2f} {seconds:.2f}\n")


def write_cgroup(root: Path, path: str, pids: list[int]) -> None:
    """Write a cgroup's members; ``root`` is where cgroups are mounted."""
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
