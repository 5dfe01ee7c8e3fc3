"""The tables of the releases' own summaries: one job on one GPU, and one step of a job."""

from __future__ import annotations

import polars as pl

from ingest.table_schema import TableSchema
from ingest.table_schema import columns_of as _t

GPU_JOB_SUMMARY = TableSchema(
    name="gpu_job_summary",
    key=("job_id", "node", "gpu_index"),
    doc="DCGM's own summary of one job on one GPU, as released with the HPCA'22 data.",
    columns=_t(
        job_id=pl.Int64,
        node=pl.String,
        gpu_index=pl.Int16,
        run_s=pl.Float64,
        energy_j=pl.Float64,
        power_avg_w=pl.Float64,
        power_min_w=pl.Float64,
        power_max_w=pl.Float64,
        gpu_util_avg_pct=pl.Float64,
        gpu_util_min_pct=pl.Float64,
        gpu_util_max_pct=pl.Float64,
        memory_util_avg_pct=pl.Float64,
        memory_util_min_pct=pl.Float64,
        memory_util_max_pct=pl.Float64,
        pcie_rx_avg_mb_per_s=pl.Float64,
        pcie_rx_min_mb_per_s=pl.Float64,
        pcie_rx_max_mb_per_s=pl.Float64,
        pcie_tx_avg_mb_per_s=pl.Float64,
        pcie_tx_min_mb_per_s=pl.Float64,
        pcie_tx_max_mb_per_s=pl.Float64,
        memory_used_max_mib=pl.Float64,
    ),
)

_CPU_QUANTITIES = (
    "time_epoch_s",
    "cpu_freq_khz",
    "cpu_time_s",
    "cpu_util_pct",
    "rss_kib",
    "vm_kib",
    "page_faults",
    "read_mib",
    "write_mib",
)

CPU_JOB_SUMMARY = TableSchema(
    name="cpu_job_summary",
    key=("job_id", "node", "step", "task"),
    doc=(
        "Slurm's own summary of one step. Sums of levels (RSS) and of times are kept as written; they have no meaning."
    ),
    columns=_t(
        job_id=pl.Int64,
        node=pl.String,
        step=pl.String,
        task=pl.String,
        elapsed_s=pl.Float64,
        **{f"{statistic}_{name}": pl.Float64 for name in _CPU_QUANTITIES for statistic in ("min", "max", "sum", "avg")},
    ),
)
