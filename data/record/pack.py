"""Make one archive in the MIT Supercloud Dataset's layout out of folders that ``record.py`` left.

    python data/record/pack.py data/h200-02.tar.gz OUT [OUT ...]

Truth (which workload, on which GPU, from when to when) comes from ``jobs.jsonl``, samples from the spools, the type of
the GPUs from their inventory. The same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plan
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where jobwatt is not installed

from ingest.reference import type_of

GPU_COLUMNS = (
    "timestamp gpu_index utilization_gpu_pct utilization_memory_pct memory_free_MiB memory_used_MiB temperature_gpu "
    "temperature_memory power_draw_W pcie_link_width_current"
).split()
EXTENDED_COLUMNS = (
    "timestamp gpu_index power_average_W energy_mJ clock_sm_MHz clock_memory_MHz enforced_power_limit_W "
    "throttle_reasons"
).split()
CPU_COLUMNS = (
    "Step Node Series ElapsedTime EpochTime CPUFrequency CPUTime CPUUtilization RSS VMSize Pages ReadMB WriteMB"
).split()
NODE_COLUMNS = "Node Time UserPIDCount FSlatency LoadAvg MemoryFreeInactiveKB LustreRPCTotals".split()
LOG_COLUMNS = (
    "id_job id_array_job id_array_task id_user kill_requid nodes_alloc nodelist cpus_req derived_ec exit_code "
    "gres_used array_max_tasks array_task_pending constraints flags mem_req partition priority state timelimit "
    "time_submit time_eligible time_start time_end time_suspended track_steps tres_alloc tres_req job_type"
).split()
GPU_TRES = {"h200": 1003, "h100-sxm5": 1004}
NO_ARRAY_TASK = 2**32 - 2
COMPLETED = 3


def read_segments(folders: list[Path], kind: str) -> pl.DataFrame:
    """Return all rows of one kind that the spools of the folders hold."""
    paths = sorted(path for folder in folders for path in (folder / "spool" / kind).glob("*.csv"))
    frames = [pl.read_csv(path, infer_schema_length=None) for path in paths]
    return pl.concat(frames, how="diagonal_relaxed") if frames else pl.DataFrame()


def read_jobs(folders: list[Path]) -> list[dict[str, Any]]:
    """Return the jobs of all folders that ended well, by their start."""
    lines = [line for folder in folders for line in (folder / "jobs.jsonl").read_text().splitlines()]
    jobs = [json.loads(line) for line in lines]
    return sorted((job for job in jobs if job["exit_code"] == 0), key=lambda job: job["started"])


def find_gpu_type(folders: list[Path]) -> str:
    """Return the GPU type of the inventories, a key of `GPU_TRES`.

    Raises
    ------
    ValueError
        They name none of these types, or two.
    """
    devices = read_segments(folders, "devices")
    names = sorted(set(devices["name"].drop_nulls())) if devices.height else []
    found = {type_of(name) for name in names}
    for gpu_type in GPU_TRES:
        if found == {gpu_type}:
            return gpu_type
    raise ValueError(f"the inventories name {', '.join(names) or 'no GPU'}; all have to be of one type: {GPU_TRES}")


def make_files(folders: list[Path], gpu_name: str) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of every file of the archive."""
    jobs = read_jobs(folders)
    gpu, process, node = (read_segments(folders, kind) for kind in ("gpu", "process", "node"))
    name = str(node["Node"][0])
    for job in jobs:
        shard, job_id = f"{job['job_id'] % 100:04d}", job["job_id"]
        inside = pl.col("timestamp").is_between(job["started"], job["ended"]) & pl.col("gpu_index").is_in(job["gpus"])
        rows = gpu.filter(inside).sort("timestamp", "gpu_index")
        yield f"gpu/{shard}/{job_id}-{name}.csv", _csv(rows.select(GPU_COLUMNS))
        yield f"gpu_extended/{shard}/{job_id}-{name}.csv", _csv(rows.select(EXTENDED_COLUMNS).drop_nulls("energy_mJ"))
        if process.height:
            yield from _cpu_files(process, job, shard)
    yield "slurm-log.csv", _csv(pl.DataFrame([_log_row(job, name, gpu_name) for job in jobs]).select(LOG_COLUMNS))
    inside = [(job["job_id"], plan.LABEL[job["workload"]]) for job in jobs if job["workload"] in plan.CHALLENGE]
    yield "labelled_jobids.csv", _csv(pl.DataFrame(inside, schema=["id_job", "model"], orient="row").sort("id_job"))
    yield "job-parameters.csv", _csv(pl.DataFrame([_parameters(job) for job in jobs], infer_schema_length=None))
    yield "node-data.csv", _csv(node.sort("Time").select(NODE_COLUMNS))
    known = "1,cpu 2,mem 3,energy 4,node 5,billing 6,fs 7,vmem 8,pages 1001,gpu:tesla 1002,gpu:volta".split()
    types = [f"{number},gpu:{name}" for name, number in GPU_TRES.items()]
    yield "tres-mapping.txt", "\n".join([*known, *types, ""]).encode()


def _cpu_files(process: pl.DataFrame, job: dict[str, Any], shard: str) -> Iterator[tuple[str, bytes]]:
    """Yield a job's time series and its summary; what was sampled while it still waited for its turn is left out."""
    mine = (pl.col("id_job") == job["job_id"]) & pl.col("EpochTime").is_between(job["started"], job["ended"])
    rows = process.filter(mine).sort("EpochTime").select(CPU_COLUMNS)
    if rows.height:
        rows = rows.with_columns(ElapsedTime=(pl.col("EpochTime") - job["started"]).round(1))
    known = rows.drop_nulls(["CPUTime", "RSS"])  # before the first row no interval is known; at the last, no process
    yield f"cpu/{shard}/{job['job_id']}-timeseries.csv", _csv(known)
    quantities = CPU_COLUMNS[4:]
    statistics = {"Min": pl.Expr.min, "Max": pl.Expr.max, "Sum": pl.Expr.sum, "Avg": pl.Expr.mean}
    summary = rows.group_by("Step", "Node", "Series").agg(
        pl.col("ElapsedTime").max(),
        *[f(pl.col(q)).alias(f"{n}_{q}") for q in quantities for n, f in statistics.items()],
    )
    yield f"cpu/{shard}/{job['job_id']}-summary.csv", _csv(summary)


def _log_row(job: dict[str, Any], node: str, gpu_name: str) -> dict[str, Any]:
    gpus = len(job["gpus"])
    tres = f"1=16,2=131072,4=1,5=16,{GPU_TRES[gpu_name]}={gpus}"
    nothing = {"derived_ec": 0, "exit_code": 0, "array_max_tasks": 0, "array_task_pending": 0, "time_suspended": 0}
    return dict.fromkeys(LOG_COLUMNS, "") | {
        **nothing,
        "id_job": job["job_id"],
        "id_array_job": 0,
        "id_array_task": NO_ARRAY_TASK,
        "id_user": random.Random(job["job_id"]).randint(1, 9) * 7919 + 90210,
        "kill_requid": -1,
        "nodes_alloc": 1,
        "nodelist": f"['{node}']",
        "cpus_req": 16,
        "flags": 0,
        "mem_req": 131072,
        "partition": "gpu",
        "priority": 1,
        "state": COMPLETED,
        "timelimit": 60,
        "time_submit": int(job["submitted"]),
        "time_eligible": int(job["submitted"]),
        "time_start": int(job["started"]),
        "time_end": int(job["ended"]) + 1,
        "track_steps": 0,
        "tres_alloc": tres,
        "tres_req": tres,
        "job_type": "OTHER",
    }


def _parameters(job: dict[str, Any]) -> dict[str, Any]:
    params = job["params"]
    return {
        "id_job": job["job_id"],
        "workload": plan.LABEL[job["workload"]],
        "challenge_class": job["workload"] in plan.CHALLENGE,
        "gpu_index": job["gpus"][0],
        "batch_size": params.get("batch"),
        "sequence_length": params.get("length"),
        "matrix_size": params.get("size"),
        "image_size": params.get("image_size"),
        "atoms_max": params.get("atoms_max"),
        "gpus": len(job["gpus"]),
        "precision": params["precision"],
        "optimizer": params["optimizer"],
        "data_workers": params["workers"],
        "steps_per_epoch": params["epoch_steps"],
        "validation_steps": params["validation_steps"],
        "checkpoints": params["checkpoint"],
        "steps_done": job["steps"],
        "peak_memory_GiB": job["peak_memory_gib"],
        "run_seconds": round(job["ended"] - job["started"], 2),
    }


def _csv(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_csv(buffer)
    return buffer.getvalue()


def main() -> int:
    """Write the archive and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    arguments = parser.parse_args()
    root = arguments.archive.name.partition(".")[0]
    files = sorted(make_files(arguments.folders, find_gpu_type(arguments.folders)))
    with (
        arguments.archive.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=9, fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for name, content in files:
            info = tarfile.TarInfo(f"{root}/{name}")
            info.size = len(content)
            info.mode = 0o644
            tar.addfile(info, io.BytesIO(content))
    jobs = len(read_jobs(arguments.folders))
    print(f"{arguments.archive}: {jobs} jobs, {len(files)} files, {arguments.archive.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
