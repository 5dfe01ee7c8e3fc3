"""The columns of the MIT Supercloud Dataset's tables, in every spelling of its releases and of our recordings.

Columns are found by name. A `FileKind` says for one kind of file which column fills which, what type each has, what the
file's name tells, and how the typed frame becomes rows of the lake's table (`finish`, pure).

References
----------
Samsi et al. 2021, The MIT Supercloud Dataset, arXiv 2108.02037. Slurm's job profile: SchedMD's jobacct_gather.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import polars as pl

from ingest.collectors.gpu_columns import GPU_EXTENDED_VALUE_COLUMN_MAP, GPU_VALUE_COLUMN_MAP
from ingest.reference import workload_classes
from ingest.schemas import TABLES
from ingest.sources import nvidia_smi, slurm_log
from ingest.sources.cpu_summary import CPU_SUMMARY_COLUMN_MAP
from ingest.sources.file_kind import Context, FileKind, Finished, epoch_to_time
from ingest.sources.throttle import parse_throttle
from ingest.units import BYTES_PER_MIB, KIB_PER_GIB, MJ_PER_J

GPU_COLUMN_MAP: Final = {
    "timestamp": "time_epoch_s",
    "gpu_index": "gpu_index",
    **GPU_VALUE_COLUMN_MAP,
}

GPU_EXTENDED_COLUMN_MAP: Final = {
    **GPU_EXTENDED_VALUE_COLUMN_MAP,
    "energy_mJ": "energy_counter_mj",
    "clock_memory_MHz": "mem_clock_mhz",
}

GPU_OPTIONAL_COLUMN_MAP: Final = {
    **GPU_EXTENDED_COLUMN_MAP,
    "power_limit_W": "power_limit_w",
    "enforced_power_limit_W": "power_limit_w",
    "throttle_reasons": "throttle_raw",
    "clocks_throttle_reasons": "throttle_raw",
    "clocks_throttle_reasons.active": "throttle_raw",
    "clocks_event_reasons.active": "throttle_raw",
}

KEY_COLUMN_MAP: Final = {
    "id_job": "job_id",
    "job_id": "job_id",
    "jobid": "job_id",
    "node": "node",
    "nodename": "node",
    "node_name": "node",
    "hostname": "node",
    "host": "node",
    "gpu_id": "gpu_index",
    "gpu": "gpu_index",
    "gpu_num": "gpu_index",
}
"""The HPCA'22 release keeps job and node in columns, not in file names; spellings differ between its files."""

CPU_COLUMN_MAP: Final = {
    "Step": "step",
    "Node": "node",
    "Series": "task",
    "ElapsedTime": "elapsed_s",
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

CPU_SUMMARY_MAP: Final = {
    "Step": "step",
    "Node": "node",
    "Series": "task",
    "ElapsedTime": "elapsed_s",
    **CPU_SUMMARY_COLUMN_MAP,
}

NODE_COLUMN_MAP: Final = {
    "Node": "node",
    "Time": "time_epoch_s",
    "UserPIDCount": "user_processes",
    "FSlatency": "fs_latency_s",
    "LoadAvg": "load",
    "MemoryFreeInactiveKB": "mem_free_raw",
    "LustreRPCTotals": "lustre_rpcs_raw",
}

LABEL_COLUMN_MAP: Final = {"id_job": "job_id", "model": "label"}

JOB_PARAMETERS_COLUMN_MAP: Final = {
    "id_job": "job_id",
    "workload": "workload",
    "challenge_class": "challenge_class",
    "gpu_index": "gpu_index",
    "batch_size": "batch_size",
    "sequence_length": "sequence_length",
    "matrix_size": "matrix_size",
    "precision": "precision",
    "optimizer": "optimizer",
    "data_workers": "data_workers",
    "steps_per_epoch": "steps_per_epoch",
    "validation_steps": "validation_steps",
    "checkpoints": "checkpoints",
    "steps_done": "steps_done",
    "peak_memory_GiB": "peak_memory_gib",
    "run_seconds": "run_s",
}

JOB_PARAMETERS_OPTIONAL_COLUMN_MAP: Final = {"image_size": "image_size", "atoms_max": "atoms_max", "gpus": "gpus"}
"""What the first recording did not have."""

DCGM_COLUMN_MAP: Final = {
    "energyconsumed_joules": "energy_j",
    "powerusage_watts_avg": "power_avg_w",
    "powerusage_watts_min": "power_min_w",
    "powerusage_watts_max": "power_max_w",
    "smutilization_pct_avg": "gpu_util_avg_pct",
    "smutilization_pct_min": "gpu_util_min_pct",
    "smutilization_pct_max": "gpu_util_max_pct",
    "memoryutilization_pct_avg": "memory_util_avg_pct",
    "memoryutilization_pct_min": "memory_util_min_pct",
    "memoryutilization_pct_max": "memory_util_max_pct",
    "pcierxbandwidth_megabytes_avg": "pcie_rx_avg_mb_per_s",
    "pcierxbandwidth_megabytes_min": "pcie_rx_min_mb_per_s",
    "pcierxbandwidth_megabytes_max": "pcie_rx_max_mb_per_s",
    "pcietxbandwidth_megabytes_avg": "pcie_tx_avg_mb_per_s",
    "pcietxbandwidth_megabytes_min": "pcie_tx_min_mb_per_s",
    "pcietxbandwidth_megabytes_max": "pcie_tx_max_mb_per_s",
    "maxgpumemoryused_bytes": "memory_used_max_bytes",
    "totalexecutiontime_sec": "run_s",
}

LAKE_COLUMN: Final = {
    "energy_counter_mj": "energy_counter_j",
    "mem_free_raw": "mem_free_kib",
    "throttle_raw": "throttle",
    **{f"{name}_epoch_s": f"{name}_time" for name in ("submit", "eligible", "start", "end")},
}
"""Columns that are parsed under a name of their own, for the unit in which they come, and the lake's names of them."""

_GIB_LIMIT = 65_536.0
_KIB_LEAST = 262_144.0
_KIB_LIMIT = _GIB_LIMIT * KIB_PER_GIB
_PAIR = r"^[^|:]*:\d+(\|[^|:]*:\d+)*\|?$"


def types_of(table: str, column_map: Mapping[str, str], **own: pl.DataType) -> dict[str, pl.DataType]:
    """Return the type in which each column is parsed: the lake's, or its own where units or names differ."""
    lake = TABLES[table].columns
    return {column: own.get(column) or lake[column] for column in column_map.values()}


def _time_columns(frame: pl.DataFrame) -> list[pl.Expr]:
    """Return the expression of ``time`` where the parser left epoch seconds."""
    return [epoch_to_time()] if "time_epoch_s" in frame.columns else []


def _finish_gpu(frame: pl.DataFrame, context: Context) -> Finished:
    columns = _time_columns(frame)
    counts: dict[tuple[int | None, str, str], int] = {}
    if "throttle_raw" in frame.columns:
        throttle = parse_throttle(frame["throttle_raw"])
        columns.append(pl.lit(throttle).alias("throttle"))
        if lost := throttle.null_count() - frame["throttle_raw"].null_count():
            counts[None, "bad_extra_cell", "throttle"] = lost
    if "energy_counter_mj" in frame.columns:  # polars would multiply by 1/1000, which is not exact
        energy_j = frame["energy_counter_mj"].fill_null(float("nan")).to_numpy() / MJ_PER_J
        columns.append(pl.lit(pl.Series("energy_counter_j", energy_j)).fill_nan(None))
    own = ("time_epoch_s", "energy_counter_mj", "throttle_raw")
    return Finished(frame.with_columns(columns).drop(own, strict=False), counts)


def _finish_gpu_rows(frame: pl.DataFrame, context: Context) -> Finished:
    """Finish samples that name their job, or none: of an idle GPU, or where there is no such column."""
    if "job_id" not in frame.columns:
        frame = frame.with_columns(job_id=pl.lit(None, pl.Int64))
    return _finish_gpu(frame, context)


def _finish_cpu(frame: pl.DataFrame, context: Context) -> Finished:
    return Finished(frame.with_columns(_time_columns(frame)).drop("time_epoch_s", strict=False))


def _finish_plain(frame: pl.DataFrame, context: Context) -> Finished:
    return Finished(frame)


def _finish_labels(frame: pl.DataFrame, context: Context) -> Finished:
    known = workload_classes().select("label", "family", "domain")
    return Finished(frame.join(known, on="label", how="left", maintain_order="left"))


def _finish_dcgm(frame: pl.DataFrame, context: Context) -> Finished:
    if "memory_used_max_bytes" not in frame.columns:
        return Finished(frame)
    mib = (pl.col("memory_used_max_bytes") / BYTES_PER_MIB).alias("memory_used_max_mib")
    return Finished(frame.with_columns(mib).drop("memory_used_max_bytes"))


def _finish_node(frame: pl.DataFrame, context: Context) -> Finished:
    counts: dict[tuple[int | None, str, str], int] = {}
    factor = KIB_PER_GIB if context.mem_unit == "gib" else 1
    columns = _time_columns(frame)
    if "mem_free_raw" in frame.columns:
        fits = _fits_unit(context.mem_unit)
        free = pl.when(fits).then(pl.col("mem_free_raw") * factor)
        columns.append(free.round().cast(pl.Int64, strict=False).alias("mem_free_kib"))
        if strange := frame.filter(pl.col("mem_free_raw").is_not_null() & ~fits).height:
            counts[None, "mem_unit_unknown", "MemoryFreeInactiveKB"] = strange
    if "lustre_rpcs_raw" in frame.columns:
        frame = frame.with_columns(pl.col("lustre_rpcs_raw").replace("", None))
        columns.append(_count_or_number("lustre_rpcs_raw").alias("lustre_rpcs"))
    if "user_processes" in frame.columns:
        columns.append(_count_or_number("user_processes").alias("process_count"))
    done = frame.with_columns(columns)
    if "lustre_rpcs_raw" in frame.columns:
        lost = done.filter(pl.col("lustre_rpcs_raw").is_not_null() & pl.col("lustre_rpcs").is_null()).height
        if lost:
            counts[None, "wrong_type", "LustreRPCTotals"] = lost
    return Finished(done.drop("time_epoch_s", "mem_free_raw", "lustre_rpcs_raw", strict=False), counts)


def _count_or_number(column: str) -> pl.Expr:
    """Return an expression: the number in a text, or the sum of ``name:count|name:count|``, else null."""
    pairs = (
        pl.col(column)
        .str.extract_all(r":\d+")
        .list.eval(pl.element().str.slice(1).cast(pl.Int64, strict=False))
        .list.sum()
    )
    number = pl.col(column).cast(pl.Float64, strict=False).round().cast(pl.Int64, strict=False)
    return pl.when(pl.col(column).str.contains(_PAIR)).then(pairs).otherwise(number)


def memory_unit(values: pl.Series) -> str:
    """Return the unit of a source's ``MemoryFreeInactiveKB``: ``gib``, ``kib`` or '' where its size does not tell.

    The published data holds values such as 371 on nodes of 384 GB, whatever the column is called; recordings hold KiB.

    >>> memory_unit(pl.Series([371.0, 12.0])), memory_unit(pl.Series([263551496.0])), memory_unit(pl.Series([1e5]))
    ('gib', 'kib', '')
    """
    known = values.drop_nulls().cast(pl.Float64)
    greatest = known.filter(known <= _KIB_LIMIT).max()
    if not isinstance(greatest, float):
        return ""
    return "gib" if greatest <= _GIB_LIMIT else "kib" if greatest >= _KIB_LEAST else ""


def _fits_unit(unit: str) -> pl.Expr:
    """Return whether a cell of ``mem_free_raw`` can be in the unit of its source; KiB are whole."""
    raw = pl.col("mem_free_raw")
    if unit == "gib":
        return raw <= _GIB_LIMIT
    return (raw <= _KIB_LIMIT) & (raw == raw.floor()) if unit == "kib" else pl.lit(value=False)


_F64, _STR = pl.Float64(), pl.String()
_TIME_TYPE = {"time_epoch_s": _F64}
_GPU_TYPES = types_of(
    "gpu_samples",
    GPU_COLUMN_MAP | GPU_OPTIONAL_COLUMN_MAP | KEY_COLUMN_MAP,
    **_TIME_TYPE,
    energy_counter_mj=_F64,
    throttle_raw=_STR,
)
_GPU_NAME = re.compile(r"^(?P<job>\d{1,18})-(?P<node>.+)\.csv$")
_CPU_NAME = re.compile(r"^(?P<job>\d{1,18})-(timeseries|summary)\.csv$")
_GPU_IGNORED = frozenset({"", "Unnamed: 0", "ElapsedTime"})

SUPERCLOUD_KINDS: Final[dict[str, FileKind]] = {
    kind.name: kind
    for kind in (
        *nvidia_smi.KINDS,
        FileKind(
            "gpu",
            "gpu_samples",
            GPU_COLUMN_MAP,
            _GPU_TYPES,
            frozenset({"time_epoch_s", "gpu_index"}),
            _finish_gpu,
            optional=GPU_OPTIONAL_COLUMN_MAP,
            ignored=_GPU_IGNORED,
            name_pattern=_GPU_NAME,
        ),
        FileKind(
            "gpu_extended",
            "gpu_samples",
            {k: v for k, v in GPU_COLUMN_MAP.items() if v in ("time_epoch_s", "gpu_index")} | GPU_EXTENDED_COLUMN_MAP,
            _GPU_TYPES,
            frozenset({"time_epoch_s", "gpu_index"}),
            _finish_gpu,
            optional=GPU_OPTIONAL_COLUMN_MAP,
            ignored=_GPU_IGNORED,
            name_pattern=_GPU_NAME,
        ),
        FileKind(
            "nvidia_smi",
            "gpu_samples",
            GPU_COLUMN_MAP | {"id_job": "job_id"},
            _GPU_TYPES,
            frozenset({"time_epoch_s", "gpu_index", "node"}),
            _finish_gpu_rows,
            optional=GPU_OPTIONAL_COLUMN_MAP | KEY_COLUMN_MAP,
            ignored=_GPU_IGNORED,
        ),
        FileKind(
            "cpu",
            "cpu_samples",
            CPU_COLUMN_MAP,
            types_of("cpu_samples", CPU_COLUMN_MAP, **_TIME_TYPE),
            frozenset({"time_epoch_s", "node", "step"}),
            _finish_cpu,
            name_pattern=_CPU_NAME,
        ),
        FileKind(
            "cpu_summary",
            "cpu_job_summary",
            CPU_SUMMARY_MAP,
            types_of("cpu_job_summary", CPU_SUMMARY_MAP),
            frozenset({"node", "step"}),
            _finish_plain,
            name_pattern=_CPU_NAME,
        ),
        FileKind(
            "node",
            "node_samples",
            NODE_COLUMN_MAP,
            types_of("node_samples", NODE_COLUMN_MAP, **_TIME_TYPE, mem_free_raw=_F64, lustre_rpcs_raw=_STR),
            frozenset({"time_epoch_s", "node"}),
            _finish_node,
        ),
        FileKind(
            "jobs",
            "jobs",
            slurm_log.COLUMN_MAP,
            slurm_log.TYPES,
            frozenset({"job_id"}),
            lambda frame, context: Finished(*slurm_log.finish(frame, context.tres_names)),
            optional=slurm_log.OPTIONAL_COLUMN_MAP,
        ),
        FileKind("sacct", "jobs", {}, {}, frozenset(), _finish_plain, is_named=True),  # read by `ingest.accounting`
        FileKind(
            "labels",
            "labels",
            LABEL_COLUMN_MAP,
            {"job_id": pl.Int64(), "label": _STR},
            frozenset({"job_id", "label"}),
            _finish_labels,
            optional={"id": "job_id", "job_id": "job_id", "label": "label"},
        ),
        FileKind(
            "job_parameters",
            "job_parameters",
            JOB_PARAMETERS_COLUMN_MAP,
            types_of("job_parameters", JOB_PARAMETERS_COLUMN_MAP | JOB_PARAMETERS_OPTIONAL_COLUMN_MAP),
            frozenset({"job_id"}),
            _finish_plain,
            optional=JOB_PARAMETERS_OPTIONAL_COLUMN_MAP,
        ),
        FileKind(
            "dcgm",
            "gpu_job_summary",
            DCGM_COLUMN_MAP,
            types_of("gpu_job_summary", DCGM_COLUMN_MAP | KEY_COLUMN_MAP, memory_used_max_bytes=_F64),
            frozenset({"job_id"}),
            _finish_dcgm,
            optional=KEY_COLUMN_MAP,
        ),
    )
}
"""Kinds of files in the layouts of the releases and recordings, and of sacct; `ingest.sources.kinds` has all."""
