"""The dataset's names of what a GPU is asked for, to jobwatt's: light, for collectors and sources alike."""

from __future__ import annotations

from typing import Final

GPU_VALUE_COLUMN_MAP: Final = {
    "utilization_gpu_pct": "gpu_util_pct",
    "utilization_memory_pct": "memory_util_pct",
    "memory_free_MiB": "memory_free_mib",
    "memory_used_MiB": "memory_used_mib",
    "temperature_gpu": "gpu_temp_c",
    "temperature_memory": "memory_temp_c",
    "power_draw_W": "power_w",
    "pcie_link_width_current": "pcie_link_width",
}
"""The dataset's own columns."""

GPU_EXTENDED_VALUE_COLUMN_MAP: Final = {
    "power_average_W": "power_avg_w",
    "clock_sm_MHz": "sm_clock_mhz",
}
"""Those of jobwatt's recordings that need no conversion."""
