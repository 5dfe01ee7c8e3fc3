"""``jobwatt demo``: the whole line once, on a recording that ships with jobwatt."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from app.cli import PARTLY_DONE
from app.output import Show, with_format
from app.progress import byte_bar

if TYPE_CHECKING:
    from ingest.pipeline import Progress


@click.command()
@click.option(
    "--archive",
    "archives",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A recording in the MIT Supercloud Dataset's layout: folder or archive; may be given several times.  "
    "[default: those that ship]",
)
@click.option(
    "--lake",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("data/lake/demo"),
    show_default=True,
    help="Folder of the lake to fill.",
)
@click.option(
    "--chart",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("out/demo.html"),
    show_default=True,
    help="Page to write; it opens without a network.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Local processes that ingest.  [default: usable cores]")
@click.option("--progress/--no-progress", default=None, help="Show a progress bar.  [default: on a terminal]")
@with_format
def demo(
    show: Show, *, archives: tuple[Path, ...], lake: Path, chart: Path, workers: int | None, progress: bool | None
) -> None:
    """Turn recordings into a lake, a class for each job, and a first table of watts and power caps.

    Ingests the recordings, cuts one window from each job, extracts features, classifies each job by a model that has
    not seen it, and says for each class what it draws and how long it draws more than a cap of 80 or 60 % of TDP.

    Example: jobwatt demo
    """
    from app.demo import SHIPPED_ARCHIVES, run_demo
    from ingest.runner import PoolRunner, SerialRunner, usable_cores

    count = usable_cores() if workers is None else workers
    with closing(SerialRunner() if count == 1 else PoolRunner(count)) as runner, byte_bar("ingest", progress) as bar:

        def tell(now: Progress) -> None:
            if bar is not None:
                bar(now.bytes_done, now.bytes_total, now.phase)

        report = run_demo(
            archives or SHIPPED_ARCHIVES,
            lake,
            chart,
            runner=runner,
            tell=lambda line: click.echo(line, err=True),
            progress=None if bar is None else tell,
        )
    show(report)
    click.echo(
        f"\nOpen {report.chart} in a browser for the curves; {report.jobs_file} has the class of each job.", err=True
    )
    if report.partial:
        click.get_current_context().exit(PARTLY_DONE)
