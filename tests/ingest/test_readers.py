"""Five readers that know nothing of jobwatt, and what each of them finds in a lake's folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb
import fastparquet
import pandas as pd
import polars as pl
import polars.selectors as cs
import pyarrow.dataset as ds
import pytest
from polars.testing import assert_frame_equal

from features.extract import extract
from features.variant import Variant
from features.windows import WindowSpec
from ingest.cluster_name import check_cluster_name
from ingest.lake import Lake
from ingest.pipeline import ingest
from ingest.runner import SerialRunner
from ingest.schemas import TABLES
from ingest.synthetic import make_archive
from tests.gpu_files import write_gpu_file
from tests.lakes import in_order
from tests.spool_files import device_cells, event_cells, make_spool, write_segment

WINDOWS = Variant("statistical", WindowSpec(5.0))


@pytest.fixture(scope="module")
def root(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake of a recording that has columns beyond the release's, and of made-up jobs that lack them."""
    folder = tmp_path_factory.mktemp("readers")
    make_archive(folder / "made-up", rng=8, n_jobs=3, seconds_per_job=8.0, cpu_only_jobs=1)
    write_gpu_file(folder / "made-up", 5, bad="no number,0,1,1,1,1,1,1,1,1")
    spool = make_spool(folder / "spool")
    write_segment(spool, "devices", 1, [device_cells(0.0)])
    write_segment(spool, "events", 1, [event_cells(0.0, "start"), event_cells(1.0, "late", "by a little")])
    sources = {"recording": recording, "made-up": folder / "made-up", "live": spool}
    for cluster, source in sources.items():
        ingest(str(source), folder / "lake", cluster=cluster, runner=SerialRunner())
    extract(folder / "lake", WINDOWS, runner=SerialRunner())
    return folder / "lake"


@pytest.fixture(scope="module")
def lake(root: Path) -> Lake:
    """The lake, opened."""
    return Lake(root)


def with_polars(folder: Path) -> pl.DataFrame:
    return pl.scan_parquet(folder, hive_partitioning=True).collect()


def with_pyarrow(folder: Path) -> pl.DataFrame:
    table = ds.dataset(folder, format="parquet", partitioning="hive").to_table()
    return pl.DataFrame(pl.from_arrow(table))


def with_duckdb(folder: Path) -> pl.DataFrame:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        query = f"SELECT * FROM read_parquet('{folder}/*/*.parquet', hive_partitioning = true)"
        return pl.DataFrame(pl.from_arrow(connection.sql(query).to_arrow_table()))


def with_pandas(folder: Path) -> pl.DataFrame:
    return pl.from_pandas(pd.read_parquet(folder, engine="pyarrow", dtype_backend="numpy_nullable"))


def with_fastparquet(folder: Path) -> pl.DataFrame:
    files = sorted(str(path) for path in folder.glob("*/*.parquet"))
    found = pl.from_pandas(fastparquet.ParquetFile(files, root=str(folder)).to_pandas())
    return found.with_columns(cs.datetime().dt.replace_time_zone("UTC"))  # it does not say that its times are UTC


READERS: dict[str, Callable[[Path], pl.DataFrame]] = {
    "polars": with_polars,
    "pyarrow": with_pyarrow,
    "duckdb": with_duckdb,
    "pandas": with_pandas,
    "fastparquet": with_fastparquet,
}


def test_the_lake_has_every_table_and_columns_that_are_null_in_one_cluster_only(lake):
    assert {table.name for table in lake.info().tables} >= set(TABLES) - {"gpu_job_summary"}
    counts = lake.scan("gpu_samples").group_by("cluster").agg(pl.col("sm_clock_mhz").count() > 0).collect()
    assert dict(counts.iter_rows()) == {"recording": True, "made-up": False}


@pytest.mark.parametrize("table", [name for name in TABLES if name not in ("gpu_job_summary", "features")])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_finds_equal_values_of_equal_types(reader, table, root, lake):
    expected = in_order(lake.scan(table).collect())
    found = READERS[reader](root / table)
    assert set(found.columns) == set(expected.columns)
    found = found.select(expected.columns).with_columns(pl.col("cluster").cast(pl.String))  # pandas: a category
    assert_frame_equal(in_order(found), expected, check_exact=True)


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_finds_the_features_of_one_variant_in_its_folder(reader, root, lake):
    expected = in_order(lake.scan_features(WINDOWS.name).collect())
    assert expected.height > 100
    found = READERS[reader](root / "features" / WINDOWS.name)
    assert set(found.columns) == set(expected.columns)
    found = found.select(expected.columns).with_columns(pl.col("cluster").cast(pl.String))
    assert_frame_equal(in_order(found), expected, check_exact=True)


@pytest.mark.parametrize(
    "name", ["a007", "None", "null", "no", "e5", "p100-hall", "mayflower", "v1.2", "now", "T", "d-7"]
)
def test_a_cluster_name_that_is_allowed_is_the_same_text_to_every_reader(name, tmp_path):
    folder = tmp_path / "lake" / f"cluster={check_cluster_name(name)}"
    folder.mkdir(parents=True)
    pl.DataFrame({"a": [1]}).write_parquet(folder / "part.parquet")
    for reader, read in READERS.items():
        assert read(tmp_path / "lake")["cluster"].cast(pl.String).to_list() == [name], reader


NUMBERS = ["007", "1e5", "nan", "inf", "Infinity"]
OTHERS = ["true", "False", "2021-05-01", "NaT", "epoch", "May-2021", "T10", "P1D"]


@pytest.mark.parametrize("name", [*NUMBERS, *OTHERS, "", "a b", "a/b", "..", "_a", "a\n", "ä", "a" * 101])
def test_a_cluster_name_that_readers_could_take_for_something_else_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"^cluster is "):
        check_cluster_name(name)
    with pytest.raises(ValueError, match=r"^cluster is "):
        ingest(str(tmp_path), tmp_path / "lake", cluster=name)
    assert not (tmp_path / "lake").exists()
