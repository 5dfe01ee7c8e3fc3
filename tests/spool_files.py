"""Spools written by hand, in the collectors' shape, without any collector."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ingest.collectors.spool import FORMAT, HEADERS, row

START_S = 1_795_563_788
"""The first sample of every made-up spool is at this second (2026-11-24T23:43:08Z)."""

NODE = "n1"
RUN = "20261124T234308.351600Z"


def make_spool(root: Path) -> Path:
    """Make a folder a spool."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "spool.json").write_text(json.dumps(FORMAT) + "\n")
    return root


def write_segment(root: Path, kind: str, number: int, rows: Iterable[Sequence[object]], *, node: str = NODE) -> Path:
    """Write one closed segment under the collectors' own header."""
    return write_named(root, f"{kind}/{node}-{RUN}-{number:06d}.csv", rows)


def write_named(root: Path, name: str, rows: Iterable[Sequence[object]]) -> Path:
    """Write one file of the kind that its folder tells."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADERS[path.parent.name] + "\n" + "".join(map(row, rows)))
    return path


def gpu_cells(seconds: float, job_id: int | None, gpu: int = 0, **cells: object) -> list[object]:
    """One reading of a GPU that draws 100 W and counts as much."""
    usual: Mapping[str, object] = {
        "timestamp": f"{START_S + seconds:.6f}",
        "node": NODE,
        "job_id": job_id,
        "gpu_index": gpu,
        "utilization_gpu_pct": 50,
        "utilization_memory_pct": 10,
        "memory_free_MiB": 80_000,
        "memory_used_MiB": 1_559,
        "temperature_gpu": 40,
        "temperature_memory": 41,
        "power_draw_W": 100.0,
        "pcie_link_width_current": 16,
        "power_average_W": 99.5,
        "energy_mJ": round(1e6 + seconds * 1e5),
        "clock_sm_MHz": 1980,
        "clock_memory_MHz": 2619,
        "enforced_power_limit_W": 700.0,
        "throttle_reasons": 0,
    }
    return list({**usual, **cells}.values())


def process_cells(job_id: int, seconds: float, util_pct: float) -> list[object]:
    """One sample of the one process of a job's batch step."""
    return [job_id, "batch", NODE, "0", 10, START_S + seconds, 2_000_000, 9.5, util_pct, 1024, 4096, 12, 0.5, 0.25]


def node_cells(seconds: float, load: float = 1.5) -> list[object]:
    """One sample of the node, which tells its load alone."""
    usual = {"Time": f"{START_S + seconds:.6f}", "Node": NODE, "LoadAvg": load}
    return [usual.get(name) for name in HEADERS["node"].split(",")]


def device_cells(seconds: float, gpu: int = 0, **cells: object) -> list[object]:
    """One line of the inventory."""
    usual: Mapping[str, object] = {
        "time": START_S + seconds,
        "node": NODE,
        "gpu_index": gpu,
        "uuid": f"GPU-{gpu}",
        "name": "NVIDIA H100 80GB HBM3",
        "memory_total_MiB": 81_559,
        "power_limit_W": 700.0,
        "power_limit_default_W": 700.0,
        "power_limit_min_W": 200.0,
        "power_limit_max_W": 700.0,
        "mig_mode": 0,
        "driver_version": "580.1",
    }
    return list({**usual, **cells}.values())


def event_cells(seconds: float, event: str, detail: str | None = None, **cells: object) -> list[object]:
    """One event of a collector."""
    usual: Mapping[str, object] = {
        "time": f"{START_S + seconds:.6f}",
        "node": NODE,
        "collector": "gpu",
        "event": event,
        "count": 1,
        "seconds": 0.5,
        "detail": detail,
    }
    return list({**usual, **cells}.values())
