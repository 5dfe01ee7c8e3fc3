from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from ingest.errors import LakeError
from ingest.head import read_head, writing
from ingest.lake import Lake
from ingest.pipeline import ingest
from ingest.runner import SerialRunner
from ingest.schemas import TABLES
from ingest.synthetic import make_archive
from ingest.synthetic_hpca import make_hpca_archive
from ingest.synthetic_truth import ArchiveTruth
from tests.gpu_files import write_gpu_file

SAMPLE_COLUMNS = list(TABLES["gpu_samples"].columns)


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> ArchiveTruth:
    """An archive of jobs on one to eight GPUs of one to four nodes."""
    return make_archive(
        tmp_path_factory.mktemp("truth") / "archive", rng=3, n_jobs=7, seconds_per_job=(4.0, 12.0), cpu_only_jobs=1
    )


@pytest.fixture(scope="module")
def hpca_truth(tmp_path_factory: pytest.TempPathFactory) -> ArchiveTruth:
    """Jobs of the other release, all in one interleaved file."""
    return make_hpca_archive(tmp_path_factory.mktemp("truth") / "hpca", rng=4, n_jobs=5, seconds_per_job=(5.0, 20.0))


@pytest.fixture(scope="module")
def root(truth: ArchiveTruth, hpca_truth: ArchiveTruth, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake of two clusters, in several parts."""
    lake = tmp_path_factory.mktemp("lake") / "lake"
    ingest(str(truth.root), lake, cluster="one", runner=SerialRunner())
    ingest(str(hpca_truth.root), lake, cluster="two", runner=SerialRunner())
    return lake


@pytest.fixture(scope="module")
def lake(root: Path) -> Lake:
    """The lake, opened."""
    return Lake(root)


@pytest.fixture
def own(root: Path, tmp_path: Path) -> Path:
    """A copy of the lake that a test may spoil."""
    return Path(shutil.copytree(root, tmp_path / "lake"))


def part(root: Path, table: str, cluster: str = "one") -> Path:
    """Return the first file of a table."""
    return sorted((root / table / f"cluster={cluster}").glob("*.parquet"))[0]


# -- scan --------------------------------------------------------------------------------------------------------------


def test_every_row_that_the_archives_have_is_in_the_table(truth, hpca_truth, lake):
    for table in ("gpu_samples", "jobs", "cpu_samples", "node_samples", "labels"):
        rows = dict(lake.scan(table).group_by("cluster").len().collect().iter_rows())
        expected = {"one": truth.rows.get(table, 0), "two": hpca_truth.rows.get(table, 0)}
        assert rows == {cluster: n for cluster, n in expected.items() if n}


def test_a_scan_has_the_table_s_columns_and_the_cluster(lake):
    for name, table in TABLES.items():
        assert dict(lake.scan(name).collect_schema()) == {**table.columns, "cluster": pl.String()}


def test_a_scan_of_one_cluster_has_its_rows_only(lake):
    both = lake.scan("gpu_samples").collect()
    for cluster in ("one", "two"):
        assert_frame_equal(lake.scan("gpu_samples", cluster).collect(), both.filter(pl.col("cluster") == cluster))
    assert lake.scan("gpu_samples", "three").collect().height == 0
    assert lake.paths("gpu_samples", "three") == []


@pytest.mark.parametrize("use", [Lake.scan, Lake.paths])
def test_an_unknown_table_is_a_wrong_argument_that_names_those_there_are(use, lake):
    with pytest.raises(
        ValueError, match="no table 'samples' in a lake; there are jobs, devices, device_inventory, gpu_samples, "
    ):
        use(lake, "samples")


def test_a_folder_that_is_no_lake_is_refused(tmp_path):
    with pytest.raises(LakeError, match="is no lake"):
        Lake(tmp_path)


# -- one job -----------------------------------------------------------------------------------------------------------


def test_a_job_s_series_is_what_a_scan_would_find(truth, hpca_truth, lake):
    for cluster, archive in (("one", truth), ("two", hpca_truth)):
        samples = lake.scan("gpu_samples", cluster).drop("cluster").collect()
        for job in archive.jobs:
            expected = samples.filter(pl.col("job_id") == job.job_id).sort("node", "gpu_index", "time")
            found = lake.read_series(job.job_id, cluster=cluster)
            assert found.height == job.gpu_rows
            assert_frame_equal(found, expected, check_exact=True)


def test_a_job_is_narrowed_down_to_a_node_and_a_gpu(truth, lake):
    job = max(truth.jobs, key=lambda job: len(job.gpus))
    every = lake.read_series(job.job_id, cluster="one")
    for gpu in job.gpus:
        expected = every.filter((pl.col("node") == gpu.node) & (pl.col("gpu_index") == gpu.gpu_index))
        found = lake.read_series(job.job_id, cluster="one", node=gpu.node, gpu_index=gpu.gpu_index)
        assert found.height == gpu.rows > 0
        assert_frame_equal(found, expected)
    assert_frame_equal(
        lake.read_series(job.job_id, cluster="one", node=job.gpus[0].node),
        every.filter(pl.col("node") == job.gpus[0].node),
    )


@pytest.mark.parametrize("columns", [["power_w", "time"], ["gpu_index", "job_id", "node"], ["throttle"]])
def test_columns_come_in_the_order_asked_for(columns, truth, lake):
    job_id = truth.jobs[0].job_id
    assert lake.read_series(job_id, columns, cluster="one").columns == columns
    assert_frame_equal(
        lake.read_series(job_id, columns, cluster="one"), lake.read_series(job_id, cluster="one").select(columns)
    )


def test_an_unknown_job_has_no_rows_and_all_columns(lake):
    found = lake.read_series(-1)
    assert found.height == 0
    assert dict(found.schema) == TABLES["gpu_samples"].columns
    assert lake.read_series(-1, ["power_w", "time"]).columns == ["power_w", "time"]


def test_a_cluster_node_or_gpu_that_a_job_does_not_have_gives_no_rows(truth, lake):
    job_id = truth.jobs[0].job_id
    assert lake.read_series(job_id, cluster="two").height == 0
    assert lake.read_series(job_id, node="nowhere").height == 0
    assert lake.read_series(job_id, gpu_index=99).height == 0


def test_an_unknown_column_is_a_wrong_argument_even_of_an_unknown_job(truth, lake):
    for job_id in (-1, truth.jobs[0].job_id):
        with pytest.raises(ValueError, match="gpu_samples has no column 'watts'; it has job_id, node, gpu_index, time"):
            lake.read_series(job_id, ["time", "watts"])


def test_a_job_id_that_two_clusters_have_is_never_mixed(tmp_path):
    for cluster, watts in (("north", 100.0), ("south", 200.0)):
        write_gpu_file(tmp_path / cluster, 7, watts=watts)
        ingest(str(tmp_path / cluster), tmp_path / "lake", cluster=cluster, runner=SerialRunner())
    lake = Lake(tmp_path / "lake")
    with pytest.raises(ValueError, match="job 7 is in the clusters north and south; give one of them as cluster"):
        lake.read_series(7)
    assert lake.read_series(7, ["power_w"], cluster="north")["power_w"].unique().to_list() == [100.0]
    assert lake.read_series(7, ["power_w"], cluster="south")["power_w"].unique().to_list() == [200.0]


def test_more_parts_than_may_be_open_are_read_all_the_same(truth, root, monkeypatch):
    monkeypatch.setattr("ingest.lake._OPEN_FILES", 1)
    lake = Lake(root)
    for cluster in ("one", "two", "one"):
        jobs = lake.scan("gpu_samples", cluster).select("job_id").collect()["job_id"]
        assert lake.read_series(jobs[0], cluster=cluster).height == (jobs == jobs[0]).sum()


# -- info --------------------------------------------------------------------------------------------------------------


def test_info_counts_rows_files_and_bytes_as_they_are_on_disk(root, lake, truth, hpca_truth):
    info = lake.info()
    assert (info.root, info.generation, info.inputs) == (str(root), 2, lake.inputs().height)
    taken = [file for archive in (truth, hpca_truth) for file in archive.files]
    assert info.inputs >= len(taken)
    for table in info.tables:
        files = list((root / table.name).rglob("*.parquet"))
        assert table.files == len(files) == len(lake.paths(table.name))
        assert table.bytes == sum(path.stat().st_size for path in files)
        assert table.rows == sum(pq.read_metadata(path).num_rows for path in files)
        assert table.clusters == tuple(sorted({path.parent.name.removeprefix("cluster=") for path in files}))
    assert {table.name for table in info.tables} == {path.name for path in root.iterdir()} - {"_manifest"}


# -- check -------------------------------------------------------------------------------------------------------------


def test_a_sound_lake_has_no_problems(lake):
    report = lake.check()
    assert report.problems == ()
    assert (report.files, report.rows) == (
        sum(t.files for t in lake.info().tables),
        sum(t.rows for t in lake.info().tables),
    )


def replace_part(path: Path, table: pa.Table) -> None:
    """Write other rows into a part, leaving no trace elsewhere."""
    pq.write_table(table, path)


def spoil_truncate(root: Path, path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-20])
    return "cannot be read"


def spoil_a_page(root: Path, path: Path) -> str:
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 64] = bytes(64)
    path.write_bytes(content)
    return "cannot be read"


def spoil_remove(root: Path, path: Path) -> str:
    path.unlink()
    return "missing"


def spoil_row_count(root: Path, path: Path) -> str:
    table = pq.read_table(path, partitioning=None)
    replace_part(path, table.slice(0, table.num_rows - 1))
    return f"{table.num_rows - 1} rows, {path.stat().st_size} bytes; {table.num_rows}, "


def spoil_column(root: Path, path: Path) -> str:
    replace_part(path, pq.read_table(path, partitioning=None).drop_columns(["power_w"]))
    return "columns missing: power_w"


def spoil_order(root: Path, path: Path) -> str:
    table = pq.read_table(path, partitioning=None)
    replace_part(path, table.take([*range(10), 11, 10, *range(12, table.num_rows)]))
    return "the time of a series goes back, or repeats, in 1 places"


def spoil_repeat(root: Path, path: Path) -> str:
    table = pq.read_table(path, partitioning=None)
    replace_part(path, table.take([*range(10), 9, *range(11, table.num_rows)]))
    return "the time of a series goes back, or repeats, in 1 places"


@pytest.mark.parametrize(
    "spoil",
    [spoil_truncate, spoil_a_page, spoil_remove, spoil_row_count, spoil_column, spoil_order, spoil_repeat],
)
def test_check_finds_what_is_wrong_with_a_part_and_names_it(spoil, own):
    path = part(own, "gpu_samples")
    says = spoil(own, path)
    problems = Lake(own).check().problems
    assert any(p.startswith(f"gpu_samples/cluster=one/{path.name}: {says}") for p in problems), problems
    assert all(path.name in problem for problem in problems)


@pytest.mark.parametrize(
    ("name", "helps"),
    [("stray.parquet", "move it elsewhere"), ("part-000009-00000.parquet", "the next ingest removes it")],
)
def test_check_finds_a_file_that_is_not_the_lake_s(name, helps, own):
    shutil.copy(part(own, "jobs"), own / "jobs" / "cluster=one" / name)
    assert Lake(own).check().problems == (
        f"jobs/cluster=one/{name}: not part of the lake, but other readers take it for one; {helps}",
    )


@pytest.mark.parametrize("spoil", [spoil_truncate, spoil_remove, spoil_row_count, spoil_column])
def test_a_quick_check_finds_what_footers_tell_and_names_it(spoil, own):
    path = part(own, "gpu_samples")
    says = spoil(own, path)
    problems = Lake(own).check(values=False).problems
    assert any(p.startswith(f"gpu_samples/cluster=one/{path.name}: {says}") for p in problems), problems


def test_a_quick_check_reads_no_values(own, lake):
    spoil_a_page(own, part(own, "gpu_samples"))
    report = Lake(own).check(values=False)
    assert report == lake.check()


def test_a_check_tells_how_far_it_is_to_the_last_byte(lake):
    told: list[tuple[int, int]] = []
    lake.check(progress=lambda done, total: told.append((done, total)))
    total = sum(table.bytes for table in lake.info().tables)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert (len(told), told[-1]) == (lake.check().files, (total, total))


@pytest.mark.parametrize("which", ["inputs", "pieces"])
def test_check_finds_an_index_that_is_missing_or_damaged(which, own):
    path = own / "_manifest" / getattr(read_head(own), which)
    for spoil in (lambda: path.write_bytes(b"PAR1 no more"), path.unlink):
        spoil()
        (problem,) = Lake(own).check().problems
        assert f"{path} cannot be read (" in problem


def test_check_finds_rows_that_the_index_does_not_account_for(own):
    head = read_head(own)
    path = own / "_manifest" / head.pieces
    pieces = pl.read_parquet(path)
    first = pl.int_range(pl.len()) == 0
    pieces.with_columns(pl.when(first).then(pl.col("rows") - 1).otherwise(pl.col("rows"))).write_parquet(path)
    (problem,) = Lake(own).check().problems
    assert problem.startswith(pieces["part"][0])
    assert problem.endswith(" in the index")


def test_check_finds_inputs_whose_rows_do_not_add_up(own):
    path = own / "_manifest" / read_head(own).inputs
    inputs = pl.read_parquet(path)
    inputs.with_columns(pl.col("rows_out") - (pl.col("name") == inputs["name"][2]).cast(pl.Int64)).write_parquet(path)
    assert Lake(own).check().problems == (f"{inputs['name'][2]}: rows do not add up",)


@pytest.mark.parametrize("spoil", [spoil_truncate, spoil_a_page, spoil_remove])
def test_reading_from_a_damaged_part_is_one_clear_error(spoil, own, truth):
    for path in (own / "gpu_samples" / "cluster=one").iterdir():
        spoil(own, path)
    with pytest.raises(
        LakeError, match=rf"^{own} is damaged: [^\n]+; `jobwatt lake check --lake {own}` says what else$"
    ):
        Lake(own).read_series(truth.jobs[0].job_id)


# -- while others write ------------------------------------------------------------------------------------------------


@pytest.fixture
def changed(own: Path, truth: ArchiveTruth, tmp_path: Path) -> tuple[Lake, int]:
    """A lake that was opened before a commit which replaced files of it, and a job."""
    opened = Lake(own)
    archive = Path(shutil.copytree(truth.root, tmp_path / "archive"))
    for path in (archive / "gpu").rglob("*.csv"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[: len(lines) // 2]))
    ingest(str(archive), own, cluster="one", force=True, runner=SerialRunner())
    return opened, truth.jobs[0].job_id


@pytest.mark.parametrize(
    "use",
    [
        lambda lake, _: lake.scan("gpu_samples"),
        lambda lake, job_id: lake.read_series(job_id),
        lambda lake, _: lake.inputs(),
        lambda lake, _: lake.info(),
        lambda lake, _: lake.check(),
    ],
    ids=["scan", "read_series", "inputs", "info", "check"],
)
def test_a_lake_that_was_written_since_says_to_open_it_again(use, changed):
    lake, job_id = changed
    with pytest.raises(LakeError, match=r"was written since it was opened \(generation 2, now 3\); open it again$"):
        use(lake, job_id)
    use(Lake(lake.root), job_id)


def test_what_a_commit_did_not_touch_can_still_be_read(changed, lake):
    opened, _ = changed
    for table in ("gpu_samples", "jobs"):
        assert_frame_equal(opened.scan(table, "two").collect(), lake.scan(table, "two").collect())


def test_a_lake_between_commit_and_moves_is_read_as_committed(own, truth, tmp_path, monkeypatch):
    archive = Path(shutil.copytree(truth.root, tmp_path / "archive"))
    write_gpu_file(archive, 77, samples=30)
    with monkeypatch.context() as patch:
        patch.setattr("ingest.assembly.finish_moves", lambda *_: read_head(own))
        patch.setattr("ingest.head._leave", lambda *_: None)
        ingest(str(archive), own, cluster="one", runner=SerialRunner())
    assert read_head(own).moves
    opened = Lake(own)
    assert opened.read_series(77).height == 30
    (problem,) = opened.check().problems
    moves = len(read_head(own).moves)
    removes = sum(not name.startswith("_manifest/") for name in read_head(own).removes)
    assert problem.startswith(
        f"generation 3 is committed, but {moves} files are still to be put in their places and {removes} old ones"
    )
    assert problem.endswith(
        "readers other than jobwatt find the wrong files; the next ingest, of anything, finishes it"
    )
    before = opened.scan("job_stats").collect()
    with writing(own) as head:
        assert not head.moves
    assert opened.check().problems == ()
    assert_frame_equal(opened.scan("job_stats").collect(), before)
    assert opened.read_series(77).height == 30
    assert opened.read_series(truth.jobs[0].job_id).height == truth.jobs[0].gpu_rows


def test_a_part_that_is_moved_in_the_moment_of_opening_it_is_found(own, truth, monkeypatch):
    """A reader that has just seen that a file is not in its place yet looks for it there again."""
    opened = Lake(own)
    staged = own / "_staging" / "gone.parquet"
    monkeypatch.setattr("ingest.head.Head.path", lambda *_: staged)
    assert opened.read_series(truth.jobs[0].job_id).height == truth.jobs[0].gpu_rows
