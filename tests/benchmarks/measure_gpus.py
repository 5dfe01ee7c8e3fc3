"""What the collector costs on the GPUs of this machine, and whether energy by counter and by integral agree under load.

``python tests/benchmarks/measure_gpus.py --csv tests/benchmarks/collector_on_gpus.csv`` on a machine with NVIDIA GPUs,
Python 3.11 or later, nvidia-ml-py, psutil and (for the load) torch. It needs the folder ``ingest/`` (``errors.py`` and
``collectors/``) two floors up or on PYTHONPATH. No clock, limit or mode is changed.

The collector of each rate is a process of its own; its cost is the CPU time of that process. The load is a matrix
product repeated on every GPU, in this process, for as long as ``--load-seconds``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if (ROOT / "ingest" / "collectors").is_dir() and str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from ingest.collectors.hardware import NvmlBackend, calls_at  # noqa: E402 (its folder is looked for first)
from ingest.collectors.service import Plan, Service, resident_mib  # noqa: E402
from ingest.collectors.spool import Spool  # noqa: E402

IN_TIME_S = 0.010
SETTLE_S = 4.0
COLUMNS = ("measured", "hz", "seconds", "gpu_index", "value", "unit", "source")


def run_collector(hz: float, seconds: float) -> dict[str, float]:
    """Return what the service costs in this process (CPU share in %, memory in MiB), its ticks in time and missed."""
    with tempfile.TemporaryDirectory() as folder:
        spool = Path(folder) / "spool"
        backend = NvmlBackend(calls=calls_at(1 / hz))
        service = Service(Spool(spool, "bench"), backend, Plan(gpu_interval_s=1 / hz))
        with service:
            time.sleep(SETTLE_S)
            cpu_s, wall_s = time.process_time(), time.monotonic()
            service.stopping.wait(seconds)
            cpu_s, wall_s = time.process_time() - cpu_s, time.monotonic() - wall_s
            memory_mib = resident_mib()
        times_s = read_times(spool)
    in_time, missed = in_time_ratio(times_s, 1 / hz)
    return {"cpu_pct": 100 * cpu_s / wall_s, "resident_mib": memory_mib, "in_time_pct": 100 * in_time, "missed": missed}


def read_times(spool: Path, index: int = 0) -> list[float]:
    """Return the times of one GPU's samples in a spool, in seconds."""
    times_s = []
    for path in sorted(spool.glob("gpu/*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            times_s += [float(line["timestamp"]) for line in csv.DictReader(file) if line["gpu_index"] == str(index)]
    return times_s


def in_time_ratio(times_s: Sequence[float], interval_s: float) -> tuple[float, int]:
    """Return the share of a schedule's ticks that were read within 10 ms of it, and how many were not read at all.

    The schedule is the one that the median sample lies on: told by the samples, not by the collector.

    Examples
    --------
    >>> in_time_ratio([0.0, 0.1, 0.2, 0.35, 0.5], 0.1)
    (0.6666666666666666, 1)
    """
    numbers = [round((time_s - times_s[0]) / interval_s) for time_s in times_s]
    off_s = [time_s - times_s[0] - number * interval_s for time_s, number in zip(times_s, numbers, strict=True)]
    middle_s = statistics.median(off_s)
    ticks = numbers[-1] + 1
    return sum(abs(value - middle_s) <= IN_TIME_S for value in off_s) / ticks, ticks - len(set(numbers))


@contextmanager
def loaded() -> Iterator[None]:
    """Keep every GPU at one steady load."""
    import torch

    stopping = threading.Event()

    def multiply(index: int) -> None:
        one = torch.randn(8192, 8192, device=f"cuda:{index}", dtype=torch.float16)
        while not stopping.is_set():
            for _ in range(20):
                one @ one
            torch.cuda.synchronize(index)

    gpus = range(torch.cuda.device_count())
    with ThreadPoolExecutor(len(gpus)) as threads:
        running = [threads.submit(multiply, index) for index in gpus]
        try:
            yield
        finally:
            stopping.set()
        for each in running:
            each.result()  # a GPU that was not loaded is a failure


def run_load(seconds: float) -> list[tuple[int, float, float]]:
    """Return of each GPU its index, the gap between integral and counter in %, and the seconds that both cover."""
    with tempfile.TemporaryDirectory() as folder, loaded():
        time.sleep(SETTLE_S)
        backend = NvmlBackend()
        gpus = tuple(backend.indices())
        service = Service(Spool(Path(folder) / "spool", "bench"), backend, Plan(gpu_interval_s=0.1))
        with service:
            time.sleep(1)
            service.begin_job(1, os.getpid(), gpus)
            time.sleep(seconds)
            service.end_job(1)
            found = service.energy_of(1)
    return [(one.gpu_index, 100 * one.gap_ratio, one.covered_s) for one in found if one.gap_ratio is not None]


def main() -> None:
    """Measure, print, and with --csv write the rows that BENCHMARKS.md shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="length of each round (default: 120)")
    parser.add_argument(
        "--load-seconds", type=float, default=32.0, help="length of the steady load (default: 32; 0: none)"
    )
    parser.add_argument("--csv", type=Path, help="write rows there")
    parser.add_argument("--one", type=float, help=argparse.SUPPRESS)  # a round at so many Hz, in this process
    told = parser.parse_args()
    if told.one:
        print(json.dumps(run_collector(told.one, told.seconds)))
        return
    if told.load_seconds > 0:
        import torch  # noqa: F401 (where it is missing, that is told before minutes are spent)
    source, rows = describe_machine(), []
    units = {"cpu_pct": "%", "resident_mib": "MiB", "in_time_pct": "%", "missed": "ticks"}
    for hz in (10.0, 1.0):
        command = [sys.executable, __file__, "--one", str(hz), "--seconds", str(told.seconds)]
        found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        print(f"{hz:g} Hz: {found}", flush=True)
        rows += [
            (name, f"{hz:g}", f"{told.seconds:g}", "", f"{found[name]:.4g}", units[name], source) for name in found
        ]
        write_rows(told.csv, rows)
    for index, gap_pct, covered_s in run_load(told.load_seconds) if told.load_seconds > 0 else ():
        print(f"GPU {index}: integral less counter {gap_pct:+.3f} % over {covered_s:.1f} s", flush=True)
        rows.append(("energy_gap_pct", "10", f"{covered_s:.1f}", str(index), f"{gap_pct:.4g}", "%", source))
    write_rows(told.csv, rows)


def write_rows(path: Path | None, rows: Iterable[tuple[str, ...]]) -> None:
    """Write what was measured so far; nothing without a path."""
    if path is not None:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


def describe_machine() -> str:
    """Return which GPUs these are, by which driver."""
    import pynvml as nv

    nv.nvmlInit()
    names = [nv.nvmlDeviceGetName(nv.nvmlDeviceGetHandleByIndex(i)) for i in range(nv.nvmlDeviceGetCount())]
    driver = nv.nvmlSystemGetDriverVersion()
    return f"measure_gpus.py on {len(names)} x {names[0]}, driver {driver}, {time.strftime('%Y-%m-%d', time.gmtime())}"


if __name__ == "__main__":
    main()
