"""What the collector itself costs, and how well it keeps its schedule: 8 GPUs played, each NVML call's CPU time spent.

``python -m tests.benchmarks.bench_collector --hz 10 --seconds 30`` runs one round alone and prints its numbers as JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.measure import run_process, spread
from tests.benchmarks.measure_gpus import in_time_ratio, read_times
from tests.benchmarks.report import table

COSTS = Path(__file__).with_name("nvml_call_cost.csv")
ON_GPUS = Path(__file__).with_name("collector_on_gpus.csv")
GPUS = 8
BARS = {10.0: "2 %", 1.0: "0.2 %"}


def collector(quick: bool, runs: int, tell: Callable[[str], None]) -> str:
    """Return the table of cost, memory and schedule at 10 Hz and at 1 Hz."""
    costs = read_costs(COSTS)
    if not costs:
        return (
            "## Collector\n\nNot measured: `tests/benchmarks/nvml_call_cost.csv` has no costs. On a machine with GPUs, "
            "`python tests/benchmarks/measure_nvml.py --csv tests/benchmarks/nvml_call_cost.csv` measures them."
        )
    rows = []
    for hz, bar in BARS.items():
        seconds = 20.0 if quick else 600.0 if hz == 10.0 else 300.0
        rounds = []
        for _ in range(1 if quick else max(1, min(runs, 2))):
            command = [sys.executable, "-m", "tests.benchmarks.bench_collector"]
            run = run_process([*command, "--hz", str(hz), "--seconds", str(seconds)])
            rounds.append(json.loads(run.output))
            tell(f"{hz:g} Hz: {rounds[-1]}")
        rows.append(
            [
                f"{hz:g} Hz, {seconds:.0f} s",
                spread([item["cpu_pct"] for item in rounds], ".3f"),
                bar,
                spread([item["resident_mib"] for item in rounds], ".1f"),
                spread([100 * item["in_time_ratio"] for item in rounds], ".2f"),
                spread([float(item["missed"]) for item in rounds], ".0f"),
            ]
        )
    spent = ", ".join(f"{name} {cost_s * 1e6:.0f}" for name, cost_s in costs.items())
    header = [
        "8 GPUs",
        "% of one core",
        "bar",
        "resident MiB (bar: 80)",
        "% of ticks within 10 ms (bar: 99)",
        "missed ticks",
    ]
    return (
        "## Collector\n\nThe whole service (threads for GPUs, processes, node, inventory and spool; exporter) with "
        f"a replay that spends each NVML call's measured CPU time, in µs: {spent} ({_sources(COSTS)}).\n\n"
        + table(header, rows)
        + "\n\n"
        + on_gpus(ON_GPUS)
    )


def on_gpus(path: Path) -> str:
    """Return what was measured on real GPUs, which the machine that runs the benchmarks need not have."""
    if not path.exists():
        return (
            "Not measured on real GPUs: there, `python tests/benchmarks/measure_gpus.py --csv "
            "tests/benchmarks/collector_on_gpus.csv` measures."
        )
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    bars = {("cpu_pct", hz): f"≤ {bar}" for hz, bar in (("10", BARS[10.0]), ("1", BARS[1.0]))}
    bars |= {("resident_mib", hz): "≤ 80 MB" for hz in ("10", "1")}
    bars |= {("in_time_pct", "10"): "≥ 99 %", ("energy_gap_pct", "10"): "within 2 %"}
    rows = [
        [
            line["measured"] + (f", GPU {line['gpu_index']}" if line["gpu_index"] else ""),
            line["hz"],
            line["seconds"],
            f"{line['value']} {line['unit']}",
            bars.get((line["measured"], line["hz"]), ""),
        ]
        for line in lines
    ]
    sources = "; ".join(dict.fromkeys(line["source"] for line in lines))
    return f"On real GPUs ({sources}):\n\n" + table(["what", "Hz", "over s", "measured", "bar"], rows)


def read_costs(path: Path) -> dict[str, float]:
    """Return the CPU seconds of each NVML call, by its name."""
    with path.open(encoding="utf-8", newline="") as file:
        return {line["call"]: float(line["cpu_us"]) / 1e6 for line in csv.DictReader(file)}


def _sources(path: Path) -> str:
    with path.open(encoding="utf-8", newline="") as file:
        return "; ".join(dict.fromkeys(line["source"] for line in csv.DictReader(file)))


def run_round(hz: float, seconds: float, costs: dict[str, float]) -> dict[str, float]:
    """Return CPU share in %, memory in MiB, and how many ticks came in time, of one service in this process."""
    import pynvml  # noqa: F401 (what a collector with real GPUs has in memory)

    from ingest.collectors.exporter import serve
    from ingest.collectors.hardware import GpuReading, calls_at
    from ingest.collectors.replay import ReplayBackend
    from ingest.collectors.service import Plan, Service, resident_mib
    from ingest.collectors.spool import Spool

    readings = [
        GpuReading(
            i / 10,
            90,
            40,
            100_000,
            43_000,
            60,
            61,
            round(400 + 250 * math.sin(i / 7), 3),
            16,
            400.0,
            40_000 * i,
            1980,
            3201,
            700.0,
            0,
        )
        for i in range(600)
    ]
    with tempfile.TemporaryDirectory() as folder:
        backend = ReplayBackend({0: readings}, gpus=GPUS, spin_s=costs, calls=calls_at(1 / hz))
        service = Service(Spool(Path(folder) / "spool", "bench"), backend, Plan(gpu_interval_s=1 / hz))
        with service, serve(service, "127.0.0.1:0"):
            time.sleep(2)
            cpu_s, wall_s = time.process_time(), time.monotonic()
            service.stopping.wait(seconds)
            cpu_s, wall_s = time.process_time() - cpu_s, time.monotonic() - wall_s
            memory_mib = resident_mib()
        times = read_times(Path(folder) / "spool")
    in_time, missed = in_time_ratio(times, 1 / hz)
    return {"cpu_pct": 100 * cpu_s / wall_s, "resident_mib": memory_mib, "in_time_ratio": in_time, "missed": missed}


def main() -> None:
    """Run one round and print its numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hz", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--costs", type=Path, default=COSTS)
    told = parser.parse_args()
    print(json.dumps(run_round(told.hz, told.seconds, read_costs(told.costs))))


if __name__ == "__main__":
    main()
