"""Small lakes for extraction: jobs of a few seconds whose every reading is known."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from features.extract import ExtractReport, extract
from features.variant import Variant
from features.windows import WindowSpec
from ingest.lake import Lake
from ingest.runner import SerialRunner
from tests.small_sources import gpu_file, gpu_row, take, write

RATE = 2.0
"""Samples a second of the made-up jobs."""


def variant(set_name: str = "statistical", seconds: float = 4.0, place: str = "start", **options: object) -> Variant:
    """A variant of windows of the made-up jobs."""
    return Variant(set_name, WindowSpec(seconds, place, samples_per_s=RATE, **options))  # type: ignore[arg-type]


def gpu_name(job_id: int) -> str:
    """The file of a job."""
    return f"gpu/{job_id % 100:04d}/{job_id}-n1.csv"


def job_file(seconds: float = 10.0, watts: float = 100.0) -> str:
    """Samples of one GPU that draws a watt more with every sample."""
    return gpu_file(*[gpu_row(i / RATE, watts + i, util=50 + i % 3) for i in range(int(seconds * RATE) + 1)])


def make_lake(root: Path, jobs: int = 3) -> Path:
    """A lake of some jobs with the ids from 101, and its source beside it."""
    for job_id in range(101, 101 + jobs):
        write(root / "source", gpu_name(job_id), job_file(watts=job_id))
    take(root / "source", root / "lake", cluster="one")
    return root / "lake"


def run_extract(lake: Path, what: Variant | None = None, **options: object) -> ExtractReport:
    """Extract in this process, and check that the lake is sound."""
    report = extract(lake, what or variant(), **{"runner": SerialRunner(), "commit_every_s": 0.0, **options})  # type: ignore[arg-type]
    assert Lake(lake).check().problems == ()
    assert not (lake / "_extraction").exists()
    return report


def after(number: int, real: Callable[..., Any], act: Callable[[], object]) -> Callable[..., Any]:
    """Return what calls ``real``, and acts once after it was called for the n-th time."""
    calls = count(1)

    def call(*arguments: Any, **options: Any) -> Any:
        found = real(*arguments, **options)
        if next(calls) == number:
            act()
        return found

    return call
