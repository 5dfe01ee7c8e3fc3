"""``jobwatt data``: the public data sets that jobwatt can read or learn from, and getting one."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import click

from app.output import Show, with_format
from app.progress import byte_bar


@dataclass(frozen=True, slots=True)
class DatasetLine:
    """One public data set as the list shows it."""

    name: str
    licence: str
    size_gb: float | None
    checksum: str
    title: str
    url: str


@click.group()
def data() -> None:
    """List public data sets, or fetch one."""


@data.command("list")
@with_format
def list_datasets(show: Show) -> None:
    """List the public data sets that jobwatt knows: name, licence, size, what checks its files, and where it is.

    Example: jobwatt data list --format csv
    """
    from ingest.sources.public_data import read_catalogue

    show(
        [
            DatasetLine(
                name=dataset.name,
                licence=dataset.licence,
                size_gb=None if dataset.size_bytes is None else dataset.size_bytes / 1e9,
                checksum=dataset.checksum,
                title=dataset.title,
                url=dataset.url,
            )
            for dataset in read_catalogue()
        ]
    )


@data.command()
@click.argument("name")
@click.option(
    "--only", multiple=True, metavar="PATTERN", help="Only these files: a path, a folder or a glob; repeatable."
)
@click.option("--to", type=click.Path(path_type=Path, file_okay=False), help="Folder.  [default: data/raw/NAME]")
@click.option("--accept-licence", is_flag=True, help="You have read the licence and accept it.")
@click.option("--progress/--no-progress", default=None, help="Show a progress bar.  [default: on a terminal]")
@with_format
def fetch(
    show: Show, *, name: str, only: tuple[str, ...], to: Path | None, accept_licence: bool, progress: bool | None
) -> None:
    """Fetch the public data set NAME; run it again to go on after an interruption.

    Each file's SHA-256 is checked against the catalogue where that has one. Where it has none (`jobwatt data list` says
    "recorded at first fetch"), the first fetch writes it into SHA256SUMS beside the files: that first time nothing
    proves that they are what was published, and from then on any other bytes are refused.

    Example: jobwatt data fetch mit-supercloud-datacenter-challenge --only 'slurm-log.csv' --accept-licence
    """
    from ingest.sources.public_data import fetch_dataset, find_dataset, read_catalogue

    dataset = find_dataset(name, read_catalogue())
    click.echo(f"{dataset.title}\n  licence: {dataset.licence}, {dataset.licence_url}", err=True)
    click.echo(f"  from:    {dataset.source}\n  cite:    {dataset.citation}", err=True)
    if not accept_licence:
        if not sys.stdin.isatty():
            raise click.UsageError("Read the licence above, and give --accept-licence if you accept it.")
        click.confirm("Do you accept this licence?", abort=True, err=True)
    with byte_bar(name, progress) as tell:
        report = fetch_dataset(dataset, to or Path("data/raw") / name, only=only, progress=tell)
    show(report)
