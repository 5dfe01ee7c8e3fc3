"""Ingest of the synthetic archive against a bare parse, pandas + pyarrow, and dask.dataframe; and the lake's size."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from ingest.lake import Lake
from tests.benchmarks.archives import Archive, challenge_archive, fresh, read_through, run_ingest
from tests.benchmarks.measure import PEERS, Run, run_pairs, run_process, spread
from tests.benchmarks.report import table

FULL_BYTES, QUICK_BYTES = 1.65e9, 20e6

PEER_NAMES = {
    "polars_parse": "polars: streaming scan of all files, sum of every column, nothing written",
    "pandas_pyarrow": "pandas typed + pyarrow, file by file, two processes",
    "dask_dataframe": "dask.dataframe on a LocalCluster of two processes",
}
BARS = {"polars_parse": "ours ≤ 2.3 ×", "pandas_pyarrow": "peer ≥ 2.2 ×", "dask_dataframe": "peer ≥ 5 ×"}


def ingest(quick: bool, runs: int, tell: Callable[[str], None]) -> str:
    """Return the table of ingest times."""
    archive = challenge_archive(QUICK_BYTES if quick else FULL_BYTES, tell)
    read_through(archive.root)
    taken = run_pairs(
        {"jobwatt": partial(_ours, archive), **{name: partial(_peer, name, archive) for name in PEER_NAMES}},
        runs,
        tell,
    )
    ours = taken["jobwatt"]
    size_mb = archive.gpu_bytes / 1e6
    rows = [["**jobwatt lake ingest, two workers**", *_times(ours, size_mb), "", ""]]
    for name, text in PEER_NAMES.items():
        ratios = [mine.wall_s / other.wall_s for mine, other in zip(ours, taken[name], strict=True)]
        shown = spread(ratios) if name == "polars_parse" else spread([1 / r for r in ratios])
        way = "ours / peer" if name == "polars_parse" else "peer / ours"
        rows.append([text, *_times(taken[name], size_mb), f"{way}: {shown}", BARS[name]])
    files = len(list(archive.root.glob("gpu/*/*.csv")))
    return (
        f"## Ingest\n\n{files:,} GPU files, {archive.rows['gpu_samples']:,} rows, {archive.gpu_bytes / 1e9:.3f} GB of "
        f"CSV; {runs} rounds. Ours validates, quarantines, writes job statistics and one-minute roll-ups, and reads "
        f"the scheduler's log and the labels too; the peers only do what their line says.\n\n"
        + table(["", "wall s", "CPU s", "MB/s", "ratio of walls", "bar"], rows)
    )


def size(quick: bool, runs: int, tell: Callable[[str], None]) -> str:
    """Return the table of bytes in the lake by column."""
    archive = challenge_archive(QUICK_BYTES if quick else FULL_BYTES, tell)
    lake = fresh("lakes/size")
    run_ingest(archive, lake)
    paths = Lake(lake).paths("gpu_samples")
    total = sum(path.stat().st_size for path in paths)
    rows = archive.rows["gpu_samples"]
    columns: dict[str, int] = {}
    for path in paths:
        metadata = pq.read_metadata(path)
        for group in range(metadata.num_row_groups):
            for index in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(index)
                columns[chunk.path_in_schema] = columns.get(chunk.path_in_schema, 0) + chunk.total_compressed_size
    shown = [
        [f"`{n}`", f"{b / rows:.3f}"] for n, b in sorted(columns.items(), key=lambda item: -item[1]) if b / rows > 0.001
    ]
    tell(f"{archive.gpu_bytes / total:.2f} times smaller")
    return (
        f"## Size\n\n`gpu_samples` holds {rows:,} rows in {len(paths)} files of {total / 1e6:.1f} MB: **1/"
        f"{archive.gpu_bytes / total:.2f}** of the {archive.gpu_bytes / 1e6:.1f} MB of raw GPU CSV (bar: 1/8.5), "
        f"{total / rows:.2f} bytes a row against {archive.gpu_bytes / rows:.1f}. Columns of over 0.001 bytes a row:\n\n"
        + table(["column", "bytes a row"], shown)
    )


def _ours(archive: Archive) -> Run:
    return run_ingest(archive, fresh("lakes/ingest"))


def _peer(name: str, archive: Archive) -> Run:
    out: Path = fresh(f"peer/{name}")
    return run_process([sys.executable, str(PEERS), name, str(archive.root), str(out)])


def _times(runs: list[Run], size_mb: float) -> list[str]:
    wall = statistics.median(run.wall_s for run in runs)
    return [
        spread([run.wall_s for run in runs]),
        f"{statistics.median(run.cpu_s for run in runs):.2f}",
        f"{size_mb / wall:.0f}",
    ]
