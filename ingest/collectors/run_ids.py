"""Under which job number a labelled run goes: Slurm's, where it is the first of its label there, else one of its own.

A job has one label. So a second run in a Slurm job goes under that job's number only if it is the same thing again;
which Slurm job is what already is kept in a hidden file of the spool.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ingest.collectors.spool import write_whole

COUNT_FROM_S: Final = 1_577_836_800
"""2020-01-01T00:00:00Z: job ids that are made here are microseconds since then, below 2**53."""

LABELLED: Final = ".labelled-jobs.json"
MOST_JOBS: Final = 1000
"""So many Slurm jobs are remembered; the oldest are forgotten first."""


@dataclass(frozen=True, slots=True)
class RunId:
    """A labelled run's job number.

    ``is_slurms``: a scheduler tells of that job. ``is_labelled``: another run writes its label, an earlier one or that
    on the first node of a step of several. ``notice`` says why the number is not Slurm's though this is a Slurm job.
    """

    job_id: int
    is_slurms: bool = False
    is_labelled: bool = False
    notice: str = ""


def choose(label: str, spool: Path, environment: Mapping[str, str], now_s: float) -> RunId:
    """Return the number for a run of this label that begins now, in epoch seconds."""
    own_id = int((now_s - COUNT_FROM_S) * 1e6)
    slurm_id = environment.get("SLURM_JOB_ID", "")
    if not (slurm_id.isascii() and slurm_id.isdigit()):
        return RunId(own_id)
    known = _read(spool).get(slurm_id)
    if known in (None, label):
        is_first_node = environment.get("SLURM_NODEID", "0") in ("", "0")
        return RunId(int(slurm_id), is_slurms=True, is_labelled=known == label or not is_first_node)
    notice = f"Slurm's job {slurm_id} is labelled {known!r} in this spool already: this run is a job of its own"
    return RunId(own_id, notice=notice)


def remember(job_id: int, label: str, spool: Path) -> None:
    """Note what a Slurm job is; where the disk refuses, the lake will refuse a second label of that job."""
    known = _read(spool)
    known[str(job_id)] = known.pop(str(job_id), label)
    with suppress(OSError):
        write_whole(spool / LABELLED, json.dumps(dict(list(known.items())[-MOST_JOBS:])) + "\n")


def _read(spool: Path) -> dict[str, str]:
    try:
        return {str(job_id): str(label) for job_id, label in json.loads((spool / LABELLED).read_text("utf-8")).items()}
    except (OSError, ValueError, AttributeError):
        return {}
