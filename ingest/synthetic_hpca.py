"""A made-up archive in the HPCA'22 release's layout: three files, all GPUs' samples interleaved in one of them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ingest.synthetic import draw_sizes, empty_folder, job_truth, run_tasks
from ingest.synthetic_files import gpu_frame, is_archive, pack, write_rows
from ingest.synthetic_scheduler import HPCA_LOG_COLUMNS, JobPlan, hpca_row, log_rows, plan_jobs
from ingest.synthetic_signals import (
    SAMPLE_PERIOD_US,
    SIGNATURES,
    draw_signals,
    draw_variant,
    seconds_since,
    tick_times_us,
)
from ingest.synthetic_truth import ArchiveTruth, FileTruth, GpuTruth, join, tally
from ingest.units import BYTES_PER_MIB, US_PER_S

HPCA_BYTES_PER_ROW = 80.0
"""Mean length of a row of ``nvidia_smi.csv``; what ``target_bytes`` is divided by."""

_SLICE_ROWS = 200_000

_TRIPLES = (
    "smutilization_pct",
    "memoryutilization_pct",
    "powerusage_watts",
    "pcierxbandwidth_megabytes",
    "pcietxbandwidth_megabytes",
)

DCGM_COLUMNS = [
    "Node",
    "gpu_id",
    "id_job",
    *(f"{quantity}_{statistic}" for quantity in _TRIPLES for statistic in ("avg", "max", "min")),
    "energyconsumed_joules",
    "maxgpumemoryused_bytes",
    "totalexecutiontime_sec",
    "avgsmutilization_pct",
    "avgmemoryutilization_pct",
]
"""The 23 columns of ``dcgm.csv``: three keys, five triples, energy, memory, time, and two means once more."""


@dataclass(frozen=True, slots=True)
class _SliceSpec:
    part: Path
    number: int
    first_us: int
    last_us: int
    trace_start_s: int
    plans: tuple[JobPlan, ...]


@dataclass(frozen=True, slots=True)
class _SliceRecord:
    part: Path
    rows: int
    gpus: tuple[tuple[int, GpuTruth], ...]


def make_hpca_archive(
    root: Path,
    *,
    rng: np.random.Generator | int,
    n_jobs: int | None = None,
    target_bytes: float | None = None,
    seconds_per_job: float | tuple[float, float] | None = 30.0,
    gpus_per_job: int | None = None,
    nodes_per_job: int | None = None,
    classes: Sequence[str] | Mapping[str, float] = tuple(SIGNATURES),
    requeued_jobs: int = 0,
    cpu_only_jobs: int = 0,
    n_nodes: int | None = None,
    workers: int = 1,
) -> ArchiveTruth:
    """Write an archive in the HPCA'22 release's layout and return its known answers; arguments as ``make_archive``.

    Times in the files are seconds since the trace's start, which is the first job's submission; the answers' times are
    those of the files. Each state of a job is as drawn, and nothing is labelled: that release has no labels.
    """
    generator = np.random.default_rng(rng)
    run_s, gpus = draw_sizes(
        n_jobs=n_jobs,
        target_bytes=target_bytes,
        bytes_per_row=HPCA_BYTES_PER_ROW,
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
        labelled_share=0.0,
        n_requeued=requeued_jobs,
        n_cpu_jobs=cpu_only_jobs,
        n_nodes=n_nodes,
    )
    trace_start_s = min(plan.submit_s for plan in plans)
    with empty_folder(root) as folder:
        samples, gpu_truths = _write_samples(folder, plans, trace_start_s, workers)
        log = [
            [hpca_row(row, plan, trace_start_s)[name] for name in HPCA_LOG_COLUMNS]
            for plan in plans
            for row in log_rows(plan)
        ]
        dcgm = [_dcgm_row(plan, gpu, generator) for plan in plans for gpu in gpu_truths[plan.index]]
        files = (
            samples,
            write_rows(folder, "scheduler_data.csv", "jobs", HPCA_LOG_COLUMNS, log),
            write_rows(folder, "dcgm.csv", "gpu_job_summary", DCGM_COLUMNS, dcgm),
        )
        if is_archive(root):
            pack(folder, root)
    jobs = tuple(job_truth(plan, gpu_truths[plan.index], since_s=trace_start_s) for plan in plans)
    nodes = tuple(sorted({node for plan in plans for node in plan.nodes}))
    return ArchiveTruth(root=root, jobs=jobs, files=files, nodes=nodes)


def _write_samples(
    folder: Path, plans: Sequence[JobPlan], trace_start_s: int, workers: int
) -> tuple[FileTruth, dict[int, list[GpuTruth]]]:
    """Write ``nvidia_smi.csv`` slice of time by slice of time, and return what each job's GPUs say in it."""
    running = [plan for plan in plans if plan.gpus]
    first_us = min(plan.start_s for plan in running) * US_PER_S
    last_us = max(plan.end_s for plan in running) * US_PER_S
    expected = sum(plan.run_s * len(plan.gpus) for plan in running) * US_PER_S / SAMPLE_PERIOD_US
    n_slices = max(1, math.ceil(expected / _SLICE_ROWS))
    edges = [first_us + (last_us - first_us) * k // n_slices for k in range(n_slices)] + [last_us + US_PER_S]
    specs = []
    for number in range(n_slices):
        low, high = edges[number], edges[number + 1]
        overlapping = tuple(p for p in running if p.start_s * US_PER_S < high and p.end_s * US_PER_S > low)
        part = folder / f".part-{number:06d}"
        specs.append(_SliceSpec(part, number, low, high, trace_start_s, overlapping))

    pieces: dict[tuple[int, str, int], list[GpuTruth]] = {}
    rows = 0
    path = folder / "nvidia_smi.csv"
    with path.open("wb") as whole:
        for record in run_tasks(_write_slice, specs, workers):
            with record.part.open("rb") as written:
                shutil.copyfileobj(written, whole, 1 << 20)
            record.part.unlink()
            rows += record.rows
            for index, gpu in record.gpus:
                pieces.setdefault((index, gpu.node, gpu.gpu_index), []).append(gpu)
    truths: dict[int, list[GpuTruth]] = {plan.index: [] for plan in plans}
    for plan in running:
        truths[plan.index] = [join(pieces[plan.index, node, gpu]) for node, gpu in plan.gpus]
    return FileTruth("nvidia_smi.csv", "gpu_samples", rows, path.stat().st_size), truths


def _write_slice(spec: _SliceSpec) -> _SliceRecord:
    """Write the rows of one slice of time; the first slice has the header."""
    frames, gpus = [], []
    origin_us = spec.trace_start_s * US_PER_S
    for plan in spec.plans:
        variant = draw_variant(SIGNATURES[plan.label], plan.run_s, np.random.default_rng(plan.seed))
        rng = np.random.default_rng([plan.seed, spec.number])
        start_us, stop_us = plan.start_s * US_PER_S, plan.end_s * US_PER_S
        for number, node in enumerate(plan.nodes):
            ticks = tick_times_us(start_us, stop_us, plan.seed + number, spec.first_us, spec.last_us)
            if ticks.size == 0:
                continue
            series = []
            for gpu in plan.gpu_indices(node):
                signals = draw_signals(variant, np.maximum(0.0, seconds_since(start_us, ticks)), rng)
                series.append((gpu, ticks - origin_us, signals))
                gpus.append((plan.index, tally(node, gpu, ticks - origin_us, signals)))
            frames.append(
                gpu_frame(series).select(
                    pl.lit(node).alias("node"), pl.all(), pl.lit(plan.job_id, dtype=pl.Int64).alias("id_job")
                )
            )
    header = spec.number == 0
    if not frames:
        spec.part.write_bytes(b"")
        return _SliceRecord(spec.part, 0, ())
    rows = pl.concat(frames).sort("timestamp", "node", "gpu_index")
    rows.write_csv(spec.part, include_header=header)
    return _SliceRecord(spec.part, rows.height, tuple(gpus))


def _dcgm_row(plan: JobPlan, gpu: GpuTruth, rng: np.random.Generator) -> list[str | int | float]:
    """Return one row of ``dcgm.csv``: the same answers as the samples', PCIe rates invented."""
    rx, tx = float(rng.uniform(50.0, 2_000.0)), float(rng.uniform(20.0, 900.0))
    return [
        gpu.node,
        gpu.gpu_index,
        plan.job_id,
        gpu.gpu_util_mean_pct,
        gpu.gpu_util_max_pct,
        gpu.gpu_util_min_pct,
        gpu.memory_util_mean_pct,
        gpu.memory_util_max_pct,
        gpu.memory_util_min_pct,
        gpu.power_mean_w,
        gpu.power_max_w,
        gpu.power_min_w,
        rx,
        rx * 3.0,
        0.0,
        tx,
        tx * 3.0,
        0.0,
        gpu.energy_j,
        gpu.memory_used_max_mib * BYTES_PER_MIB,
        gpu.covered_s,
        gpu.gpu_util_mean_pct,
        gpu.memory_util_mean_pct,
    ]
