"""Which Slurm job a process belongs to: by its cgroup, else by its environment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

JOB_PATH: Final = re.compile(
    r"(?:slurmstepd\.scope|slurm[^/\n]*(?:/uid_\d+)?)/job_(?P<job>\d+)"
    r"(?:/step_(?P<step>[^/\n]+))?(?:/user)?(?:/task_(?P<task>[^/\n]+))?"
)
"""Slurm's cgroups: version 2, ``/system.slice/NODE_slurmstepd.scope/job_1/step_0/user/task_0``; version 1,
``/slurm/uid_1000/job_1/step_batch/task_0`` (with several daemons on a host ``/slurm_NODE/…``)."""

STEP_NAMES: Final = {"4294967290": "interactive", "4294967291": "batch", "4294967292": "extern"}
"""Numbers that Slurm's variables have for steps which its cgroups and its profiles tell by name (slurm.h)."""


@dataclass(frozen=True, slots=True)
class JobStep:
    """A job, its step (``batch``, ``extern``, ``interactive`` or a number) and its task, as far as the cgroup says."""

    job_id: int
    step: str = ""
    task: str = ""


def parse_cgroup(text: str) -> JobStep | None:
    """Return the job in a ``/proc/PID/cgroup`` or in a cgroup's path; None where there is none.

    Examples
    --------
    >>> parse_cgroup("0::/system.slice/n1_slurmstepd.scope/job_42/step_batch/user/task_0")
    JobStep(job_id=42, step='batch', task='0')
    """
    found = max(JOB_PATH.finditer(text), key=lambda match: match.end() - match.start(), default=None)
    if found is None:
        return None
    return JobStep(int(found["job"]), found["step"] or "", found["task"] or "")


def job_of_process(pid: int, proc: Path = Path("/proc")) -> JobStep | None:
    """Return the Slurm job of a process; None where it has none, is gone, or may not be looked at."""
    try:
        found = parse_cgroup((proc / str(pid) / "cgroup").read_text("utf-8", "replace"))
        return found or job_in_environment((proc / str(pid) / "environ").read_bytes())
    except OSError:
        return None


def job_in_environment(environment: bytes) -> JobStep | None:
    """Return the job that Slurm's variables name in a ``/proc/PID/environ``.

    Examples
    --------
    >>> job_in_environment(b"HOME=/root\\0SLURM_JOB_ID=7\\0SLURM_STEP_ID=0\\0")
    JobStep(job_id=7, step='0', task='')
    """
    pairs = (entry.partition(b"=") for entry in environment.split(b"\0"))
    values = {name: value for name, _, value in pairs if name.startswith(b"SLURM")}
    job_id = values.get(b"SLURM_JOB_ID", values.get(b"SLURM_JOBID", b""))
    if not job_id.isdigit():
        return None
    step = _word(values.get(b"SLURM_STEP_ID"))
    return JobStep(int(job_id), STEP_NAMES.get(step, step), _word(values.get(b"SLURM_PROCID")))


def _word(value: bytes | None) -> str:
    return "" if value is None else value.decode("utf-8", "replace")


def job_cgroups(root: Path) -> Iterator[tuple[JobStep, Path]]:
    """Yield every cgroup below a Slurm job's, with its job: unified (version 2), else the first version 1 hierarchy.

    Cgroups come and go while they are looked through; one that is gone by then is left out.

    Parameters
    ----------
    root
        Where cgroups are mounted: ``/sys/fs/cgroup``.
    """
    scopes = _children(root / "system.slice", end="slurmstepd.scope")
    tops = [top for scope in scopes for top in _children(scope, "job_")]
    if not tops:
        for controller in ("memory", "cpuacct", "cpu,cpuacct", "freezer", "devices", "cpuset", "systemd"):
            users = [user for slurm in _children(root / controller, "slurm") for user in _children(slurm, "uid_")]
            tops = [top for user in users for top in _children(user, "job_")]
            if tops:
                break
    for top in tops:
        for folder, _, files in os.walk(top):
            found = parse_cgroup(os.path.relpath(folder, root)) if "cgroup.procs" in files else None
            if found is not None:
                yield found, Path(folder)


def _children(folder: Path, start: str = "", end: str = "") -> list[Path]:
    """Return what lies in a folder under such names; nothing where it is gone. A good part quicker than `Path.glob`."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 (the quickest: a cgroup's folder holds many files)
    except OSError:
        return []
    return [folder / name for name in sorted(names) if name.startswith(start) and name.endswith(end)]


def process_ids(cgroup: Path) -> list[int]:
    """Return the processes directly in a cgroup; none where it is gone."""
    try:
        return [int(pid) for pid in (cgroup / "cgroup.procs").read_text("ascii").split()]
    except (OSError, ValueError):
        return []
