"""Slurm's job table as the Supercloud releases export it: one row an attempt, codes and flag bits decoded.

References
----------
SchedMD, slurm: accounting_storage_mysql.c (job table), slurm.h (job states, NO_VAL, INFINITE, MEM_PER_CPU).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import polars as pl

from ingest.schemas import JOBS, TIME
from ingest.units import S_PER_MINUTE, US_PER_S

COLUMN_MAP: Final = {
    "id_job": "job_id",
    "id_array_job": "array_job_id",
    "id_array_task": "array_task_id",
    "id_user": "user",
    "kill_requid": "kill_user",
    "nodes_alloc": "nodes",
    "nodelist": "node_list",
    "cpus_req": "cpus",
    "derived_ec": "derived_exit_code",
    "exit_code": "exit_code",
    "gres_used": "gres_used",
    "array_max_tasks": "array_max_tasks",
    "array_task_pending": "array_tasks_pending",
    "constraints": "constraints",
    "flags": "flags",
    "mem_req": "mem_req_raw",
    "partition": "partition",
    "priority": "priority",
    "state": "state_raw",
    "timelimit": "time_limit_min",
    "time_submit": "submit_epoch_s",
    "time_eligible": "eligible_epoch_s",
    "time_start": "start_epoch_s",
    "time_end": "end_epoch_s",
    "time_suspended": "suspended_s",
    "track_steps": "track_steps",
    "tres_alloc": "tres_alloc",
    "tres_req": "tres_req",
    "job_type": "job_type",
}

OPTIONAL_COLUMN_MAP: Final = {"gres_req": "gres_req", "gres_alloc": "gres_alloc"}

_OWN_TYPES: Final[dict[str, pl.DataType]] = {
    "mem_req_raw": pl.String(),
    "state_raw": pl.String(),
    "time_limit_min": pl.Int64(),
    "submit_epoch_s": pl.Float64(),
    "eligible_epoch_s": pl.Float64(),
    "start_epoch_s": pl.Float64(),
    "end_epoch_s": pl.Float64(),
}

TYPES: Final[dict[str, pl.DataType]] = {
    column: _OWN_TYPES.get(column) or JOBS.columns[column] for column in (COLUMN_MAP | OPTIONAL_COLUMN_MAP).values()
}

STATES: Final = {
    0: "PENDING",
    1: "RUNNING",
    2: "SUSPENDED",
    3: "COMPLETED",
    4: "CANCELLED",
    5: "FAILED",
    6: "TIMEOUT",
    7: "NODE_FAIL",
    8: "PREEMPTED",
    9: "BOOT_FAIL",
    10: "DEADLINE",
    11: "OUT_OF_MEMORY",
}
"""slurm.h, enum job_states: the low byte of the state."""

STATE_MASK: Final = 0xFF
NO_VALUE_32: Final = (0xFFFFFFFE, 0xFFFFFFFF)
MEM_PER_CPU_BIT: Final = 2**63
MAX_TIME_LIMIT_MIN: Final = 10**9
DEFAULT_TRES_NAMES: Final = {1001: "gpu:tesla", 1002: "gpu:volta"}
"""The releases' own mapping, for a cluster that never came with a tres-mapping.txt."""

LAST_COMMON_TRES: Final = 1000
"""Up to this number a TRES means the same everywhere (cpu, mem, node, …); above it, what the site's mapping says."""

_TRES_TEXT: Final = r"^\d{1,18}=\d{1,18}(,\d{1,18}=\d{1,18})*$"

LATEST_RELATIVE_S: Final = 315_360_000
"""A row whose times are all before this (ten years) counts them from its log's beginning, as the HPCA'22 release."""

_STRING_NULL = ("\\N", "")
_TIMES = ("submit", "eligible", "start", "end")


def finish(
    frame: pl.DataFrame, tres_names: Mapping[int, str]
) -> tuple[pl.DataFrame, dict[tuple[int | None, str, str], int]]:
    """Return rows of ``jobs`` (``attempt`` not yet numbered), and counts of what was seen."""
    have = set(frame.columns)
    texts = [name for name, dtype in frame.schema.items() if dtype == pl.String and name not in ("raw",)]
    frame = frame.with_columns(
        pl.when(pl.col(texts).str.strip_chars().is_in(_STRING_NULL)).then(None).otherwise(pl.col(texts)).name.keep()
    )
    columns: list[pl.Expr] = []
    counts: dict[tuple[int | None, str, str], int] = {}
    columns += [_without_no_value(name) for name in ("array_task_id", "array_max_tasks") if name in have]
    if "time_limit_min" in have:
        limit = _without_no_value("time_limit_min")
        is_sound = limit.is_between(0, MAX_TIME_LIMIT_MIN)
        columns.append(pl.when(is_sound).then(limit * S_PER_MINUTE).alias("time_limit_s"))
        _count(frame, ~is_sound, "out_of_range", "timelimit", counts)
    columns += _times([t for t in _TIMES if f"{t}_epoch_s" in have])
    if "state_raw" in have:
        state, flags = _state()
        columns += [state, flags]
        _count(frame, pl.col("state_raw").is_not_null() & state.is_null(), "wrong_type", "state", counts)
    if "mem_req_raw" in have:
        memory, per_cpu, inexact, unread = _memory()
        columns += [memory, per_cpu]
        _count(frame, inexact, "digits_lost", "mem_req", counts)
        _count(frame, unread, "wrong_type", "mem_req", counts)
    if "node_list" in have:
        readable = pl.col("node_list").str.contains(r"^\[\s*(('[^'\[\]]*'|\"[^\"\[\]]*\")\s*,?\s*)*\]$")
        stringified = pl.col("node_list").str.starts_with("[")
        _count(frame, stringified & ~readable, "node_list_unreadable", "nodelist", counts)
        names = pl.col("node_list").str.extract_all(r"[^\s,'\"\[\]]+").list.join(",")
        columns.append(pl.when(readable).then(names).otherwise(pl.col("node_list")).alias("node_list"))
    if sources := [name for name in ("tres_alloc", "tres_req") if name in have]:
        named = tres_names or DEFAULT_TRES_NAMES
        frame = frame.with_columns(_tres=pl.coalesce(sources)).with_columns(_unnamed=_unnamed(named))
        columns += _gpus(named)
        _count(frame, ~pl.col("_tres").str.contains(_TRES_TEXT), "wrong_type", sources[0], counts)
        numbers = frame["_unnamed"].list.explode(empty_as_null=False).drop_nulls().value_counts()
        counts |= {(None, "tres_unknown", str(number)): n for number, n in numbers.iter_rows()}
    done = frame.with_columns(columns).drop("_tres", "_unnamed", *_OWN_TYPES, strict=False)
    check_times(done, counts)
    return done, counts


def _count(
    frame: pl.DataFrame, mask: pl.Expr, reason: str, detail: str, counts: dict[tuple[int | None, str, str], int]
) -> None:
    for (job_id,) in frame.filter(mask.fill_null(False)).select("job_id").iter_rows():
        key = (job_id, reason, detail)
        counts[key] = counts.get(key, 0) + 1


def _without_no_value(name: str) -> pl.Expr:
    return pl.when(~pl.col(name).is_in(NO_VALUE_32)).then(pl.col(name)).alias(name)


def _times(names: Sequence[str]) -> list[pl.Expr]:
    """Return expressions: epoch seconds to time; below 0, and NO_VAL, mean never, and 0 does too but in one case.

    Where times count from the log's beginning, the first job was submitted at 0, and eligible then. That it started at
    0 cannot be told from a start that never came.
    """
    no_value = [float(number) for number in NO_VALUE_32]
    written = {t: pl.col(f"{t}_epoch_s") for t in names}
    seconds = {t: pl.when(~second.is_in(no_value)).then(second) for t, second in written.items()}
    is_relative = pl.max_horizontal(*seconds.values()) < LATEST_RELATIVE_S if seconds else pl.lit(False)
    is_first = is_relative & (seconds["submit"] == 0) if "submit" in seconds else pl.lit(False)

    def time(name: str) -> pl.Expr:
        is_real = (seconds[name] > 0) | ((seconds[name] == 0) & is_first & (name in ("submit", "eligible")))
        return pl.when(is_real).then((seconds[name] * US_PER_S).round().cast(pl.Int64).cast(TIME)).alias(f"{name}_time")

    return [time(name) for name in names]


def _state() -> tuple[pl.Expr, pl.Expr]:
    code = pl.col("state_raw").cast(pl.Float64, strict=False).cast(pl.Int64, strict=False)
    word = code.mod(STATE_MASK + 1).replace_strict(STATES, default=None, return_dtype=pl.String)
    flags = code - code.mod(STATE_MASK + 1)
    text = pl.when(code.is_null()).then(pl.col("state_raw").str.to_uppercase().str.extract(r"^(\S+)"))
    return pl.coalesce(word, text).alias("state"), flags.alias("state_flags")


def _memory() -> tuple[pl.Expr, pl.Expr, pl.Expr, pl.Expr]:
    """Return expressions: MiB asked for, whether per CPU, whether its digits are lost, whether it is no number.

    The top bit means per CPU: 2^63 + value as an unsigned integer, value - 2^63 where a reader had made it signed.
    """
    raw = pl.col("mem_req_raw")
    unsigned = raw.cast(pl.UInt64, strict=False)
    signed = raw.cast(pl.Int64, strict=False)
    rounded = raw.cast(pl.Float64, strict=False)
    half = pl.lit(MEM_PER_CPU_BIT - 1, dtype=pl.UInt64)
    from_unsigned = pl.when(unsigned > half).then(unsigned - half - 1).otherwise(unsigned).cast(pl.Int64, strict=False)
    from_signed = (signed + pl.lit(2**63 - 1, dtype=pl.Int64)) + 1
    exact = pl.when(signed < 0).then(from_signed).otherwise(from_unsigned)
    is_whole = rounded.is_between(0, 2.0**53) & (rounded == rounded.floor())
    small = pl.when(unsigned.is_null() & signed.is_null() & is_whole).then(rounded.cast(pl.Int64, strict=False))
    value = pl.coalesce(exact, small)
    no_value = value.is_in(NO_VALUE_32) | (value >= 2**62)
    per_cpu = (
        pl.when(unsigned.is_not_null() | signed.is_not_null())
        .then((unsigned > half).fill_null(False) | (signed < 0).fill_null(False))
        .when(small.is_not_null())
        .then(False)
    )
    unknown = raw.is_not_null() & value.is_null()
    return (
        pl.when(~no_value).then(value).alias("mem_mib"),
        per_cpu.alias("mem_per_cpu"),
        unknown & rounded.is_not_null(),
        unknown & rounded.is_null(),
    )


def _unnamed(names: Mapping[int, str]) -> pl.Expr:
    """Return an expression: the numbers that only a site's mapping explains and ``names`` does not have."""
    number = pl.element().str.strip_chars(",=").cast(pl.Int64, strict=False)
    is_unnamed = (pl.element() > LAST_COMMON_TRES) & ~pl.element().is_in(list(names))
    numbers = pl.col("_tres").str.extract_all(r"(?:^|,)\d+=").list.eval(number)
    return numbers.list.eval(pl.element().filter(is_unnamed))


def _gpus(names: Mapping[int, str]) -> list[pl.Expr]:
    """Return expressions: GPUs, and their type; null where a number has no name, since it may be a GPU too.

    Slurm writes the GPUs of all types together as ``gpu``, and those of a type as ``gpu:type``, where a site counts it.
    """

    def amount(number: int) -> pl.Expr:
        return pl.col("_tres").str.extract(rf"(?:^|,){number}=(\d+)").cast(pl.Int64, strict=False).fill_null(0)

    typed = {name.partition(":")[2]: amount(number) for number, name in names.items() if name.startswith("gpu:")}
    every = [amount(number) for number, name in names.items() if name == "gpu"]
    total = pl.max_horizontal(pl.sum_horizontal(pl.lit(0, dtype=pl.Int64), *typed.values()), *every)
    known = [pl.when(n > 0).then(pl.lit(kind)) for kind, n in sorted(typed.items(), reverse=True)]
    is_told = pl.col("_tres").str.contains(_TRES_TEXT) & (pl.col("_unnamed").list.len() == 0)
    kind = pl.coalesce(*known, pl.lit(None, dtype=pl.String))
    return [pl.when(is_told).then(total).alias("gpus"), pl.when(is_told).then(kind).alias("gpu_type")]


def check_times(done: pl.DataFrame, counts: dict[tuple[int | None, str, str], int]) -> None:
    """Count the jobs that end before they start, or start before they were submitted."""
    if {"start_time", "end_time"} <= set(done.columns):
        _count(done, pl.col("end_time") < pl.col("start_time"), "end_before_start", "time_end", counts)
    if {"submit_time", "start_time"} <= set(done.columns):
        _count(done, pl.col("start_time") < pl.col("submit_time"), "start_before_submit", "time_start", counts)


def number_attempts(frame: pl.DataFrame, seen: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Return the rows with ``attempt`` numbered in file order, exact repeats, and ``seen`` (job_id, row_hash) grown.

    ``seen`` holds what earlier pieces of the same log brought. `ingest.attempts` puts attempts into the order of time.
    """
    content = [name for name in frame.columns if name not in ("line", "raw")]
    hashed = frame.with_columns(row_hash=frame.select(content).hash_rows(seed=1))
    old = seen.unique().with_columns(known=True)
    known = hashed.join(old, on=["job_id", "row_hash"], how="left", maintain_order="left")
    first = pl.struct("job_id", "row_hash").is_first_distinct()
    repeat = known.select(~first | pl.col("known").fill_null(False)).to_series()
    new = hashed.filter(~repeat)
    before = seen.group_by("job_id").agg(pl.len().cast(pl.Int32).alias("before"))
    numbered = (
        new.join(before, on="job_id", how="left", maintain_order="left")
        .with_columns(attempt=pl.int_range(pl.len(), dtype=pl.Int32).over("job_id") + pl.col("before").fill_null(0))
        .drop("before", "row_hash")
    )
    grown = pl.concat([seen, new.select("job_id", "row_hash")])
    return numbered, frame.filter(repeat), grown


def empty_seen() -> pl.DataFrame:
    """Return the ``seen`` of a log of which nothing has been read."""
    return pl.DataFrame(schema={"job_id": pl.Int64, "row_hash": pl.UInt64})
