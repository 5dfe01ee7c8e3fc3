"""Which series of a lake are to be described, and in which tasks; and what there is when they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from features.extraction import FeatureTask
from features.variant import Variant
from ingest.feature_commit import CONTEXT_TABLES, INDEX_COLUMNS
from ingest.head import read_head
from ingest.lake import Lake
from ingest.manifest import NO_PART, read_pieces_of
from ingest.parts import write_frame
from ingest.schemas import SERIES_KEY
from ingest.units import US_PER_S

MOST_WINDOWS: Final = 1024
"""A task has no more windows than this, unless one series has; what a killed run loses is less than two of them."""

TASKS: Final = 16
TASKS_PER_WORKER: Final = 4
"""So many tasks in all and for each worker, at least, where there are windows enough: the last ones end together."""

LEAST_WINDOWS: Final = 32
"""Small parts are put together until a task has so many windows."""

WIDE_TASKS: Final = 8
WIDE_LEAST_WINDOWS: Final = 128
"""The same for wide sets: a part of thousands of columns costs as much as some hundred of its windows."""

_KEY: Final = list(SERIES_KEY)


@dataclass(frozen=True, slots=True)
class Summary:
    """What the lake has of a variant, over some clusters."""

    generation: int
    windows: int
    jobs: int
    jobs_short: int
    series: int
    series_short: int
    windows_refused: int
    reasons: dict[str, int]
    features: int


def plan(root: Path, folder: Path, variant: Variant, cluster: str, workers: int) -> list[FeatureTask]:
    """Return the tasks for the series of one cluster that the lake has no row of in ``feature_series``.

    Series of no job (idle GPUs) are none of these.

    Parameters
    ----------
    folder : where the tasks' pieces are written
    """
    lake = Lake(root)
    head = read_head(root)
    pieces = read_pieces_of(root, head, cluster, INDEX_COLUMNS)
    gpu = pieces.filter((pl.col("table") == "gpu_samples") & pl.col("job_id").is_not_null())
    done = lake.scan("feature_series", cluster).filter(pl.col("variant") == variant.name).select(_KEY).collect()
    gpu = gpu.join(done, on=_KEY, how="anti")
    dropped = gpu.filter(pl.col("part") == NO_PART).select(_KEY).unique().with_columns(dropped=pl.lit(True))
    gpu = gpu.filter(pl.col("part") != NO_PART).join(dropped, on=_KEY, how="left")
    series = _series(gpu, variant)
    context = pieces.filter(pl.col("table").is_in(sorted(CONTEXT_TABLES)) & (pl.col("part") != NO_PART))
    if not variant.set.context:
        context = context.clear()
    nodes = context.filter(pl.col("table") == "node_samples")
    node_parts = tuple(str(root / part) for part in nodes["part"].unique().sort())
    tasks = []
    for number, keys in enumerate(_partitions(series, _most_windows(series, variant, workers), workers)):
        jobs = keys.select("job_id").unique()
        mine = pl.concat(
            [
                gpu.join(keys.select(*_KEY, "order"), on=_KEY).sort("order", "first_time").drop("order"),
                context.join(jobs, on="job_id", how="semi").with_columns(dropped=pl.lit(None, pl.Boolean)),
                nodes.with_columns(dropped=pl.lit(None, pl.Boolean)),
            ]
        )
        path = folder / f"task-{number:05d}.parquet"
        absolute = pl.concat_str(pl.lit(f"{root}/"), "part")
        write_frame(path, mine.with_columns(path=absolute), durable=False)
        tasks.append(
            FeatureTask(
                variant,
                cluster,
                str(path),
                head.pieces,
                str(folder),
                f"task-{number:05d}",
                series=keys.height,
                windows=int(keys["windows"].sum()),
                node_parts=node_parts,
            )
        )
    return tasks


def _series(gpu: pl.DataFrame, variant: Variant) -> pl.DataFrame:
    """Return a row for each series, in the order of the parts in which they begin: key, owner, windows expected."""
    spec = variant.window
    window_us = round(spec.seconds * US_PER_S)
    stride_us = max(1, round((spec.stride_s or spec.seconds) * US_PER_S))
    span_us = (pl.col("last_time").max() - pl.col("first_time").min()).dt.total_microseconds()
    first = pl.col("first_time").arg_min()
    found = gpu.group_by(_KEY).agg(
        pl.col("part").get(first).alias("owner"), pl.col("row_start").get(first).alias("at"), span_us.alias("span_us")
    )
    many = (pl.col("span_us") - window_us) // stride_us + 1
    windows = pl.when(pl.col("span_us") < window_us).then(0).otherwise(many if spec.place == "slide" else 1)
    in_order = found.with_columns(windows=windows.cast(pl.Int64)).sort("owner", "at", *_KEY)
    return in_order.with_row_index("order")


def _most_windows(series: pl.DataFrame, variant: Variant, workers: int) -> tuple[int, int]:
    """Return how many windows a task has, at most, unless one series has more; and how many one has at the end."""
    tasks, least = (WIDE_TASKS, WIDE_LEAST_WINDOWS) if variant.set.wide else (TASKS, LEAST_WINDOWS)
    windows = int(series["windows"].clip(1).sum())
    return min(max(windows // max(tasks, TASKS_PER_WORKER * workers), least), MOST_WINDOWS), least


def _partitions(series: pl.DataFrame, limits: tuple[int, int], workers: int) -> Iterator[pl.DataFrame]:
    """Yield the series of each task: those of one part, of several small ones, or some of those of a large one.

    Of several workers' tasks the last ones are smaller, so that no worker waits long for another.
    """
    if not series.height:
        return
    weight = np.maximum(series["windows"].to_numpy(), 1)
    owner = series["owner"].to_list()
    largest, least = limits
    begin = held = 0
    left = int(weight.sum())
    for row, windows in enumerate(weight.tolist()):
        most = largest if workers == 1 else min(largest, max(2 * least, left // (2 * workers)))
        is_full = held + windows > most or (owner[row] != owner[row - 1] and held >= most // 2)
        if row > begin and is_full:
            yield series[begin:row]
            begin, held, left = row, 0, left - held
        held += windows
    yield series[begin:]


def summarise(root: Path, variant: Variant, clusters: list[str]) -> Summary:
    """Return what the lake has of a variant in some clusters."""
    lake = Lake(root)
    series = lake.scan("feature_series").filter((pl.col("variant") == variant.name) & pl.col("cluster").is_in(clusters))
    rows = series.select("cluster", "job_id", "windows", "windows_refused", "reason").collect()
    jobs = rows.group_by("cluster", "job_id").agg(pl.col("windows").sum())
    short = rows.filter(pl.col("windows") == 0)
    reasons = dict(short.group_by("reason").len().sort("reason").iter_rows())
    known = [info for info in lake.variants() if info.variant == variant.name and info.cluster in clusters]
    features = 0
    if known:
        fixed = len(lake.scan("features").collect_schema())
        features = len(lake.scan_features(variant.name).collect_schema()) - fixed
    return Summary(
        generation=lake.generation,
        windows=int(rows["windows"].sum()),
        jobs=jobs.height,
        jobs_short=jobs.filter(pl.col("windows") == 0).height,
        series=rows.height,
        series_short=short.height,
        windows_refused=int(rows["windows_refused"].sum()),
        reasons=reasons,
        features=features,
    )
