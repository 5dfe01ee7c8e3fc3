"""The files of a made-up archive: CSV as the releases have it, and archives whose bytes are the same every time."""

from __future__ import annotations

import csv
import gzip
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, cast

import numpy as np
import polars as pl
import zstandard

from ingest.synthetic_signals import GPU_MEMORY_MIB, IntArray, Signals
from ingest.synthetic_truth import FileTruth
from ingest.units import US_PER_S

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tar.zst")

GPU_COLUMNS = (
    "timestamp",
    "gpu_index",
    "utilization_gpu_pct",
    "utilization_memory_pct",
    "memory_free_MiB",
    "memory_used_MiB",
    "temperature_gpu",
    "temperature_memory",
    "power_draw_W",
    "pcie_link_width_current",
)
"""The ten columns of ``gpu/NNNN/<job>-<node>.csv``."""

CPU_QUANTITIES = (
    "EpochTime",
    "CPUFrequency",
    "CPUTime",
    "CPUUtilization",
    "RSS",
    "VMSize",
    "Pages",
    "ReadMB",
    "WriteMB",
)
CPU_COLUMNS = ["Step", "Node", "Series", "ElapsedTime", *CPU_QUANTITIES]
"""The 13 columns of ``cpu/NNNN/<job>-timeseries.csv``."""

CPU_SUMMARY_COLUMNS = [
    *CPU_COLUMNS[:4],
    *(f"{stat}_{q}" for q in CPU_QUANTITIES for stat in ("Min", "Max", "Sum", "Avg")),
]
CPU_PERIOD_S = 10


def gpu_frame(series: Sequence[tuple[int, IntArray, Signals]]) -> pl.DataFrame:
    """Return one node's samples in time order with the release's columns, from (GPU, times, sensors) of each GPU."""
    frames = [
        pl.DataFrame(
            {
                "time_us": time_us,
                "timestamp": time_us / US_PER_S,
                "gpu_index": np.full(time_us.size, gpu, dtype=np.int16),
                "utilization_gpu_pct": signals.gpu_util_pct,
                "utilization_memory_pct": signals.memory_util_pct,
                "memory_free_MiB": GPU_MEMORY_MIB - signals.memory_used_mib,
                "memory_used_MiB": signals.memory_used_mib,
                "temperature_gpu": signals.gpu_temp_c,
                "temperature_memory": signals.memory_temp_c,
                "power_draw_W": signals.power_cw / 100.0,
                "pcie_link_width_current": np.full(time_us.size, 16, dtype=np.int16),
            }
        )
        for gpu, time_us, signals in series
    ]
    frame = frames[0] if len(frames) == 1 else pl.concat(frames).sort("time_us", "gpu_index")
    return frame.drop("time_us")


def cpu_frame(
    node_runs: Sequence[tuple[str, int]], start_s: int, cores: int, rng: np.random.Generator
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return one job's Slurm profile and its summary: the step ``batch``, and the idle step ``-1`` at the same times.

    Parameters
    ----------
    node_runs : node and seconds it ran, for each node of the job
    """
    frames = []
    for node, run_s in node_runs:
        elapsed = np.arange(0, max(run_s, 1), CPU_PERIOD_S)
        n = elapsed.size
        for step in ("-1", "batch"):
            busy = 0.0 if step == "-1" else 1.0
            util = np.round(np.clip(busy * rng.normal(60.0 * cores, 40.0, n), 0.0, 100.0 * cores), 2)
            rss = (rng.integers(2 * 10**6, 9 * 10**6) * busy + 1_000 + np.arange(n)).astype(np.int64)
            frames.append(
                pl.DataFrame(
                    {
                        "Step": [step] * n,
                        "Node": [node] * n,
                        "Series": ["Task_0"] * n,
                        "ElapsedTime": elapsed,
                        "EpochTime": start_s + elapsed,
                        "CPUFrequency": rng.choice([0, 20, 2_989, 3_403], n),
                        "CPUTime": np.round(util * CPU_PERIOD_S / 100.0, 3),
                        "CPUUtilization": util,
                        "RSS": rss,
                        "VMSize": rss * 3,
                        "Pages": np.cumsum(rng.integers(0, 3, n)),
                        "ReadMB": np.round(busy * rng.exponential(20.0, n), 6),
                        "WriteMB": np.round(busy * rng.exponential(1.0, n), 6),
                    }
                )
            )
    samples = pl.concat(frames)
    statistics = {"Min": pl.Expr.min, "Max": pl.Expr.max, "Sum": pl.Expr.sum, "Avg": pl.Expr.mean}
    summary = samples.group_by("Step", "Node", "Series", maintain_order=True).agg(
        pl.col("ElapsedTime").max(),
        *(take(pl.col(q)).alias(f"{name}_{q}") for q in CPU_QUANTITIES for name, take in statistics.items()),
    )
    return samples, summary.select(CPU_SUMMARY_COLUMNS)


def node_rows(
    slots: Mapping[str, Iterable[int]], users: Sequence[int], rng: np.random.Generator
) -> list[Sequence[str | int | float]]:
    """Return rows of ``node-data.csv``, the unnamed index first, for nodes and the seconds at which they report.

    ``MemoryFreeInactiveKB`` holds GB, as the published file does, whatever its name says.
    """
    rows: list[Sequence[str | int | float]] = []
    for node, times in slots.items():
        for time_s in times:
            counts = "".join(f"{rng.choice(users)}:{rng.integers(1, 90)}|" for _ in range(int(rng.integers(1, 3))))
            time = round(time_s + float(rng.random()), 6)
            latency, load = round(float(rng.exponential(0.002)), 6), round(float(rng.uniform(0.0, 40.0)), 2)
            free, calls = int(rng.integers(180, 372)), int(rng.integers(0, 10**6))
            rows.append((len(rows), node, time, counts, latency, load, free, calls))
    return rows


def write_frame(root: Path, path: str, table: str, frame: pl.DataFrame) -> FileTruth:
    """Write a frame as CSV below ``root`` and return what was written."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    frame.write_csv(target)
    return FileTruth(path=path, table=table, rows=frame.height, bytes=target.stat().st_size)


def write_rows(
    root: Path, path: str, table: str, header: Sequence[str], rows: Sequence[Sequence[str | int | float]]
) -> FileTruth:
    """Write rows as CSV below ``root`` and return what was written."""
    target = root / path
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    return FileTruth(path=path, table=table, rows=len(rows), bytes=target.stat().st_size)


def is_archive(path: Path) -> bool:
    """Tell whether a path's name is that of an archive that ``pack`` can write."""
    return path.name.endswith(ARCHIVE_SUFFIXES)


def pack(folder: Path, archive: Path) -> Path:
    """Pack a folder's files as .tar, .tar.gz or .tar.zst by the archive's name: same files, same bytes."""
    if not is_archive(archive):
        raise ValueError(f"the archive is named {archive.name}; give a name that ends in {', '.join(ARCHIVE_SUFFIXES)}")
    with (
        archive.open("wb") as raw,
        _compressor(raw, archive.name) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            member = tarfile.TarInfo(path.relative_to(folder).as_posix())
            member.size, member.mode = path.stat().st_size, 0o644
            with path.open("rb") as content:
                tar.addfile(member, content)
    return archive


def _compressor(raw: IO[bytes], name: str) -> AbstractContextManager[IO[bytes]]:
    if name.endswith(".gz"):
        packed = gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0)
        return cast("AbstractContextManager[IO[bytes]]", packed)
    if name.endswith(".zst"):
        return cast(
            "AbstractContextManager[IO[bytes]]", zstandard.ZstdCompressor(level=3).stream_writer(raw, closefd=False)
        )
    return nullcontext(raw)
