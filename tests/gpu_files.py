"""GPU series in the MIT Supercloud Dataset's layout, small enough to know every number of them."""

from __future__ import annotations

from pathlib import Path

HEADER = (
    "timestamp,gpu_index,utilization_gpu_pct,utilization_memory_pct,memory_free_MiB,memory_used_MiB,"
    "temperature_gpu,temperature_memory,power_draw_W,pcie_link_width_current"
)


def write_gpu_file(folder: Path, job_id: int, *, samples: int = 20, watts: float = 100.0, bad: str = "") -> None:
    """One GPU's samples of one job, ten a second at a steady draw, as the dataset has them; then a bad line."""
    path = folder / "gpu" / f"{job_id % 100:04d}" / f"{job_id}-r1-n1.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{1_795_400_000 + i / 10:.1f},0,50,10,30000,2000,40,41,{watts},16" for i in range(samples)]
    path.write_text("\n".join([HEADER, *lines, *([bad] if bad else [])]) + "\n")
