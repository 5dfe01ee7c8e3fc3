"""A recording of two GPUs in the dataset's layout, a few lines long: GPU 1 falls silent from the third second on."""

from __future__ import annotations

from pathlib import Path

GPU_HEADER = (
    "timestamp,gpu_index,utilization_gpu_pct,utilization_memory_pct,memory_free_MiB,memory_used_MiB,temperature_gpu,"
    "temperature_memory,power_draw_W,pcie_link_width_current"
)
EXTENDED_HEADER = "timestamp,gpu_index,power_average_W,energy_mJ,clock_sm_MHz,clock_memory_MHz"


def write_recording(folder: Path, seconds: float = 10.0, silent: tuple[float, float] = (3.0, 6.0)) -> Path:
    """Write ten samples a second of both GPUs, 400 W each; nothing of GPU 1 in ``silent``; return the folder."""
    gpu, extended = folder / "gpu" / "0007" / "7-n1.csv", folder / "gpu_extended" / "0007" / "7-n1.csv"
    rows, more = [GPU_HEADER], [EXTENDED_HEADER]
    for number in range(round(seconds * 10)):
        for index in (0, 1):
            if index == 1 and silent[0] <= number / 10 < silent[1]:
                continue
            stamp = f"{1795399433 + number / 10:.3f},{index}"
            rows.append(f"{stamp},{50 + index},20,100000,43771,41,,400.0,16")
            more.append(f"{stamp},399.5,{1000 + number * 40000},1980,3201")
    for path, lines in ((gpu, rows), (extended, more)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    return folder
