"""``jobwatt features``: windows of jobs in numbers, into the lake's ``features`` or of what runs now."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from app.cli import PARTLY_DONE
from app.lake_access import open_lake
from app.output import Show, with_format
from app.progress import byte_bar
from app.runners import open_runner, with_runner
from app.settings import load, with_lake

if TYPE_CHECKING:
    import polars as pl

    from features.extract import ExtractReport, Progress
    from features.variant import Variant
    from ingest.lake import Lake

F = TypeVar("F", bound=Callable[..., Any])

TABLE_ROWS = 50
"""Rows of a table on a screen."""


@click.group()
def features() -> None:
    """Describe the windows of jobs in numbers, into the lake's table `features` or of what runs now."""


def _with_windows(command: F) -> F:
    """Return the command with the options that say which set is made of which windows."""
    for option in (
        click.option(
            "--samples-per-s",
            type=click.FloatRange(min=0, min_open=True),
            default=9.0,
            show_default=True,
            help="Samples of a window for each of its seconds; a window with fewer is refused, and from a faster "
            "source they span less time (column samples_per_s).",
        ),
        click.option(
            "--seconds",
            type=click.FloatRange(min=0, min_open=True),
            default=60.0,
            show_default=True,
            help="Length of a window: it holds the first readings of so many seconds, 540 for 60 s at 9 a second.",
        ),
        click.option("--set", "set_name", required=True, help="Feature set, as in statistical or efficient."),
        click.option("--cluster", help="Only jobs of this cluster."),
    ):
        command = option(command)
    return command


def _variant(set_name: str, **window: Any) -> Variant:
    from features.variant import Variant
    from features.windows import WindowSpec

    try:
        return Variant(set_name, WindowSpec(**window))
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error


@features.command()
@with_lake
@_with_windows
@click.option(
    "--place",
    type=click.Choice(["start", "middle", "random", "slide"]),
    default="middle",
    show_default=True,
    help="Where a window lies in its series; slide: one after the other.",
)
@click.option(
    "--stride",
    type=click.FloatRange(min=0, min_open=True),
    help="slide: seconds from start to start.  [default: --seconds]",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="random: another seed.")
@click.option("--max-gap", type=click.FloatRange(min=0, min_open=True), help="Refuse windows with a longer gap, in s.")
@click.option(
    "--even", is_flag=True, help="Samples of an even grid, on straight lines between readings; needs --max-gap."
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write all windows of it to this Parquet file too."
)
@with_runner
@click.option("--progress/--no-progress", default=None, help="Show a progress bar.  [default: on a terminal]")
@with_format
def extract(
    show: Show,
    *,
    lake: Path | None,
    cluster: str | None,
    set_name: str,
    seconds: float,
    samples_per_s: float,
    place: str,
    stride: float | None,
    seed: int,
    max_gap: float | None,
    even: bool,
    out: Path | None,
    workers: int | None,
    scheduler: str | None,
    slurm: bool,
    progress: bool | None,
) -> None:
    """Extract a feature set from windows of every job of a lake, into its table `features`.

    What the lake has already is not made again: a run that was killed goes on, and a repeated one changes nothing.
    Other windows or another set come beside. Which series gave no window, and why, is in `feature_series`
    (`jobwatt features short`).

    Example: jobwatt features extract --lake data/lake --set statistical --seconds 60 --place middle --workers 2
    """
    if out is not None:
        _check_out(out)
    if even and max_gap is None:
        raise click.UsageError("--even needs --max-gap: over how many seconds may a straight line be drawn?")
    from features.workers import warm
    from ingest.runner import PoolRunner

    with (
        closing(open_runner(workers, scheduler, slurm)) as runner,
        byte_bar("features", progress, unit=" windows") as bar,
    ):
        if isinstance(runner, PoolRunner):
            runner.warm(partial(warm, set_name))  # before this process imports the same
        variant = _variant(
            set_name,
            seconds=seconds,
            place=place,
            samples_per_s=samples_per_s,
            stride_s=stride,
            max_gap_s=max_gap,
            even=even,
            seed=seed,
        )
        from features.extract import extract as extract_into

        root = load(lake=lake).lake

        def tell(now: Progress) -> None:
            if bar is not None:
                bar(now.windows_done, now.windows_total, now.phase)

        report = extract_into(root, variant, runner=runner, cluster=cluster, progress=tell, say=_say)
    if not report.series and not report.series_changed:
        _say(f"{root} has no GPU sample of a job{_of(cluster)}, so there is nothing to describe")
    elif report.is_repeated and not report.series_changed:
        _say(f"{root} has {variant.name} of all series already; nothing was made anew")
    if out is not None:
        _export(lake, variant, cluster, out, report)
    show(report)
    if report.series_changed:
        click.get_current_context().exit(PARTLY_DONE)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _of(cluster: str | None) -> str:
    return "" if cluster is None else f" of cluster {cluster}"


def _staged(out: Path) -> Path:
    return out.with_name(f".{out.name}.part")


def _check_out(out: Path) -> None:
    """Make sure that a file can be written there, before hours are spent on what is in it."""
    if not out.absolute().parent.is_dir():
        raise click.UsageError(f"--out {out}: its folder does not exist; make it first.")
    try:
        _staged(out).touch()
    except OSError as error:
        why = error.strerror or error
        raise click.UsageError(f"--out {out}: no file can be made there ({why}); choose another folder.") from error
    _staged(out).unlink()


def _export(lake: Path | None, variant: Variant, cluster: str | None, out: Path, report: ExtractReport) -> None:
    """Write one variant whole to a file, or nothing of it."""
    if not report.windows:
        why = "; `jobwatt features short` says why" if report.series else ""
        _say(f"no window, so {out} was not written{why}")
        return
    from ingest.head import read_steadily

    staged = _staged(out)

    def write() -> None:
        with open_lake(lake) as opened:
            opened.scan_features(variant.name, cluster).sink_parquet(staged)

    try:
        read_steadily(load(lake=lake).lake, write)
        staged.replace(out)
    finally:
        staged.unlink(missing_ok=True)


@features.command("list")
@with_lake
@with_format
def list_command(show: Show, *, lake: Path | None) -> None:
    """List what a lake has of features: a line for each set and way of cutting windows, and cluster.

    Example: jobwatt features list --lake data/lake
    """
    with open_lake(lake) as opened:
        show(opened.variants())


@features.command()
@with_lake
@click.option("--variant", help="Only those of this variant, as `jobwatt features list` calls it.")
@click.option("--cluster", help="Only jobs of this cluster.")
@with_format
def short(show: Show, *, lake: Path | None, variant: str | None, cluster: str | None) -> None:
    """List the series that gave no window, or had some refused, each with the reason.

    Example: jobwatt features short --lake data/lake --variant statistical-v2-60s-middle --format csv
    """
    import polars as pl

    with open_lake(lake) as opened:
        _check_known(opened, variant=variant, cluster=cluster)
        rows = opened.scan("feature_series", cluster).filter((pl.col("windows") == 0) | (pl.col("windows_refused") > 0))
        if variant is not None:
            rows = rows.filter(pl.col("variant") == variant)
        columns = ["cluster", "job_id", "node", "gpu_index", "variant", "duration_s", "samples"]
        found = rows.select(*columns, "windows", "windows_refused", "reason").sort(columns[:5]).collect()
    show(found, table_rows=TABLE_ROWS)


def _check_known(lake: Lake, **wanted: str | None) -> None:
    """Refuse a variant or cluster of which no features were made: that nothing was short would be untrue."""
    from ingest.errors import LakeError

    made = lake.scan("feature_series").select(list(wanted)).unique().collect()
    for name, value in wanted.items():
        known = sorted(made[name].unique())
        if value is not None and value not in known:
            raise LakeError(
                f"{lake.root} has no features of a {name} {value!r}; it has those of {', '.join(known) or 'none'}: "
                f"make some with jobwatt features extract --lake {lake.root}"
            )


@features.command()
@with_lake
@_with_windows
@click.option(
    "--active-within",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="A job with no newer sample than so many seconds does not run.",
)
@with_format
def live(
    show: Show,
    *,
    lake: Path | None,
    cluster: str | None,
    set_name: str,
    seconds: float,
    samples_per_s: float,
    active_within: float,
) -> None:
    """Show the features of the last seconds of every running job, from the lake that a follower keeps.

    A job runs if the lake has a sample of it from just now, and no end. A table shows whose windows there are; the
    features are in the other formats.

    Example: jobwatt features live --lake data/lake --set job --seconds 30 --samples-per-s 1 --format json
    """
    variant = _variant(set_name, seconds=seconds, place="start", samples_per_s=samples_per_s)
    from features.live import live_features
    from features.warming import compile_kernels

    root = load(lake=lake).lake
    compile_kernels(variant.set, _say, here=True)
    found = live_features(root, variant, now_s=time.time(), active_s=active_within, cluster=cluster)
    for row in found.short.iter_rows(named=True):
        _say(f"job {row['job_id']} on {row['node']}, GPU {row['gpu_index']}: no window, {row['reason']}")
    if not found.rows.height and not found.short.height:
        _say(f"no job runs in {root}: none has a sample of the last {active_within:g} s, and no end")
    show(_fit(found.rows))


def _fit(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows, without their features where they go to a table on a screen."""
    output_format = click.get_current_context().params.get("output_format")
    if output_format != "table":
        return rows
    from ingest.schemas import FEATURES

    _say(f"{rows.width - len(FEATURES.columns) - 2} features; --format json, csv or parquet has them")
    return rows.select("cluster", "job_id", "node", "gpu_index", "window_start", "samples_per_s", "age_s", "reason")
