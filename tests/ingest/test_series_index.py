"""One job's place in the lake, found without reading the rest of the index."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest import manifest
from ingest.head import MANIFEST, Head
from ingest.manifest import write_pieces
from ingest.series_index import SeriesIndex
from ingest.staging import PIECES_SCHEMA

PIECES = "pieces-000001.parquet"


def piece(job_id: int | None, row_start: int, **other: object) -> dict[str, object]:
    usual = {"cluster": "one", "table": "gpu_samples", "part": "a", "rows": 10, "node": "n1", "gpu_index": 0}
    return {**usual, "job_id": job_id, "row_start": row_start, **other}


def index_of(root: Path, *pieces: dict[str, object]) -> SeriesIndex:
    schema = {"cluster": pl.String(), **PIECES_SCHEMA}
    write_pieces(root, PIECES, pl.DataFrame(pieces, schema=schema))
    return SeriesIndex(root, Head(1, pieces=PIECES))


@pytest.fixture
def in_groups_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "PIECES_IN_GROUP", 4)


def test_neighbours_of_one_part_are_one_stretch_and_other_parts_another(tmp_path):
    rows = [piece(7, 0), piece(7, 10), piece(7, 40), piece(7, 0, part="b", gpu_index=1), piece(8, 20)]
    assert index_of(tmp_path, *rows).find(7, None, None, None) == [("a", 0, 20), ("a", 40, 10), ("b", 0, 10)]


@pytest.mark.usefixtures("in_groups_of_four")
def test_every_job_is_found_whatever_row_groups_its_pieces_lie_in(tmp_path):
    jobs = [2**62, *range(5), *[3] * 9, 2**53 + 1, 2**53]  # one of them over three row groups
    rows = [piece(job, 100 * i) for i, job in enumerate(jobs)] + [piece(None, 5)] * 6
    rows += [piece(2, 7, table="cpu_samples", gpu_index=None)]
    index = index_of(tmp_path, *rows)
    assert pq.read_metadata(tmp_path / MANIFEST / PIECES).num_row_groups == 6
    for job in {*jobs, 77}:
        expected = [("a", 100 * i, 10) for i, other in enumerate(jobs) if other == job]
        assert sorted(index.find(job, None, None, None)) == expected


@pytest.mark.usefixtures("in_groups_of_four")
def test_looking_for_one_job_reads_nothing_of_the_others(tmp_path):
    rows = [piece(job, 10 * job) for job in range(40)]
    index_of(tmp_path, *rows)
    path = tmp_path / MANIFEST / PIECES
    meta = pq.read_metadata(path)
    content = bytearray(path.read_bytes())
    for group in set(range(meta.num_row_groups)) - {5}:
        for column in range(meta.num_columns):
            chunk = meta.row_group(group).column(column)
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            content[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(content)
    index = SeriesIndex(tmp_path, Head(1, pieces=PIECES))
    assert index.find(21, None, None, None) == [("a", 210, 10)]
    with pytest.raises((OSError, pa.ArrowException)):
        index.find(3, None, None, None)


def test_a_job_of_two_clusters_must_be_told_apart(tmp_path):
    index = index_of(tmp_path, piece(7, 0), piece(7, 0, cluster="two", part="b"))
    assert index.find(7, "two", None, None) == [("b", 0, 10)]
    with pytest.raises(ValueError, match="job 7 is in the clusters one and two; give one of them as cluster"):
        index.find(7, None, None, None)


def test_an_index_without_jobs_finds_none(tmp_path):
    assert index_of(tmp_path, piece(None, 0)).find(7, None, None, None) == []
