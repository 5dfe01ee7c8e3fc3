"""The process collector: what a job's processes used since the last look, in the columns of Slurm's job profile.

Slurm's own plugin takes differences of a process's totals, so a child that ends makes them negative, and it then writes
the whole total: a spike. Here a child's end changes nothing twice: what its parent's totals gain when the child is
reaped is reduced by what the child had been counted with before.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from ingest.collectors.clock import steady_time
from ingest.collectors.jobs import JobStep, job_cgroups, job_of_process, process_ids
from ingest.collectors.spool import Spool, row
from ingest.errors import HardwareError

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
PAGE_KIB: Final = os.sysconf("SC_PAGE_SIZE") // 1024
BYTES_PER_MIB: Final = 2**20
TREE: Final = ("batch", "0")
"""Step and task of a job that is a process tree, where that is in no Slurm step of the job."""


class Usage(NamedTuple):
    """Totals of one process: its own, and those of children that it has waited for.

    ``read_bytes`` and ``write_bytes`` are what it gave to read and write calls (page cache and network included); the
    kernel adds a reaped child's to its parent's. None where another user's process does not show them.
    """

    cpu_s: float
    children_cpu_s: float
    faults: int
    children_faults: int
    read_bytes: int | None
    write_bytes: int | None


class Process(NamedTuple):
    """One look at one process; a zombie has ended, holds no memory, and still tells what it used."""

    parent: int
    is_zombie: bool
    started_ticks: int
    usage: Usage
    rss_kib: int
    vm_kib: int
    core: int


class Spent(NamedTuple):
    """What a group of processes used between two looks."""

    cpu_s: float
    faults: int
    read_bytes: int | None
    write_bytes: int | None


NOTHING: Final = Usage(0.0, 0.0, 0, 0, 0, 0)
"""What a process had used before it began."""


def spent(before: Mapping[int, Process], now: Mapping[int, Process]) -> Spent:
    """Return what a group of processes used between two looks; never negative, and nothing twice.

    A process that is new counts from its beginning. A process that is gone took its last moments with it, unless its
    parent waited for it, which hands them over.
    """
    gone: dict[int, list[Usage]] = {}
    for pid, process in before.items():
        if not _is_same(process, now.get(pid)):
            gone.setdefault(process.parent, []).append(process.usage)
    cpu_s, faults = 0.0, 0
    read: int | None = 0
    write: int | None = 0
    for pid, process in now.items():
        last, usage = before.get(pid), process.usage
        then = last.usage if last is not None and _is_same(last, process) else NOTHING
        reaped = gone.get(pid, ())
        cpu_s += max(0.0, usage.cpu_s - then.cpu_s)
        handed_s = sum(child.cpu_s + child.children_cpu_s for child in reaped)
        cpu_s += max(0.0, usage.children_cpu_s - then.children_cpu_s - handed_s)
        faults += max(0, usage.faults - then.faults)
        handed = sum(child.faults + child.children_faults for child in reaped)
        faults += max(0, usage.children_faults - then.children_faults - handed)
        read = _plus(read, usage.read_bytes, then.read_bytes, [child.read_bytes for child in reaped])
        write = _plus(write, usage.write_bytes, then.write_bytes, [child.write_bytes for child in reaped])
    return Spent(cpu_s, faults, read, write)


def _is_same(process: Process, other: Process | None) -> bool:
    """Return whether both looks saw one process, not two that had the same number."""
    return other is not None and process.started_ticks == other.started_ticks


def _plus(total: int | None, now: int | None, then: int | None, reaped: Iterable[int | None]) -> int | None:
    """Return the total with one process's bytes added; None where any of them is not known."""
    handed = 0
    for child in reaped:
        if child is None:
            return None
        handed += child
    if total is None or now is None or then is None:
        return None
    return total + max(0, now - then - handed)


def read_process(pid: int, proc: Path) -> Process | None:
    """Return what ``/proc/PID`` says now; None where the process is gone."""
    folder = f"{proc}/{pid}"
    try:
        with open(f"{folder}/stat", "rb") as file:  # noqa: PTH123 (many small files: twice as quick as Path.open)
            fields = file.read().rpartition(b")")[2].split()
        read, write = _read_io(f"{folder}/io")
        return Process(
            parent=int(fields[1]),
            is_zombie=fields[0] in (b"Z", b"X"),
            started_ticks=int(fields[19]),
            usage=Usage(
                cpu_s=(int(fields[11]) + int(fields[12])) / TICKS_PER_S,
                children_cpu_s=(int(fields[13]) + int(fields[14])) / TICKS_PER_S,
                faults=int(fields[9]),
                children_faults=int(fields[10]),
                read_bytes=read,
                write_bytes=write,
            ),
            rss_kib=max(0, int(fields[21])) * PAGE_KIB,
            vm_kib=int(fields[20]) // 1024,
            core=int(fields[36]) if len(fields) > 36 else -1,
        )
    except (OSError, ValueError, IndexError):
        return None


def _read_io(path: str) -> tuple[int | None, int | None]:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            values = dict(line.split(b": ") for line in file.read().splitlines())
        return int(values[b"rchar"]), int(values[b"wchar"])
    except (OSError, ValueError, KeyError):
        return None, None


def tree(root: int, proc: Path) -> list[int]:
    """Return a process and all that descend from it, as far as they are alive.

    Raises
    ------
    HardwareError
        Processes cannot be listed at all.
    """
    children: dict[int, list[int]] = {}
    try:
        names = [entry.name for entry in os.scandir(proc) if entry.name.isdigit()]
    except OSError as error:
        raise HardwareError(f"{proc} cannot be listed ({error.strerror}); is it mounted?") from error
    for name in names:
        try:
            with open(f"{proc}/{name}/stat", "rb") as file:  # noqa: PTH123
                parent = int(file.read().rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        children.setdefault(parent, []).append(int(name))
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, [])
    return found


@dataclass(frozen=True, slots=True)
class _Series:
    """What is remembered of one job's step and task between two looks; times in s since the machine started."""

    started_s: float
    looked_s: float
    processes: dict[int, Process]
    faults: int


@dataclass(frozen=True, slots=True)
class _Tree:
    """A job that was started here: under which step and task it is told, and the processes from which it descends."""

    step: JobStep
    roots: tuple[int, ...]


@dataclass(slots=True)
class ProcessCollector:
    """Writes one row for each job, step and task that runs, once a tick; no process is in two of them.

    Jobs that were started here are told as the trees of their first processes, all others are Slurm's, by cgroup.

    Parameters
    ----------
    with_slurm
        Whether Slurm's jobs are looked for at all.
    """

    spool: Spool
    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    wall: Callable[[], float] = steady_time
    with_slurm: bool = True
    _trees: dict[int, _Tree] = field(default_factory=dict)
    _asked: set[tuple[int, int]] = field(default_factory=set)
    _series: dict[JobStep, _Series] = field(default_factory=dict)
    _looked_uptime_s: float = 0.0
    _looking: threading.Lock = field(default_factory=threading.Lock)
    """Held for as long as a look takes, which in a file system that hangs is without end."""
    _listing: threading.Lock = field(default_factory=threading.Lock)
    """Held for a moment, where jobs come and go; may be taken while `_looking` is held, not the other way round."""

    def begin(self) -> None:
        """Note the time from which on a job's beginning is seen."""
        self._looked_uptime_s = self._uptime_s()

    def tick(self) -> None:
        """Look at every job's processes and append their rows."""
        with self._looking:
            groups = self._groups()
            uptime_s = self._uptime_s()
            looked = {step: self._look(step, pids, uptime_s) for step, pids in groups.items()}
            self._series = {step: series for step, series in looked.items() if series is not None}
            self._looked_uptime_s = uptime_s

    def _groups(self) -> dict[JobStep, list[int]]:
        """Return the processes of each job, step and task; of a job that was started here its tree alone."""
        with self._listing:
            trees = dict(self._trees)
        groups = {told.step: self._members(told) for told in trees.values()}
        mine = {pid for pids in groups.values() for pid in pids}
        for step, cgroup in job_cgroups(self.sys / "fs" / "cgroup") if self.with_slurm else ():
            if step.job_id not in trees:
                groups.setdefault(step, []).extend(pid for pid in process_ids(cgroup) if pid not in mine)
        return groups

    def _members(self, told: _Tree) -> list[int]:
        return [pid for root in told.roots for pid in tree(root, self.proc)]

    def add(self, job_id: int, root: int) -> None:
        """Take a process and all that descend from it as a job, or as a part of it that began apart from the others.

        What such a part used before the job's last look, and before it was one of the job, is not the job's. Where a
        look hangs this waits for it; a job that was finished meanwhile stays so.
        """
        with self._listing:
            self._asked.add((job_id, root))
        found = job_of_process(root, self.proc)
        step = found if found is not None and found.job_id == job_id else JobStep(job_id, *TREE)
        with self._looking:
            listed = self._list(job_id, root, step)
            series = None if listed is None else self._series.get(listed)
            if series is None:
                return
            new = {pid: read_process(pid, self.proc) for pid in tree(root, self.proc) if pid not in series.processes}
            for pid, process in new.items():
                if process is not None and process.started_ticks / TICKS_PER_S < series.looked_s:
                    series.processes[pid] = process

    def _list(self, job_id: int, root: int, step: JobStep) -> JobStep | None:
        """Make a process one of a job's roots, unless the job was finished; return the step of its earlier ones."""
        with self._listing:
            if (job_id, root) not in self._asked:
                return None
            self._asked.remove((job_id, root))
            told = self._trees.get(job_id)
            if told is None:
                self._trees[job_id] = _Tree(step, (root,))
                return None
            self._trees[job_id] = _Tree(told.step, (*told.roots, root))
            return told.step

    def finish(self, job_id: int) -> None:
        """Look at a job for the last time, best before its first process is waited for, and let it go."""
        with self._listing:
            told = self._trees.pop(job_id, None)
            self._asked = {asked for asked in self._asked if asked[0] != job_id}
        if told is None:
            return
        with self._looking:
            self._look(told.step, self._members(told), self._uptime_s())
            self._series.pop(told.step, None)

    def _look(self, step: JobStep, pids: list[int], uptime_s: float) -> _Series | None:
        found = {pid: process for pid in pids if (process := read_process(pid, self.proc)) is not None}
        if not found:
            return None
        before = self._series.get(step)
        if before is None:
            oldest_s = min(process.started_ticks for process in found.values()) / TICKS_PER_S
            # of a job that began since the last tick all is known; of an older one only what comes from now on
            so_far = spent({}, found)
            used = so_far if oldest_s >= self._looked_uptime_s else None
            before, interval_s, faults = _Series(oldest_s, uptime_s, {}, 0), uptime_s - oldest_s, so_far.faults
        else:
            used, interval_s = spent(before.processes, found), uptime_s - before.looked_s
            faults = before.faults + used.faults
        series = _Series(before.started_s, uptime_s, found, faults)
        if not (_ended(found) and before.processes and _ended(before.processes)):
            self._append(step, series, used, interval_s)
        return series

    def _append(self, step: JobStep, series: _Series, used: Spent | None, interval_s: float) -> None:
        busy = max(series.processes.values(), key=lambda process: process.usage.cpu_s)
        alive = [process for process in series.processes.values() if not process.is_zombie]
        values = (
            step.job_id,
            step.step or "batch",
            self.spool.node,
            f"Task_{step.task or 0}",
            f"{series.looked_s - series.started_s:.3f}",
            f"{self.wall():.3f}",
            self._frequency_khz(busy.core),
            None if used is None else f"{used.cpu_s:.2f}",
            None if used is None or interval_s <= 0 else f"{100 * used.cpu_s / interval_s:.1f}",
            sum(process.rss_kib for process in alive) if alive else None,
            sum(process.vm_kib for process in alive) if alive else None,
            series.faults,
            _mib(None if used is None else used.read_bytes),
            _mib(None if used is None else used.write_bytes),
        )
        self.spool.append("process", row(values))

    def _frequency_khz(self, core: int) -> int | None:
        """Return the clock of a core as Slurm takes it: cpufreq's, else that of the first core in cpuinfo; in kHz."""
        try:
            path = self.sys / f"devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq"
            return int(path.read_text("ascii"))
        except (OSError, ValueError):
            pass
        try:
            with (self.proc / "cpuinfo").open("rb") as file:
                head = file.read(4096)
            return round(float(head.partition(b"cpu MHz")[2].partition(b"\n")[0].partition(b":")[2]) * 1000)
        except (OSError, ValueError):
            return None

    def _uptime_s(self) -> float:
        """Return the seconds since the machine started, the clock that processes' start times are in."""
        try:
            with open(f"{self.proc}/uptime", "rb") as file:  # noqa: PTH123
                return float(file.read().split()[0])
        except (OSError, ValueError, IndexError) as error:
            raise HardwareError(f"{self.proc}/uptime cannot be read ({error}); is {self.proc} mounted?") from error


def _ended(processes: Mapping[int, Process]) -> bool:
    """Return whether all that is left of a job is what nobody has waited for yet."""
    return all(process.is_zombie for process in processes.values())


def _mib(count: int | None) -> str | None:
    return None if count is None else f"{count / BYTES_PER_MIB:.3f}"
