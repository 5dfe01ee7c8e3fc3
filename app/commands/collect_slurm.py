"""``jobwatt collect-slurm``: Slurm's accounting into a spool, kept current."""

from __future__ import annotations

import re
from pathlib import Path
from threading import Event

import click

from app.output import Show, with_format

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(ctx: click.Context, parameter: click.Parameter, text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None or float(match[1]) == 0:
        raise click.BadParameter(f"{text!r}; give a number with s, m, h or d, as in 36h or 2d")
    return float(match[1]) * _UNITS_S[match[2]]


@click.command("collect-slurm")
@click.option("--spool", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write to.")
@click.option("--since", default="2d", show_default=True, callback=_seconds, help="How far back to look, as in 36h.")
@click.option(
    "--every", type=click.FloatRange(min=1), default=60.0, show_default=True, help="Seconds from one look to the next."
)
@click.option("--once", is_flag=True, help="Look once, say what was found, and end.")
@click.option(
    "--timeout", type=click.FloatRange(min=0.1), default=30.0, show_default=True, help="Seconds to wait for sacct."
)
@with_format
def collect_slurm(show: Show, *, spool: Path, since: float, every: float, once: bool, timeout: float) -> None:
    """Keep SPOOL/jobs current with Slurm's accounting, asked of sacct, until stopped.

    There is one snapshot for each day on which jobs were submitted; `jobwatt lake ingest SPOOL` takes them in. sacct's
    text is read, or its JSON where the text cannot be. A fault of sacct is one line, and what was gathered stays.

    Example: jobwatt collect-slurm --spool /var/spool/jobwatt --since 2d --every 60
    """
    from ingest.collectors.signals import ending_on_signals
    from ingest.collectors.slurm import run

    stop = Event()
    with ending_on_signals(stop.set):
        last = run(
            spool,
            since_s=since,
            every_s=every,
            once=once,
            stop=stop,
            tell=lambda line: click.echo(f"jobwatt: {' '.join(line.split())}", err=True),
            timeout_s=timeout,
        )
    if once and last is not None:
        show(last)
