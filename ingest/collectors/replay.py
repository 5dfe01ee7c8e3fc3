"""GPUs played from recorded files: for tests, for measuring the collector itself, and for a look without hardware."""

from __future__ import annotations

import bisect
import csv
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ingest.collectors.clock import steady_time
from ingest.collectors.gpu_columns import GPU_EXTENDED_VALUE_COLUMN_MAP, GPU_VALUE_COLUMN_MAP
from ingest.collectors.hardware import CALLS, GpuDevice, GpuReading, Refusal
from ingest.errors import GpuLostError, HardwareError

READING_COLUMN_MAP: Final[Mapping[str, str]] = {
    "timestamp": "time_s",
    **GPU_VALUE_COLUMN_MAP,
    **GPU_EXTENDED_VALUE_COLUMN_MAP,
    "energy_mJ": "energy_mj",
    "clock_memory_MHz": "memory_clock_mhz",
    "enforced_power_limit_W": "power_limit_w",
    "throttle_reasons": "throttle_reasons",
}
ENERGY: Final = GpuReading._fields.index("energy_mj")
MAX_GAP_S: Final = 1.0
"""A GPU without a row for longer than this is lost for that time."""


class ReplayBackend:
    """Plays recordings by the clock: what a GPU read so many seconds after their start it reads so many after ours.

    A GPU whose rows have a gap is lost in the gap; after the last row of all, it begins anew, and the energy counter
    goes on from where it was. Between two recorded values of the counter it rises steadily.

    Parameters
    ----------
    series
        Readings by GPU, in order of time. Times count from the first of all.
    gpus
        How many GPUs to play; the recorded ones are played again under further numbers. As recorded unless given.
    spin_s
        CPU seconds that each call of `ingest.collectors.hardware.CALLS`, ``processes`` and ``describe`` burn, by name,
        as on real hardware.
    calls
        How often each is made, as `NvmlBackend` takes it.
    """

    def __init__(
        self,
        series: Mapping[int, Sequence[GpuReading]],
        *,
        gpus: int | None = None,
        spin_s: Mapping[str, float] | None = None,
        calls: Mapping[str, float] = CALLS,
        wall: Callable[[], float] = steady_time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if not series or not all(series.values()):
            raise HardwareError(
                "the recording has no GPU samples to play; give files of gpu/ or a spool's gpu segments"
            )
        recorded = [_with_counters(readings) for _, readings in sorted(series.items())]
        self._first_s = min(readings[0].time_s for readings in recorded)
        self._length_s = max(readings[-1].time_s for readings in recorded) - self._first_s + 0.1
        numbers = sorted(series) if gpus is None else range(gpus)
        self._series = {index: recorded[place % len(recorded)] for place, index in enumerate(numbers)}
        self._times = {
            index: [reading.time_s - self._first_s for reading in rows] for index, rows in self._series.items()
        }
        self._spin_s, self._calls = dict(spin_s or {}), calls
        self._spin_always_s = sum(self._spin_s.get(name, 0.0) for name, every_s in calls.items() if every_s == 0)
        self._spin_always_s -= self._spin_s.get("energy", 0.0)
        self._due_s = {index: {name: 0.0 for name, every_s in calls.items() if every_s > 0} for index in self._series}
        self._next_due_s = dict.fromkeys(self._series, 0.0)
        self._energy_of_round_mj = {index: _energy_mj(rows) for index, rows in self._series.items()}
        self._wall, self._monotonic = wall, monotonic
        self._began_s = monotonic()

    def indices(self) -> Sequence[int]:
        """Return the numbers of the GPUs."""
        return tuple(self._series)

    def read(self, index: int, *, with_energy: bool) -> GpuReading:
        """Return what was recorded at this place of the recording, under the time of now."""
        time_s, now_s = self._wall(), self._monotonic()
        round_number, place_s = divmod(now_s - self._began_s, self._length_s)
        place = bisect.bisect_right(self._times[index], place_s) - 1
        if place < 0 or place_s - self._times[index][place] > MAX_GAP_S:
            raise GpuLostError(f"GPU {index}: nothing is recorded {place_s:.1f} s after the start")
        if self._spin_s:
            self._spin(index, now_s, with_energy)
        reading = self._series[index][place]
        energy_mj = reading.energy_mj if with_energy else None
        if energy_mj is not None:
            energy_mj += int(round_number) * self._energy_of_round_mj[index]
        return GpuReading._make((time_s, *reading[1:ENERGY], energy_mj, *reading[ENERGY + 1 :]))

    def describe(self, index: int) -> GpuDevice:
        """Return what little a recording says of the GPU."""
        spin(self._spin_s.get("describe", 0.0))
        first = self._series[index][0]
        total = (
            None
            if first.memory_free_mib is None or first.memory_used_mib is None
            else first.memory_free_mib + first.memory_used_mib
        )
        return GpuDevice(index, f"GPU-replay-{index}", "replay", total, first.power_limit_w)

    def process_ids(self, index: int) -> Sequence[int]:  # noqa: ARG002 (the protocol's)
        """Return no process: a recording has none."""
        if self._spin_s:
            spin(self._spin_s.get("processes", 0.0))
        return ()

    def take_refusals(self) -> list[Refusal]:
        """Return nothing: a recording refuses nothing."""
        return []

    def close(self) -> None:
        """Have nothing to let go."""

    def _spin(self, index: int, now_s: float, with_energy: bool) -> None:
        """Burn what the calls cost that are due now."""
        cost_s = self._spin_always_s
        if with_energy:
            cost_s += self._spin_s.get("energy", 0.0)
        if now_s >= self._next_due_s[index]:
            due_s = self._due_s[index]
            for name in [name for name in due_s if now_s >= due_s[name]]:
                cost_s += self._spin_s.get(name, 0.0)
                share = (1 + index) / 8 if due_s[name] == 0.0 else 1.0
                due_s[name] = now_s + self._calls[name] * share - 0.005
            self._next_due_s[index] = min(due_s.values())
        spin(cost_s)


def _with_counters(readings: Sequence[GpuReading]) -> list[GpuReading]:
    """Return readings with the energy counter at each one from the first to the last that was recorded with it."""
    filled, before = list(readings), None
    for place, reading in enumerate(readings):
        if reading.energy_mj is None:
            continue
        if before is not None and place > before + 1:
            since, step_s = readings[before], reading.time_s - readings[before].time_s
            rise_mj = reading.energy_mj - (since.energy_mj or 0)
            for at in range(before + 1, place):
                part = (readings[at].time_s - since.time_s) / step_s
                filled[at] = readings[at]._replace(energy_mj=(since.energy_mj or 0) + int(part * rise_mj))
        before = place
    return filled


def _energy_mj(readings: Sequence[GpuReading]) -> int:
    """Return how far the energy counter went in a recording; 0 where it has none."""
    energies = [reading.energy_mj for reading in readings if reading.energy_mj is not None]
    return energies[-1] - energies[0] if energies else 0


def spin(cpu_s: float) -> None:
    """Keep this thread busy for so many CPU seconds."""
    until_s = time.thread_time() + cpu_s
    while time.thread_time() < until_s:
        pass


def read_recording(path: Path) -> dict[int, list[GpuReading]]:
    """Return the readings by GPU of a CSV file, or of all in a folder: ``gpu/`` (and ``gpu_extended/``), or a spool.

    Raises
    ------
    HardwareError
        There is no such file, or it has no column ``timestamp``.
    """
    paths = [path] if path.is_file() else sorted(path.glob("gpu/**/*.csv")) or sorted(path.glob("*.csv"))
    readings: dict[tuple[int, float], GpuReading] = {}
    for file in paths:
        extended = Path(str(file).replace("/gpu/", "/gpu_extended/"))
        for source in (file, extended) if extended != file and extended.exists() else (file,):
            for index, values in _read_file(source):
                key = (index, values["time_s"])
                known = readings.get(key, GpuReading(values["time_s"]))
                readings[key] = known._replace(**values)
    series: dict[int, list[GpuReading]] = {}
    for (index, _), reading in sorted(readings.items(), key=lambda item: item[0]):
        series.setdefault(index, []).append(reading)
    return series


def _read_file(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                values = {
                    ours: _number(line[theirs]) for theirs, ours in READING_COLUMN_MAP.items() if line.get(theirs)
                }
                if "time_s" not in values:
                    raise HardwareError(f"{path} has no column timestamp; give a recording's gpu/ files or a spool")
                yield int(line.get("gpu_index") or 0), {**values, "time_s": float(values["time_s"])}
    except (OSError, ValueError) as error:
        raise HardwareError(f"{path} cannot be played ({error}); give a recording's gpu/ files or a spool") from error


def _number(text: str) -> float | int:
    value = float(text)
    return int(value) if value.is_integer() and "." not in text else value
