"""A spool followed by this process until it is told to stop."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import click


def follow_until_stopped(
    path: str, lake: Path, *, cluster: str | None, every_s: float, keep_s: float | None, compact_after: int
) -> None:
    """Follow a spool into a lake, one line a round on standard error; SIGTERM or SIGINT ends it after the round."""
    from ingest.collectors.signals import ending_on_signals
    from ingest.follow import FollowPlan, follow
    from ingest.sources.spool_files import SPOOL_CLUSTER

    plan = FollowPlan(Path(path), lake, cluster or SPOOL_CLUSTER, every_s, keep_s, compact_after)
    stop = Event()
    with ending_on_signals(stop.set):
        follow(plan, stop, lambda line: click.echo(line, err=True))


def parse_age_s(text: str) -> float:
    """Return the seconds in ``30d``, ``12h``, ``90m`` or ``600s``.

    Raises
    ------
    ValueError
        It is something else.

    >>> parse_age_s("30d"), parse_age_s("1.5h")
    (2592000.0, 5400.0)
    """
    units = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
    number, unit = text[:-1], text[-1:]
    try:
        seconds = float(number) * units[unit]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{text!r}; give a number with d, h, m or s, as in 30d") from error
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{text!r}; give a time above 0, as in 30d")
    return seconds
