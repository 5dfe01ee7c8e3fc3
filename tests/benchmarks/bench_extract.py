"""Extraction over a lake: two workers against one, memory against the number of jobs, and the newest windows."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import polars as pl

from features.live import live_features
from features.planning import MOST_WINDOWS, TASKS
from features.variant import Variant
from features.warming import compile_kernels
from features.windows import WindowSpec
from ingest.lake import Lake
from tests.benchmarks.archives import challenge_archive, fresh, run_ingest
from tests.benchmarks.measure import JOBWATT, Run, run_pairs, run_process, spread, time_calls
from tests.benchmarks.report import table

WINDOW = Variant("efficient", WindowSpec(60.0, "slide"))
"""What is extracted: a minute after the other, every feature of tsfresh's efficient set."""

TIMED_BYTES = 0.2e9
"""Samples for some tens of seconds of work: every worker imports and loads kernels for about two before it begins."""


def extract(quick: bool, runs: int, tell: Callable[[str], None]) -> str:
    """Return the tables of extraction."""
    compile_kernels(WINDOW.set, tell, here=False)
    scale = 0.03 if quick else 1.0
    lakes = {size: _lake(size * scale, tell) for size in (0.1e9, 0.4e9, 1.2e9)}
    timed, larger = _lake(TIMED_BYTES * scale, tell), lakes[0.4e9]
    contestants = {
        "two": partial(_run, timed, 2),
        "one": partial(_run, timed, 1, cores=1),
        "free": partial(_run, timed, 1),
    }
    taken = run_pairs(contestants, runs, tell)
    ratios, free = (
        [run.wall_s / two.wall_s for run, two in zip(taken[name], taken["two"], strict=True)]
        for name in ("one", "free")
    )
    windows = _windows(taken["one"][0])
    rows = []
    named = {"one worker on one core": "one", "two workers, two cores": "two", "one worker, two cores": "free"}
    for name, of in ((name, taken[key]) for name, key in named.items()):
        wall_s, cpu_s = [run.wall_s for run in of], [run.cpu_s for run in of]
        rows.append([name, spread(wall_s), spread(cpu_s), f"{windows / statistics.median(wall_s):,.0f}"])
    memory = []
    for lake in lakes.values():
        found = [_run(lake, 2, set_name="statistical", watch_memory=True) for _ in range(runs)]
        tell(f"{lake.name}: {max(run.pss_mib for run in found):.0f} MiB PSS")
        memory.append(
            [
                f"{Lake(lake).scan('job_stats').select(pl.len()).collect().item():,}",
                f"{_windows(found[0]):,}",
                spread([run.rss_mib for run in found], ".0f"),
                spread([run.pss_mib for run in found], ".0f"),
                spread([run.wall_s for run in found], ".1f"),
            ]
        )
    return (
        f"## Extraction over a lake\n\n`jobwatt features extract --set efficient --seconds 60 --place slide`: "
        f"{windows:,} windows of seven channels, {runs} rounds. Two workers are **{spread(ratios)}** times as "
        "fast as one with a core to itself (bar: 1.7), and "
        f"{spread(free)} times as fast as one that may use both. Every run counts whole, from its start to its end; "
        "on a smaller lake the start, which each worker has for itself, weighs more and the ratio is lower.\n\n"
        + table(["", "wall s", "CPU s", "windows/s"], rows)
        + "\n\nMemory of two workers and the process that started them with `--set statistical`, the largest sum over "
        "the process tree, by the number of jobs (bar: the same):\n\n"
        + table(["jobs", "windows", "RSS MiB", "PSS MiB", "wall s"], memory)
        + "\n\nThe bar is not met to the letter. Watched one by one, the process that started the workers needs the "
        "same for each lake; it is the workers that grow, less with each step up to 1,829 jobs. A task has up to "
        f"{MOST_WINDOWS:,} windows, which it reaches at about {MOST_WINDOWS * TASKS:,} in all. Neither smaller tasks "
        "nor an allocator told to give back at once made the growth go away; no cause was found."
        + f"\n\n{_live(larger, 20 if quick else 100)}"
    )


def _lake(size_bytes: float, tell: Callable[[str], None]) -> Path:
    lake = fresh(f"lakes/extract-{size_bytes:.0f}")
    run_ingest(challenge_archive(size_bytes, tell), lake)
    return lake


def _run(
    lake: Path, workers: int, *, set_name: str = "efficient", watch_memory: bool = False, cores: int | None = None
) -> Run:
    """Extract everything anew, as one whole process."""
    copy = fresh("lakes/extracted")
    _copy(lake, copy)
    command = [str(JOBWATT), "features", "extract", "--lake", str(copy), "--set", set_name, "--seconds", "60"]
    command += ["--place", "slide", "--workers", str(workers), "--format", "json"]
    return run_process(command, watch_memory=watch_memory, cores=cores)


def _copy(lake: Path, to: Path) -> None:
    """Copy a lake by links: its files are never written again."""
    for path in sorted(lake.rglob("*")):
        target = to / path.relative_to(lake)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif path.name != "LOCK":
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(path)


def _windows(run: Run) -> int:
    return int(json.loads(run.output)["windows"])


def _live(lake: Path, repeats: int) -> str:
    """Time the newest windows of the jobs that have a sample of a lake's last six hours, as if they were running."""
    stats = Lake(lake).scan("job_stats").select("last_time").collect()["last_time"]
    now_s = stats.max().timestamp()  # type: ignore[union-attr]  # a lake of jobs has a last time
    what = Variant("statistical", WindowSpec(60.0))
    running = 0

    def ask() -> None:
        nonlocal running
        running = live_features(lake, what, now_s=now_s, active_s=6 * 3600.0).rows.height

    taken_ms = time_calls(ask, repeats)
    return (
        f"The statistics of the last minute of {running} jobs, of a lake of {len(stats):,} jobs (`features live`, "
        f"without the start of the process): {spread(taken_ms, '.0f')} ms."
    )
