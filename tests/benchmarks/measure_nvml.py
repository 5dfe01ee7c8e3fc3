"""What each NVML call costs here, in µs of wall and of CPU time: ``python tests/benchmarks/measure_nvml.py``.

It needs Python 3.11 or later, nvidia-ml-py, and the folder ``ingest/`` (``errors.py`` and ``collectors/``) two floors
up or on PYTHONPATH. Every call of which the collector makes a sample is made as the collector makes it, and
alternatives through pynvml. With ``--csv`` the rows are those of ``nvml_call_cost.csv``.

CPU time is that of the calling thread, kernel included (a driver that spins for an answer shows here). Calls are made
in rounds as in the collector: a pause, then every call on every GPU, so that caches are as cold as they are there.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pynvml as nv

ROOT = Path(__file__).resolve().parents[2]
if (ROOT / "ingest" / "collectors").is_dir() and str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from ingest.collectors.hardware import CALLS, NvmlBackend  # noqa: E402 (its folder is looked for first)

POWER_LIMIT_FIELD = nv.NVML_FI_DEV_POWER_CURRENT_LIMIT
FIELDS = (
    nv.NVML_FI_DEV_POWER_INSTANT,
    nv.NVML_FI_DEV_POWER_AVERAGE,
    nv.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION,
    nv.NVML_FI_DEV_MEMORY_TEMP,
)

Call = Callable[[Any], object]

ALTERNATIVES: dict[str, Call] = {
    "field: power instant": lambda handle: nv.nvmlDeviceGetFieldValues(handle, FIELDS[0:1]),
    "field: power average": lambda handle: nv.nvmlDeviceGetFieldValues(handle, FIELDS[1:2]),
    "field: energy": lambda handle: nv.nvmlDeviceGetFieldValues(handle, FIELDS[2:3]),
    "field: memory temperature": lambda handle: nv.nvmlDeviceGetFieldValues(handle, FIELDS[3:4]),
    "field: power limit": lambda handle: nv.nvmlDeviceGetFieldValues(handle, (POWER_LIMIT_FIELD,)),
    "fields: powers, energy": lambda handle: nv.nvmlDeviceGetFieldValues(handle, FIELDS[:3]),
    "fields: all and limit": lambda handle: nv.nvmlDeviceGetFieldValues(handle, (*FIELDS, POWER_LIMIT_FIELD)),
    "PowerUsage": nv.nvmlDeviceGetPowerUsage,
    "TotalEnergyConsumption": nv.nvmlDeviceGetTotalEnergyConsumption,
    "PowerManagementLimit": nv.nvmlDeviceGetPowerManagementLimit,
    "MemoryInfo_v2": lambda handle: nv.nvmlDeviceGetMemoryInfo(handle, version=nv.nvmlMemory_v2),
    "TemperatureV": lambda handle: nv.nvmlDeviceGetTemperatureV(handle, nv.NVML_TEMPERATURE_GPU),
    "Clock(current)": lambda handle: nv.nvmlDeviceGetClock(handle, nv.NVML_CLOCK_SM, nv.NVML_CLOCK_ID_CURRENT),
    "ClocksEventReasons": nv.nvmlDeviceGetCurrentClocksEventReasons,
    "PerformanceState": nv.nvmlDeviceGetPerformanceState,
    "Samples(power)": lambda handle: nv.nvmlDeviceGetSamples(handle, nv.NVML_TOTAL_POWER_SAMPLES, 0),
    "Samples(utilization)": lambda handle: nv.nvmlDeviceGetSamples(handle, nv.NVML_GPU_UTILIZATION_SAMPLES, 0),
    "GpuInstances: MigMode": nv.nvmlDeviceGetMigMode,
    "PcieReplayCounter (a cheap one)": nv.nvmlDeviceGetPcieReplayCounter,
    "Index (no driver call)": nv.nvmlDeviceGetIndex,
}


def measure(
    calls: Mapping[str, Sequence[Callable[[], object]]], rounds: int, pause_s: float
) -> dict[str, tuple[list[float], list[float]]]:
    """Return wall and CPU microseconds of every call (one for each GPU) of several rounds, less what measuring takes.

    A call that NVML refuses is left out.
    """
    answered = {name: on_gpus for name, on_gpus in calls.items() if _answers(name, on_gpus)}
    taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in answered}
    empty_wall_us, empty_cpu_us = (
        statistics.median(times) for times in zip(*map(_timed, [_nothing] * 200), strict=True)
    )
    for _ in range(rounds):
        time.sleep(pause_s)
        for gpu in range(max(map(len, answered.values()), default=0)):
            for name, on_gpus in answered.items():
                wall_us, cpu_us = _timed(on_gpus[gpu])
                taken[name][0].append(max(0.0, wall_us - empty_wall_us))
                taken[name][1].append(max(0.0, cpu_us - empty_cpu_us))
    return taken


def _timed(call: Callable[[], object]) -> tuple[float, float]:
    cpu_s, wall_s = time.thread_time(), time.perf_counter()
    call()
    return (time.perf_counter() - wall_s) * 1e6, (time.thread_time() - cpu_s) * 1e6


def _nothing() -> None:
    """Cost nothing."""


def _answers(name: str, on_gpus: Sequence[Callable[[], object]]) -> bool:
    try:
        for call in on_gpus:
            call()
    except nv.NVMLError as error:
        print(f"{name:34s} {error}")
        return False
    return True


def main() -> None:
    """Measure, and print a table for people; with --csv also rows for ``nvml_call_cost.csv``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300, help="rounds of all calls on all GPUs (default: 300)")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between rounds (default: 0.1)")
    parser.add_argument("--csv", type=Path, help="write the collector's calls there, as nvml_call_cost.csv has them")
    told = parser.parse_args()
    backend = NvmlBackend()
    gpus = list(backend.indices())
    handles = [nv.nvmlDeviceGetHandleByIndex(index) for index in gpus]
    name, driver = nv.nvmlDeviceGetName(handles[0]), nv.nvmlSystemGetDriverVersion()
    print(f"{len(gpus)} x {name}, driver {driver}, Python {sys.version.split()[0]}")
    print(f"{'call':34s} {'CPU µs':>8s} {'p50':>8s} {'p99':>8s} {'wall µs':>10s} {'p50':>8s} {'p99':>8s}")
    own: dict[str, list[Callable[[], object]]] = {
        call: [partial(backend.time_call, index, call) for index in gpus] for call in CALLS if call != "energy"
    }
    # the counter is seldom asked in one round with them
    energy = {"energy": [partial(backend.time_call, index, "energy") for index in gpus]}
    own["processes"] = [partial(backend.process_ids, index) for index in gpus]
    own["describe"] = [partial(backend.describe, index) for index in gpus]
    groups: list[dict[str, list[Callable[[], object]]]] = [
        own,
        energy,
        {
            "a whole reading": [partial(backend.read, index, with_energy=False) for index in gpus],
            "a whole reading with energy": [partial(backend.read, index, with_energy=True) for index in gpus],
        },
        {call: [partial(function, handle) for handle in handles] for call, function in ALTERNATIVES.items()},
    ]
    rows = []
    for calls in groups:
        for call, (wall_us, cpu_us) in measure(calls, told.rounds, told.pause).items():
            print(f"{call:34s} {_summary(cpu_us)} {statistics.mean(wall_us):10.1f} {_summary(wall_us)[9:]}", flush=True)
            if calls is own or calls is energy:
                source = f"measure_nvml.py on {len(gpus)} x {name}, driver {driver}; mean of {len(cpu_us)} calls"
                rows.append((call, f"{statistics.mean(cpu_us):.1f}", f"{statistics.mean(wall_us):.1f}", source))
    if told.csv is not None:
        with told.csv.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("call", "cpu_us", "wall_us", "source"), *rows])


def _summary(times_us: Sequence[float]) -> str:
    """Return mean, median and 99th percentile, each eight characters wide."""
    ordered = sorted(times_us)
    shown = (statistics.mean(ordered), ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)])
    return " ".join(f"{value:8.1f}" for value in shown)


if __name__ == "__main__":
    main()
