import ast
import csv
import hashlib
import math
import tarfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.synthetic import make_archive
from ingest.synthetic_files import CPU_COLUMNS, CPU_SUMMARY_COLUMNS, GPU_COLUMNS, pack
from ingest.synthetic_scheduler import (
    LOG_COLUMNS,
    RUN_S_QUANTILES,
    WAIT_S_QUANTILES,
    draw_gpus,
    draw_quantiles,
    plan_jobs,
)
from ingest.synthetic_signals import (
    GPU_MEMORY_MIB,
    SIGNATURES,
    Signals,
    draw_signals,
    draw_variant,
    seconds_since,
    tick_times_us,
)
from ingest.synthetic_truth import join, tally


def digest(root):
    """Return path to SHA-256 of every file below a folder."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def gpu_rows(truth):
    """Read every GPU file with the standard library: (job, node, GPU) to its rows in the order of the file."""
    series = {}
    for path in sorted((truth.root / "gpu").glob("*/*.csv")):
        job, _, node = path.stem.partition("-")
        with path.open() as file:
            for row in csv.DictReader(file):
                series.setdefault((int(job), node, int(row["gpu_index"])), []).append(row)
    return series


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return make_archive(
        tmp_path_factory.mktemp("made"),
        rng=11,
        n_jobs=8,
        seconds_per_job=(20.0, 75.0),
        requeued_jobs=2,
        cpu_only_jobs=3,
        labelled_share=0.7,
    )


def test_energy_peak_and_mean_are_those_of_the_written_digits(archive):
    series = gpu_rows(archive)
    for job in archive.jobs:
        for gpu in job.gpus:
            rows = series.pop((job.job_id, gpu.node, gpu.gpu_index))
            energy_j = math.fsum(
                (float(b["timestamp"]) - float(a["timestamp"]))
                * (float(a["power_draw_W"]) + float(b["power_draw_W"]))
                / 2
                for a, b in pairwise(rows)
            )
            assert gpu.energy_j == pytest.approx(energy_j, rel=1e-7)
            assert gpu.power_max_w == max(float(row["power_draw_W"]) for row in rows)
            assert gpu.gpu_util_mean_pct == pytest.approx(
                sum(int(row["utilization_gpu_pct"]) for row in rows) / len(rows)
            )
            assert gpu.rows == len(rows)
            assert gpu.memory_used_max_mib == max(int(row["memory_used_MiB"]) for row in rows)
            assert round(float(rows[0]["timestamp"]) * 1e6) == gpu.first_time_us
            assert round(float(rows[-1]["timestamp"]) * 1e6) == gpu.last_time_us
    assert series == {}


def test_a_job_adds_up_its_gpus(archive):
    job = max(archive.jobs, key=lambda job: len(job.gpus))
    assert job.energy_j == pytest.approx(math.fsum(gpu.power_mean_w * gpu.covered_s for gpu in job.gpus))
    assert job.power_max_w == max(gpu.power_max_w for gpu in job.gpus)
    assert min(g.power_mean_w for g in job.gpus) <= job.power_mean_w <= max(g.power_mean_w for g in job.gpus)


def test_every_file_is_told_with_its_rows_and_bytes(archive):
    told = {file.path: (file.rows, file.bytes) for file in archive.files}
    found = {}
    for path in archive.root.rglob("*.csv"):
        with path.open(newline="") as file:
            found[str(path.relative_to(archive.root))] = (sum(1 for _ in csv.reader(file)) - 1, path.stat().st_size)
    assert told == found
    assert archive.rows["gpu_samples"] == sum(job.gpu_rows for job in archive.jobs)


def test_the_layout_is_the_releases(archive):
    for path in archive.root.glob("gpu/*/*.csv"):
        job_id = int(path.stem.partition("-")[0])
        assert path.parent.name == f"{job_id % 100:04d}"
        assert 12 <= len(str(job_id)) <= 14
        assert path.open().readline().rstrip("\n").split(",") == list(GPU_COLUMNS)
    for path in archive.root.glob("cpu/*/*-timeseries.csv"):
        assert path.open().readline().rstrip("\n").split(",") == CPU_COLUMNS
    for path in archive.root.glob("cpu/*/*-summary.csv"):
        assert path.open().readline().rstrip("\n").split(",") == CPU_SUMMARY_COLUMNS
    assert (archive.root / "node-data.csv").open().readline().startswith(",Node,Time,UserPIDCount,")
    assert (archive.root / "labelled_jobids.csv").open().readline() == "id_job,model\n"
    assert "1002,gpu:volta\n" in (archive.root / "tres-mapping.txt").read_text()


def test_the_log_says_where_and_when_each_job_ran(archive):
    with (archive.root / "slurm-log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == LOG_COLUMNS
    assert len(LOG_COLUMNS) == 29
    last = {int(row["id_job"]): row for row in rows}
    for job in archive.jobs:
        row = last[job.job_id]
        assert ast.literal_eval(row["nodelist"]) == list(job.nodes)
        assert (int(row["time_start"]), int(row["time_end"])) == (job.start_s, job.end_s)
        assert ("1002=" in row["tres_alloc"]) == bool(job.gpus)
        for gpu in job.gpus:
            assert job.start_s * 10**6 <= gpu.first_time_us < gpu.last_time_us <= job.end_s * 10**6
    repeated = [job_id for job_id, n in Counter(int(row["id_job"]) for row in rows).items() if n == 2]
    assert sorted(repeated) == sorted(job.job_id for job in archive.jobs if job.attempts == 2)
    assert len(repeated) == 2


def test_the_log_has_the_markers_that_trip_readers(tmp_path):
    make_archive(tmp_path, rng=1, n_jobs=1, seconds_per_job=2.0, cpu_only_jobs=200, cpu_files=False, node_data=False)
    with (tmp_path / "slurm-log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    per_cpu = [row for row in rows if int(row["mem_req"]) >= 2**63]
    assert 30 < len(per_cpu) < 90
    assert any(row["timelimit"] == "4294967295" for row in rows)
    assert any(row["constraints"] == r"\N" for row in rows)
    assert {row["exit_code"] for row in rows if row["state"] == "5"} == {"256"}


def test_labels_are_of_the_labelled_jobs_alone(archive):
    frame = pl.read_csv(archive.root / "labelled_jobids.csv")
    assert dict(frame.iter_rows()) == archive.labels
    assert 0 < len(archive.labels) < 8


def test_gpus_of_a_node_are_interleaved_in_time_order(tmp_path):
    truth = make_archive(tmp_path, rng=2, n_jobs=1, seconds_per_job=30.0, gpus_per_job=4, nodes_per_job=2)
    paths = sorted(tmp_path.glob("gpu/*/*.csv"))
    assert len(paths) == 2
    for path in paths:
        frame = pl.read_csv(path)
        assert frame["timestamp"].is_sorted()
        assert frame["gpu_index"].to_list()[:4] == [0, 1, 0, 1]
    assert {(gpu.node, gpu.gpu_index) for gpu in truth.jobs[0].gpus} == {(n, g) for n in truth.nodes for g in (0, 1)}


def test_sixty_seconds_hold_the_540_samples_of_the_challenge_and_no_600():
    ticks = tick_times_us(0, 600_000_000, 3, 0, 600_000_000)
    per_minute = np.bincount(ticks // 60_000_000)
    assert per_minute.min() >= 540
    assert per_minute.max() < 600
    assert (np.diff(ticks) > 0).all()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    one, two, other = (
        make_archive(tmp_path / name, rng=seed, n_jobs=3, seconds_per_job=5.0)
        for name, seed in (("a", 4), ("b", np.random.default_rng(4)), ("c", 5))
    )
    assert digest(one.root) == digest(two.root)
    assert one.jobs == two.jobs
    assert set(digest(one.root).values()).isdisjoint(
        value for path, value in digest(other.root).items() if not path.startswith("tres")
    )


def test_the_number_of_workers_changes_nothing(tmp_path):
    alone = make_archive(tmp_path / "1", rng=6, n_jobs=4, seconds_per_job=5.0)
    pooled = make_archive(tmp_path / "2", rng=6, n_jobs=4, seconds_per_job=5.0, workers=2)
    assert digest(alone.root) == digest(pooled.root)
    assert (alone.jobs, alone.files) == (pooled.jobs, pooled.files)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst"])
def test_an_archive_holds_the_folder_and_has_the_same_bytes_twice(tmp_path, suffix):
    folder = make_archive(tmp_path / "folder", rng=8, n_jobs=2, seconds_per_job=5.0)
    first = make_archive(tmp_path / f"first{suffix}", rng=8, n_jobs=2, seconds_per_job=5.0)
    again = pack(folder.root, tmp_path / f"again{suffix}")
    assert first.root.read_bytes() == again.read_bytes()
    assert first.files == folder.files
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["folder", f"first{suffix}", f"again{suffix}"])
    if suffix == ".tar.zst":
        plain = tmp_path / "plain.tar"
        with first.root.open("rb") as packed, plain.open("wb") as out:
            zstandard.ZstdDecompressor().copy_stream(packed, out)
        again = plain
    with tarfile.open(again) as tar:
        inside = {m.name: hashlib.sha256(tar.extractfile(m).read()).hexdigest() for m in tar.getmembers()}
    assert inside == digest(folder.root)


@pytest.mark.parametrize("n_jobs", [None, 5])
def test_target_bytes_is_met_within_four_per_cent(tmp_path, n_jobs):
    truth = make_archive(
        tmp_path, rng=9, n_jobs=n_jobs, target_bytes=2e6, seconds_per_job=(60, 120), cpu_files=False, node_data=False
    )
    slack = 0.04 if n_jobs else 0.3  # without n_jobs the last job may pass the mark
    assert truth.gpu_bytes == pytest.approx(2e6, rel=slack)
    assert n_jobs is None or len(truth.jobs) == n_jobs


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), gpus=st.lists(st.integers(1, 6), min_size=1, max_size=30))
def test_no_gpu_is_given_to_two_jobs_at_once(seed, gpus):
    rng = np.random.default_rng(seed)
    plans = plan_jobs(
        len(gpus),
        rng=rng,
        classes=["vgg11"],
        run_s=[float(s) for s in rng.uniform(2, 500, len(gpus))],
        gpus=gpus,
        nodes_per_job=None,
        labelled_share=1.0,
        n_requeued=0,
        n_cpu_jobs=0,
        n_nodes=3,
    )
    assert len({plan.job_id for plan in plans}) == len(plans)
    taken = {}
    for plan in plans:
        assert plan.submit_s < plan.start_s < plan.end_s
        for gpu in plan.gpus:
            taken.setdefault(gpu, []).append((plan.start_s, plan.end_s))
    for spans in taken.values():
        spans.sort()
        assert all(end < start for (_, end), (start, _) in pairwise(spans))


@pytest.mark.parametrize("quantiles", [RUN_S_QUANTILES, WAIT_S_QUANTILES])
def test_run_times_and_waits_have_the_published_quantiles(quantiles):
    drawn = draw_quantiles(quantiles, 40_000, np.random.default_rng(1))
    shares, published = zip(*quantiles[1:-1], strict=True)
    assert np.quantile(drawn, shares) == pytest.approx(published, rel=0.12)


def test_gpus_per_job_have_the_published_shares():
    drawn = Counter(draw_gpus(40_000, np.random.default_rng(1)))
    assert [drawn[k] / 40_000 for k in (1, 2, 4, 16)] == pytest.approx([0.8416, 0.1351, 0.0165, 0.0067], abs=0.006)


@pytest.fixture(scope="module")
def minutes():
    """Minute means of (utilisation, power, temperature) of 26 classes x 3 jobs of ten minutes."""
    rng = np.random.default_rng(3)
    means = []
    for label in sorted(SIGNATURES) * 3:
        ticks = tick_times_us(0, 600_000_000, int(rng.integers(2**40)), 0, 600_000_000)
        signals = draw_signals(draw_variant(SIGNATURES[label], 600.0, rng), seconds_since(0, ticks), rng)
        for minute in range(10):
            within = ticks // 60_000_000 == minute
            columns = (signals.gpu_util_pct, signals.power_cw / 100.0, signals.gpu_temp_c)
            means.append([column[within].mean() for column in columns])
    return np.array(means)


@pytest.mark.parametrize(
    ("low", "high", "published_10_pct_w", "published_90_pct_w"),
    [(1, 20, 38, 51), (20, 40, 45, 84), (40, 60, 90, 120), (60, 80, 101, 144), (80, 100, 143, 184)],
)
def test_median_power_by_utilisation_lies_in_the_published_range(
    minutes, low, high, published_10_pct_w, published_90_pct_w
):
    inside = (minutes[:, 0] >= low) & (minutes[:, 0] < high)
    assert inside.sum() >= 5
    assert published_10_pct_w <= np.median(minutes[inside, 1]) <= published_90_pct_w


def test_power_goes_with_utilisation_and_temperature_as_published(minutes):
    """Published correlations are 0.97 and 0.94, of five-minute means."""
    correlation = np.corrcoef(minutes[20:].T)
    assert correlation[0, 1] > 0.9
    assert correlation[1, 2] > 0.85


def test_classes_can_be_told_apart_by_simple_statistics():
    """Nearest class mean over eight statistics; chance is 1/26."""
    rng = np.random.default_rng(5)

    def describe(label):
        ticks = tick_times_us(0, 300_000_000, int(rng.integers(2**40)), 120_000_000, 180_000_000)
        s = draw_signals(draw_variant(SIGNATURES[label], 300.0, rng), seconds_since(0, ticks), rng)
        columns = (s.gpu_util_pct, s.memory_util_pct, np.log(s.memory_used_mib), s.power_cw)
        return [statistic(column) for column in columns for statistic in (np.mean, np.std)]

    labels = sorted(SIGNATURES)
    train = np.array([[describe(label) for _ in range(8)] for label in labels])
    test = np.array([[describe(label) for _ in range(4)] for label in labels]).reshape(104, -1)
    scale = train.reshape(26 * 8, -1).std(axis=0)
    distance = np.linalg.norm((test[:, None, :] - train.mean(axis=1)[None]) / scale, axis=2)
    hits = (distance.argmin(axis=1) == np.repeat(np.arange(26), 4)).mean()
    assert hits > 0.6


def test_signatures_are_the_challenge_classes():
    classes = pl.read_csv(Path(__file__).parents[2] / "ingest" / "workload_classes.csv")
    families = dict(classes.select("label", "family").iter_rows())
    assert {s.label: s.family for s in SIGNATURES.values()} == {label: families[label] for label in SIGNATURES}
    assert len(SIGNATURES) == 26
    assert sum(s.published_jobs for s in SIGNATURES.values()) == 3_430


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 60_000_000), max_size=5), seed=st.integers(0, 2**62), start=st.integers(0, 10**15))
def test_slices_of_a_clock_join_to_the_whole(cuts, seed, start):
    stop = start + 60_000_000
    edges = [start - 10**6, *sorted(start + cut for cut in cuts), stop]
    parts = [tick_times_us(start, stop, seed, a, b) for a, b in pairwise(edges)]
    assert np.array_equal(np.concatenate(parts), tick_times_us(start, stop, seed, edges[0], stop))


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(1, 99), seed=st.integers(0, 2**32))
def test_the_answers_of_two_slices_join_to_those_of_the_whole(cut, seed):
    rng = np.random.default_rng(seed)
    time_us = np.cumsum(rng.integers(90_000, 130_000, 100))
    columns = rng.integers(0, 100, (6, 100))
    parts = [
        tally("n", 1, time_us[piece], Signals(*(column[piece] for column in columns)))
        for piece in (slice(0, cut), slice(cut, None))
    ]
    whole, joined = tally("n", 1, time_us, Signals(*columns)), join(parts)
    assert joined.energy_j == pytest.approx(whole.energy_j)
    for name in ("rows", "first_time_us", "last_time_us", "power_max_w", "gpu_util_sum_pct", "memory_util_max_pct"):
        assert getattr(joined, name) == getattr(whole, name)


def test_memory_stays_within_the_gpu(archive):
    for rows in gpu_rows(archive).values():
        assert all(int(r["memory_free_MiB"]) + int(r["memory_used_MiB"]) == GPU_MEMORY_MIB for r in rows)
        assert all(int(r["memory_free_MiB"]) >= 0 for r in rows)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": ["vgg99"]}, "vgg99"),
        ({"classes": []}, "no name"),
        ({"seconds_per_job": 1.0}, "at least 2 s"),
        ({"seconds_per_job": (9.0, 3.0)}, "from low to high"),
        ({"gpus_per_job": 1, "nodes_per_job": 2}, "cannot be on 2 nodes"),
        ({"target_bytes": -1.0}, "positive"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        make_archive(tmp_path / "x", rng=1, **wrong)


def test_a_folder_with_files_in_it_is_not_written_over(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="not empty"):
        make_archive(tmp_path, rng=1)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
