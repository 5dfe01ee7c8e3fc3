from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest

from app.cli import run
from ingest import head as heads
from ingest.errors import LakeError
from ingest.head import NOW, read_head
from ingest.lake import Lake
from ingest.migrate import migrate_lake
from tests.features.lakes import gpu_name, job_file, make_lake, run_extract, variant
from tests.lakes import Tables, assert_same_tables, read_foreign, read_tables
from tests.older_lakes import GROWN, forget_rates, make_older
from tests.small_sources import LOG_HEADER, NODE_HEADER, START_S, gpu_file, gpu_row, lines, log_row, take, write


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A job with samples, node data and parameters."""
    root = tmp_path / "source"
    write(root, "gpu/0001/101-n1.csv", gpu_file(*[gpu_row(s) for s in range(5)]))
    write(root, "slurm-log.csv", lines(LOG_HEADER, log_row()))
    write(root, "node-data.csv", lines(NODE_HEADER, f"0,n1,{START_S},0:3|,0.1,1.5,300000000,7"))
    write(root, "job-parameters.csv", lines("id_job,workload", "101,resnet"))
    return root


@pytest.fixture
def older(source: Path, tmp_path: Path) -> tuple[Path, Tables]:
    """A lake of the older version, and what it holds."""
    lake = tmp_path / "lake"
    take(source, lake, cluster="one")
    expected = read_tables(lake)
    make_older(lake)
    return lake, expected


def test_a_lake_of_the_older_version_says_which_command_helps(older, capsys):
    lake, _ = older
    with pytest.raises(LakeError, match=rf"which the next ingest does too: jobwatt lake migrate --lake {lake}$"):
        Lake(lake)
    assert run(["lake", "info", "--lake", str(lake)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_migrated_it_holds_what_it_held_and_nulls(older):
    lake, expected = older
    migrated = migrate_lake(lake)
    assert (migrated.format_version_before, migrated.schema_version_before) == (2, 1)
    assert (migrated.format_version, migrated.schema_version, migrated.files_written) == (*NOW, len(GROWN))
    assert_same_tables(read_tables(lake), expected)
    assert_same_tables(read_foreign(lake), expected)
    assert Lake(lake).check().problems == ()
    assert Lake(lake).read_series(101).height == 5
    for table, columns in GROWN.items():
        found = Lake(lake).scan(table).select(columns).collect()
        assert found.height == 1
        assert all(found[name].null_count() == 1 for name in columns)


def test_features_of_an_older_lake_stay_and_still_go_with_their_samples(tmp_path):
    lake = make_lake(tmp_path)
    run_extract(lake, variant("covariance"))
    run_extract(lake)
    before = Lake(lake).scan_features(variant().name).drop("samples_per_s").collect()
    forget_rates(lake)
    migrated = migrate_lake(lake)
    assert (migrated.schema_version_before, migrated.files_written) == (2, 4)
    assert Lake(lake).check().problems == ()
    rows = Lake(lake).scan_features(variant().name).collect()
    assert rows["samples_per_s"].null_count() == 3
    assert rows.drop("samples_per_s").equals(before)
    assert run_extract(lake).is_repeated
    write(tmp_path / "source", gpu_name(102), job_file(watts=500.0, seconds=11.0))
    taken = take(tmp_path / "source", lake, cluster="one")
    assert taken.lake.scan("features").collect()["job_id"].sort().to_list() == [101, 101, 103, 103]


def test_migrating_again_changes_nothing(older, capsys):
    lake, _ = older
    assert run(["lake", "migrate", "--lake", str(lake)]) == 0
    before = read_head(lake)
    assert run(["lake", "migrate", "--lake", str(lake)]) == 0
    assert read_head(lake) == before


def test_without_a_lake_there_is_nothing_to_migrate(tmp_path):
    with pytest.raises(LakeError, match="is no lake"):
        migrate_lake(tmp_path / "lake")
    assert not (tmp_path / "lake").exists()


def test_the_next_ingest_brings_an_older_lake_up(older, source, tmp_path):
    lake, expected = older
    same = take(source, lake, cluster="one")
    assert same.report.files_unchanged == 4
    assert_same_tables(read_tables(lake), expected)
    write(source, "gpu/0001/102-n1.csv", gpu_file(gpu_row(0)))
    assert take(source, lake, cluster="one").lake.scan("gpu_samples").collect().height == 6


@pytest.mark.parametrize("point", ["write_head", "finish_moves"])
def test_a_migration_that_dies_leaves_the_lake_as_it_was_or_done(point, older, source, monkeypatch, tmp_path):
    lake, expected = older
    was = tmp_path / "was"
    shutil.copytree(lake, was)

    class DiedError(Exception):
        pass

    def die(*_: object) -> None:
        raise DiedError

    with monkeypatch.context() as patch:
        patch.setattr(f"ingest.migrate.{point}", die)
        patch.setattr(heads, "_leave", lambda *_: None)  # nobody cleans up after a process that was killed
        with pytest.raises(DiedError):
            migrate_lake(lake)
    assert read_head(lake, older=True).version == ((2, 1) if point == "write_head" else NOW)
    migrate_lake(lake)
    assert_same_tables(read_tables(lake), expected)
    assert_same_tables(read_foreign(lake), expected)
    assert take(source, lake, cluster="one").report.files_unchanged == 4
    assert [path.name for path in (lake / "_manifest").glob("*.parquet")].__len__() == 2
    assert pl.read_parquet(lake / "node_samples/*/*.parquet").height == 1
