"""Bytes a row of each column of ``gpu_samples`` under the encodings that Parquet has, and who can read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fastparquet
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ingest.schemas import GPU_SAMPLES
from ingest.units import US_PER_S
from tests.benchmarks.archives import challenge_archive, fresh
from tests.benchmarks.peers import gpu_files
from tests.benchmarks.report import table

COLUMNS = {
    "time": "timestamp",
    "gpu_util_pct": "utilization_gpu_pct",
    "memory_util_pct": "utilization_memory_pct",
    "memory_used_mib": "memory_used_MiB",
    "gpu_temp_c": "temperature_gpu",
    "memory_temp_c": "temperature_memory",
    "power_w": "power_draw_W",
}
INTEGERS = "DELTA_BINARY_PACKED"
ENCODINGS = ("dictionary", "PLAIN", INTEGERS, "BYTE_STREAM_SPLIT")


def encodings(quick: bool, runs: int, tell: Callable[[str], None]) -> str:
    """Return the table of bytes a row by column and encoding."""
    archive = challenge_archive(20e6, tell)
    jobs = [_typed(path) for path in gpu_files(archive.root)[: 4 if quick else 100]]
    rows = sum(job.num_rows for job in jobs)
    folder = fresh("encodings")
    folder.mkdir()
    lines = []
    for column in COLUMNS:
        taken = {}
        for encoding in ENCODINGS:
            if encoding == INTEGERS and pa.types.is_floating(jobs[0].schema.field(column).type):
                continue
            taken[encoding] = sum(_bytes(job.select([column]), encoding, folder) for job in jobs) / rows
        best = min(taken, key=lambda name: taken[name])
        chosen = INTEGERS if column in GPU_SAMPLES.delta else "PLAIN" if column in GPU_SAMPLES.plain else "dictionary"
        shown = [f"**{taken[e]:.2f}**" if e == best else f"{taken[e]:.2f}" if e in taken else "" for e in ENCODINGS]
        lines.append([f"`{column}`", *shown, chosen])
        tell(" | ".join(lines[-1]))
    unreadable = [e for e in ENCODINGS if not _fastparquet_reads(jobs[0], e, folder)]
    return (
        f"## Encodings\n\nBytes a row of a column alone in its file, zstd level 1, a row group for each of {len(jobs)} "
        f"jobs, {rows:,} rows. fastparquet cannot read: {', '.join(unreadable) or 'none'}; the lake uses only what all "
        "five readers can.\n\n" + table(["column", *ENCODINGS, "in the lake"], lines)
    )


def _typed(path: Path) -> pa.Table:
    """Return one job's columns as the lake types them."""
    frame = pl.read_csv(path).rename({source: column for column, source in COLUMNS.items()})
    time = (pl.col("time") * US_PER_S).round().cast(pl.Int64).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    typed = [pl.col(c).cast(GPU_SAMPLES.columns[c]) for c in COLUMNS if c != "time"]
    return frame.select(time, *typed).to_arrow()


def _write(job: pa.Table, encoding: str, path: Path) -> None:
    dictionary = encoding == "dictionary"
    chosen = None if dictionary else dict.fromkeys(job.column_names, encoding)
    pq.write_table(
        job, path, compression="zstd", compression_level=1, use_dictionary=dictionary, column_encoding=chosen
    )


def _bytes(job: pa.Table, encoding: str, folder: Path) -> int:
    path = folder / "column.parquet"
    _write(job, encoding, path)
    return int(pq.read_metadata(path).row_group(0).column(0).total_compressed_size)


def _fastparquet_reads(job: pa.Table, encoding: str, folder: Path) -> bool:
    path = folder / "readable.parquet"
    column = "memory_temp_c" if encoding == INTEGERS else "power_w"
    _write(job.select([column]), encoding, path)
    try:
        read = fastparquet.ParquetFile(str(path)).to_pandas()[column]
    except NotImplementedError:
        return False
    return bool((read.to_numpy() == job[column].to_numpy()).all())
