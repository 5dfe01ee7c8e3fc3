"""What each NVML call costs here, in µs of wall and of CPU time: ``python tests/benchmarks/measure_nvml.py``.

Stand-alone: Python 3.11 or later, nvidia-ml-py, and the folder ``ingest/collectors`` two floors up or on PYTHONPATH
(for the cost of a whole reading; left out where that is missing). Every call that `NvmlBackend` makes is measured on
each GPU, and alternatives worth knowing. With ``--csv`` the rows are those of ``nvml_call_cost.csv``.

CPU time is that of the calling thread, kernel included (a driver that spins for an answer shows here). Each call is
made with pauses, as the collector does, and in a tight loop, since a GPU that is seldom asked may answer more slowly.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml as nv

POWER_LIMIT_FIELD = nv.NVML_FI_DEV_POWER_CURRENT_LIMIT
FIELDS = (
    nv.NVML_FI_DEV_POWER_INSTANT,
    nv.NVML_FI_DEV_POWER_AVERAGE,
    nv.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION,
    nv.NVML_FI_DEV_MEMORY_TEMP,
)

Call = Callable[[Any], object]

COLLECTOR_CALLS: dict[str, Call] = {
    "fields": lambda handle: nv.nvmlDeviceGetFieldValues(handle, FIELDS),
    "utilization": nv.nvmlDeviceGetUtilizationRates,
    "memory": nv.nvmlDeviceGetMemoryInfo,
    "temperature": lambda handle: nv.nvmlDeviceGetTemperature(handle, nv.NVML_TEMPERATURE_GPU),
    "sm_clock": lambda handle: nv.nvmlDeviceGetClockInfo(handle, nv.NVML_CLOCK_SM),
    "throttle_reasons": nv.nvmlDeviceGetCurrentClocksThrottleReasons,
    "memory_clock": lambda handle: nv.nvmlDeviceGetClockInfo(handle, nv.NVML_CLOCK_MEM),
    "power_limit": nv.nvmlDeviceGetEnforcedPowerLimit,
    "pcie_width": nv.nvmlDeviceGetCurrPcieLinkWidth,
    "processes": nv.nvmlDeviceGetComputeRunningProcesses,
}
"""The names of `ingest.collectors.hardware.CALLS`, and ``processes``."""

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


def measure(call: Call, handle: Any, times: int, pause_s: float) -> tuple[list[float], list[float]]:
    """Return wall and CPU microseconds of each of several calls, after one that does not count."""
    call(handle)
    wall_us, cpu_us = [], []
    for _ in range(times):
        if pause_s:
            time.sleep(pause_s)
        wall, cpu = time.perf_counter(), time.thread_time()
        call(handle)
        cpu_us.append((time.thread_time() - cpu) * 1e6)
        wall_us.append((time.perf_counter() - wall) * 1e6)
    return wall_us, cpu_us


def backend_reading() -> Call | None:
    """Return a call that makes one whole reading as the collector does; None where jobwatt is not here."""
    root = Path(__file__).resolve().parents[2]
    if (root / "ingest" / "collectors").is_dir() and str(root) not in sys.path:
        sys.path.insert(0, str(root))
    try:
        from ingest.collectors.hardware import NvmlBackend
    except ImportError:
        return None
    backend = NvmlBackend()
    return lambda handle: backend.read(nv.nvmlDeviceGetIndex(handle))


def main() -> None:
    """Measure, and print a table for people or rows for ``nvml_call_cost.csv``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=200, help="calls of each kind at each pace (default: 200)")
    parser.add_argument("--pause", type=float, default=0.02, help="seconds between calls at the slow pace (0.02)")
    parser.add_argument("--csv", type=Path, help="write the collector's calls there, as nvml_call_cost.csv has them")
    told = parser.parse_args()
    nv.nvmlInit()
    handles = [nv.nvmlDeviceGetHandleByIndex(index) for index in range(nv.nvmlDeviceGetCount())]
    name, driver = nv.nvmlDeviceGetName(handles[0]), nv.nvmlSystemGetDriverVersion()
    print(f"{len(handles)} × {name}, driver {driver}, Python {sys.version.split()[0]}")
    print(f"{'call':34s} {'paused: wall µs':>16s} {'p99':>8s} {'CPU µs':>8s} {'tight: wall µs':>16s} {'CPU µs':>8s}")
    whole = backend_reading()
    calls = {**COLLECTOR_CALLS, **ALTERNATIVES, **({} if whole is None else {"NvmlBackend.read": whole})}
    rows = []
    for label, call in calls.items():
        try:
            paused = [measure(call, handle, told.times, told.pause) for handle in handles]
            tight = [measure(call, handle, told.times, 0.0) for handle in handles]
        except nv.NVMLError as error:
            print(f"{label:34s} {error}")
            continue
        wall, cpu = (sorted(value for run in paused for value in run[part]) for part in (0, 1))
        quick_wall, quick_cpu = ([value for run in tight for value in run[part]] for part in (0, 1))
        print(
            f"{label:34s} {statistics.mean(wall):16.1f} {wall[int(len(wall) * 0.99)]:8.1f} {statistics.mean(cpu):8.1f} "
            f"{statistics.mean(quick_wall):16.1f} {statistics.mean(quick_cpu):8.1f}",
            flush=True,
        )
        if label in COLLECTOR_CALLS:
            source = f"measure_nvml.py on {len(handles)} x {name}, driver {driver}; mean of {len(cpu)} paused calls"
            rows.append((label, f"{statistics.mean(cpu):.1f}", f"{statistics.mean(wall):.1f}", source))
    if told.csv is not None:
        with told.csv.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("call", "cpu_us", "wall_us", "source"), *rows])


if __name__ == "__main__":
    main()
