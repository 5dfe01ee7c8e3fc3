import csv
import math
from itertools import pairwise

import polars as pl
import pytest

import ingest.synthetic_hpca
from ingest.synthetic_hpca import DCGM_COLUMNS, make_hpca_archive
from ingest.synthetic_scheduler import HPCA_LOG_COLUMNS


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return make_hpca_archive(
        tmp_path_factory.mktemp("hpca"),
        rng=2,
        n_jobs=9,
        seconds_per_job=(15.0, 60.0),
        gpus_per_job=2,
        requeued_jobs=1,
        cpu_only_jobs=2,
        n_nodes=3,
    )


def samples(root):
    return pl.read_csv(root / "nvidia_smi.csv")


def test_answers_are_those_of_the_written_digits(archive):
    with (archive.root / "nvidia_smi.csv").open() as file:
        series = {}
        for row in csv.DictReader(file):
            series.setdefault((int(row["id_job"]), row["node"], int(row["gpu_index"])), []).append(
                (float(row["timestamp"]), float(row["power_draw_W"]))
            )
    for job in archive.jobs:
        for gpu in job.gpus:
            rows = series.pop((job.job_id, gpu.node, gpu.gpu_index))
            energy_j = math.fsum((t1 - t0) * (p0 + p1) / 2 for (t0, p0), (t1, p1) in pairwise(rows))
            assert gpu.energy_j == pytest.approx(energy_j, rel=1e-7)
            assert (gpu.rows, gpu.power_max_w) == (len(rows), max(p for _, p in rows))
    assert series == {}


def test_many_jobs_share_one_file_in_time_order(archive):
    frame = samples(archive.root)
    assert frame["timestamp"].is_sorted()
    assert frame.height == archive.rows["gpu_samples"]
    changes = (frame["id_job"].diff() != 0).sum()
    assert changes > frame.height / 4


def test_times_count_from_the_first_submission(archive):
    log = pl.read_csv(archive.root / "scheduler_data.csv", schema_overrides={"mem_req": pl.UInt64})
    assert log["time_submit"].min() == 0
    for job in archive.jobs:
        row = log.filter(id_job=job.job_id).tail(1)
        assert (row["time_start"].item(), row["time_end"].item()) == (job.start_s, job.end_s)
        for gpu in job.gpus:
            assert job.start_s <= gpu.first_time_us / 1e6 < gpu.last_time_us / 1e6 <= job.end_s


def test_the_columns_are_the_releases(archive):
    assert samples(archive.root).columns[-1] == "id_job"
    assert pl.read_csv(archive.root / "scheduler_data.csv", infer_schema=False).columns == HPCA_LOG_COLUMNS
    assert pl.read_csv(archive.root / "dcgm.csv").columns == DCGM_COLUMNS
    assert (len(HPCA_LOG_COLUMNS), len(DCGM_COLUMNS)) == (31, 23)


def test_dcgm_summary_agrees_with_the_samples(archive):
    rows = {
        (r["id_job"], r["Node"], r["gpu_id"]): r for r in pl.read_csv(archive.root / "dcgm.csv").iter_rows(named=True)
    }
    assert len(rows) == archive.rows["gpu_job_summary"] == sum(len(job.gpus) for job in archive.jobs)
    for job in archive.jobs:
        for gpu in job.gpus:
            row = rows[job.job_id, gpu.node, gpu.gpu_index]
            assert row["energyconsumed_joules"] == pytest.approx(gpu.energy_j)
            assert row["powerusage_watts_avg"] * row["totalexecutiontime_sec"] == pytest.approx(gpu.energy_j)
            assert row["powerusage_watts_min"] <= row["powerusage_watts_avg"] <= row["powerusage_watts_max"]


def test_cutting_the_file_into_slices_loses_no_sample(tmp_path, monkeypatch):
    arguments = {"rng": 3, "n_jobs": 4, "seconds_per_job": 40.0}
    whole = make_hpca_archive(tmp_path / "whole", **arguments)
    monkeypatch.setattr(ingest.synthetic_hpca, "_SLICE_ROWS", 150)
    sliced = make_hpca_archive(tmp_path / "sliced", **arguments)
    keys = ["timestamp", "node", "gpu_index", "id_job"]
    assert samples(sliced.root).select(keys).equals(samples(whole.root).select(keys))
    assert sorted(p.name for p in sliced.root.iterdir()) == ["dcgm.csv", "nvidia_smi.csv", "scheduler_data.csv"]
    by_id = {job.job_id: job for job in whole.jobs}
    for job in sliced.jobs:
        assert job.gpu_rows == by_id[job.job_id].gpu_rows
        assert job.energy_j == pytest.approx(by_id[job.job_id].energy_j, rel=0.05)


def test_the_number_of_workers_changes_nothing(tmp_path):
    arguments = {"rng": 5, "n_jobs": 40, "target_bytes": 25e6, "seconds_per_job": (100.0, 300.0)}
    alone = make_hpca_archive(tmp_path / "1", **arguments)
    pooled = make_hpca_archive(tmp_path / "2", **arguments, workers=2)
    assert (alone.jobs, alone.files) == (pooled.jobs, pooled.files)
    for name in ("nvidia_smi.csv", "dcgm.csv", "scheduler_data.csv"):
        assert (alone.root / name).read_bytes() == (pooled.root / name).read_bytes()
    assert alone.gpu_bytes == pytest.approx(25e6, rel=0.04)
