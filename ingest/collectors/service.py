"""All collectors in one process: a thread each, one that writes the spool, and an end that closes every segment."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ingest.collectors.energy import EnergyTwice
from ingest.collectors.gpu import ENERGY_S, ENERGY_TICKS, GpuCollector, Inventory, JobTable
from ingest.collectors.hardware import GpuBackend
from ingest.collectors.node import RAPL_EVERY_S, NodeCollector
from ingest.collectors.process import ProcessCollector
from ingest.collectors.schedule import ClockWatch, Events, ticks
from ingest.collectors.spool import HEADERS, SYNC_S, Spool, row, write_whole
from ingest.errors import JobwattError, SpoolError

LEAST_INTERVAL_S: Final = 0.001
COST_EVERY_S: Final = 60.0
NAP_S: Final = 1.0
"""A thread that ticks at least this often sees the end at its next tick; the others are woken for it."""

STOP_WITHIN_S: Final = 10.0
"""How long the end waits for a collector that hangs in a file system; its rows are kept up to there."""

LAST_LOOK_WITHIN_S: Final = 6.0
"""How long the end of a job waits for the last look at its processes and GPUs, where a driver or a disk hangs; and its
beginning for a look that is under way."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is collected, and how often, in s; 0: not at all.

    ``energy_interval_s`` is how often a GPU's energy counter is asked at least; see `energy_s`. ``with_slurm``: the
    processes of Slurm's jobs on this node are told, not only of those that are started here.
    """

    gpu_interval_s: float = 0.1
    process_interval_s: float = 10.0
    node_interval_s: float = 300.0
    jobs_interval_s: float = 5.0
    energy_interval_s: float | None = None
    probe: Path | None = None
    root: Path = Path("/")
    with_slurm: bool = True

    @property
    def energy_s(self) -> float:
        """How often the energy counter is asked: what costs most is spread over enough ticks unless told otherwise."""
        if self.energy_interval_s is not None:
            return self.energy_interval_s
        return max(ENERGY_S, ENERGY_TICKS * self.gpu_interval_s)


def check_intervals(plan: Plan) -> None:
    """Check that something is collected, and nothing more often than it can be read.

    Raises
    ------
    ValueError
        It is not so.
    """
    intervals_s = (plan.gpu_interval_s, plan.process_interval_s, plan.node_interval_s)
    if not all(0 <= interval_s < float("inf") for interval_s in (*intervals_s, plan.energy_s)):
        raise ValueError("an interval is below 0 or no number; give seconds, or 0 for what is not to be collected")
    if not any(intervals_s):
        raise ValueError("all intervals are 0, so that nothing would be collected; give one of them")
    if any(0 < interval_s < LEAST_INTERVAL_S for interval_s in intervals_s):
        raise ValueError(f"an interval is below {LEAST_INTERVAL_S} s, more often than anything can be read")


class _Worker(threading.Thread):
    """A thread whose failure stops the service and is raised there."""

    def __init__(self, name: str, work: Callable[[], None], stop: threading.Event) -> None:
        super().__init__(name=name, daemon=True)
        self.failure: Exception | None = None
        self._work, self._stop_all = work, stop

    def run(self) -> None:
        try:
            self._work()
        except Exception as failure:  # noqa: BLE001 (whatever it is, the service stops and raises it)
            self.failure = failure
            self._stop_all.set()


class _HangsError(JobwattError):
    """Something did not end in time, in a driver or a file system."""

    reason = "hangs"


class Service:
    """Collects from `start` to `stop`; also a context manager.

    Parameters
    ----------
    spool
        The spool, open; the service closes it.
    backend
        GPUs; None: none are read.
    say
        As of `ingest.collectors.schedule.Events`.

    Attributes
    ----------
    stopping
        It is set when the service is to end: by `ask_to_stop`, or by a collector that fails.
    asked
        Whether somebody asked.
    """

    def __init__(
        self,
        spool: Spool,
        backend: GpuBackend | None,
        plan: Plan | None = None,
        *,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.spool, self.backend, self.plan = spool, backend, plan or Plan()
        self.stopping, self.asked = threading.Event(), threading.Event()
        self.events = Events(spool, say=say)
        self.jobs = JobTable()
        root = self.plan.root
        self.process = ProcessCollector(spool, root / "proc", root / "sys", with_slurm=self.plan.with_slurm)
        self.node = NodeCollector(spool, self.plan.probe or spool.root, root)
        self.gpu: GpuCollector | None = None
        self.inventory: Inventory | None = None
        if backend is not None:
            self.gpu = GpuCollector(backend, spool, self.events, self.jobs, energy_s=self.plan.energy_s)
            self.inventory = Inventory(backend, spool, self.events, self.jobs, proc=root / "proc")
        self._workers: list[_Worker] = []
        self._cost_s, self._cost_ticks = time.process_time(), 0
        self._ticks = 0

    def start(self) -> None:
        """Begin to collect."""
        self.events.record("service", "start", detail=f"pid {os.getpid()}")
        for path in self.spool.recovered:
            self.events.record("service", "error", detail=f"{path.name} had been left open and was closed")
        self.spool.sync()
        work: list[tuple[str, float, Callable[[], None], Callable[[], None] | None]] = []
        if self.gpu is not None and self.inventory is not None and self.plan.gpu_interval_s > 0:
            self.inventory.tick()
            work.append(("gpu", self.plan.gpu_interval_s, self.gpu.tick, None))
            work.append(("inventory", self.plan.jobs_interval_s, self.inventory.tick, None))
        if self.plan.process_interval_s > 0:
            work.append(("process", self.plan.process_interval_s, self.process.tick, self.process.begin))
        if self.plan.node_interval_s > 0:
            work.append(("node", self.plan.node_interval_s, self._node_tick, self.node.begin))
        for _, _, _, begin in work:
            if begin is not None:
                begin()
        if self.node.has_meters and self.plan.node_interval_s > RAPL_EVERY_S:
            work.append(("power", RAPL_EVERY_S, self.node.meter, None))
        self._start_worker("writer", self._write)
        for name, interval_s, tick, _ in work:
            self._start_worker(name, partial(self._collect, name, interval_s, tick))

    def ask_to_stop(self) -> None:
        """Let the service end, as a signal does; `stop` ends it."""
        self.asked.set()
        self.stopping.set()

    def begin_job(self, job_id: int, pid: int, gpus: tuple[int, ...]) -> None:
        """Count a process tree, and GPUs, as one job's from now on; the tree later, where a look at others hangs."""
        self.jobs.assigned.update(dict.fromkeys(gpus, job_id))
        self._within({"process": partial(self.process.add, job_id, pid)}, LAST_LOOK_WITHIN_S)

    def end_job(self, job_id: int) -> None:
        """Look at the job's processes and GPUs for the last time, and let them go.

        Call it before the first process is waited for, so that all that it used is still told.
        """
        mine = [index for index, job in list(self.jobs.assigned.items()) if job == job_id]
        looks: dict[str, Callable[[], None]] = {"process": partial(self.process.finish, job_id)}
        if self.gpu is not None:
            looks["gpu"] = partial(self.gpu.close, mine)
        try:
            # what was read before is on the disk, whatever the last look meets
            self._within({"sync": self.spool.sync, **looks}, LAST_LOOK_WITHIN_S)
        finally:
            for index in mine:
                self.jobs.assigned.pop(index, None)

    def energy_of(self, job_id: int) -> tuple[EnergyTwice, ...]:
        """Return the energy, twice, of each GPU that was given to a job here and gave a sample for it."""
        return () if self.gpu is None else self.gpu.energy_of(job_id)

    @property
    def failed(self) -> bool:
        """Whether a collector failed, which ends them all."""
        return any(worker.failure is not None for worker in self._workers)

    def label(self, job_id: int, name: str) -> bool:
        """Write what a job is; return whether it is on the disk, where else the next `Spool.sync` is to bring it."""
        line, folder = row((job_id, name)), self.spool.root / "labels"
        try:
            folder.mkdir(exist_ok=True)
            write_whole(folder / self.spool.next_name(), f"{HEADERS['labels']}\n{line}")
        except OSError:
            self.spool.append("labels", line)
            return False
        return True

    def stop(self) -> None:
        """End every collector, close every segment, and raise what a collector failed with."""
        self.stopping.set()
        deadline_s = time.monotonic() + STOP_WITHIN_S
        for worker in self._workers:
            worker.join(max(0.0, deadline_s - time.monotonic()))
        hanging = [worker.name for worker in self._workers if worker.is_alive()]
        for name in hanging:
            self.events.record("service", "error", detail=f"{name} did not end within {STOP_WITHIN_S:.0f} s")
        failures = [worker.failure for worker in self._workers if worker.failure is not None]
        if self.gpu is not None and not failures and not hanging:
            failures += self._try({"gpu": self.gpu.close}, LAST_LOOK_WITHIN_S)
        for failure in failures:
            self.events.record("service", "error", detail=str(failure))
        self._record_cost()
        self.events.record("service", "stop")
        failures += self._close_spool(is_stuck="writer" in hanging)
        if self.backend is not None and not hanging:
            failures += self._try({"driver": self.backend.close}, LAST_LOOK_WITHIN_S)
        if failures:
            raise failures[0]

    def _close_spool(self, *, is_stuck: bool) -> list[Exception]:
        """Close the spool, and return what it failed with; a disk that hangs is left to the next collector."""
        told = [] if is_stuck else self._try({"spool": self.spool.close}, STOP_WITHIN_S)
        if is_stuck or any(isinstance(failure, _HangsError) for failure in told):
            return [
                SpoolError(
                    f"{self.spool.root}: the disk took nothing for {STOP_WITHIN_S:.0f} s; what was synced stays, and "
                    "the next collector closes it; look at the disk",
                    reason="disk_error",
                )
            ]
        return told

    def _within(self, works: Mapping[str, Callable[[], None]], seconds: float) -> None:
        """Do what may hang, all at once; raises the first failure. What hangs is an event, and left behind."""
        failures = self._try(works, seconds)
        for failure in failures:
            self.events.record("service", "error", detail=str(failure))
        for failure in failures:
            if not isinstance(failure, _HangsError):
                raise failure

    def _try(self, works: Mapping[str, Callable[[], None]], seconds: float) -> list[Exception]:
        """Do what may hang in a driver or a disk, all at once, and return what failed, or did not end in time."""
        workers = [_Worker(name, work, threading.Event()) for name, work in works.items()]
        for worker in workers:
            worker.start()
        deadline_s = time.monotonic() + seconds
        for worker in workers:
            worker.join(max(0.0, deadline_s - time.monotonic()))
        hanging = [
            _HangsError(f"{worker.name} did not end within {seconds:.0f} s") for worker in workers if worker.is_alive()
        ]
        return [*(worker.failure for worker in workers if worker.failure is not None), *hanging]

    def __enter__(self) -> Self:
        """Begin to collect."""
        try:
            self.start()
        except (JobwattError, OSError):
            with suppress(JobwattError):
                self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End; a failure of a collector does not hide one that was on its way."""
        if error is None:
            self.stop()
            return
        with suppress(Exception):
            self.stop()

    def _start_worker(self, name: str, work: Callable[[], None]) -> None:
        worker = _Worker(name, work, self.stopping)
        self._workers.append(worker)
        worker.start()

    def _collect(self, name: str, interval_s: float, tick: Callable[[], None]) -> None:
        for _ in self._schedule(name, interval_s):
            tick()
            self._ticks += 1

    def _schedule(self, name: str, interval_s: float) -> Iterator[float]:
        wait = self._nap if interval_s <= NAP_S else self.stopping.wait
        return ticks(interval_s, name, self.events, wait=wait)

    def _nap(self, seconds: float) -> bool:
        """Wait as ``stopping.wait`` does but for the end of the nap, at a good part less of CPU time."""
        time.sleep(seconds)
        return self.stopping.is_set()

    def _node_tick(self) -> None:
        self.node.tick()
        if self.node.problem:
            self.events.record("node", "error", detail=self.node.problem, reason="probe_failed")

    def _write(self) -> None:
        """Sync the spool at its pace, watch the clock, and once a minute note what all this costs."""
        clock = ClockWatch(self.events)
        next_cost_s = time.monotonic() + COST_EVERY_S
        while not self.stopping.wait(SYNC_S):
            clock.look()
            if time.monotonic() >= next_cost_s:
                next_cost_s += COST_EVERY_S
                self._record_cost()
            self.spool.sync()

    def _record_cost(self) -> None:
        """Record the CPU seconds and ticks since the last time, and the resident memory in MiB."""
        cpu_s, done = time.process_time(), self._ticks
        detail = f"{resident_mib():.1f}"
        self.events.record(
            "service", "cost", count=done - self._cost_ticks, seconds=cpu_s - self._cost_s, detail=detail
        )
        self._cost_s, self._cost_ticks = cpu_s, done


def resident_mib() -> float:
    """Return the resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
