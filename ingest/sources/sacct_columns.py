"""The columns of ``sacct`` by name, and what each of their cells tells of a job. Pure, and light.

References
----------
SchedMD, slurm: sacct(1); src/sacct/print.c.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

from ingest.sources import sacct_values as values

Row = dict[str, Any]
"""A row of ``jobs`` by column; times as seconds since 1970, under ``submit_epoch_s`` and the like."""

FREE_TEXT: Final = frozenset(
    (
        *("jobname", "comment", "admincomment", "systemcomment", "workdir", "submitline", "constraints", "extra"),
        *("stdin", "stdout", "stderr", "reason", "container", "licenses", "wckey", "reservation", "qosreq"),
    )
)
"""Columns, folded, in which users or administrators may have written a bar or a line break."""


_CACHE_SIZE: Final = 4096
"""Most jobs of a site ask for one of a few things; so many of them are kept as they were read."""


class MissingKeyError(ValueError):
    """A row does not say which job it is of."""


_RAW_ID = re.compile(r"^(\d+)(?:\+\d+)?(\.[^|\s]+)?$")
_JOB_ID = re.compile(r"^(\d+)(?:_(?:(\d+)|\[([^\]|]*)\]))?(?:\+(\d+))?(\.[^|\s]+)?$")


def _put_raw_id(row: Row, text: str) -> None:
    match = _RAW_ID.match(text)
    if match is None:
        raise ValueError(f"{text!r} is no job id")
    row["job_id"] = int(match[1])
    if match[2]:
        row["step"] = match[2]


def _put_job_id(row: Row, text: str) -> None:
    match = _JOB_ID.match(text)
    if match is None:
        raise ValueError(f"{text!r} is no job id")
    head, task, waiting, component, step = match.groups()
    if task is None and component is None:
        row.setdefault("job_id", int(head))
    if task is not None or waiting is not None:
        row["array_job_id"] = int(head)
    if task is not None:
        row["array_task_id"] = int(task)
    if waiting is not None:
        tasks, _, most = waiting.partition("%")
        row["array_tasks_pending"] = values.count_tasks(tasks) if "..." not in tasks else None
        row["array_max_tasks"] = int(most) if most else None
    if step:
        row["step"] = step


def _put_time(column: str) -> Callable[[Row, str], None]:
    def put(row: Row, text: str) -> None:
        row[column], is_local = values.epoch_s(text)
        if is_local:
            row.setdefault("local_times", []).append(column.removesuffix("_epoch_s"))

    return put


def _put(column: str, read: Callable[[str], Any]) -> Callable[[Row, str], None]:
    def put(row: Row, text: str) -> None:
        row[column] = read(text)

    return put


def _put_state(row: Row, text: str) -> None:
    found, flags, killer = _state(text)
    row |= {"state": found, "state_flags": flags, "kill_user": values.user_id(killer)}


def _put_memory(row: Row, text: str) -> None:
    row["mem_mib"], row["mem_per_cpu"] = values.memory_mib(text)


def _word(text: str) -> str | None:
    return None if values.is_missing(text) else text


def _put_user(row: Row, text: str) -> None:
    row["user"] = _word(text) or row.get("user")


def _put_uid(row: Row, text: str) -> None:
    number = values.whole(text)
    row["user"] = row.get("user") or (None if number is None else str(number))


@lru_cache(_CACHE_SIZE)
def _flags(text: str) -> int | None:
    return values.job_flags(text.split(","))


@lru_cache(_CACHE_SIZE)
def _state(text: str) -> tuple[str | None, int, str]:
    return values.state([text]) if not values.is_missing(text) else (None, 0, "")


@lru_cache(_CACHE_SIZE)
def _resources(text: str) -> Mapping[str, int]:
    return MappingProxyType(values.tres(text))


@lru_cache(_CACHE_SIZE)
def _nodes(text: str) -> str | None:
    return values.node_names(text)


COLUMNS: Final[dict[str, Callable[[Row, str], None]]] = {
    "jobidraw": _put_raw_id,
    "jobid": _put_job_id,
    "cluster": _put("cluster", _word),
    "user": _put_user,
    "uid": _put_uid,
    "partition": _put("partition", _word),
    "state": _put_state,
    "exitcode": _put("exit_code", values.wait_status),
    "derivedexitcode": _put("derived_exit_code", values.wait_status),
    "submit": _put_time("submit_epoch_s"),
    "eligible": _put_time("eligible_epoch_s"),
    "start": _put_time("start_epoch_s"),
    "end": _put_time("end_epoch_s"),
    "suspended": _put("suspended_s", values.duration_s),
    "timelimitraw": _put("time_limit_s", values.limit_s),
    "timelimit": _put("time_limit_s", values.duration_s),
    "allocnodes": _put("nodes", values.whole),
    "nnodes": _put("nodes", values.whole),
    "nodelist": _put("node_list", _nodes),
    "reqcpus": _put("cpus", values.whole),
    "ncpus": _put("cpus", values.whole),
    "alloccpus": _put("cpus", values.whole),
    "reqmem": _put_memory,
    "priority": _put("priority", values.whole),
    "flags": _put("flags", _flags),
    "reqtres": _put("tres_req", _resources),
    "alloctres": _put("tres_alloc", _resources),
    "restarts": _put("restarts", values.whole),
    "constraints": _put("constraints", _word),
}
"""sacct's column, folded, to what its cell tells of a job."""

WEAKER: Final = {
    "timelimit": "timelimitraw",
    "nnodes": "allocnodes",
    "ncpus": "reqcpus",
    "alloccpus": "reqcpus",
}
"""Columns that are not read where a better one of the same meaning is there."""


def finish(row: Row) -> Row:
    """Return a row with its resources as text, and what follows from them.

    Raises
    ------
    MissingKeyError
        If the row is of a job whose id it does not tell.
    """
    if "job_id" not in row and "step" not in row:
        raise MissingKeyError("JobIDRaw: JobID alone does not tell the id of an array's task")
    allocated, requested = row.get("tres_alloc") or {}, row.get("tres_req") or {}
    if "tres_alloc" in row or "tres_req" in row:
        row["gpus"], row["gpu_type"] = values.gpus(allocated or requested) if allocated or requested else (None, None)
    if "mem" in requested:
        row["mem_mib"], row["mem_per_cpu"] = requested["mem"], False
    for name in ("tres_alloc", "tres_req"):
        if name in row:
            row[name] = values.tres_text(row[name])
    return row
