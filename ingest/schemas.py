"""Every table of the lake: its columns (the unit last in the name), its key, and how it is stored.

Columns are spelled here (those of the collectors' own tables in `ingest.live_schemas`, of feature tables in
`ingest.feature_schemas`, of the releases' summaries in `ingest.summary_schemas`) and nowhere else; a source maps its
own spelling in a ``*_COLUMN_MAP``. Each table has, besides the columns below, a ``cluster`` column that is the hive
partition: ids of two clusters or two releases never mix.
"""

from __future__ import annotations

import polars as pl

from ingest.feature_schemas import FEATURE_SERIES, FEATURES
from ingest.live_schemas import COLLECTOR_EVENTS, DEVICE_INVENTORY
from ingest.summary_schemas import CPU_JOB_SUMMARY, GPU_JOB_SUMMARY
from ingest.table_schema import DEVICE_KEY, SERIES_KEY, TIME, TableSchema
from ingest.table_schema import columns_of as _t

__all__ = [
    "COLLECTOR_EVENTS",
    "CPU_JOB_SUMMARY",
    "CPU_SAMPLES",
    "DEVICES",
    "DEVICE_INVENTORY",
    "DEVICE_KEY",
    "FEATURES",
    "FEATURE_SERIES",
    "GPU_JOB_SUMMARY",
    "GPU_MINUTES",
    "GPU_SAMPLES",
    "JOBS",
    "JOB_PARAMETERS",
    "JOB_STATS",
    "LABELS",
    "NODE_SAMPLES",
    "QUALITY",
    "QUARANTINE",
    "SERIES_KEY",
    "TABLES",
    "TIME",
    "TableSchema",
]

GPU_SAMPLES = TableSchema(
    name="gpu_samples",
    key=("job_id", "node", "gpu_index", "time"),
    doc="One reading of one GPU. job_id is null for an idle GPU; a column that a source does not have is null.",
    columns=_t(
        job_id=pl.Int64,
        node=pl.String,
        gpu_index=pl.Int16,
        time=TIME,
        gpu_util_pct=pl.UInt8,
        memory_util_pct=pl.UInt8,
        memory_free_mib=pl.UInt32,
        memory_used_mib=pl.UInt32,
        gpu_temp_c=pl.Int16,
        memory_temp_c=pl.Int16,
        power_w=pl.Float32,
        pcie_link_width=pl.UInt8,
        power_avg_w=pl.Float32,
        energy_counter_j=pl.Float64,
        sm_clock_mhz=pl.UInt16,
        mem_clock_mhz=pl.UInt16,
        power_limit_w=pl.Float32,
        throttle=pl.Int64,
    ),
    delta=("time",),
    plain=("job_id", "gpu_index", "memory_free_mib", "memory_used_mib", "gpu_temp_c", "pcie_link_width"),
    never_null=("node", "gpu_index", "time"),
)

CPU_SAMPLES = TableSchema(
    name="cpu_samples",
    key=("job_id", "node", "step", "task", "time"),
    doc=(
        "One interval of Slurm's job profile. cpu_time_s, read_mib and write_mib are what the interval used; "
        "page_faults is cumulative, as Slurm writes it. step is kept as written (batch, 0, -4): choose one before any "
        "statistics, since steps of one job overlap in time. cpu_freq_khz is not to be trusted."
    ),
    columns=_t(
        job_id=pl.Int64,
        node=pl.String,
        step=pl.String,
        task=pl.String,
        time=TIME,
        elapsed_s=pl.Float64,
        cpu_freq_khz=pl.Int64,
        cpu_time_s=pl.Float64,
        cpu_util_pct=pl.Float64,
        rss_kib=pl.Int64,
        vm_kib=pl.Int64,
        page_faults=pl.Int64,
        read_mib=pl.Float64,
        write_mib=pl.Float64,
    ),
    plain=("time", "rss_kib", "vm_kib"),
)

NODE_SAMPLES = TableSchema(
    name="node_samples",
    key=("node", "time"),
    doc=(
        "One reading of one node. fs_latency_s is the seconds of a small write and fsync; user_processes is "
        "'user:count|…' as written, process_count its sum; lustre_rpcs and nfs_ops are totals since the last reading, "
        "node_power_w is the mean draw of processors and memory since then, where metered."
    ),
    columns=_t(
        node=pl.String,
        time=TIME,
        load=pl.Float64,
        mem_free_kib=pl.Int64,
        fs_latency_s=pl.Float64,
        lustre_rpcs=pl.Int64,
        user_processes=pl.String,
        process_count=pl.Int64,
        node_power_w=pl.Float32,
        nfs_ops=pl.Int64,
    ),
    plain=("time",),
)

JOBS = TableSchema(
    name="jobs",
    key=("job_id", "attempt"),
    doc=(
        "One attempt of one job, as the scheduler tells it; attempt counts requeues from 0, in time. Times of 0 (never)"
        " are null. mem_mib is what was asked for, per CPU where mem_per_cpu. Exit codes are raw wait status. gpus and "
        "gpu_type: tres_alloc, else tres_req, by the cluster's tres-mapping.txt (the releases', where it never had "
        "one). state_flags are the bits above the state."
    ),
    columns=_t(
        job_id=pl.Int64,
        attempt=pl.Int32,
        array_job_id=pl.Int64,
        array_task_id=pl.Int64,
        user=pl.String,
        partition=pl.String,
        job_type=pl.String,
        state=pl.String,
        state_flags=pl.Int64,
        exit_code=pl.Int64,
        derived_exit_code=pl.Int64,
        submit_time=TIME,
        eligible_time=TIME,
        start_time=TIME,
        end_time=TIME,
        suspended_s=pl.Int64,
        time_limit_s=pl.Int64,
        nodes=pl.Int64,
        node_list=pl.String,
        cpus=pl.Int64,
        gpus=pl.Int64,
        gpu_type=pl.String,
        mem_mib=pl.Int64,
        mem_per_cpu=pl.Boolean,
        priority=pl.Int64,
        constraints=pl.String,
        flags=pl.Int64,
        kill_user=pl.Int64,
        array_max_tasks=pl.Int64,
        array_tasks_pending=pl.Int64,
        track_steps=pl.Int64,
        gres_used=pl.String,
        gres_req=pl.String,
        gres_alloc=pl.String,
        tres_alloc=pl.String,
        tres_req=pl.String,
    ),
    plain=("job_id", "submit_time", "eligible_time", "start_time", "end_time"),
)

DEVICES = TableSchema(
    name="devices",
    key=("node", "gpu_index", "valid_from"),
    doc=(
        "The GPUs that were seen; tdp_w is the published figure of their type. By the collectors' inventory, where "
        "there is one, with a row for each change; else gpu_type is the scheduler's word for the jobs that ran there, "
        "and memory_mib the largest free + used."
    ),
    columns=_t(
        node=pl.String,
        gpu_index=pl.Int16,
        valid_from=TIME,
        uuid=pl.String,
        gpu_type=pl.String,
        tdp_w=pl.Float32,
        limit_min_w=pl.Float32,
        limit_default_w=pl.Float32,
        limit_max_w=pl.Float32,
        memory_mib=pl.UInt32,
    ),
)

LABELS = TableSchema(
    name="labels",
    key=("job_id",),
    doc="The class of a job where somebody knows it, with its family and domain (ingest/workload_classes.csv).",
    columns=_t(job_id=pl.Int64, label=pl.String, family=pl.String, domain=pl.String),
)

JOB_PARAMETERS = TableSchema(
    name="job_parameters",
    key=("job_id",),
    doc="What a recorded job really was: its true kind, whether the challenge has it as a class, hyper-parameters.",
    columns=_t(
        job_id=pl.Int64,
        workload=pl.String,
        challenge_class=pl.Boolean,
        gpu_index=pl.Int16,
        batch_size=pl.Int64,
        sequence_length=pl.Int64,
        matrix_size=pl.Int64,
        precision=pl.String,
        optimizer=pl.String,
        data_workers=pl.Int64,
        steps_per_epoch=pl.Int64,
        validation_steps=pl.Int64,
        checkpoints=pl.Boolean,
        steps_done=pl.Int64,
        peak_memory_gib=pl.Float64,
        run_s=pl.Float64,
        image_size=pl.Int64,
        atoms_max=pl.Int64,
        gpus=pl.Int64,
    ),
)

GPU_MINUTES = TableSchema(
    name="gpu_minutes",
    key=("job_id", "node", "gpu_index", "minute"),
    doc=(
        "One-minute roll-up of gpu_samples, written with them: n samples and the mean, least and greatest of what "
        "a cluster-wide curve needs. For the cluster's draw in a minute take each GPU's mean weighted by n_power (jobs "
        "may follow each other on one GPU within a minute), then the sum over GPUs."
    ),
    columns=_t(
        job_id=pl.Int64,
        node=pl.String,
        gpu_index=pl.Int16,
        minute=TIME,
        n=pl.Int32,
        n_power=pl.Int32,
        power_mean_w=pl.Float32,
        power_min_w=pl.Float32,
        power_max_w=pl.Float32,
        n_gpu_util=pl.Int32,
        gpu_util_mean_pct=pl.Float32,
        gpu_util_max_pct=pl.UInt8,
        n_memory_util=pl.Int32,
        memory_util_mean_pct=pl.Float32,
        memory_used_max_mib=pl.UInt32,
        n_gpu_temp=pl.Int32,
        gpu_temp_mean_c=pl.Float32,
        gpu_temp_max_c=pl.Int16,
    ),
    plain=("minute",),
)

JOB_STATS = TableSchema(
    name="job_stats",
    key=("job_id",),
    doc=(
        "One row for each job that has GPU samples, written with them. gpus are those that were seen. energy_j "
        "integrates power_w by trapezoids, never across a gap; power_mean_w is energy over covered GPU seconds; "
        "coverage is covered GPU seconds over (GPUs seen, or allocated where those are more) x (last - first sample, "
        "or the scheduler's run time where known), clipped at 1. energy_counter_j is the driver's own, from a GPU's "
        "first to its last reading of the counter, which collectors ask seldom. energy_gap_pct is 100 x (integral - "
        "counter) / counter, both over the same span: from one reading of the counter to the next, power integrated "
        "over all samples between; gaps and the counter's resets left out, on those of its GPUs that have both."
    ),
    columns=_t(
        job_id=pl.Int64,
        nodes=pl.Int32,
        gpus=pl.Int32,
        samples=pl.Int64,
        first_time=TIME,
        last_time=TIME,
        covered_gpu_s=pl.Float64,
        coverage=pl.Float64,
        gaps=pl.Int64,
        longest_gap_s=pl.Float64,
        energy_j=pl.Float64,
        energy_counter_j=pl.Float64,
        power_mean_w=pl.Float64,
        power_max_w=pl.Float32,
        gpu_util_mean_pct=pl.Float64,
        memory_used_max_mib=pl.UInt32,
        gpu_temp_max_c=pl.Int16,
        energy_gap_pct=pl.Float64,
    ),
    plain=("job_id", "first_time", "last_time"),
)

QUARANTINE = TableSchema(
    name="quarantine",
    key=("file", "line"),
    doc=(
        "Every row that could not be taken, with its raw line (bytes that are not UTF-8 written as \\xNN) and a stable "
        "reason code. line counts from 1 with the header; null: the whole file, which stands for that many rows, or, "
        "with a raw text of names and values, a row that was found out when the pieces of its series were joined."
    ),
    columns=_t(
        file=pl.String, line=pl.Int64, rows=pl.Int64, table=pl.String, reason=pl.String, detail=pl.String, raw=pl.String
    ),
    plain=("line",),
)

QUALITY = TableSchema(
    name="quality",
    key=("file", "job_id", "reason", "detail"),
    doc=(
        "Counted observations: a reason code, how often, in which file and job, about which column. Rows in quarantine "
        "are counted here too."
    ),
    columns=_t(
        file=pl.String,
        job_id=pl.Int64,
        reason=pl.String,
        detail=pl.String,
        count=pl.Int64,
    ),
)

TABLES: dict[str, TableSchema] = {
    table.name: table
    for table in (
        JOBS,
        DEVICES,
        DEVICE_INVENTORY,
        GPU_SAMPLES,
        CPU_SAMPLES,
        NODE_SAMPLES,
        COLLECTOR_EVENTS,
        GPU_JOB_SUMMARY,
        CPU_JOB_SUMMARY,
        LABELS,
        JOB_PARAMETERS,
        GPU_MINUTES,
        JOB_STATS,
        QUARANTINE,
        QUALITY,
        FEATURES,
        FEATURE_SERIES,
    )
}
"""Every table of the lake by name."""
