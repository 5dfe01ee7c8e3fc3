"""Make one archive in the MIT Supercloud Dataset's layout out of folders that ``record.py`` left.

    python data/record/pack.py data/h200-02.tar.gz OUT [OUT ...]

Truth (which workload, on which GPU, from when to when) comes from ``jobs.jsonl``, samples from the spools, the type of
the GPUs from their inventory. The same input gives the same bytes. A job id that another archive beside it (or that
ships) has is refused, since a lake would take one job for the other; draws that another archive has are said.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import plan
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where jobwatt is not installed

from ingest.reference import type_of
from ingest.sources.archive import list_members, stream_members
from ingest.sources.inflate import ByteStream

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
SHIPPED = Path(__file__).resolve().parents[1]
OF_ONE_JOB = re.compile(r"(?:^|/)(?:gpu|gpu_extended|cpu)/\d+/(\d+)-")
DRAWN = (
    "workload sequence_length matrix_size image_size atoms_max gpus precision optimizer data_workers steps_per_epoch "
    "validation_steps checkpoints"
).split()
"""What tells two draws apart, of job-parameters.csv; the batch size is left out, since it may have been halved."""

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
    yield "job-parameters.csv", _csv(_parameters_of(jobs))
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


def _parameters_of(jobs: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame([_parameters(job) for job in jobs], infer_schema_length=None)


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


# -- what other archives have ------------------------------------------------------------------------------------------


def find_others(archive: Path) -> list[Path]:
    """Return the archives beside the one that is to be written, and those that ship; not an older one of its name."""
    folders = {archive.resolve().parent, SHIPPED}
    return sorted(path for folder in folders for path in folder.glob("*.tar.*") if path.name != archive.name)


def read_ids(archive: Path) -> set[int]:
    """Return the ids of an archive's jobs: those of its log, and those that names of files have."""
    members = list_members(str(archive)).members
    named = {int(found[1]) for member in members if (found := OF_ONE_JOB.search(member.name))}
    log = read_member(archive, "slurm-log.csv")
    return named | set(log["id_job"] if "id_job" in log.columns else [])


def check_ids(job_ids: Iterable[int], others: Iterable[Path]) -> None:
    """Refuse to pack jobs whose ids are not theirs alone.

    Raises
    ------
    ValueError
        An id is in the folders twice, or in one of the other archives.
    """
    counted = Counter(job_ids)
    twice = sorted(job_id for job_id, n in counted.items() if n > 1)
    if twice:
        raise ValueError(f"{len(twice)} job ids are in these folders twice, as {twice[0]}; give each folder once")
    for other in others:
        known = sorted(read_ids(other) & set(counted))
        if known:
            raise ValueError(
                f"{len(known)} of {len(counted)} job ids are in {other} already, as {known[0]}; a lake would take one "
                "job for the other: record them anew, or leave that folder out"
            )


def count_repeated(parameters: pl.DataFrame, archive: Path) -> int:
    """Return how many jobs were drawn just like a job of another archive, by the columns of `DRAWN` that both have."""
    theirs = read_member(archive, "job-parameters.csv")
    shared = [name for name in DRAWN if name in theirs.columns and name in parameters.columns]
    if not shared:
        return 0
    ours = parameters.select(pl.col(shared).cast(pl.String))
    return ours.join(theirs.select(pl.col(shared).cast(pl.String)), on=shared, how="semi", nulls_equal=True).height


def read_member(archive: Path, name: str) -> pl.DataFrame:
    """Return a table of an archive; an empty one without columns where it has none of that name."""
    wanted = [member for member in list_members(str(archive)).members if PurePosixPath(member.name).name == name]
    for _, stream in stream_members(str(archive), wanted, anonymous=False):
        return pl.read_csv(io.BytesIO(_read_all(stream)), infer_schema_length=None)
    return pl.DataFrame()


def _read_all(stream: ByteStream) -> bytes:
    return b"".join(iter(lambda: stream.read(2**20), b""))


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
    jobs = read_jobs(arguments.folders)
    others = find_others(arguments.archive)
    try:
        check_ids((job["job_id"] for job in jobs), others)
    except ValueError as error:
        print(f"{arguments.archive} is not written: {error}", file=sys.stderr)
        return 1
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
    print(f"{arguments.archive}: {len(jobs)} jobs, {len(files)} files, {arguments.archive.stat().st_size / 1e6:.2f} MB")
    parameters = _parameters_of(jobs)
    for other in others:
        if repeated := count_repeated(parameters, other):
            print(
                f"{repeated} of the jobs were drawn like jobs of {other}; another --seed draws new ones",
                file=sys.stderr,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
