"""The GPU collector: one row of each GPU and tick; which job each GPU works for; what the GPUs are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ingest.collectors.hardware import GpuBackend, GpuDevice, GpuReading
from ingest.collectors.jobs import job_of_process
from ingest.collectors.schedule import Events
from ingest.collectors.spool import Spool, row
from ingest.errors import GpuLostError

ROW: Final = ",".join(["%s"] * (len(GpuReading._fields) - 1)) + "\n"
RETRY_LOST_S: Final = 10.0
"""How often a lost GPU is looked for again."""


@dataclass(slots=True)
class JobTable:
    """Which job each GPU works for: assigned by whoever starts jobs, else found by the GPU's processes."""

    assigned: dict[int, int] = field(default_factory=dict)
    found: dict[int, frozenset[int]] = field(default_factory=dict)

    def job_of(self, index: int) -> int | None:
        """Return the GPU's one job; None where it is idle, unknown, or shared by several jobs."""
        if index in self.assigned:
            return self.assigned[index]
        jobs = self.found.get(index, frozenset())
        return next(iter(jobs)) if len(jobs) == 1 else None

    def jobs_of(self, index: int) -> frozenset[int]:
        """Return all jobs that are known to use the GPU."""
        return frozenset((self.assigned[index],)) if index in self.assigned else self.found.get(index, frozenset())


class GpuCollector:
    """Reads every GPU once a tick.

    Attributes
    ----------
    latest
        The last reading by GPU; a GPU that does not answer is not in it.
    """

    def __init__(
        self,
        backend: GpuBackend,
        spool: Spool,
        events: Events,
        jobs: JobTable,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.latest: dict[int, GpuReading] = {}
        self.lost: set[int] = set()
        self._backend, self._spool, self._events, self._jobs = backend, spool, events, jobs
        self._monotonic = monotonic
        self._indices = tuple(backend.indices())
        self._answering: dict[int, tuple[bool, ...]] = {}
        self._retry_s = 0.0

    def tick(self) -> None:
        """Read every GPU that answers and append its row."""
        if self.lost and self._monotonic() >= self._retry_s:
            self._look_for_lost()
        for index in self._indices:
            if index in self.lost:
                continue
            try:
                reading = self._backend.read(index)
            except GpuLostError as error:
                self._lose(index, str(error))
                continue
            self.latest[index] = reading
            self._spool.append("gpu", gpu_row(reading, self._spool.node, self._jobs.job_of(index), index))
            self._compare(index, reading)

    def _compare(self, index: int, reading: GpuReading) -> None:
        """Report sensors that fell silent, or spoke again."""
        answering = tuple(value is not None for value in reading)
        before = self._answering.get(index)
        if answering == before:
            return
        self._answering[index] = answering
        for refusal in self._backend.take_refusals():
            self._events.record("gpu", "error", detail=refusal)
        for name, now, then in zip(GpuReading._fields, answering, before or answering, strict=True):
            if now != then:
                self._events.record("gpu", "sensor_back" if now else "sensor_lost", detail=f"GPU {index} {name}")

    def _lose(self, index: int, why: str) -> None:
        self.lost.add(index)
        self.latest.pop(index, None)
        self._retry_s = self._monotonic() + RETRY_LOST_S
        self._events.record("gpu", "sensor_lost", detail=f"GPU {index}: {why.partition(': ')[2] or why}")

    def _look_for_lost(self) -> None:
        self._retry_s = self._monotonic() + RETRY_LOST_S
        for index in sorted(self.lost):
            try:
                self._backend.describe(index)
                self._backend.read(index)
            except GpuLostError:
                continue
            self.lost.discard(index)
            self._events.record("gpu", "sensor_back", detail=f"GPU {index}")


def gpu_row(reading: GpuReading, node: str, job_id: int | None, index: int) -> str:
    """Return the line of one sample, in the order of the spool's header; what is None stays empty."""
    cells = ROW % reading[1:]
    if None in reading:
        cells = cells.replace("None", "")
    return f"{reading[0]:.6f},{node},{'' if job_id is None else job_id},{index},{cells}"


class Inventory:
    """Keeps the table of jobs and the inventory of devices up to date, at its own slower pace."""

    def __init__(
        self,
        backend: GpuBackend,
        spool: Spool,
        events: Events,
        jobs: JobTable,
        *,
        proc: Path = Path("/proc"),
        devices_s: float = 60.0,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.devices: dict[int, GpuDevice] = {}
        self._backend, self._spool, self._events, self._jobs, self._proc = backend, spool, events, jobs, proc
        self._devices_s, self._wall, self._monotonic = devices_s, wall, monotonic
        self._next_devices_s = monotonic()
        self._job_ids: dict[int, int | None] = {}
        self._looking = threading.Lock()

    def tick(self) -> None:
        """Look which jobs use which GPU, and now and then whether a device has changed."""
        with self._looking:
            if self._monotonic() >= self._next_devices_s:
                self._next_devices_s = self._monotonic() + self._devices_s
                self._look_at_devices()
            self._look_at_jobs()
            for refusal in self._backend.take_refusals():
                self._events.record("gpu", "error", detail=refusal)

    def _look_at_jobs(self) -> None:
        seen: dict[int, int | None] = {}
        for index in self._backend.indices():
            try:
                pids = self._backend.process_ids(index)
            except GpuLostError:
                pids = ()
            seen |= {pid: self._job_ids.get(pid) or self._job_id(pid) for pid in pids}
            self._jobs.found[index] = frozenset(job for pid in pids if (job := seen[pid]) is not None)
        self._job_ids = seen

    def _job_id(self, pid: int) -> int | None:
        found = job_of_process(pid, self._proc)
        return None if found is None else found.job_id

    def _look_at_devices(self) -> None:
        for index in self._backend.indices():
            try:
                device = self._backend.describe(index)
            except GpuLostError:
                continue
            if device != self.devices.get(index):
                self.devices[index] = device
                self._spool.append("devices", _device_row(device, self._spool.node, self._wall()))


def _device_row(device: GpuDevice, node: str, time_s: float) -> str:
    values: Sequence[object] = (
        device.index,
        device.uuid,
        device.name,
        device.memory_total_mib,
        device.power_limit_w,
        device.power_limit_default_w,
        device.power_limit_min_w,
        device.power_limit_max_w,
        device.mig_mode,
        device.driver_version,
    )
    return row((f"{time_s:.6f}", node, *values))
