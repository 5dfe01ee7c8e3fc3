"""``jobwatt collect-prometheus``: what a Prometheus server holds of GPUs and nodes, into a spool."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from app.cli import DATA_PROBLEM, PARTLY_DONE
from app.output import Show, with_format

if TYPE_CHECKING:
    from ingest.collectors.prometheus import Collected
    from ingest.collectors.prometheus_api import Access

TOKEN_VARIABLE = "JOBWATT_PROMETHEUS_TOKEN"
PASSWORD_VARIABLE = "JOBWATT_PROMETHEUS_PASSWORD"

_HOUR_S = 3600.0
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


def _epoch_s(ctx: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        pass
    try:
        told = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r}; give 2026-11-24T22:42:00Z, or seconds since 1970") from error
    return (told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp()


@click.command("collect-prometheus")
@click.argument("url")
@click.option("--spool", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write to.")
@click.option("--start", callback=_epoch_s, help="ISO 8601, UTC unless it says otherwise.  [default: an hour ago]")
@click.option("--end", callback=_epoch_s, help="The same; not included.  [default: now]")
@click.option("--step", type=click.FloatRange(min=0.1, max=_HOUR_S), help="Seconds.  [default: the scrape interval]")
@click.option("--follow", is_flag=True, help="Go on until SIGTERM or SIGINT.")
@click.option("--every", type=click.FloatRange(min=1), default=30.0, show_default=True, help="Seconds between rounds.")
@click.option(
    "--preset",
    type=click.Choice(["auto", "dcgm", "node", "jobwatt"]),
    default="auto",
    show_default=True,
    help="Whose metrics: DCGM-exporter's, node-exporter's, jobwatt's own, or all that are there.",
)
@click.option("--match", default="", metavar="LABELS", help="Only series with these, as in 'cluster=\"a\"'.")
@click.option("--node-label", default="", help="Label that has the node.  [default: node, Hostname, …, instance]")
@click.option("--token-file", type=_FILE, help=f"File with a bearer token.  [default: ${TOKEN_VARIABLE}]")
@click.option("--user", default="", help="Name for basic authentication.")
@click.option("--password-file", type=_FILE, help=f"File with its password.  [default: ${PASSWORD_VARIABLE}]")
@click.option(
    "--timeout", type=click.FloatRange(min=0.1), default=60.0, show_default=True, help="Seconds for one answer."
)
@with_format
def collect_prometheus(
    show: Show,
    *,
    url: str,
    spool: Path,
    start: float | None,
    end: float | None,
    step: float | None,
    follow: bool,
    every: float,
    preset: str,
    match: str,
    node_label: str,
    token_file: Path | None,
    user: str,
    password_file: Path | None,
    timeout: float,
) -> None:
    """Collect what the Prometheus at URL holds of GPUs and nodes into hourly files of a spool.

    A row is one scrape. Hours that are collected again are completed, never shortened. `jobwatt lake ingest SPOOL`
    takes them into a lake. The server's certificate is verified; SSL_CERT_FILE may name your site's authority.

    Example: jobwatt collect-prometheus http://prometheus:9090 --spool data/spool --start 2026-11-24T00:00Z
    """
    from ingest.collectors import prometheus
    from ingest.collectors.prometheus_api import PrometheusApi
    from ingest.collectors.signals import ending_on_signals

    now_s = time.time()
    start_s, end_s = now_s - _HOUR_S if start is None else start, now_s if end is None else end
    if follow and end is not None:
        raise click.UsageError("--follow has no end; leave --end out.")
    options = prometheus.Options(preset, step, match, node_label)
    try:
        api = PrometheusApi(url, _access(token_file, user, password_file), timeout_s=timeout)
        if not follow:
            found = prometheus.collect(api, spool, start_s, end_s, options)
        else:
            stop = threading.Event()
            with ending_on_signals(stop.set):
                rounds = prometheus.follow(api, spool, start_s, options, every_s=every, wait=stop.wait)
                found = _say_each(rounds)
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error
    show(found)
    if found.problem:
        click.echo(f"jobwatt: {found.problem}", err=True)
        click.get_current_context().exit(PARTLY_DONE if found.rows else DATA_PROBLEM)


def _access(token_file: Path | None, user: str, password_file: Path | None) -> Access:
    """Return who is asking.

    Raises
    ------
    click.UsageError
        Two ways at once, a password without a name, or nothing in a file.
    """
    from ingest.collectors.prometheus_api import Access

    if token_file is not None and user:
        raise click.UsageError("--token-file and --user exclude each other; give one of them.")
    if password_file is not None and not user:
        raise click.UsageError("--password-file needs --user.")
    if user:
        return Access("", user, _secret(password_file, PASSWORD_VARIABLE))
    return Access(_secret(token_file, TOKEN_VARIABLE))


def _secret(file: Path | None, variable: str) -> str:
    if file is None:
        return os.environ.get(variable, "").strip()
    text = file.read_text("utf-8").strip()
    if not text:
        raise click.UsageError(f"{file} is empty; it should hold one line.")
    return text


def _say_each(rounds: Iterator[Collected]) -> Collected:
    """Return the sum of all rounds; a new problem, and its end, are said when they come."""
    total: Collected | None = None
    for found in rounds:
        if found.problem and (total is None or found.problem != total.problem):
            click.echo(f"jobwatt: {found.problem}; going on", err=True)
        elif total is not None and total.problem and not found.problem:
            click.echo("jobwatt: the server answers again", err=True)
        before = (0, 0, 0) if total is None else (total.scrapes, total.rows, total.files_changed)
        total = replace(
            found,
            scrapes=found.scrapes + before[0],
            rows=found.rows + before[1],
            files_changed=found.files_changed + before[2],
        )
    if total is None:
        raise ValueError("nothing was collected")
    return total
