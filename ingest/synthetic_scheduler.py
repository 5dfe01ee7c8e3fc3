"""A made-up scheduler: who ran what, where and when, and the rows that Slurm would have logged about it.

Marginals are those of the MIT Supercloud releases. Pure functions of their arguments and of a generator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ingest.synthetic_signals import SIGNATURES

EPOCH_S = 1_614_556_800
"""2021-03-01 00:00 UTC, where the release's node data begin."""

RUN_S_QUANTILES = (
    (0.0, 60.0),
    (0.05, 533.0),
    (0.25, 2_252.0),
    (0.5, 4_360.0),
    (0.75, 17_305.0),
    (0.95, 50_170.0),
    (1.0, 172_800.0),
)
WAIT_S_QUANTILES = (
    (0.0, 1.0),
    (0.05, 1.0),
    (0.25, 30.0),
    (0.5, 1_243.0),
    (0.75, 7_170.0),
    (0.95, 134_206.0),
    (1.0, 345_600.0),
)
"""Run times and waits of 73,400 completed jobs of the release (2021-04-21 to 06-01); the two ends of each are ours."""

GPUS_PER_JOB = ((1, 0.8416), (2, 0.1351), (4, 0.0165), (16, 0.0067))
"""Share of jobs over 30 s by GPUs in the HPCA'22 release; 4 stands for its 3 to 8 and 16 for its more than 8."""

GPUS_PER_NODE = 2

STATES = ((3, 309_037), (4, 53_980), (5, 21_349), (6, 7_089), (11, 4_414), (7, 44))
"""Slurm's state number and the released log's count of it; 3 is COMPLETED."""

STATE_NAMES = {3: "COMPLETED", 4: "CANCELLED", 5: "FAILED", 6: "TIMEOUT", 7: "NODE_FAIL", 11: "OUT_OF_MEMORY"}
_WAIT_STATUS = {3: 0, 4: 15, 5: 256, 6: 0, 7: 0, 11: 9}

NO_TASK = 4_294_967_294
UNLIMITED_MINUTES = 4_294_967_295
PER_CPU_BIT = 1 << 63
"""Slurm's NO_VAL and INFINITE, and the top bit that makes ``mem_req`` a figure per CPU."""

TRES_MAPPING = (
    (1, "cpu"),
    (2, "mem"),
    (3, "energy"),
    (4, "node"),
    (5, "billing"),
    (6, "fs"),
    (7, "vmem"),
    (8, "pages"),
    (1001, "gpu:tesla"),
    (1002, "gpu:volta"),
)

LOG_COLUMNS = [
    "id_job",
    "id_array_job",
    "id_array_task",
    "id_user",
    "kill_requid",
    "nodes_alloc",
    "nodelist",
    "cpus_req",
    "derived_ec",
    "exit_code",
    "gres_used",
    "array_max_tasks",
    "array_task_pending",
    "constraints",
    "flags",
    "mem_req",
    "partition",
    "priority",
    "state",
    "timelimit",
    "time_submit",
    "time_eligible",
    "time_start",
    "time_end",
    "time_suspended",
    "track_steps",
    "tres_alloc",
    "tres_req",
    "job_type",
]
"""The 29 columns of ``slurm-log.csv``."""

HPCA_LOG_COLUMNS = [*LOG_COLUMNS[:11], "gres_req", "gres_alloc", *LOG_COLUMNS[11:]]
"""The 31 columns of the HPCA'22 release's ``scheduler_data.csv``."""


@dataclass(frozen=True, slots=True)
class JobPlan:
    """One job as decided before any sample is drawn; times are seconds since 1970, ``gpus`` pairs node and index."""

    index: int
    job_id: int
    label: str
    labelled: bool
    user: int
    state: int
    submit_s: int
    eligible_s: int
    start_s: int
    end_s: int
    nodes: tuple[str, ...]
    gpus: tuple[tuple[str, int], ...]
    cpus: int
    requeued: bool
    seed: int

    @property
    def run_s(self) -> int:
        """Seconds from start to end."""
        return self.end_s - self.start_s

    def gpu_indices(self, node: str) -> tuple[int, ...]:
        """Return this job's GPUs of one node, in order."""
        return tuple(gpu for owner, gpu in self.gpus if owner == node)


def draw_quantiles(quantiles: Sequence[tuple[float, float]], n: int, rng: np.random.Generator) -> list[float]:
    """Draw ``n`` positive numbers from a distribution known by its quantiles, log-linear between them."""
    shares, values = zip(*quantiles, strict=True)
    return [float(v) for v in np.exp(np.interp(rng.random(n), shares, np.log(values)))]


def plan_jobs(
    n_jobs: int,
    *,
    rng: np.random.Generator,
    classes: Sequence[str] | Mapping[str, float],
    run_s: Sequence[float],
    gpus: Sequence[int],
    nodes_per_job: int | None,
    labelled_share: float,
    n_requeued: int,
    n_cpu_jobs: int,
    n_nodes: int | None,
    first_index: int = 0,
) -> list[JobPlan]:
    """Plan jobs on a cluster without ever giving one GPU to two jobs at a time; CPU jobs come last and have no GPU."""
    labels = _draw_labels(n_jobs, classes, rng)
    spread = [_spread(count, nodes_per_job) for count in gpus]
    widest = max((len(s) for s in spread), default=1)
    per_node = max((max(s) for s in spread), default=GPUS_PER_NODE)
    per_node = max(per_node, GPUS_PER_NODE)
    pool = max(widest, n_nodes if n_nodes is not None else min(224, 2 + n_jobs // 4))
    cluster = [f"r{rng.integers(10**6, 10**7)}-n{100_000 + i * 3_917 % 900_000}" for i in range(pool)]
    free_s = np.full((pool, per_node), float(EPOCH_S)) + rng.uniform(0.0, 60.0, (pool, per_node))
    job_ids = _draw_job_ids(n_jobs + n_cpu_jobs, rng)
    waits = draw_quantiles(WAIT_S_QUANTILES, n_jobs + n_cpu_jobs, rng)
    states, weights = zip(*STATES, strict=True)
    drawn = rng.choice(states, n_jobs + n_cpu_jobs, p=np.array(weights) / sum(weights))
    labelled = rng.random(n_jobs) < labelled_share
    users = [int(u) for u in rng.integers(10**9, 10**11, max(3, n_jobs // 20))]

    plans = []
    for i in range(n_jobs + n_cpu_jobs):
        is_gpu_job = i < n_jobs
        wanted = spread[i] if is_gpu_job else (1,)
        placed, start = _place(wanted, free_s)
        length = max(2, round(run_s[i]))
        start_s = int(np.ceil(start + rng.uniform(1.0, 30.0)))
        taken = []
        for row, columns in placed:
            free_s[row, columns] = start_s + length + 1
            taken += [(cluster[row], int(column)) for column in sorted(columns)]
        submit_s = start_s - max(1, int(waits[i]))
        plans.append(
            JobPlan(
                index=first_index + i,
                job_id=job_ids[i],
                label=labels[i] if is_gpu_job else "",
                labelled=bool(is_gpu_job and labelled[i]),
                user=users[int(rng.integers(len(users)))],
                state=3 if is_gpu_job and labelled[i] else int(drawn[i]),
                submit_s=submit_s,
                eligible_s=submit_s,
                start_s=start_s,
                end_s=start_s + length,
                nodes=tuple(cluster[row] for row, _ in placed),
                gpus=tuple(taken) if is_gpu_job else (),
                cpus=20 * len(placed),
                requeued=False,
                seed=int(rng.integers(2**62)),
            )
        )
    for i in rng.choice(n_jobs, n_requeued, replace=False) if n_requeued else ():
        plans[i] = replace(plans[i], requeued=True)
    return plans


def log_rows(plan: JobPlan) -> list[dict[str, str | int]]:
    """Return what ``slurm-log.csv`` says of one job: a row, or two when a failed node had sent it back to the queue."""
    rng = np.random.default_rng(plan.seed ^ 0x5106)
    mem_mib = int(rng.choice([8_192, 16_000, 85_000, 170_000]))
    per_cpu = bool(rng.random() < 0.3)
    tres = f"1={plan.cpus},2={mem_mib * len(plan.nodes)},4={len(plan.nodes)},5={plan.cpus}"
    if plan.gpus:
        tres += f",1002={len(plan.gpus)}"
    asked = tres if rng.random() > 0.22 else tres.replace(f"2={mem_mib * len(plan.nodes)}", f"2={mem_mib}", 1)
    in_array = bool(rng.random() < 0.1)
    cancelled = plan.state == 4
    row: dict[str, str | int] = {
        "id_job": plan.job_id,
        "id_array_job": plan.job_id - 1 if in_array else 0,
        "id_array_task": int(rng.integers(1, 100)) if in_array else NO_TASK,
        "id_user": plan.user,
        "kill_requid": plan.user if cancelled else -1,
        "nodes_alloc": len(plan.nodes),
        "nodelist": str(list(plan.nodes)),
        "cpus_req": plan.cpus,
        "derived_ec": _WAIT_STATUS[plan.state],
        "exit_code": _WAIT_STATUS[plan.state],
        "gres_used": "",
        "array_max_tasks": 0,
        "array_task_pending": 0,
        "constraints": str(rng.choice(["xeon-g6", r"\N", "xeon-g6&6248"])),
        "flags": int(rng.choice([4, 8, 2, 12])),
        "mem_req": (PER_CPU_BIT + mem_mib // 20) if per_cpu else mem_mib,
        "partition": "normal" if plan.gpus else "xeon-p8",
        "priority": int(rng.integers(1, 2**31)),
        "state": plan.state,
        "timelimit": UNLIMITED_MINUTES if rng.random() < 0.4 else max(1, -(-plan.run_s // 60)) + 60,
        "time_submit": plan.submit_s,
        "time_eligible": plan.eligible_s,
        "time_start": plan.start_s,
        "time_end": plan.end_s,
        "time_suspended": 0,
        "track_steps": 0,
        "tres_alloc": tres,
        "tres_req": asked,
        "job_type": str(rng.choice(["OTHER", "LLSUB:BATCH", "LLMAPREDUCE:MAP", "LLSUB:INTERACTIVE"])),
    }
    if not plan.requeued:
        return [row]
    first_end = max(plan.submit_s + 1, plan.start_s - 1)
    lost = row | {"state": 7, "time_start": max(plan.submit_s, first_end - 30), "time_end": first_end}
    return [lost, row]


def hpca_row(row: Mapping[str, str | int], plan: JobPlan, trace_start_s: int) -> dict[str, str | int]:
    """Return a log row as the HPCA'22 release has it: GPU requests beside TRES, times since the trace's start."""
    gres = f"gpu:volta:{len(plan.gpus) // len(plan.nodes)}" if plan.gpus else r"\N"
    times = {
        name: int(row[name]) - trace_start_s for name in ("time_submit", "time_eligible", "time_start", "time_end")
    }
    return {**row, **times, "gres_req": gres, "gres_alloc": gres}


def draw_gpus(n: int, rng: np.random.Generator) -> list[int]:
    """Draw GPUs per job as published."""
    counts, shares = zip(*GPUS_PER_JOB, strict=True)
    return [int(k) for k in rng.choice(counts, n, p=np.array(shares) / sum(shares))]


def _draw_labels(n: int, classes: Sequence[str] | Mapping[str, float], rng: np.random.Generator) -> list[str]:
    unknown = set(classes) - set(SIGNATURES)
    if unknown or not classes:
        raise ValueError(f"classes has {sorted(unknown) or 'no name'}; choose among {', '.join(SIGNATURES)}")
    names = list(classes)
    if isinstance(classes, Mapping):
        weights = np.array([float(w) for w in classes.values()])
        return [names[i] for i in rng.choice(len(names), n, p=weights / weights.sum())]
    even = [names[i % len(names)] for i in range(n)]
    return [even[i] for i in rng.permutation(n)]


def _draw_job_ids(n: int, rng: np.random.Generator) -> list[int]:
    """Return ``n`` different ids of 12 to 14 digits, as the release has."""
    ids: dict[int, None] = {}
    while len(ids) < n:
        ids[int(rng.integers(10 ** int(rng.integers(11, 14)), 10**14))] = None
    return list(ids)


def _spread(gpus: int, nodes_per_job: int | None) -> tuple[int, ...]:
    """Return GPUs per node for a job of ``gpus``."""
    nodes = nodes_per_job if nodes_per_job is not None else -(-gpus // GPUS_PER_NODE)
    if gpus < nodes:
        raise ValueError(f"a job of {gpus} GPUs cannot be on {nodes} nodes; give it at least one GPU on each")
    return tuple(gpus // nodes + (1 if i < gpus % nodes else 0) for i in range(nodes))


def _place(wanted: Sequence[int], free_s: np.ndarray) -> tuple[list[tuple[int, list[int]]], float]:
    """Return the nodes (and their GPUs) that can take the job soonest, and when the last of them is free."""
    order = np.sort(free_s, axis=1)
    used: set[int] = set()
    placed = []
    start = 0.0
    for count in wanted:
        soonest = order[:, count - 1].copy()
        soonest[list(used)] = np.inf
        row = int(np.argmin(soonest))
        used.add(row)
        columns = [int(c) for c in np.argsort(free_s[row], kind="stable")[:count]]
        placed.append((row, columns))
        start = max(start, float(soonest[row]))
    return placed, start
