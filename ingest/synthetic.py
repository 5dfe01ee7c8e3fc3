"""Made-up archives in the MIT Supercloud releases' formats, of any size and with known answers.

``make_archive`` writes the *Datacenter Challenge* release's layout; ``make_hpca_archive`` in
``ingest/synthetic_hpca.py`` that of *HPCA'22*; ``make_cap_response_jobs`` in ``ingest/synthetic_caps.py`` makes jobs
whose answer to a power cap is known. The layout and the marginals (GPUs a job, run times, waits, draw by utilisation)
are the releases'; every number is invented.
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from ingest.synthetic_files import (
    cpu_frame,
    gpu_frame,
    is_archive,
    node_rows,
    pack,
    write_frame,
    write_rows,
)
from ingest.synthetic_scheduler import (
    LOG_COLUMNS,
    RUN_S_QUANTILES,
    STATE_NAMES,
    TRES_MAPPING,
    JobPlan,
    draw_gpus,
    draw_quantiles,
    log_rows,
    plan_jobs,
)
from ingest.synthetic_signals import (
    SAMPLE_PERIOD_US,
    SIGNATURES,
    draw_signals,
    draw_variant,
    seconds_since,
    tick_times_us,
)
from ingest.synthetic_truth import ArchiveTruth, FileTruth, GpuTruth, JobTruth, tally
from ingest.units import US_PER_S

NODE_PERIOD_S = 300
GPU_BYTES_PER_ROW = 52.7
"""Mean length of a row of ``gpu/``; what ``target_bytes`` is divided by."""

_Spec = TypeVar("_Spec")
_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True)
class _JobSpec:
    root: Path
    plan: JobPlan
    cpu_files: bool


def make_archive(
    root: Path,
    *,
    rng: np.random.Generator | int,
    n_jobs: int | None = None,
    target_bytes: float | None = None,
    seconds_per_job: float | tuple[float, float] | None = 30.0,
    gpus_per_job: int | None = None,
    nodes_per_job: int | None = None,
    classes: Sequence[str] | Mapping[str, float] = tuple(SIGNATURES),
    labelled_share: float = 1.0,
    requeued_jobs: int = 0,
    cpu_only_jobs: int = 0,
    n_nodes: int | None = None,
    cpu_files: bool = True,
    node_data: bool = True,
    workers: int = 1,
) -> ArchiveTruth:
    """Write an archive in the Datacenter Challenge release's layout and return its known answers.

    The same arguments and the same seed give the same bytes, whatever the number of workers.

    Parameters
    ----------
    root : a new or empty folder; or a name ending in .tar, .tar.gz or .tar.zst, which is then written instead
    n_jobs : jobs with GPU samples (6 when neither this nor ``target_bytes`` is given)
    target_bytes : bytes of GPU CSV, met within a few per cent: by more jobs, or with ``n_jobs`` by longer ones
    seconds_per_job : run time, or a range to draw from evenly, or None for the release's own run times
    gpus_per_job : all jobs' GPUs; None for the release's own shares
    nodes_per_job : nodes these are spread over; None for as few as there can be with two GPUs on each
    classes : class names, dealt out evenly; or names with weights
    requeued_jobs : how many jobs have a second row in the log, the first attempt lost to a failed node
    cpu_only_jobs : further jobs that appear in the log (and in ``cpu/``) only

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> truth = make_archive(Path(folder.name), rng=1, n_jobs=2, seconds_per_job=12.0, gpus_per_job=2)
    >>> truth.rows["gpu_samples"] == sum(job.gpu_rows for job in truth.jobs)
    True
    >>> folder.cleanup()
    """
    generator = np.random.default_rng(rng)
    run_s, gpus = draw_sizes(
        n_jobs=n_jobs,
        target_bytes=target_bytes,
        bytes_per_row=GPU_BYTES_PER_ROW,
        seconds_per_job=seconds_per_job,
        gpus_per_job=gpus_per_job,
        cpu_only_jobs=cpu_only_jobs,
        rng=generator,
    )
    plans = plan_jobs(
        len(gpus),
        rng=generator,
        classes=classes,
        run_s=run_s,
        gpus=gpus,
        nodes_per_job=nodes_per_job,
        labelled_share=labelled_share,
        n_requeued=requeued_jobs,
        n_cpu_jobs=cpu_only_jobs,
        n_nodes=n_nodes,
    )
    with empty_folder(root) as folder:
        files, jobs = [], []
        specs = [_JobSpec(folder, plan, cpu_files) for plan in plans]
        for written, job in run_tasks(_write_job, specs, workers):
            files += written
            jobs.append(job)
        files += _write_tables(folder, plans, node_data, generator)
        if is_archive(root):
            pack(folder, root)
    nodes = tuple(sorted({node for plan in plans for node in plan.nodes}))
    return ArchiveTruth(root=root, jobs=tuple(jobs), files=tuple(files), nodes=nodes)


def job_truth(plan: JobPlan, gpus: Sequence[GpuTruth], since_s: int = 0) -> JobTruth:
    """Return one job's known answers, its times counted from ``since_s``."""
    return JobTruth(
        job_id=plan.job_id,
        label=plan.label,
        labelled=plan.labelled,
        user=plan.user,
        state=STATE_NAMES[plan.state],
        submit_s=plan.submit_s - since_s,
        start_s=plan.start_s - since_s,
        end_s=plan.end_s - since_s,
        attempts=2 if plan.requeued else 1,
        nodes=plan.nodes,
        gpus=tuple(gpus),
    )


@contextmanager
def empty_folder(root: Path) -> Iterator[Path]:
    """Give the folder to write to: ``root`` itself, or for an archive a folder beside it that is gone afterwards."""
    if is_archive(root):
        root.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=root.parent))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch)
        return
    if root.exists() and any(root.iterdir()):
        raise ValueError(f"{root} is not empty; give a new or an empty folder")
    root.mkdir(parents=True, exist_ok=True)
    yield root


def run_tasks(task: Callable[[_Spec], _Record], specs: Sequence[_Spec], workers: int) -> Iterator[_Record]:
    """Yield the records of all tasks in the order of the specs, from this process or from a pool of ``workers``."""
    if workers < 1:
        raise ValueError(f"workers is {workers}; give 1 or more")
    if workers == 1:
        yield from map(task, specs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(task, specs, chunksize=max(1, min(16, len(specs) // (4 * workers))))


def draw_sizes(
    *,
    n_jobs: int | None,
    target_bytes: float | None,
    bytes_per_row: float,
    seconds_per_job: float | tuple[float, float] | None,
    gpus_per_job: int | None,
    cpu_only_jobs: int,
    rng: np.random.Generator,
) -> tuple[list[float], list[int]]:
    """Return seconds of every job (those without a GPU last) and GPUs of every job that has some."""
    if target_bytes is not None and target_bytes <= 0:
        raise ValueError(f"target_bytes is {target_bytes}; give a positive number")
    bytes_per_s = bytes_per_row * US_PER_S / SAMPLE_PERIOD_US
    if n_jobs is None and target_bytes is None:
        n_jobs = 6
    run_s: list[float] = []
    gpus: list[int] = []
    total = 0.0
    while (len(gpus) < n_jobs) if n_jobs is not None else (total < (target_bytes or 0.0)):
        run_s += _draw_seconds(seconds_per_job, 1, rng)
        gpus += [gpus_per_job] if gpus_per_job is not None else draw_gpus(1, rng)
        total += run_s[-1] * gpus[-1] * bytes_per_s
    if target_bytes is not None and n_jobs is not None:
        run_s = [s * target_bytes / total for s in run_s]
    return run_s + _draw_seconds(seconds_per_job, cpu_only_jobs, rng), gpus


def _draw_seconds(wanted: float | tuple[float, float] | None, n: int, rng: np.random.Generator) -> list[float]:
    if wanted is None:
        return draw_quantiles(RUN_S_QUANTILES, n, rng)
    low, high = wanted if isinstance(wanted, tuple) else (wanted, wanted)
    if not 2 <= low <= high:
        raise ValueError(f"seconds_per_job is {wanted}; give at least 2 s, and a range from low to high")
    return [float(s) for s in rng.uniform(low, high, n)]


def _write_job(spec: _JobSpec) -> tuple[list[FileTruth], JobTruth]:
    """Write one job's files; its seed alone decides what is in them."""
    plan = spec.plan
    rng = np.random.default_rng(plan.seed)
    folder = f"{plan.job_id % 100:04d}"
    files: list[FileTruth] = []
    gpus: list[GpuTruth] = []
    if plan.gpus:
        variant = draw_variant(SIGNATURES[plan.label], plan.run_s, rng)
        for number, node in enumerate(plan.nodes):
            start_us = plan.start_s * US_PER_S + int(rng.integers(0, US_PER_S // 10))
            stop_us = plan.end_s * US_PER_S
            ticks = tick_times_us(start_us, stop_us, plan.seed + number, start_us - US_PER_S, stop_us)
            series = []
            for gpu in plan.gpu_indices(node):
                time_us = ticks + gpu * 37
                signals = draw_signals(variant, seconds_since(plan.start_s * US_PER_S, time_us), rng)
                series.append((gpu, time_us, signals))
                gpus.append(tally(node, gpu, time_us, signals))
            path = f"gpu/{folder}/{plan.job_id}-{node}.csv"
            files.append(write_frame(spec.root, path, "gpu_samples", gpu_frame(series)))
    if spec.cpu_files:
        runs = [(node, plan.run_s) for node in plan.nodes]
        samples, summary = cpu_frame(runs, plan.start_s, 20, rng)
        stem = f"cpu/{folder}/{plan.job_id}"
        files.append(write_frame(spec.root, f"{stem}-timeseries.csv", "cpu_samples", samples))
        files.append(write_frame(spec.root, f"{stem}-summary.csv", "cpu_job_summary", summary))
    return files, job_truth(plan, gpus)


def _write_tables(folder: Path, plans: Sequence[JobPlan], node_data: bool, rng: np.random.Generator) -> list[FileTruth]:
    """Write the release's files that are not of one job."""
    log = [list(row.values()) for plan in plans for row in log_rows(plan)]
    labels = sorted((plan.job_id, plan.label) for plan in plans if plan.labelled)
    files = [
        write_rows(folder, "slurm-log.csv", "jobs", LOG_COLUMNS, log),
        write_rows(folder, "labelled_jobids.csv", "labels", ["id_job", "model"], labels),
    ]
    if node_data:
        slots: dict[str, set[int]] = {}
        for plan in plans:
            first = plan.start_s - plan.start_s % NODE_PERIOD_S
            for node in plan.nodes:
                slots.setdefault(node, set()).update(range(first, plan.end_s + NODE_PERIOD_S, NODE_PERIOD_S))
        users = sorted({plan.user for plan in plans})
        rows = node_rows({node: sorted(slots[node]) for node in sorted(slots)}, users, rng)
        header = ["", "Node", "Time", "UserPIDCount", "FSlatency", "LoadAvg", "MemoryFreeInactiveKB", "LustreRPCTotals"]
        files.append(write_rows(folder, "node-data.csv", "node_samples", header, rows))
    mapping = "".join(f"{number},{name}\n" for number, name in TRES_MAPPING)
    (folder / "tres-mapping.txt").write_text(mapping, encoding="utf-8")
    return files
