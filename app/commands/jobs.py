"""``jobwatt jobs``: which jobs a lake has, and what is known of one."""

from __future__ import annotations

from pathlib import Path

import click

from app.lake_access import open_lake
from app.output import TABLE_ROWS, Show, with_format
from app.settings import with_lake
from ingest.errors import JobwattError

SORTS: dict[str, bool] = {
    "start_time": True,
    "run_s": True,
    "gpus": True,
    "power_mean_w": True,
    "power_max_w": True,
    "energy_kwh": True,
    "coverage": False,
    "job_id": False,
}
"""What the list can be sorted by, to whether the greatest comes first."""

DETAIL_TABLES = ("jobs", "job_stats", "labels", "gpu_minutes", "devices", "quality", "quarantine")


@click.group()
def jobs() -> None:
    """List the jobs of a lake, or show one."""


@jobs.command("list")
@with_lake
@click.option("--cluster", help="Only jobs of this cluster.")
@click.option("--user", help="Only jobs of this user.")
@click.option("--state", help="Only jobs in this state, such as COMPLETED or FAILED.")
@click.option("--label", help="Only jobs of this class.")
@click.option("--sort", type=click.Choice(list(SORTS)), default="start_time", show_default=True, help="Sort by this.")
@click.option(
    "--limit", type=click.IntRange(min=0), help="At most so many; 0 for all.  [default: 50 in a table, else 0]"
)
@with_format
def list_command(
    show: Show,
    *,
    lake: Path | None,
    cluster: str | None,
    user: str | None,
    state: str | None,
    label: str | None,
    sort: str,
    limit: int | None,
) -> None:
    """List jobs with their watts, energy and coverage, without reading a single sample.

    Example: jobwatt jobs list --state FAILED --sort energy_kwh --limit 10
    """
    from app.jobs_view import list_jobs

    with open_lake(lake) as opened:
        tables = [opened.scan(name, cluster) for name in ("jobs", "job_stats", "labels")]
        listed = list_jobs(*tables, user=user, state=state, label=label, sort=sort, descending=SORTS[sort])
        frame = (listed.limit(limit) if limit else listed).collect()
    show(frame, table_rows=TABLE_ROWS if limit is None else None)


@jobs.command("show")
@click.argument("job_id", type=click.IntRange(0, 2**63 - 1))
@with_lake
@click.option("--cluster", help="The cluster of the job, where several have its id.")
@with_format
def show_command(show: Show, *, job_id: int, lake: Path | None, cluster: str | None) -> None:
    """Show the job JOB_ID: times, state, GPUs, watts, energy, coverage, and what is wrong with its data.

    Example: jobwatt jobs show 48893816434300 --format json
    """
    from app.jobs_view import clusters_of, describe_job

    with open_lake(lake) as opened:
        tables = {name: opened.scan(name, cluster) for name in DETAIL_TABLES}
        clusters = clusters_of(job_id, tables["jobs"], tables["job_stats"])
        if len(clusters) > 1:
            raise click.UsageError(f"Job {job_id} is in the clusters {', '.join(clusters)}; choose one with --cluster.")
        if not clusters:
            where = f"cluster {cluster} of {opened.root}" if cluster else str(opened.root)
            raise JobwattError(f"no job {job_id} in {where}; `jobwatt jobs list` shows what there is")
        show(describe_job(job_id, clusters[0], tables))
