"""Parts that are damaged: said in one line, and never taken for good."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from ingest.errors import LakeError
from ingest.head import read_head
from ingest.part_writer import PartWriter, write_part
from ingest.parts import PartReader, read_part, write_frame
from ingest.schemas import GPU_SAMPLES, LABELS
from tests.lakes import assert_same_tables, damage_first_page, read_tables
from tests.small_sources import gpu_file, gpu_row, lines, take, write


@pytest.fixture
def labels(tmp_path: Path) -> tuple[Path, pl.DataFrame]:
    """A part of 200 labels."""
    frame = LABELS.conform(pl.DataFrame({"job_id": range(200), "label": [f"class-{i % 7}" for i in range(200)]}))
    return Path(write_part(tmp_path / "labels.parquet", "labels", frame).path), frame


def test_a_flipped_bit_in_a_page_is_never_read_as_a_value(labels):
    path, frame = labels
    content = path.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little")
    said: list[str] = []
    for at in range(4, len(content) - 8 - footer):
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :])
        try:
            assert read_part(path).equals(frame), at
        except LakeError as error:
            said.append(str(error))
    assert len(said) > (len(content) - 8 - footer) / 2
    assert {text.partition(" (")[0] for text in said} == {f"{path} cannot be read"}
    assert not any("\n" in text for text in said)


def test_a_flipped_bit_in_an_index_is_never_read_as_a_value(tmp_path):
    frame = pl.DataFrame({"name": [f"gpu/0001/{i}-n1.csv" for i in range(300)], "rows": range(300)})
    path = tmp_path / "inputs.parquet"
    write_frame(path, frame)
    content = path.read_bytes()
    for at in range(4, len(content) // 3, 5):
        path.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
        try:
            assert read_part(path).equals(frame), at
        except LakeError:
            continue


@pytest.mark.parametrize("damage", ["cut", "gone", "tail", "prose"])
def test_a_part_that_cannot_be_read_is_one_clear_line(labels, damage):
    path, _ = labels
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": content[:-20], "tail": content[:-60] + b"x" * 60, "prose": b"no table"}[damage])
    with pytest.raises(
        LakeError, match=r"^\S+labels.parquet cannot be read \([^\n]+\); restore it from a backup, or ing"
    ):
        read_part(path)


def test_more_rows_than_a_part_has_are_not_read_as_fewer(labels):
    path, frame = labels
    with pytest.raises(LakeError, match=r"has 200 rows, not the 201 of the index"):
        read_part(path, 190, 11)
    assert read_part(path, 190, 10, ["label"]).equals(frame[190:200].select("label"))
    assert read_part(path, 200, 0).equals(frame.clear())


def test_a_stretch_is_read_alike_whatever_row_groups_it_lies_in(tmp_path, monkeypatch):
    monkeypatch.setattr("ingest.parts.FRAME_ROWS", 7)
    rows = [{"job_id": 1, "node": "n", "gpu_index": 0, "power_w": float(i)} for i in range(60)]
    times = [datetime(2021, 1, 1, tzinfo=UTC) + timedelta(seconds=i) for i in range(60)]
    frame = GPU_SAMPLES.conform(pl.DataFrame(rows).with_columns(time=pl.Series(times)))
    with PartWriter(tmp_path / "x.parquet", GPU_SAMPLES, stretches=True) as writer:
        writer.write(frame, [0, 10, 11, 40])
    reader = PartReader()
    for start in range(60):
        for stop in range(start + 1, 61):
            frames = list(reader.frames(tmp_path / "x.parquet", start, stop - start))
            assert max(part.height for part in frames) <= 7
            assert pl.concat(frames).equals(frame[start:stop])


def test_row_groups_of_other_times_are_not_read(tmp_path):
    """What is not read may be damaged, which is seen by that."""
    times = [datetime(2021, 1, 1, tzinfo=UTC) + timedelta(seconds=i) for i in range(60)]
    rows = pl.DataFrame({"job_id": [1] * 60, "node": "n", "gpu_index": 0, "power_w": range(60), "time": times})
    frame, path = GPU_SAMPLES.conform(rows), tmp_path / "x.parquet"
    with PartWriter(path, GPU_SAMPLES, stretches=True) as writer:
        writer.write(frame, range(0, 60, 20))
    begin_us = frame["time"].to_physical()[0]
    for first_s, end_s, expected in [(20, 40, (20, 40)), (19, 20, (0, 20)), (39, 41, (20, 60)), (60, 90, (0, 0))]:
        around_us = begin_us + first_s * 10**6, begin_us + end_s * 10**6
        found = list(PartReader().frames(path, 0, 60, around_us=around_us))
        assert pl.concat([frame.clear(), *found]).equals(frame[slice(*expected)])
    damage_first_page(path)
    assert list(PartReader().frames(path, 0, 60, around_us=(begin_us + 40 * 10**6, begin_us + 41 * 10**6)))
    with pytest.raises(LakeError):
        list(PartReader().frames(path, 0, 60))


@pytest.mark.parametrize("table", ["labels", "gpu_samples", "gpu_minutes", "quality", "jobs"])
@pytest.mark.parametrize("damage", ["tail", "page"])
def test_an_ingest_that_needs_a_damaged_part_says_so_and_leaves_the_lake_as_it_was(tmp_path, table, damage):
    for job in (101, 102):
        write(tmp_path, f"in/gpu/0001/{job}-n1.csv", gpu_file(*[gpu_row(i, 100 + i, util="N/A") for i in range(50)]))
    write(tmp_path, "in/labelled_jobids.csv", lines("id_job,model", "101,vgg16", "102,vgg16"))
    write(tmp_path, "in/slurm-log.csv", lines("id_job,time_start,time_end", "101,5,6", "102,5,6"))
    before = take(tmp_path / "in", tmp_path / "lake").report.generation
    (path,) = (tmp_path / "lake" / table).rglob("*.parquet")
    content = path.read_bytes()
    if damage == "tail":
        path.write_bytes(content[:-60] + b"x" * 60)
    else:
        damage_first_page(path)
    write(tmp_path, "in/gpu/0001/102-n1.csv", gpu_file(*[gpu_row(i, 100 + i) for i in range(60)]))
    with pytest.raises(LakeError, match=rf"^{path} cannot be read \("):
        take(tmp_path / "in", tmp_path / "lake")
    assert read_head(tmp_path / "lake").generation == before
    path.write_bytes(content)
    done = take(tmp_path / "in", tmp_path / "lake")
    assert len(done.series(102)) == 60
    take(tmp_path / "in", tmp_path / "fresh")
    found, whole = read_tables(tmp_path / "lake"), read_tables(tmp_path / "fresh")
    assert_same_tables(found, whole)
