"""Where a command's tasks run, as its options say."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ingest.runner import Runner

F = TypeVar("F", bound=Callable[..., Any])


def with_runner(command: F) -> F:
    """Return the command with ``--workers``, ``--scheduler`` and ``--slurm``, which `open_runner` takes."""
    for option in (
        click.option("--slurm", is_flag=True, help="Work in Slurm jobs, through dask-jobqueue and its configuration."),
        click.option("--scheduler", metavar="ADDRESS", help="Work on the dask cluster there, as in tcp://host:8786."),
        click.option(
            "--workers", type=click.IntRange(min=1), help="Local processes, or Slurm jobs.  [default: usable cores]"
        ),
    ):
        command = option(command)
    return command


def open_runner(workers: int | None, scheduler: str | None, slurm: bool) -> Runner:
    """Return the runner that the options ask for; close it after use."""
    from ingest.runner import DaskRunner, PoolRunner, SerialRunner, SlurmRunner, usable_cores

    if scheduler and slurm:
        raise click.UsageError("--scheduler and --slurm exclude each other; give one of them.")
    if scheduler:
        return DaskRunner(scheduler)
    count = usable_cores() if workers is None else workers
    if slurm:
        return SlurmRunner(count)
    return SerialRunner() if count == 1 else PoolRunner(count)
