from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from app.cli import run
from app.commands.demo import demo
from app.demo import SHIPPED_ARCHIVES, DemoReport, run_demo
from app.output import render
from ingest.lake import Lake
from ingest.runner import SerialRunner

CHALLENGE_CLASSES = 26
OUTSIDE_KINDS = {"fft-solver", "gemm", "gpt2", "idle-notebook", "llama-decode", "vit-base"}


@dataclass(frozen=True)
class Run:
    """The demo run twice into one lake, and what it told on the way."""

    report: DemoReport
    told: list[str]
    again: DemoReport
    folder: Path

    @property
    def lake(self) -> Lake:
        return Lake(self.folder / "lake")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("demo")
    told: list[str] = []
    report = run_demo(
        SHIPPED_ARCHIVES, folder / "lake", folder / "out" / "demo.html", runner=SerialRunner(), tell=told.append
    )
    again = run_demo(SHIPPED_ARCHIVES, folder / "lake", folder / "again.html", runner=SerialRunner())
    return Run(report, told, again, folder)


def test_every_row_of_the_recording_is_accounted_for(shipped: Run):
    counts = shipped.report.ingest
    assert counts["rows_in"] > 60_000
    assert counts["rows_in"] == counts["rows_out"] + counts["rows_unchanged"] + counts["rows_merged"]
    assert counts["rows_quarantined"] == 0


def test_each_job_gives_one_window_and_stands_in_one_class(shipped: Run):
    report = shipped.report
    assert (report.jobs, report.windows, report.series_without_window, report.jobs_outside) == (281, 296, 0, 51)
    assert sum(row.jobs for row in report.classes) == 281
    assert {row.label for row in report.classes if row.outside} == OUTSIDE_KINDS
    of_class = [row.jobs for row in report.classes if not row.outside]
    assert (len(of_class), sum(of_class), min(of_class)) == (CHALLENGE_CLASSES, 230, 7)


def test_the_score_is_better_than_guessing_and_says_how_sure_it_is(shipped: Run):
    for figures, classes in ((shipped.report.accuracy, 26), (shipped.report.family_accuracy, 10)):
        assert figures["classes"] == classes
        assert figures["jobs"] == 230
        assert figures["low_95pct"] < figures["accuracy"] < figures["high_95pct"]
        assert figures["low_95pct"] > max(figures["chance"], figures["majority"])
    assert shipped.report.family_accuracy["accuracy"] > shipped.report.accuracy["accuracy"]
    assert shipped.report.family_accuracy["majority"] == pytest.approx(79 / 230)  # the U-Nets


def test_recall_adds_up_to_the_accuracy_and_kinds_outside_have_none(shipped: Run):
    rows = shipped.report.classes
    hits = sum(row.jobs * row.recall for row in rows if row.recall is not None)
    assert hits / 230 == pytest.approx(shipped.report.accuracy["accuracy"])
    assert all((row.recall is None) == row.outside for row in rows)


def test_watts_and_joules_are_those_of_the_samples(shipped: Run):
    series = ["job_id", "node", "gpu_index"]
    samples = shipped.lake.scan("gpu_samples").select(*series, "time", "power_w").sort(*series, "time").collect()
    step_s = pl.col("time").diff().dt.total_microseconds() / 1e6
    by_series = samples.group_by(series, maintain_order=True).agg(
        energy_j=(step_s * (pl.col("power_w") + pl.col("power_w").shift()) / 2).sum(),
        run_s=step_s.sum(),
        power_max_w=pl.col("power_w").max(),
    )
    labels = shipped.lake.scan("labels").select("job_id", "label").collect()
    slow = {
        row["label"]: row
        for row in by_series.join(labels, on="job_id")
        .group_by("label")
        .agg(pl.col("energy_j", "run_s").sum(), pl.col("power_max_w").max())
        .to_dicts()
    }
    for row in shipped.report.classes:
        if not row.outside:
            assert row.energy_j == pytest.approx(slow[row.label]["energy_j"], rel=1e-6)
            assert row.power_mean_w == pytest.approx(slow[row.label]["energy_j"] / slow[row.label]["run_s"], rel=1e-6)
            assert row.power_max_w == slow[row.label]["power_max_w"]


def test_time_above_the_caps_is_that_of_plain_means_of_each_second(shipped: Run):
    samples = shipped.lake.scan("gpu_samples").select("job_id", "time", "power_w").collect()
    since_s = (pl.col("time") - pl.col("time").min()).over("job_id").dt.total_microseconds() // 1_000_000
    seconds = samples.with_columns(second=since_s).group_by("job_id", "second").agg(pl.col("power_w").mean())
    labels = shipped.lake.scan("labels").select("job_id", "label").collect()
    plain = (
        seconds.join(labels, on="job_id")
        .group_by("label")
        .agg(at_80=(pl.col("power_w") > 560.0).mean(), at_60=(pl.col("power_w") > 420.0).mean())
    )
    for label, at_80, at_60 in plain.iter_rows():
        row = next(row for row in shipped.report.classes if row.label == label)
        assert row.above_80pct_tdp == pytest.approx(at_80, abs=0.05)
        assert row.above_60pct_tdp == pytest.approx(at_60, abs=0.05)
        assert row.above_80pct_tdp <= row.above_60pct_tdp


def test_a_second_run_reads_the_lake_as_it_is_and_finds_the_same(shipped: Run):
    assert shipped.again.ingest["rows_unchanged"] == shipped.again.ingest["rows_in"]
    assert shipped.again.ingest["rows_out"] == 0
    assert shipped.again.classes == shipped.report.classes
    assert shipped.again.accuracy == shipped.report.accuracy


def test_each_step_is_told_before_it_is_done(shipped: Run):
    assert [line[:3] for line in shipped.told] == ["1/5", "2/5", "3/5", "4/5", "5/5"]


def test_the_page_holds_the_figures_the_classes_and_where_they_come_from(shipped: Run):
    text = (shipped.folder / "out" / "demo.html").read_text("utf-8")
    assert text.count('class="plotly-graph-div"') == 2
    assert all(row.label in text for row in shipped.report.classes)
    assert "first bound" in text
    assert "MEASURED" in text
    assert "h100-sxm5: TDP 700 W, so caps at 560 W and 420 W; h200: TDP 700 W, so caps at 560 W and 420 W" in text
    assert sorted(file.name for file in (shipped.folder / "out").iterdir()) == ["demo.html", "demo.jobs.csv"]


def test_the_command_prints_the_table_on_standard_output_and_the_steps_beside_it(shipped: Run):
    folder = shipped.folder
    result = CliRunner().invoke(
        demo, ["--lake", str(folder / "lake"), "--chart", str(folder / "c.html"), "--workers", "1"]
    )
    assert result.exit_code == 0
    assert "5/5" in result.stderr
    assert "5/5" not in result.stdout
    lines = result.stdout.partition("\nclasses\n")[2].splitlines()
    assert sum(line.split()[1:2] == ["no"] for line in lines) == CHALLENGE_CLASSES
    assert sum(line.split()[1:2] == ["yes"] for line in lines) == len(OUTSIDE_KINDS)


def test_as_json_what_is_not_known_is_null(shipped: Run):
    found = json.loads(render(shipped.report, "json"))
    assert found["jobs"] == 281
    assert found["classes"][0]["label"] == shipped.report.classes[0].label
    assert found["classes"][-1]["recall"] is None


def test_a_recording_that_is_not_there_is_one_line_and_exit_code_1(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    code = run(["demo", "--archive", str(tmp_path / "no.tar.zst"), "--lake", str(tmp_path / "lake")])
    said = capfd.readouterr().err.splitlines()
    assert code == 1
    assert len(said) == 1
    assert "no.tar.zst is not there; give a recording with --archive" in said[0]


def write_recording(folder: Path, jobs: dict[int, float]) -> Path:
    """A recording of bare GPU files: 20 s at 10 Hz of each job, at these watts; no log, no labels."""
    for job_id, watts in jobs.items():
        path = folder / "gpu" / f"{job_id % 100:04d}" / f"{job_id}-r1-n1.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [f"{1_600_000_000 + job_id * 100 + i / 10:.1f},0,50,20,30000,2000,40,41,{watts},16" for i in range(201)]
        head = (
            "timestamp,gpu_index,utilization_gpu_pct,utilization_memory_pct,memory_free_MiB,memory_used_MiB,"
            "temperature_gpu,temperature_memory,power_draw_W,pcie_link_width_current"
        )
        path.write_text("\n".join([head, *rows]) + "\n")
    return folder


def test_without_labels_and_gpu_types_there_are_watts_but_no_score_and_no_bound(tmp_path: Path):
    archive = write_recording(tmp_path / "recording", {1: 100.0, 2: 200.0, 3: 240.0})
    report = run_demo([archive], tmp_path / "lake", tmp_path / "demo.html", runner=SerialRunner())
    assert (report.accuracy, report.family_accuracy) == ({}, {})
    assert "fewer than two classes" in report.score_note
    assert report.tdp_w == {"unknown type": None}
    (row,) = report.classes
    assert (row.label, row.outside, row.jobs, row.recall) == ("not labelled", True, 3, None)
    assert row.power_mean_w == pytest.approx(180.0)
    assert row.energy_j == pytest.approx(20 * (100 + 200 + 240))
    assert (row.above_80pct_tdp, row.above_60pct_tdp) == (None, None)
    assert "not scored" in (tmp_path / "demo.html").read_text("utf-8")


def test_two_labelled_classes_are_scored_and_a_job_too_short_for_a_window_is_counted(tmp_path: Path):
    recording = write_recording(tmp_path / "recording", {job: 100.0 + 100.0 * (job % 2) for job in range(1, 13)})
    short = recording / "gpu" / "0012" / "12-r1-n1.csv"
    short.write_text("\n".join(short.read_text().splitlines()[:100]) + "\n")
    labels = [f"{job},{'vgg11' if job % 2 else 'pna'}" for job in range(1, 13)]
    (recording / "labelled_jobids.csv").write_text("\n".join(["id_job,model", *labels]) + "\n")
    report = run_demo([recording], tmp_path / "lake", tmp_path / "demo.html", runner=SerialRunner())
    assert (report.windows, report.series_without_window) == (11, 1)
    assert report.accuracy["accuracy"] == 1.0
    assert {row.label: (row.jobs, row.recall) for row in report.classes} == {"vgg11": (6, 1.0), "pna": (6, 1.0)}


def test_every_job_gets_a_class_and_its_watts_in_the_jobs_file(shipped: Run):
    report = shipped.report
    jobs = pl.read_csv(report.jobs_file)
    assert jobs.height == report.jobs
    assert jobs.select("predicted", "power_mean_w", "energy_j", "above_80pct_tdp").null_count().row(0) == (0, 0, 0, 0)
    told = jobs.filter(~pl.col("outside"))
    assert (told["label"] == told["predicted"]).mean() == pytest.approx(report.accuracy["accuracy"])
