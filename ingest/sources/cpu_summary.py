"""Slurm's words for the statistics of a ``-summary.csv`` (Datacenter Challenge release)."""

from __future__ import annotations

from typing import Final

_QUANTITIES: Final = {
    "EpochTime": "time_epoch_s",
    "CPUFrequency": "cpu_freq_khz",
    "CPUTime": "cpu_time_s",
    "CPUUtilization": "cpu_util_pct",
    "RSS": "rss_kib",
    "VMSize": "vm_kib",
    "Pages": "page_faults",
    "ReadMB": "read_mib",
    "WriteMB": "write_mib",
}

CPU_SUMMARY_COLUMN_MAP: Final = {
    f"{statistic}_{word}": f"{statistic.lower()}_{quantity}"
    for word, quantity in _QUANTITIES.items()
    for statistic in ("Min", "Max", "Sum", "Avg")
}
"""``Min_RSS`` to ``min_rss_kib``: the 36 statistics of ``cpu_job_summary``."""
