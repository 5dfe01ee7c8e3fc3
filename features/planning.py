"""Which series of a lake are to be described, and in which tasks; and what there is when they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from features.context import time_parts
from features.extraction import FeatureTask
from features.variant import Variant
from ingest.feature_commit import INDEX_COLUMNS
from ingest.head import read_head, read_steadily
from ingest.lake import Lake
from ingest.manifest import NO_PART, read_pieces_of, with_paths
from ingest.parts import read_part, reading, write_frame
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
    """What a lake has of a variant now, over some clusters.

    ``series_short`` are those without a window, for each ``reasons``, ``jobs_short`` those of which no series gave one.
    """

    lake: str
    variant: str
    generation: int
    clusters: tuple[str, ...]
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
    return read_steadily(root, lambda: _plan(root, folder, variant, cluster, workers))


def _plan(root: Path, folder: Path, variant: Variant, cluster: str, workers: int) -> list[FeatureTask]:
    head = read_head(root)  # first: what an ingest removes from then on is planned, and not taken for done
    lake = Lake(root)
    pieces = with_paths(root, head, read_pieces_of(root, head, cluster, INDEX_COLUMNS))
    gpu = pieces.filter((pl.col("table") == "gpu_samples") & pl.col("job_id").is_not_null())
    with reading(root / "feature_series"):
        done = lake.scan("feature_series", cluster).filter(pl.col("variant") == variant.name).select(_KEY).collect()
    gpu = _told_of_dropped(gpu.join(done, on=_KEY, how="anti"))
    series = _series(gpu, variant)
    context = pieces.filter(pl.col("path").is_not_null()) if variant.set.context and series.height else pieces.clear()
    cpu = context.filter(pl.col("table") == "cpu_samples").with_columns(dropped=pl.lit(None, pl.Boolean))
    node_pieces = _write_node_pieces(folder, context.filter(pl.col("table") == "node_samples"))
    tasks = []
    for number, keys in enumerate(_partitions(series, _task_windows(series, variant, workers), workers)):
        mine = pl.concat(
            [
                gpu.join(keys.select(*_KEY, "order"), on=_KEY).sort("order", "first_time").drop("order"),
                cpu.join(keys, on="job_id", how="semi"),
            ]
        )
        path = folder / f"task-{number:05d}.parquet"
        write_frame(path, mine, durable=False)
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
                node_pieces=node_pieces,
            )
        )
    return tasks


def _told_of_dropped(gpu: pl.DataFrame) -> pl.DataFrame:
    """Return the pieces whose samples are there, ``dropped`` where others of their series are not.

    A series of which no sample is left keeps its pieces, whose path is null.
    """
    is_kept = pl.col("path").is_not_null()
    told = gpu.with_columns(dropped=(~is_kept).any().over(_KEY))
    return told.filter(is_kept | ~is_kept.any().over(_KEY))


def _write_node_pieces(folder: Path, pieces: pl.DataFrame) -> str:
    """Write the pieces of node_samples once for all tasks, and return the path; '' where there are none.

    ``begins`` and ``ends`` are their times, or where the index has not got these those of the part.
    """
    if not pieces.height:
        return ""
    untimed = pieces.filter(pl.col("first_time").is_null() | pl.col("last_time").is_null())
    parts = time_parts(untimed["path"].unique().sort()).rename({"first_time": "begins", "last_time": "ends"})
    timed = pieces.join(parts, on="path", how="left", maintain_order="left")
    path = folder / "nodes.parquet"
    edges = {"begins": pl.coalesce("first_time", "begins"), "ends": pl.coalesce("last_time", "ends")}
    write_frame(path, timed.with_columns(**edges), durable=False)
    return str(path)


def _series(gpu: pl.DataFrame, variant: Variant) -> pl.DataFrame:
    """Return a row for each series, in the order of the parts in which they begin: key, owner, span, windows."""
    spec = variant.window
    window_us = round(spec.seconds * US_PER_S)
    stride_us = round((spec.stride_s or spec.seconds) * US_PER_S)
    span_us = (pl.col("last_time").max() - pl.col("first_time").min()).dt.total_microseconds()
    first = pl.col("first_time").arg_min()
    found = gpu.group_by(_KEY).agg(
        pl.col("part").get(first).alias("owner"),
        pl.col("row_start").get(first).alias("at"),
        span_us.alias("span_us"),
        pl.col("first_time").min().to_physical().alias("start_us"),
        pl.col("last_time").max().to_physical().alias("end_us"),
    )
    many = (pl.col("span_us") - window_us) // stride_us + 1
    is_none = (pl.col("span_us") < window_us) | (pl.col("owner") == NO_PART)
    windows = pl.when(is_none).then(0).otherwise(many if spec.place == "slide" else 1)
    in_order = found.with_columns(windows=windows.cast(pl.Int64)).sort("owner", "at", *_KEY)
    return in_order.with_row_index("order")


def _task_windows(series: pl.DataFrame, variant: Variant, workers: int) -> tuple[int, int]:
    """Return how many windows a task has, at most, unless one series has more; and how many are worth one at least."""
    tasks, least = (WIDE_TASKS, WIDE_LEAST_WINDOWS) if variant.set.wide else (TASKS, LEAST_WINDOWS)
    windows = int(series["windows"].clip(1).sum())
    return min(max(windows // max(tasks, TASKS_PER_WORKER * workers), least), MOST_WINDOWS), least


def _partitions(series: pl.DataFrame, task_windows: tuple[int, int], workers: int) -> Iterator[pl.DataFrame]:
    """Yield the series of each task: those of one part, of several small ones, or some of those of a large one.

    Of several workers' tasks the last ones are smaller, so that no worker waits long for another.
    """
    if not series.height:
        return
    weight = np.maximum(series["windows"].to_numpy(), 1)
    owner = series["owner"].to_list()
    largest, least = task_windows
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


def split_by_part(task: FeatureTask) -> list[FeatureTask]:
    """Return a task for each part in which series of a task begin, which has them all: none where that is one part."""
    pieces = read_part(task.pieces)
    is_gpu = pl.col("table") == "gpu_samples"
    series = pieces.filter(is_gpu).unique(_KEY, keep="first", maintain_order=True)
    owners = series.select(*_KEY, owner="part").partition_by("owner", maintain_order=True)
    tasks = []
    for number, keys in enumerate(owners if len(owners) > 1 else []):
        theirs = pieces.join(keys, on=_KEY, how="semi", maintain_order="left")
        path = Path(task.pieces).with_name(f"{task.name}-{number:05d}.parquet")
        write_frame(path, pl.concat([theirs, pieces.filter(~is_gpu)]), durable=False)
        windows = task.windows * keys.height // series.height
        name = path.stem
        tasks.append(replace(task, pieces=str(path), name=name, series=keys.height, windows=windows))
    return tasks


def summarise(lake: Path, variant: Variant, clusters: Sequence[str]) -> Summary:
    """Return what a lake has of a variant in some clusters."""
    return read_steadily(lake, lambda: _summarise(lake, variant, clusters))


def _summarise(lake: Path, variant: Variant, clusters: Sequence[str]) -> Summary:
    opened = Lake(lake)
    series = opened.scan("feature_series").filter(
        (pl.col("variant") == variant.name) & pl.col("cluster").is_in(clusters)
    )
    rows = series.select("cluster", "job_id", "windows", "windows_refused", "reason").collect()
    jobs = rows.group_by("cluster", "job_id").agg(pl.col("windows").sum())
    short = rows.filter(pl.col("windows") == 0)
    reasons = dict(short.group_by("reason").len().sort("reason").iter_rows())
    known = [info for info in opened.variants() if info.variant == variant.name and info.cluster in clusters]
    features = 0
    if known:
        fixed = len(opened.scan("features").collect_schema())
        features = len(opened.scan_features(variant.name).collect_schema()) - fixed
    return Summary(
        lake=str(lake),
        variant=variant.name,
        generation=opened.generation,
        clusters=tuple(clusters),
        windows=int(rows["windows"].sum()),
        jobs=jobs.height,
        jobs_short=jobs.filter(pl.col("windows") == 0).height,
        series=rows.height,
        series_short=short.height,
        windows_refused=int(rows["windows_refused"].sum()),
        reasons=reasons,
        features=features,
    )
