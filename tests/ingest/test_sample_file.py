"""Parts of GPU samples are encoded here; every reader finds the values, and what the general writer would have said."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import fastparquet
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import compiled, parquet_format, part_writer
from ingest.part_writer import PartWriter, arrow_schema
from ingest.parts import read_part
from ingest.sample_file import SampleFile
from ingest.schemas import GPU_SAMPLES
from ingest.staging import Staging

START = datetime(2021, 3, 1, tzinfo=UTC)
TYPES = {name: dtype for name, dtype in GPU_SAMPLES.columns.items() if name not in GPU_SAMPLES.never_null}


def edges(dtype: pl.DataType) -> st.SearchStrategy[float | None]:
    """Return values of a column, its largest and smallest among them."""
    if dtype.is_float():
        wide = st.floats(width=32 if dtype == pl.Float32 else 64, allow_nan=False)
        hundredths = st.integers(0, 90_000).map(lambda n: float(np.float32(n / 100)))
        return st.one_of(st.none(), st.just(3.25), hundredths, wide)
    low, high = (int(pl.select(edge).item()) for edge in (dtype.min(), dtype.max()))
    return st.one_of(st.none(), st.just(7), st.integers(0, 120), st.integers(low, high))


@st.composite
def samples(draw: st.DrawFn) -> pl.DataFrame:
    """Return a stretch of one series, or a mixture of several, with columns of every kind of content."""
    rows = draw(st.integers(1, 70))
    columns: dict[str, pl.Series] = {}
    for name, dtype in TYPES.items():
        value = edges(dtype)
        kind = draw(st.sampled_from(["absent", "constant", "any"]))
        some = [draw(value)] * rows if kind == "constant" else [draw(value) for _ in range(rows)]
        if kind != "absent":
            columns[name] = pl.Series(some, dtype=dtype)
    step_us = draw(st.lists(st.integers(0, draw(st.sampled_from([3, 2**27]))), min_size=rows, max_size=rows))
    columns["time"] = pl.Series([START + timedelta(microseconds=int(us)) for us in np.cumsum(step_us)])
    nodes = draw(st.lists(st.sampled_from(["n1", "node-2", "ñ"]), min_size=1, max_size=3))
    columns["node"] = pl.Series([nodes[i % len(nodes)] for i in range(rows)])
    columns["gpu_index"] = pl.Series([i % draw(st.integers(1, 3)) for i in range(rows)])
    return GPU_SAMPLES.conform(pl.DataFrame(columns))


def with_nodes_numbered(frame: pl.DataFrame) -> pl.DataFrame:
    """Return samples as the pipeline has them: node as one of the texts of a batch, of which some do not occur."""
    nodes = sorted({*frame["node"], "a", "zz"})
    return frame.with_columns(pl.col("node").cast(pl.Enum(nodes)))


def written(path: Path, frame: pl.DataFrame, cuts: list[int] | None = None) -> Path:
    with PartWriter(path, GPU_SAMPLES, stretches=True) as writer:
        writer.write(with_nodes_numbered(frame), cuts)
    return path


def by_duckdb(path: Path) -> pl.DataFrame:
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        return pl.DataFrame(pl.from_arrow(connection.sql(f"select * from '{path}'").to_arrow_table()))


def by_fastparquet(path: Path) -> pl.DataFrame:
    return pl.from_pandas(fastparquet.ParquetFile(str(path)).to_pandas())


READERS: dict[str, Callable[[Path], pl.DataFrame]] = {
    "pyarrow": lambda path: pl.DataFrame(pl.from_arrow(pq.read_table(path, page_checksum_verification=True))),
    "polars": pl.read_parquet,
    "duckdb": by_duckdb,
    "fastparquet": by_fastparquet,
}


@settings(max_examples=30)
@given(frame=samples(), cut=st.integers(0, 69))
def test_what_is_written_is_read_back_by_every_reader(tmp_path_factory, frame, cut):
    path = written(tmp_path_factory.mktemp("part") / "x.parquet", frame, sorted({0, cut % frame.height}))
    for name, read in READERS.items():
        found = read(path)
        if name == "fastparquet":  # it knows no null in a column of floats or whole numbers but NaN
            found = found.with_columns(pl.col(pl.Float32, pl.Float64).fill_nan(None))
        assert GPU_SAMPLES.conform(found).equals(frame), name


@settings(max_examples=20)
@given(frame=samples())
def test_the_footer_says_what_the_general_writer_says(frame):
    table = frame.to_arrow().cast(arrow_schema(GPU_SAMPLES))
    theirs_file = io.BytesIO()
    pq.write_table(table, theirs_file, store_schema=False, write_statistics=list(GPU_SAMPLES.key))
    theirs = pq.ParquetFile(theirs_file)
    ours_file = io.BytesIO()
    ours = _metadata(frame, ours_file)
    assert ours.schema.equals(theirs.metadata.schema)
    assert (ours.num_rows, ours.num_row_groups) == (frame.height, 1)
    for i, name in enumerate(GPU_SAMPLES.columns):
        mine, other = (metadata.row_group(0).column(i) for metadata in (ours, theirs.metadata))
        assert (mine.num_values, mine.path_in_schema) == (other.num_values, other.path_in_schema)
        assert mine.statistics.null_count == frame[name].null_count()
        if name in GPU_SAMPLES.key:
            assert mine.statistics.has_min_max == other.statistics.has_min_max
            assert (mine.statistics.min, mine.statistics.max) == (other.statistics.min, other.statistics.max)


def _metadata(frame: pl.DataFrame, file: io.BytesIO) -> pq.FileMetaData:
    table = frame.to_arrow().cast(arrow_schema(GPU_SAMPLES))
    at = table.schema.get_field_index("node")
    table = table.set_column(
        at, pa.field("node", pa.dictionary(pa.int32(), pa.string()), nullable=False), table["node"].dictionary_encode()
    )
    writer = SampleFile(file, table.schema, level=1, with_range=GPU_SAMPLES.key)
    writer.write_table(table)
    writer.close()
    return pq.ParquetFile(file).metadata


def test_bytes_of_a_constant_and_of_an_absent_column_do_not_grow_with_the_rows(tmp_path):
    sizes = []
    for rows in (1_000, 60_000):
        frame = pl.DataFrame({"job_id": [5] * rows, "power_w": [12.5] * rows, "node": ["n"] * rows, "gpu_index": 0})
        frame = frame.with_columns(time=pl.lit(START))
        path = written(tmp_path / f"{rows}.parquet", GPU_SAMPLES.conform(frame))
        sizes.append(path.stat().st_size)
        assert read_part(path).equals(GPU_SAMPLES.conform(frame))
    assert sizes[1] - sizes[0] < 100


@pytest.mark.parametrize("distinct", [1, 2, 256, 257, 5_000, 30_000, 65_536, 65_537])
def test_powers_of_any_number_of_different_values_are_read_back(tmp_path, distinct):
    rng = np.random.default_rng(distinct)
    values = (rng.permutation(np.arange(100_000) % distinct) / 100).astype(np.float32)
    frame = pl.DataFrame({"power_w": values, "node": ["n"] * 100_000, "gpu_index": 0, "job_id": 1})
    frame = GPU_SAMPLES.conform(frame.with_columns(time=pl.lit(START)))
    path = written(tmp_path / "x.parquet", frame)
    for reader in READERS.values():
        assert (reader(path)["power_w"].to_numpy() == values).all()


def test_powers_that_are_no_hundredths_and_a_negative_zero_keep_every_bit(tmp_path):
    values = np.array([214.371, -0.0, 1e-30, 2_621.44, 0.01, 3.14159], np.float32)
    frame = pl.DataFrame({"power_w": values, "node": ["n"] * 6, "gpu_index": 0, "job_id": 1})
    path = written(tmp_path / "x.parquet", GPU_SAMPLES.conform(frame.with_columns(time=pl.lit(START))))
    assert read_part(path)["power_w"].to_numpy().tobytes() == values.tobytes()


def test_without_compiled_functions_the_values_are_the_same(tmp_path, monkeypatch):
    rng = np.random.default_rng(3)
    frame = pl.DataFrame({"power_w": (rng.integers(0, 9_000, 500) / 100).astype(np.float32), "job_id": 1})
    frame = frame.with_columns(node=pl.lit("n"), gpu_index=pl.lit(0), gpu_util_pct=pl.Series(rng.integers(0, 99, 500)))
    times = [START + timedelta(microseconds=int(us)) for us in np.cumsum(rng.integers(90_000, 110_000, 500))]
    frame = GPU_SAMPLES.conform(frame.with_columns(time=pl.Series(times)))
    monkeypatch.setattr(compiled, "compiled", lambda: None)
    monkeypatch.setattr(compiled, "is_available", lambda: False)
    monkeypatch.setattr(part_writer, "is_available", lambda: False)
    monkeypatch.setattr(SampleFile, "__init__", None)
    path = written(tmp_path / "x.parquet", frame)
    for reader in READERS.values():
        assert GPU_SAMPLES.conform(reader(path)).equals(frame)


def few(rows: int = 3, **columns: object) -> pl.DataFrame:
    values = {"node": ["n"] * rows, "gpu_index": [0] * rows, "time": [START] * rows, **columns}
    return GPU_SAMPLES.conform(pl.DataFrame(values))


@pytest.mark.parametrize(
    "columns", [{"node": ["a", None, "b"]}, {"gpu_index": [0, None, 1]}, {"time": [START, START, None]}]
)
def test_a_null_where_none_may_be_is_refused_and_leaves_no_file(tmp_path, columns):
    with (
        pytest.raises(ValueError, match=r"^\w+ is null in 1 of 3 rows"),
        PartWriter(tmp_path / "x", GPU_SAMPLES) as writer,
    ):
        writer.write(few(**columns))
    assert not list(tmp_path.iterdir())


def test_a_part_that_cannot_be_finished_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(SampleFile, "close", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"), PartWriter(tmp_path / "x", GPU_SAMPLES) as writer:
        writer.write(few())
    assert not list(tmp_path.iterdir())


def test_a_very_long_text_is_kept_but_not_repeated_in_the_footer(tmp_path):
    frame = few(node=["n" * 5000] * 3)
    with PartWriter(tmp_path / "x", GPU_SAMPLES) as writer:
        writer.write(frame)
    metadata = pq.ParquetFile(tmp_path / "x").metadata
    column = metadata.row_group(0).column(metadata.schema.names.index("node"))
    assert column.statistics is None or not column.statistics.has_min_max
    assert read_part(tmp_path / "x").equals(frame)


@pytest.mark.slow
def test_more_row_groups_than_sixteen_bits_count_are_all_read(tmp_path):
    frame = few(33_000, job_id=range(33_000))
    with PartWriter(tmp_path / "x.parquet", GPU_SAMPLES, stretches=True) as writer:
        writer.write(frame, range(33_000))
    assert pq.ParquetFile(tmp_path / "x.parquet").metadata.num_row_groups == 33_000
    assert pl.read_parquet(tmp_path / "x.parquet").equals(frame)
    assert GPU_SAMPLES.conform(by_duckdb(tmp_path / "x.parquet")).equals(frame)


def test_short_stretches_after_a_long_one_are_not_a_row_group_each(tmp_path):
    staging = Staging(str(tmp_path), "task")
    long = few(9_000, job_id=[1] * 9_000, file=[0] * 9_000)
    short = few(400, job_id=range(2, 402), file=[0] * 400)
    for frame in (long, short):
        staging.store("gpu_samples", frame.with_columns(file=pl.lit(0)), ["one.csv"])
    written, _ = staging.finish()
    groups = [pq.ParquetFile(part.path).metadata.num_row_groups for part in written if part.table == "gpu_samples"]
    assert groups == [1, 1]


@given(n=st.integers(-(2**63), 2**63 - 1))
def test_a_number_in_zigzag_is_decoded_to_itself(n):
    value = 0
    for i, byte in enumerate(parquet_format.number(n)):
        value |= (byte & 0x7F) << 7 * i
    assert (value >> 1) ^ -(value & 1) == n
