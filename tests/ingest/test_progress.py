"""An ingest tells which phase it is in, and how far, in bytes as they are stored."""

from __future__ import annotations

import gzip

import pytest

from ingest import checksum, plan
from ingest.pipeline import Progress
from tests.small_sources import GPU_FILE, gpu_file, gpu_row, lines, take, write

SAMPLES = gpu_file(*[gpu_row(i, 100) for i in range(200)])


@pytest.fixture
def told():
    """What an ingest told."""
    return []


def phases(told: list[Progress]) -> list[str]:
    return list(dict.fromkeys(progress.phase for progress in told))


def last(told: list[Progress], phase: str) -> tuple[int, int]:
    return next((p.bytes_done, p.bytes_total) for p in reversed(told) if p.phase == phase)


def test_planning_reading_and_committing_are_told_apart_from_the_first_moment(tmp_path, told):
    write(tmp_path, f"in/{GPU_FILE}", SAMPLES)
    take(tmp_path / "in", tmp_path / "lake", progress=told.append)
    assert told[0] == Progress("planning")
    assert told[-1] == Progress("committing")
    assert phases(told) == ["planning", "reading", "committing"]
    assert last(told, "reading") == (len(SAMPLES), len(SAMPLES))


def test_of_a_compressed_file_the_stored_bytes_count(tmp_path, told):
    stored = gzip.compress(SAMPLES.encode())
    write(tmp_path, f"in/{GPU_FILE}.gz", stored)
    taken = take(tmp_path / "in", tmp_path / "lake", progress=told.append)
    assert len(stored) < len(SAMPLES)
    assert last(told, "reading") == (len(stored), len(stored))
    assert taken.report.bytes_in == len(stored)


def test_large_files_that_are_known_are_verified_and_only_read_where_they_changed(tmp_path, told, monkeypatch):
    for module in (plan, checksum):
        monkeypatch.setattr(module, "BLOCK_BYTES", 1024)
    write(tmp_path, f"in/{GPU_FILE}", SAMPLES)
    write(tmp_path, "in/gpu/0001/102-n1.csv", SAMPLES)
    take(tmp_path / "in", tmp_path / "lake")
    take(tmp_path / "in", tmp_path / "lake", progress=told.append)
    assert phases(told) == ["planning", "verifying", "reading", "committing"]
    assert last(told, "verifying") == (2 * len(SAMPLES), 2 * len(SAMPLES))
    assert last(told, "reading") == (0, 0)
    told.clear()
    grown = SAMPLES + lines(gpu_row(300, 100))
    write(tmp_path, f"in/{GPU_FILE}", grown)
    take(tmp_path / "in", tmp_path / "lake", progress=told.append)
    assert last(told, "reading") == (len(grown), len(grown))
