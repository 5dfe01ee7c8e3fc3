"""``jobwatt doctor``: what is wrong here, and what to do about it."""

from __future__ import annotations

from pathlib import Path

import click

from app.doctor import examine
from app.output import Show, with_format


@click.command()
@click.option("--lake", type=click.Path(path_type=Path, file_okay=False), help="Folder of the lake.")
@with_format
def doctor(show: Show, *, lake: Path | None) -> None:
    """Say whether jobwatt can work here: rooms, libraries, lake, disk, meters; exit 1 when something is broken.

    Example: jobwatt doctor --lake data/lake
    """
    findings = examine(lake)
    show(findings)
    if any(finding.status == "problem" for finding in findings):
        click.get_current_context().exit(1)
