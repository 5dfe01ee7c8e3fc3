"""The GPU collector: one row of each GPU and tick; which job each GPU works for; what the GPUs are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import is_, itemgetter
from pathlib import Path
from typing import Final, NamedTuple

from ingest.collectors.clock import steady_time
from ingest.collectors.energy import EnergySum, EnergyTwice
from ingest.collectors.hardware import GpuBackend, GpuDevice, GpuReading
from ingest.collectors.jobs import job_of_process
from ingest.collectors.order import BREAK_S, SeriesOrder, Telling
from ingest.collectors.schedule import Events
from ingest.collectors.spool import Spool, row
from ingest.errors import GpuLostError

RETRY_LOST_S: Final = 10.0
"""How often a lost GPU is looked for again."""

ENERGY_S: Final = 30.0
ENERGY_TICKS: Final = 300
"""The energy counter is asked once in so many seconds, or ticks where these take longer, unless told otherwise.

At 4.6 ms each (H100), 8 GPUs cost 0.12 % of a core so at ten readings a second, and 0.01 % at one; asked every 10 s it
would be 0.37 %.
"""

EARLY_S: Final = 0.005
"""A tick that comes so long before the counter's time is the one that was meant."""

CLOSE_WITHIN_S: Final = 5.0
"""How long a closing sample waits for a reading that hangs in the driver."""

_ENERGY: Final = GpuReading._fields.index("energy_mj")
_NOTHING: Final = (None,) * len(GpuReading._fields)


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
    """Reads every GPU once a tick, and now and then its energy counter with it.

    The counter is asked at a GPU's first reading, at the first after its job changed, in the sample that `close` takes,
    and between these each ``energy_s``, of every GPU in another tick. A reading at which the job changed is a row of
    both jobs: the one's last and the other's first, so that the counter covers either.

    Parameters
    ----------
    energy_s
        0: the counter is never asked.

    Attributes
    ----------
    indices
        The GPUs that are read.
    latest
        The last reading by GPU; a GPU that does not answer is not in it.
    counters_mj
        The last energy counter that was read, by GPU; as `latest`.
    lost
        The GPUs that do not answer, each with what it was that it, or the driver, said.
    losses
        How often each GPU was lost.
    """

    def __init__(
        self,
        backend: GpuBackend,
        spool: Spool,
        events: Events,
        jobs: JobTable,
        *,
        energy_s: float = ENERGY_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.latest: dict[int, GpuReading] = {}
        self.counters_mj: dict[int, int] = {}
        self.lost: dict[int, str] = {}
        self.losses: dict[int, int] = {}
        self._backend, self._spool, self._events, self._jobs = backend, spool, events, jobs
        self._energy_s, self._monotonic = energy_s, monotonic
        self.indices = tuple(backend.indices())
        self._reading = threading.Lock()
        self._order = SeriesOrder()
        self._job_ids: dict[int, int | None] = {}
        self._energies: dict[tuple[int, int], EnergySum] = {}
        self._energy_due_s: dict[int, float] = {}
        self._silent: dict[int, tuple[bool, ...]] = {}
        self._last_silent: dict[tuple[int, bool], tuple[bool, ...]] = {}
        self._retry_s = 0.0

    def tick(self) -> None:
        """Read every GPU that answers and append its row."""
        now_s = self._monotonic()
        if self.lost and now_s >= self._retry_s:
            self._look_for_lost()
        for index in self.indices:
            if index not in self.lost:
                with self._reading:
                    self._sample(index, now_s)

    def close(self, indices: Iterable[int] | None = None) -> None:
        """Take one more sample of some GPUs (all unless given), with the counter, and let their assigned jobs go.

        There is none where the counter is never asked, of a GPU that has not been read yet or is lost, and where a
        reading hangs.
        """
        for index in self.indices if indices is None else indices:
            if not self._reading.acquire(timeout=CLOSE_WITHIN_S):
                return
            try:
                if self._energy_s > 0 and index in self._job_ids:
                    job_id, now_s = self._jobs.job_of(index), self._monotonic()
                    reading = self._read(index, with_energy=True)
                    if reading is not None:
                        self._append(index, job_id, reading, now_s)
                        self._job_ids.pop(index)
                self._jobs.assigned.pop(index, None)
            finally:
                self._reading.release()

    def _sample(self, index: int, now_s: float) -> None:
        """Read one GPU and append its row; for whoever holds the lock."""
        job_id = self._jobs.job_of(index)
        before = self._job_ids.get(index)
        has_changed = job_id != before or index not in self._job_ids
        is_due = self._is_energy_due(index, now_s)
        read_s = self._monotonic()
        reading = self._read(index, with_energy=is_due or (has_changed and self._energy_s > 0))
        if reading is None:
            return
        if has_changed:
            self._job_ids[index] = job_id
            if before is not None:
                self._append(index, before, reading, read_s)
        self._append(index, job_id, reading, read_s)

    def _append(self, index: int, job_id: int | None, reading: GpuReading, read_s: float) -> None:
        """Append a job's row, as far as its time lets it; see `SeriesOrder`."""
        self._add_energy(index, job_id, reading, read_s)
        telling = self._order.place(index, job_id, reading.time_s)
        if telling is not Telling.WHOLE:
            if telling is Telling.NOT:
                return
            reading = reading._replace(energy_mj=None)
        if left_out := self._order.take_left_out(index, job_id):
            detail = f"GPU {index}: rows left out where the clock had been set back"
            self._events.record("gpu", "missed", count=left_out, seconds=BREAK_S, detail=detail)
        self._spool.append("gpu", GpuRow(reading, self._spool.node, job_id, index))

    def _add_energy(self, index: int, job_id: int | None, reading: GpuReading, read_s: float) -> None:
        """Sum up the energy of an assigned job, on the clock that nobody sets."""
        if job_id is None:
            return
        energy = self._energies.get((job_id, index))
        if energy is None:
            if self._jobs.assigned.get(index) != job_id:
                return
            energy = self._energies[job_id, index] = EnergySum()
        energy.add(read_s, reading.power_w, reading.energy_mj)

    def energy_of(self, job_id: int) -> tuple[EnergyTwice, ...]:
        """Return both energies of each GPU that was assigned to a job and gave a sample for it."""
        return tuple(
            energy.told(index)
            for (job, index), energy in sorted(self._energies.copy().items(), key=itemgetter(0))
            if job == job_id
        )

    def _is_energy_due(self, index: int, now_s: float) -> bool:
        """Return whether it is time for a GPU's counter; its times are its own, whatever is read between them."""
        if self._energy_s <= 0:
            return False
        due_s = self._energy_due_s.get(index)
        if due_s is None:
            share = (self.indices.index(index) + 0.5) / len(self.indices)
            self._energy_due_s[index] = now_s + share * self._energy_s - EARLY_S
            return True
        if now_s < due_s:
            return False
        self._energy_due_s[index] = due_s + self._energy_s * (1 + (now_s - due_s) // self._energy_s)
        return True

    def _read(self, index: int, *, with_energy: bool) -> GpuReading | None:
        try:
            reading = self._backend.read(index, with_energy=with_energy)
        except GpuLostError as error:
            self._lose(index, str(error))
            return None
        self.latest[index] = reading
        if reading.energy_mj is not None:
            self.counters_mj[index] = reading.energy_mj
        self._compare(index, reading, with_energy)
        return reading

    def _compare(self, index: int, reading: GpuReading, with_energy: bool) -> None:
        """Report sensors that fell silent, or spoke again; the counter, only where it was asked."""
        silent = tuple(map(is_, reading, _NOTHING))
        if silent == self._last_silent.get((index, with_energy)):
            return
        self._last_silent[index, with_energy] = silent
        before = self._silent.get(index)
        if before is not None and not with_energy:
            silent = (*silent[:_ENERGY], before[_ENERGY], *silent[_ENERGY + 1 :])
        self._silent[index] = silent
        for refusal in self._backend.take_refusals():
            self._events.record("gpu", "error", detail=refusal.text, reason=refusal.reason)
        for name, now, then in zip(GpuReading._fields, silent, before or silent, strict=True):
            if now != then:
                self._events.record("gpu", "sensor_lost" if now else "sensor_back", detail=f"GPU {index} {name}")

    def _lose(self, index: int, why: str) -> None:
        why = why.partition(": ")[2] or why
        self.lost[index] = why
        self.losses[index] = self.losses.get(index, 0) + 1
        for known in (self.latest, self.counters_mj, self._job_ids):
            known.pop(index, None)
        self._retry_s = self._monotonic() + RETRY_LOST_S
        self._events.record("gpu", "sensor_lost", detail=f"GPU {index}: {why}", reason="gpu_lost")

    def _look_for_lost(self) -> None:
        self._retry_s = self._monotonic() + RETRY_LOST_S
        for index in sorted(self.lost):
            try:
                self._backend.describe(index)
                self._backend.read(index, with_energy=False)
            except GpuLostError:
                continue
            self.lost.pop(index)
            self._events.record("gpu", "sensor_back", detail=f"GPU {index} is back", reason="gpu_back")


class GpuRow(NamedTuple):
    """One line of the spool, not yet written out."""

    reading: GpuReading
    node: str
    job_id: int | None
    gpu_index: int

    def __str__(self) -> str:
        """Return the line in the order of the spool's header; what is None stays empty."""
        reading = self[0]
        line = _line_format(reading[_ENERGY] is not None, *self[1:]) % reading
        if "None" in line:
            cells = ["" if value is None else value for value in reading[1:]]
            return _line_format(True, *self[1:]) % (reading[0], *cells)
        return line


@lru_cache(maxsize=256)
def _line_format(has_energy: bool, node: str, job_id: int | None, gpu_index: int) -> str:
    """Return the format of one GPU's lines; a counter that was not asked, as in most, is left empty by it."""
    cells = ["%s"] * (len(GpuReading._fields) - 1)
    if not has_energy:
        cells[_ENERGY - 1] = "%.0s"
    return f"%.6f,{node},{'' if job_id is None else job_id},{gpu_index},{','.join(cells)}\n"


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
        devices_s: float = 300.0,
        wall: Callable[[], float] = steady_time,
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
                self._events.record("gpu", "error", detail=refusal.text, reason=refusal.reason)

    def _look_at_jobs(self) -> None:
        seen: dict[int, int | None] = {}
        for index in self._backend.indices():
            try:
                pids: Sequence[int] | None = self._backend.process_ids(index)
            except GpuLostError:
                pids = ()
            if pids is None:  # it does not say now: what it said last still stands
                continue
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
