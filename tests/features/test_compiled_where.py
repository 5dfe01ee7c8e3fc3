"""Kernels are compiled where the tasks run, and only when there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ingest.runner import PoolRunner
from tests.features.lakes import make_lake, run_extract, variant

ROOT = Path(__file__).parents[2]


class Elsewhere:
    """A runner like that of a cluster: its workers are not the pool of this process."""

    workers = 2

    def __init__(self) -> None:
        self._pool = PoolRunner(self.workers)

    def map(self, task: Callable[[Any], Any], specs: Sequence[Any]) -> Iterator[Any]:
        return self._pool.map(task, specs)

    def close(self) -> None:
        self._pool.close()


@pytest.mark.slow
def test_workers_of_a_cluster_compile_where_they_are_and_that_is_told_once(tmp_path, monkeypatch):
    lake, kept, told = make_lake(tmp_path), tmp_path / "there", []
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(kept))  # this process has long decided where it keeps its own
    for seconds in (4.0, 5.0):
        runner = Elsewhere()
        assert run_extract(lake, variant("intervals", seconds=seconds), runner=runner, say=told.append).windows == 3
        runner.close()
        assert [path.name for path in kept.rglob("*.compiled")] == ["intervals.compiled"]
    assert told == ["the workers compile the kernels of intervals: up to a minute, once on each machine"]


def test_nothing_is_compiled_where_nothing_is_to_be_extracted(tmp_path):
    lake = make_lake(tmp_path)
    run_extract(lake, variant("intervals"))
    windows = ["--set", "intervals", "--seconds", "4", "--place", "start", "--samples-per-s", "2"]
    command = [sys.executable, "-c", "from app.cli import main; main()", "features", "extract", "--lake", str(lake)]
    command += [*windows, "--workers", "1", "--format", "json"]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "none"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["windows"], report["series_done"]) == (3, 0)
    assert "compiling" not in done.stderr
    assert not list((tmp_path / "none").rglob("*.compiled"))
