"""What is read for the time around windows: samples of their jobs' processes and of their nodes, and few others.

Only what is near a window is kept, and what is read is let go a few thousand rows at a time, so memory grows with the
number of windows and not with the length of the jobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl

from features.job import CPU_COLUMNS, CPU_MARGIN_S, NODE_COLUMNS, NODE_MARGIN_S
from ingest.errors import LakeError
from ingest.parts import PartReader, read_part, reading, time_range
from ingest.schemas import CPU_SAMPLES, NODE_SAMPLES, TIME
from ingest.units import US_PER_S

_FAR_US: Final = 1 << 62
"""Later than any time."""

_TIMED_PARTS: Final = {"path": pl.String(), "first_time": TIME, "last_time": TIME}


def time_parts(paths: Iterable[str | Path]) -> pl.DataFrame:
    """Return path, first_time and last_time of parts, by their footers; times are null where a part cannot be read.

    Who reads such a part finds out why, and may try again: it may have been taken away since.
    """
    rows: list[tuple[Any, ...]] = []
    for path in paths:
        try:
            rows.append((str(path), *time_range(Path(path), "time")))
        except LakeError:
            rows.append((str(path), None, None))
    return pl.DataFrame(rows, schema=_TIMED_PARTS, orient="row")


def near(frame: pl.DataFrame, windows: pl.DataFrame, margin_s: float, on: Sequence[str] = ()) -> pl.DataFrame:
    """Return the rows whose time is in a window, or no farther from one than a margin, in the order of time.

    Parameters
    ----------
    frame : has ``time``, or ``first_time`` and ``last_time``; one that is null may be any
    windows : start_us and end_us
    on : columns of both; a row is near only windows that have the same there
    """
    margin_us = round(margin_s * US_PER_S)
    first, last = ("time", "time") if "time" in frame.columns else ("first_time", "last_time")
    ordered = windows.sort("start_us")
    until_us = pl.col("end_us").cum_max() + margin_us
    reach = ordered.select(*on, "start_us", until_us=until_us.over(on) if on else until_us)
    latest_us = pl.col(last).to_physical().fill_null(_FAR_US - margin_us) + margin_us
    timed = frame.with_columns(start_us=latest_us).sort("start_us", maintain_order=True)
    found = timed.join_asof(reach, on="start_us", by=list(on) or None, check_sortedness=False)
    return found.filter(pl.col(first).to_physical().fill_null(-_FAR_US) <= pl.col("until_us")).select(frame.columns)


def read_cpu_samples(reader: PartReader, pieces: pl.DataFrame, windows: pl.DataFrame) -> pl.DataFrame:
    """Return the CPU samples that are near a window of their job and node, `CPU_COLUMNS` of them.

    Parameters
    ----------
    pieces : of cpu_samples; ``part`` is a path
    windows : job_id, node, start_us and end_us

    Raises
    ------
    LakeError
        If a part is missing or damaged.
    """
    margin_us = round(CPU_MARGIN_S * US_PER_S)
    spans = windows.group_by("job_id").agg(pl.col("start_us").min() - margin_us, pl.col("end_us").max() + margin_us + 1)
    met = near(pieces, windows, CPU_MARGIN_S, ["job_id"])
    mine = met.select("job_id", "part", "row_start", "rows").join(spans, on="job_id").sort("part", "row_start")
    of_job = windows.partition_by("job_id", as_dict=True)
    found = [CPU_SAMPLES.empty().select(CPU_COLUMNS)]
    for job_id, part, start, rows, begin_us, end_us in mine.iter_rows():
        for frame in reader.frames(part, start, rows, CPU_COLUMNS, around_us=(begin_us, end_us)):
            kept = near(frame, of_job[(job_id,)], CPU_MARGIN_S, ["node"])
            if kept.height:
                found.append(kept)
    return pl.concat(found)


def read_node_parts(node_pieces: str, windows: pl.DataFrame) -> pl.DataFrame:
    """Return path, first_time and last_time of the pieces of node_samples that are near a window, as a plan wrote them.

    Parameters
    ----------
    node_pieces : a file with path, begins and ends; '' for none
    windows : start_us and end_us
    """
    if not node_pieces:
        return pl.DataFrame(schema=_TIMED_PARTS)
    parts = read_part(node_pieces, columns=["path", "begins", "ends"])
    named = parts.rename({"begins": "first_time", "ends": "last_time"})
    whole = near(named, windows, NODE_MARGIN_S).group_by("path", maintain_order=True)
    return whole.agg(pl.col("first_time").min(), pl.col("last_time").max())


def read_node_samples(parts: pl.DataFrame, windows: pl.DataFrame) -> pl.DataFrame:
    """Return the node samples that are near a window of their node, `NODE_COLUMNS` of them.

    By polars, which looks at the rows of the windows' nodes alone: a lake has every node's of all times.

    Parameters
    ----------
    parts : path, first_time and last_time of parts of node_samples, as from `time_parts`
    windows : node, start_us and end_us

    Raises
    ------
    LakeError
        If a part is missing or damaged.
    """
    found = [NODE_SAMPLES.empty().select(NODE_COLUMNS)]
    margin_us, stretch_us = round(NODE_MARGIN_S * US_PER_S), round(2 * NODE_MARGIN_S * US_PER_S)
    first, last = (pl.col("start_us") - margin_us) // stretch_us, (pl.col("end_us") + margin_us) // stretch_us
    wanted = windows.select("node", stretch=pl.int_ranges(first, last + 1)).explode("stretch").unique()
    is_of_node = pl.col("node").is_in(wanted["node"].unique().to_list())
    edges = windows.select(pl.col("start_us").min() - margin_us, pl.col("end_us").max() + margin_us).cast(TIME)
    for path in near(parts, windows, NODE_MARGIN_S)["path"]:
        with reading(path):
            rows = (
                pl.scan_parquet(path, hive_partitioning=False)
                .filter(is_of_node & pl.col("time").is_between(*edges.row(0)))
                .select(NODE_COLUMNS)
                .with_columns(stretch=pl.col("time").to_physical() // stretch_us)
                .join(wanted.lazy(), on=["node", "stretch"], how="semi")
                .drop("stretch")
                .collect(engine="streaming")
            )
        found.append(near(rows, windows, NODE_MARGIN_S, ["node"]))
    return pl.concat(found)
