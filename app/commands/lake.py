"""``jobwatt lake``: filling a lake, and looking after it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from app.cli import DATA_PROBLEM, PARTLY_DONE
from app.following import follow_until_stopped, parse_age_s
from app.lake_access import open_lake
from app.output import TABLE_ROWS, Show, with_format
from app.progress import byte_bar
from app.runners import open_runner, with_runner
from app.settings import load, with_lake
from ingest.cluster_name import check_cluster_name
from ingest.errors import LakeError
from ingest.quality import REASONS, is_defect
from ingest.units import BYTES_PER_MIB

if TYPE_CHECKING:
    from ingest.pipeline import Progress


@click.group()
def lake() -> None:
    """Fill a lake from raw telemetry, and look after it."""


def _cluster_name(ctx: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    try:
        return None if name is None else check_cluster_name(name)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _time_zone(ctx: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    from zoneinfo import ZoneInfo

    try:
        return name if name is None else ZoneInfo(name).key
    except (KeyError, ValueError, OSError) as error:
        raise click.BadParameter(f"{name!r} is no time zone; give a name such as UTC or Europe/Berlin") from error


def _names(columns: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (columns or "").split(",") if name.strip())


def _age(ctx: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    try:
        return None if text is None else parse_age_s(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@lake.command()
@click.argument("path")
@with_lake
@click.option(
    "--cluster",
    callback=_cluster_name,
    help="Name of the machine that the data is of.  [default: from the data's layout]",
)
@with_runner
@click.option("--force", is_flag=True, help="Take a file even if it has become shorter since it was ingested.")
@click.option("--anonymous", is_flag=True, help="Ask an s3:// bucket without an account.")
@click.option(
    "--max-member-gib",
    type=click.FloatRange(min=0, min_open=True),
    help="Refuse what inflates past this.",
)
@click.option(
    "--node", callback=_cluster_name, help="Node that the output of nvidia-smi is of.  [default: from its name]"
)
@click.option(
    "--time-zone", callback=_time_zone, help="Zone of the times of nvidia-smi, as in Europe/Berlin.  [default: UTC]"
)
@click.option("--columns", help="What --query-gpu was, for output of nvidia-smi without a header.")
@click.option("--progress/--no-progress", default=None, help="Show a progress bar.  [default: on a terminal]")
@click.option("--follow", is_flag=True, help="Go on until stopped: take what a spool gets, and remove it there.")
@click.option("--every", type=click.FloatRange(min=0.1), default=10.0, show_default=True, help="--follow: seconds.")
@click.option(
    "--keep-samples", metavar="AGE", callback=_age, help="--follow: drop older samples, as in 30d.  [default: none]"
)
@click.option(
    "--compact-after",
    type=click.IntRange(min=1),
    default=60,
    show_default=True,
    help="--follow: merge small files of a table when there are more.",
)
@with_format
def ingest(
    show: Show,
    *,
    path: str,
    lake: Path | None,
    cluster: str | None,
    workers: int | None,
    scheduler: str | None,
    slurm: bool,
    force: bool,
    anonymous: bool,
    max_member_gib: float | None,
    node: str | None,
    time_zone: str | None,
    columns: str | None,
    progress: bool | None,
    follow: bool,
    every: float,
    keep_samples: float | None,
    compact_after: int,
) -> None:
    """Ingest PATH into a lake: a folder, a .tar, .tar.gz, .tar.zst, a URL such as s3://bucket/prefix, or a single file.

    The layout is detected. What cannot be taken goes to the table `quarantine` with its reason, and the exit code is 3.
    Ingesting the same again changes nothing; a file that has grown replaces its old rows. With --follow PATH is the
    spool of `jobwatt collect`: what it gets is taken until SIGTERM, and then removed from it.

    What nvidia-smi printed is taken too: nvidia-smi-NODE.csv (--query-gpu=timestamp,index,...) and dmon-NODE.log (dmon
    -o DT). Its times are local ones: give --time-zone, unless they are UTC.

    Example: jobwatt lake ingest recording.tar.zst --lake data/lake --workers 4
    """
    if scheduler and slurm:
        raise click.UsageError("--scheduler and --slurm exclude each other; give one of them.")
    if follow:
        if scheduler or slurm or workers not in (None, 1):
            raise click.UsageError("--follow works in this process alone; leave --workers, --scheduler, --slurm out.")
        if force:
            raise click.UsageError("--follow takes no file by force; ingest the spool once with --force instead.")
        follow_until_stopped(
            path, load(lake=lake).lake, cluster=cluster, every_s=every, keep_s=keep_samples, compact_after=compact_after
        )
        return
    if keep_samples is not None:
        raise click.UsageError("--keep-samples is for --follow.")
    from ingest.pipeline import ingest as ingest_into
    from ingest.records import SmiOptions
    from ingest.sources.archive import DEFAULT_MAX_MEMBER_BYTES

    root = load(lake=lake).lake
    most_bytes = DEFAULT_MAX_MEMBER_BYTES if max_member_gib is None else int(max_member_gib * 1024 * BYTES_PER_MIB)
    with closing(open_runner(workers, scheduler, slurm)) as runner, byte_bar("ingest", progress) as bar:

        def tell(now: Progress) -> None:
            if bar is not None:
                bar(now.bytes_done, now.bytes_total, now.phase)

        report = ingest_into(
            path,
            root,
            cluster=cluster,
            runner=runner,
            force=force,
            anonymous=anonymous,
            max_member_bytes=most_bytes,
            smi=SmiOptions(node or "", time_zone or "", _names(columns)),
            progress=None if bar is None else tell,
        )
    show(report)
    if report.partial:
        defects = ", ".join(f"{code} {n:,}" for code, n in report.reasons.items() if is_defect(code))
        click.echo(f"partly done ({defects}); `jobwatt lake reasons --lake {root}` says where and why", err=True)
    if report.generation:
        _require_whole(root)
    if report.partial:
        click.get_current_context().exit(PARTLY_DONE)


def _require_whole(root: Path) -> None:
    """Fail where files of the lake are missing or cut."""
    with open_lake(root) as filled:
        lost = filled.find_lost()
    if lost:
        raise LakeError(
            f"{root} has lost rows that count as unchanged: {len(lost):,} of its files are missing or cut, as "
            f"{lost[0]}; put them back, or ingest all sources into a new lake"
        )


@lake.command()
@with_lake
@with_format
def info(show: Show, *, lake: Path | None) -> None:
    """Show the tables of a lake with their clusters, files, rows and bytes.

    Example: jobwatt lake info --lake data/lake --format json
    """
    with open_lake(lake) as opened:
        show(opened.info().tables)


@lake.command()
@with_lake
@click.option("--cluster", help="Only files of this cluster.")
@click.option("--reason", type=click.Choice(list(REASONS)), metavar="CODE", help="Only this reason code.")
@click.option("--notices", is_flag=True, help="What is only worth a remark too (gaps, unknown columns, …).")
@click.option("--limit", type=click.IntRange(min=0), help="At most so many; 0 for all.  [default: 50 in a table]")
@with_format
def reasons(
    show: Show, *, lake: Path | None, cluster: str | None, reason: str | None, notices: bool, limit: int | None
) -> None:
    """Say why rows or files were refused, file by file, with the first line that was and what its reason code means.

    Example: jobwatt lake reasons --lake data/lake --reason wrong_type
    """
    from app.reasons_view import list_reasons

    with open_lake(lake) as opened:
        tables = [opened.scan(name, cluster) for name in ("quality", "quarantine")]
        found = list_reasons(*tables, reason=reason, notices=notices)
    show(found.head(limit) if limit else found, table_rows=TABLE_ROWS if limit is None else None)


@lake.command()
@with_lake
@with_format
def migrate(show: Show, *, lake: Path | None) -> None:
    """Bring a lake that an older jobwatt wrote to this one's version; the next ingest would do it too.

    What the older one did not store is null. Nothing changes where it fails, or is killed.

    Example: jobwatt lake migrate --lake data/lake
    """
    from ingest.migrate import migrate_lake

    show(migrate_lake(load(lake=lake).lake))


@lake.command()
@with_lake
@click.option("--progress/--no-progress", default=None, help="Show a progress bar.  [default: on a terminal]")
@with_format
def check(show: Show, *, lake: Path | None, progress: bool | None) -> None:
    """Check that every file of a lake is there, whole, sorted and as its manifest says; exit 1 where one is not.

    Every value is read; `jobwatt doctor` takes a quick look only.

    Example: jobwatt lake check --lake data/lake
    """
    with open_lake(lake) as opened, byte_bar("check", progress) as tell:
        report = opened.check(progress=tell)
    show(report)
    if report.problems:
        click.get_current_context().exit(DATA_PROBLEM)
