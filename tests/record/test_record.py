"""What records the batches: whole runs of the program on played GPUs, with children that need none."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ingest.collectors.hardware import GpuDevice
from ingest.collectors.replay import ReplayBackend, read_recording
from tests.record.programs import load, write_child
from tests.recorded_gpus import write_recording

pack, record = load("pack"), load("record")


class PlayedH100(ReplayBackend):
    """A recording under the name of a GPU that `pack` knows."""

    def describe(self, index: int) -> GpuDevice:
        return replace(super().describe(index), name="NVIDIA H100 80GB HBM3")


def record_batch(folder: Path, out: str, *, seconds: float = 0.1, **died: int) -> int:
    """Run the program on the first round of a batch and return its exit code."""
    source = write_recording(folder / "recorded", silent=(9e9, 9e9))
    child = write_child(folder / "child.py", **died)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "NvmlBackend", lambda: PlayedH100(read_recording(source)))
        patch.setattr(record, "CHILD", child)
        options = ["--seconds", str(seconds), "--rounds", "0:1", "--seed", "4711"]
        patch.setattr(sys, "argv", ["record.py", str(folder / out), *options])
        return int(record.main())


def jobs_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "jobs.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def batches(tmp_path_factory) -> Path:
    """A folder with the outputs of two runs of one round of one batch."""
    folder = tmp_path_factory.mktemp("batches")
    assert [record_batch(folder, out, seconds=2.2) for out in ("first", "again")] == [0, 0]
    return folder


def run_pack(patch: pytest.MonkeyPatch, archive: Path, *outs: Path) -> int:
    patch.setattr(sys, "argv", ["pack.py", str(archive), *map(str, outs)])
    return int(pack.main())


# -- recording ---------------------------------------------------------------------------------------------------------


def test_a_round_that_is_run_again_has_the_same_jobs_under_ids_of_their_own(batches):
    first, again = (sorted(jobs_of(batches / out), key=lambda job: job["gpus"]) for out in ("first", "again"))
    assert [(job["workload"], job["params"]) for job in first] == [(job["workload"], job["params"]) for job in again]
    assert {job["job_id"] for job in first}.isdisjoint(job["job_id"] for job in again)
    assert len({job["job_id"] for job in first}) == len(first) == 2


def test_a_child_that_dies_within_its_answer_leaves_a_record_of_a_failed_job(tmp_path):
    assert record_batch(tmp_path, "out", bytes_told=13, exit_code=9) == 1
    jobs = jobs_of(tmp_path / "out")
    assert [(job["exit_code"], job["steps"]) for job in jobs] == [(9, None)] * 2
    assert all("answered '{\"steps\": 12,', exit [9]" in job["error"] for job in jobs)


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ('{"steps": 3}\n', {"steps": 3}),
        ("", {"error": "no answer, exit [9]"}),
        ('{"st', {"error": "answered '{\"st', exit [9]"}),
        ("12\n", {"error": "answered '12\\n', exit [9]"}),
        ('{"error": "CUDA"}\n', {"error": "CUDA"}),
    ],
)
def test_an_answer_is_a_whole_line_of_json_and_anything_else_an_error(line, answer):
    assert record.read_answer(line, [9]) == answer


# -- packing -----------------------------------------------------------------------------------------------------------


def test_a_job_id_that_an_archive_beside_it_has_is_not_packed_again(batches, tmp_path, monkeypatch, capsys):
    assert run_pack(monkeypatch, tmp_path / "h100-98.tar.gz", batches / "first") == 0
    known = sorted(job["job_id"] for job in jobs_of(batches / "first"))
    assert pack.read_ids(tmp_path / "h100-98.tar.gz") == set(known)
    capsys.readouterr()
    assert run_pack(monkeypatch, tmp_path / "h100-99.tar.gz", batches / "first", batches / "again") == 1
    said = capsys.readouterr().err
    assert f"2 of 4 job ids are in {tmp_path / 'h100-98.tar.gz'} already, as {known[0]}" in said
    assert [path.name for path in tmp_path.iterdir()] == ["h100-98.tar.gz"]


def test_an_archive_is_packed_again_under_its_own_name_with_the_same_bytes(batches, tmp_path, monkeypatch):
    archive = tmp_path / "h100-98.tar.gz"
    assert run_pack(monkeypatch, archive, batches / "first") == 0
    before = archive.read_bytes()
    assert run_pack(monkeypatch, archive, batches / "first") == 0
    assert archive.read_bytes() == before


def test_a_folder_that_is_given_twice_is_refused(batches, tmp_path, monkeypatch, capsys):
    assert run_pack(monkeypatch, tmp_path / "h100-98.tar.gz", batches / "first", batches / "first") == 1
    assert "2 job ids are in these folders twice" in capsys.readouterr().err


def test_draws_that_another_archive_has_are_said(batches, tmp_path, monkeypatch, capsys):
    assert run_pack(monkeypatch, tmp_path / "h100-98.tar.gz", batches / "first") == 0
    assert capsys.readouterr().err == ""
    assert run_pack(monkeypatch, tmp_path / "h100-99.tar.gz", batches / "again") == 0
    said = capsys.readouterr().err
    assert f"2 of the jobs were drawn like jobs of {tmp_path / 'h100-98.tar.gz'}; another --seed" in said
