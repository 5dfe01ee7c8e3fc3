"""``sacct --json`` of Slurm 21.08 and later: plug-in openapi/dbv0.0.3x, then data_parser/v0.0.39 and later. Pure.

Numbers come bare or as ``{"set", "infinite", "number"}``, a state as text or as a list, a time limit in minutes while
all other times are seconds. The keys are the same in all versions, so that a version is told (`version`) but asked only
where one of them is wrong.

References
----------
SchedMD, slurm: plugins/openapi/dbv0.0.38, plugins/data_parser/v0.0.40 (JOB, JOB_EXIT_CODE, TRES).
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from ingest.errors import SourceError
from ingest.sources import sacct_values as values
from ingest.sources.sacct import Parsed, take
from ingest.sources.sacct_columns import MissingKeyError, Row, finish
from ingest.units import S_PER_MINUTE

NO_EXIT_CODES: Final = (0, 0, 38)
"""Up to this version every job that was not killed says exit code 0, whatever it was (seen with Slurm 22.05.8)."""

_MAX_RAW: Final = 10_000


def version(document: Any) -> tuple[int, ...]:
    """Return the version of the format, as in ``data_parser/v0.0.40``; () where nothing tells it.

    >>> version({"meta": {"plugin": {"data_parser": "data_parser/v0.0.40", "type": "openapi/slurmdbd"}}})
    (0, 0, 40)
    """
    meta = document.get("meta") if isinstance(document, dict) else None
    plugin = meta.get("plugin", meta.get("plugins")) if isinstance(meta, dict) else None
    told = plugin if isinstance(plugin, dict) else {}
    for key in ("data_parser", "type", "name"):
        found = re.search(r"v(\d+)\.(\d+)\.(\d+)", str(told.get(key, "")))
        if found:
            return tuple(int(part) for part in found.groups())
    return ()


def parse_json(text: str) -> Parsed:
    """Return what a whole answer says; the number of a row is its place in the list of jobs, from 1.

    Raises
    ------
    SourceError
        If it is no JSON to its end, or has no list of jobs.
    """
    try:
        document = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise SourceError(f"no JSON to its end ({error})") from error
    jobs = document.get("jobs") if isinstance(document, dict) else None
    if not isinstance(jobs, list):
        raise SourceError("no list of jobs")
    told = version(document)
    parsed = Parsed()
    for number, job in enumerate(jobs, 1):
        raw = ""
        try:
            row = finish(_job(job))
        except (MissingKeyError, KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raw = json.dumps(job, sort_keys=True)[:_MAX_RAW]
            reason = "missing_key" if isinstance(error, MissingKeyError | KeyError) else "wrong_type"
            parsed.rejected.append((number, reason, str(error), raw))
            continue
        if () < told <= NO_EXIT_CODES:
            _doubt_exit_codes(parsed, row)
        take(parsed, number, raw, row)
    return parsed


def _doubt_exit_codes(parsed: Parsed, row: Row) -> None:
    """Take away the zeros that an old version writes for any exit code; that of a job that is not FAILED is one."""
    row["derived_exit_code"] = row["derived_exit_code"] or None
    if row["state"] == "FAILED" and row["exit_code"] == 0:
        row["exit_code"] = None
        parsed.counts[row["job_id"], "exit_code_unknown", ""] += 1


def _job(job: dict[str, Any]) -> Row:
    time, array, required = job["time"], job.get("array") or {}, job.get("required") or {}
    current = job["state"]["current"]
    state, flags, _ = values.state([current] if isinstance(current, str) else current)
    limit = values.number(time.get("limit"))
    job_id = values.number(job["job_id"])
    if job_id is None:
        raise MissingKeyError("job_id")
    tasks = _text(array.get("task"))
    most = values.number(array.get("limits", {}).get("max", {}).get("running", {}).get("tasks"))
    return {
        "job_id": job_id,
        "array_job_id": values.number(array.get("job_id")) or None,
        "array_task_id": values.number(array.get("task_id")),
        "array_tasks_pending": values.count_tasks(tasks.partition("%")[0].strip("[]")) if tasks else None,
        "array_max_tasks": most or None if tasks else None,
        "cluster": _text(job.get("cluster")),
        "user": _text(job.get("user")) or _text((job.get("association") or {}).get("user")),
        "kill_user": values.user_id(_text(job.get("kill_request_user")) or ""),
        "partition": _text(job.get("partition")),
        "state": state,
        "state_flags": flags,
        "exit_code": _wait_status(job.get("exit_code")),
        "derived_exit_code": _wait_status(job.get("derived_exit_code")),
        "submit_epoch_s": _epoch_s(time.get("submission")),
        "eligible_epoch_s": _epoch_s(time.get("eligible")),
        "start_epoch_s": _epoch_s(time.get("start")),
        "end_epoch_s": _epoch_s(time.get("end")),
        "suspended_s": values.number(time.get("suspended")),
        "time_limit_s": None if limit is None else limit * S_PER_MINUTE,
        "nodes": values.number(job.get("allocation_nodes")),
        "node_list": values.node_names(_text(job.get("nodes")) or ""),
        "cpus": values.number(required.get("CPUs")),
        **_memory(required),
        "priority": values.number(job.get("priority")),
        "flags": values.job_flags(job.get("flags") or ()),
        "restarts": values.number(job.get("restart_cnt")),
        "constraints": _text(job.get("constraints")),
        "tres_alloc": _tres((job.get("tres") or {}).get("allocated")),
        "tres_req": _tres((job.get("tres") or {}).get("requested")),
    }


def _text(value: Any) -> str | None:
    """Return a text, None where it is empty or says so."""
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return None if value is None or values.is_missing(value) else value


def _epoch_s(value: Any) -> int | None:
    return values.sound_epoch_s(values.number(value))


def _memory(required: dict[str, Any]) -> Row:
    """Return what was asked for, per CPU or per node; of the raw number of old versions the top bit says which."""
    per_cpu, per_node = values.number(required.get("memory_per_cpu")), values.number(required.get("memory_per_node"))
    if per_cpu is not None:
        return {"mem_mib": per_cpu, "mem_per_cpu": True}
    if per_node is not None:
        return {"mem_mib": per_node, "mem_per_cpu": False}
    raw = values.number(required.get("memory"))
    if raw is None:
        return {"mem_mib": None, "mem_per_cpu": None}
    return {"mem_mib": raw & ~(1 << 63), "mem_per_cpu": raw >> 63 == 1}


def _wait_status(value: Any) -> int | None:
    """Return the raw wait status; None where a job has none yet."""
    if not isinstance(value, dict):
        return None if value is None else values.number(value)
    killed = value.get("signal") or {}
    signal = values.number(killed.get("id", killed.get("signal_id")))
    code = values.number(value.get("return_code"))
    if code is None and signal is None:
        return None
    return (code or 0) << 8 | (signal or 0)


def _tres(entries: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for entry in entries or ():
        count = values.number(entry.get("count"))
        name = _text(entry.get("name"))
        if count is not None:
            found[f"{entry['type']}/{name}" if name else entry["type"]] = count
    return found
