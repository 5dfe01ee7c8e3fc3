"""What jobwatt's ingest is measured against: each peer is one whole process, ``peers.py NAME RAW OUT``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

INTEGERS = {
    "gpu_index": "int16",
    "utilization_gpu_pct": "uint8",
    "utilization_memory_pct": "uint8",
    "memory_free_MiB": "uint32",
    "memory_used_MiB": "uint32",
    "temperature_gpu": "int16",
    "temperature_memory": "int16",
    "pcie_link_width_current": "uint8",
}
TYPES = {"timestamp": "float64", "power_draw_W": "float32", **INTEGERS}


def gpu_files(raw: Path) -> list[Path]:
    """Return the GPU files of an archive."""
    return sorted(raw.glob("gpu/*/*.csv"))


def polars_parse(raw: Path, out: Path) -> None:
    """Parse all files with one streaming scan and sum every column; writes nothing."""
    import polars as pl

    sums = pl.scan_csv(gpu_files(raw)).select(pl.all().sum()).collect(engine="streaming")
    assert sums.width == 10


def pandas_pyarrow(raw: Path, out: Path) -> None:
    """Parse each file with pandas, typed, and write it with pyarrow: a pool of two processes."""
    out.mkdir(parents=True)
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(_pandas_file, gpu_files(raw), [out] * len(gpu_files(raw)), chunksize=8))


def _pandas_file(path: Path, out: Path) -> None:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    job, _, node = path.stem.partition("-")
    frame = pd.read_csv(path, dtype=TYPES)
    frame["timestamp"] = (frame["timestamp"] * 1e6).round().astype("int64").astype("datetime64[us]")
    frame.insert(0, "job_id", int(job))
    frame.insert(1, "node", node)
    frame = frame.sort_values(["gpu_index", "timestamp"])
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(table, out / f"{path.stem}.parquet", compression="zstd")


def dask_dataframe(raw: Path, out: Path) -> None:
    """Parse with dask.dataframe and write Parquet, on a LocalCluster of two single-threaded processes."""
    import dask.dataframe as dd
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        Client(cluster),
    ):
        frame = dd.read_csv(
            [str(path) for path in gpu_files(raw)], dtype=TYPES, blocksize=None, include_path_column="source"
        )
        frame["timestamp"] = (frame["timestamp"] * 1e6).round().astype("int64").astype("datetime64[us]")
        frame.to_parquet(str(out), compression="zstd", write_index=False)


PEERS: dict[str, Callable[[Path, Path], None]] = {
    "polars_parse": polars_parse,
    "pandas_pyarrow": pandas_pyarrow,
    "dask_dataframe": dask_dataframe,
}

if __name__ == "__main__":
    PEERS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
