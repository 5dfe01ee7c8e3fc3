"""An extraction that meets damage, or is stopped: what was finished by then is in the lake, and a repeat goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from features.extract import COMMIT_EVERY_S, extract
from ingest.errors import JobwattError, LakeError
from ingest.lake import Lake
from ingest.runner import PoolRunner, SerialRunner
from tests.features.lakes import gpu_name, job_file, make_lake, run_extract, variant
from tests.small_sources import take, write

NEVER_S = 1e9


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """The parts of a lake of the jobs 101 to 104, each in one of its own."""
    for job_id in range(101, 105):
        write(tmp_path / "source", gpu_name(job_id), job_file(watts=job_id))
        take(tmp_path / "source", tmp_path / "lake", cluster="one")
    return sorted((tmp_path / "lake" / "gpu_samples").rglob("*.parquet"))


def done(lake: Path) -> list[int]:
    series = Lake(lake).scan("feature_series").collect()
    assert sorted(Lake(lake).scan("features").collect()["job_id"]) == sorted(series["job_id"])
    return sorted(series["job_id"])


@pytest.mark.parametrize("least_windows", [1, 32])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_part_leaves_out_its_series_alone(parts, tmp_path, monkeypatch, least_windows, workers):
    """With 32, all four parts are one task."""
    monkeypatch.setattr("features.planning.LEAST_WINDOWS", least_windows)
    whole = parts[2].read_bytes()
    parts[2].write_bytes(whole[: len(whole) // 2])
    for _ in range(2):
        with (
            PoolRunner(workers) if workers > 1 else SerialRunner() as runner,
            pytest.raises(LakeError, match=r"part-000003-.* cannot be read .*; 1 series in damaged parts have no feat"),
        ):
            extract(tmp_path / "lake", variant(), runner=runner, commit_every_s=NEVER_S)
        assert done(tmp_path / "lake") == [101, 102, 104]
    parts[2].write_bytes(whole)
    report = run_extract(tmp_path / "lake")
    assert (report.rows, report.windows) == (1, 4)


class Stopped(SerialRunner):
    """Ends in an error after some tasks."""

    def __init__(self, after: int, error: BaseException) -> None:
        self.after, self.error = after, error

    def map(self, task, specs):
        for number, spec in enumerate(specs):
            if number == self.after:
                raise self.error
            yield task(spec)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), JobwattError("a worker process was killed")])
@pytest.mark.parametrize("commit_every_s", [COMMIT_EVERY_S, NEVER_S])
def test_what_is_finished_when_it_is_stopped_is_not_made_again(tmp_path, monkeypatch, error, commit_every_s):
    monkeypatch.setattr("features.planning.LEAST_WINDOWS", 1)
    lake = make_lake(tmp_path, jobs=4)
    with pytest.raises(type(error)):
        extract(lake, variant(), runner=Stopped(3, error), commit_every_s=commit_every_s)
    assert done(lake) == [101, 102, 103]
    report = run_extract(lake)
    assert (report.rows, report.series_done, report.windows) == (1, 1, 4)
