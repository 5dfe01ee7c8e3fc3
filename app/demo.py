"""The whole line once: a recording becomes a lake, windows, features, a class for each job, and a first cap bound."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from app.charts import above_column
from app.demo_page import draw_page
from features.covariance import covariance, covariance_names
from features.statistical import statistic_names, statistics
from features.windows import CHALLENGE_CHANNELS, WindowSpec, cut_windows
from ingest.disk import write_whole
from ingest.errors import SourceError
from ingest.lake import Lake
from ingest.pipeline import IngestReport, Progress, ingest
from ingest.runner import Runner
from models.metrics import Score, score
from models.power.bound import CAP_SHARES, bound_caps, sum_bounds
from models.splits import jobs_per_class
from models.workload.baseline import CrossValidation, cross_validate

FloatArray = npt.NDArray[np.float64]

SHIPPED_ARCHIVES = tuple(sorted((Path(__file__).resolve().parents[1] / "data").glob("h[0-9]00-[0-9][0-9].tar.*")))
"""Every batch of recordings that ships."""

SPEC = WindowSpec(seconds=15, place="middle")
"""Most of the recordings last 22 s, so a window is shorter than the challenge's minute."""

SEED = 37

FEW_JOBS = 15
"""Fewer jobs a class than this, and the score says more of the recording than of the method."""

_SAMPLE_COLUMNS = ("job_id", "node", "gpu_index", "time", *CHALLENGE_CHANNELS)


@dataclass(frozen=True, slots=True)
class Recording:
    """The rows of one recording in a lake that may hold others, whose job ids mean other jobs."""

    lake: Lake
    cluster: str

    def scan(self, table: str) -> pl.LazyFrame:
        """Return a table's rows of this recording."""
        return self.lake.scan(table, self.cluster)

    def read_series(
        self, job_id: int, columns: Sequence[str], *, node: str | None = None, gpu_index: int | None = None
    ) -> pl.DataFrame:
        """Return the GPU samples of one job of this recording."""
        return self.lake.read_series(job_id, columns, cluster=self.cluster, node=node, gpu_index=gpu_index)


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One kind of job: how many, how well found, and what they draw. ``above_…`` are shares of time, first bound."""

    label: str
    outside: bool
    jobs: int
    recall: float | None
    power_mean_w: float | None
    power_max_w: float | None
    energy_j: float | None
    above_80pct_tdp: float | None
    above_60pct_tdp: float | None


@dataclass(frozen=True, slots=True)
class DemoReport:
    """Everything that the demo found, and where each figure comes from."""

    archives: tuple[str, ...]
    lake: str
    chart: str
    jobs_file: str
    ingest: dict[str, int]
    partial: bool
    tdp_w: dict[str, float | None]
    jobs: int
    jobs_outside: int
    windows: int
    series_without_window: int
    features: int
    accuracy: dict[str, float]
    family_accuracy: dict[str, float]
    score_note: str
    figures_from: dict[str, str]
    seconds: float
    classes: tuple[ClassRow, ...]


def run_demo(
    archives: Sequence[Path],
    lake_root: Path,
    chart: Path,
    *,
    runner: Runner,
    tell: Callable[[str], None] = lambda _: None,
    progress: Callable[[Progress], None] | None = None,
) -> DemoReport:
    """Return what recordings of one cluster tell, after ingesting them into ``lake_root`` and drawing into ``chart``.

    What the lake holds already is read as it is. ``tell`` gets a line before each step, ``progress`` how
    far the ingest is.
    """
    began = time.monotonic()
    absent = [archive for archive in archives if not archive.exists()]
    if absent or not archives:
        what = str(absent[0]) if absent else "the recordings that ship"
        raise SourceError(f"{what} is not there; give a recording with --archive, or run from a source checkout")
    tell(f"1/5  {', '.join(archive.name for archive in archives)} into the lake {lake_root}")
    reports = [ingest(str(archive), lake_root, runner=runner, progress=progress) for archive in archives]
    clusters = sorted({report.cluster for report in reports})
    if len(clusters) > 1:
        raise SourceError(f"the archives are of the clusters {' and '.join(clusters)}; give those of one")
    recording = Recording(Lake(lake_root), clusters[0])
    jobs = read_jobs(recording)

    tell(f"2/5  one window of {SPEC.seconds:g} s and {len(feature_names())} features from each GPU of {len(jobs)} jobs")
    table, features, bounds, short = read_features(recording, jobs["job_id"].to_list())

    tell("3/5  LightGBM, each job classified by a model that has not seen it")
    labels = jobs.select("job_id", "label").filter(~jobs["outside"])
    found = classify(table, features, labels)

    tell("4/5  draw, energy, and the time above caps of 80 and 60 % of TDP (first bound)")
    classes = summarise_classes(jobs, bounds, found)

    tell(f"5/5  chart {chart}")
    family = dict(jobs.drop_nulls("family").select("label", "family").unique().iter_rows())
    result = DemoReport(
        archives=tuple(archive.name for archive in archives),
        lake=str(lake_root),
        chart=str(chart),
        jobs_file=str(chart.with_suffix(".jobs.csv")),
        ingest=_counts(reports),
        partial=any(report.partial for report in reports),
        tdp_w=read_tdp_w(recording),
        jobs=len(jobs),
        jobs_outside=int(jobs["outside"].sum()),
        windows=table.height,
        series_without_window=short,
        features=features.shape[1],
        accuracy=_figures(found.score if found else None),
        family_accuracy=_figures(score_families(found, family) if found else None),
        score_note=_score_note(found),
        figures_from={
            "power_*, energy_j": "MEASURED by each GPU's own meter; energy by trapezoids, none across a gap",
            "recall, accuracy": "MEASURED on jobs that the model had not seen",
            "above_*": (
                "first bound: share of time whose one-second average draw, MEASURED without a cap, lies above a cap of "
                "80 or 60 % of TDP; no prediction of a slowdown"
            ),
        },
        seconds=time.monotonic() - began,
        classes=tuple(ClassRow(**row) for row in classes.to_dicts()),
    )
    chart.parent.mkdir(parents=True, exist_ok=True)
    write_whole(chart, draw_page(recording, jobs, bounds, classes, result, spec=SPEC).encode())
    write_whole(Path(result.jobs_file), list_jobs(jobs, bounds, found).write_csv().encode())
    return result


def feature_names() -> list[str]:
    """Return the names of the demo's features in the order of their columns."""
    return [*covariance_names(CHALLENGE_CHANNELS), *statistic_names(CHALLENGE_CHANNELS)]


def read_jobs(recording: Recording) -> pl.DataFrame:
    """Return one row for each job that has GPU samples: what it is, how long it was seen, what it drew.

    A kind outside the challenge is known by ``job_parameters`` alone; its ``family`` is null.
    """
    labels = recording.scan("labels").select("job_id", "label", "family")
    kinds = recording.scan("job_parameters").select("job_id", "workload")
    return (
        recording.scan("job_stats")
        .select("job_id", "covered_gpu_s", "energy_j", "power_mean_w", "power_max_w")
        .join(labels, on="job_id", how="left")
        .join(kinds, on="job_id", how="left")
        .with_columns(outside=pl.col("label").is_null(), label=pl.coalesce("label", "workload", pl.lit("not labelled")))
        .drop("workload")
        .sort("job_id")
        .collect()
    )


def read_tdp_w(recording: Recording) -> dict[str, float | None]:
    """Return the published TDP of each type of GPU that was seen; None where it is not known."""
    types = recording.scan("devices").select(pl.col("gpu_type").fill_null("unknown type"), "tdp_w").unique()
    return dict(types.sort("gpu_type", "tdp_w").collect().iter_rows())


def read_features(recording: Recording, job_ids: Sequence[int]) -> tuple[pl.DataFrame, FloatArray, pl.DataFrame, int]:
    """Return the window table, its features, the first bound of each series, and how many series gave no window.

    One job is in memory at a time, whatever the size of the lake.
    """
    devices = recording.scan("devices").collect()
    tables, features, bounds, short = [], [], [], 0
    for job_id in job_ids:
        samples = recording.read_series(job_id, _SAMPLE_COLUMNS)
        windows = cut_windows(samples, SPEC)
        tables.append(windows.table)
        features.append(np.hstack([covariance(windows.values), statistics(windows.values)]))
        bounds.append(bound_caps(samples, devices))
        short += windows.short.height
    if not tables:
        raise SourceError(f"{recording.lake.root} has no job with GPU samples; give a recording that has some")
    return pl.concat(tables), np.vstack(features), pl.concat(bounds), short


def classify(table: pl.DataFrame, features: FloatArray, labels: pl.DataFrame) -> CrossValidation | None:
    """Return the cross-validation over the labelled jobs' windows; None where there are too few jobs to learn from."""
    of_window = table.select("job_id").join(labels, on="job_id", how="left", maintain_order="left")
    job_ids, label = of_window["job_id"].to_numpy(), of_window["label"].to_list()
    labelled = of_window.drop_nulls()
    n_jobs = jobs_per_class(labelled["label"].to_list(), labelled["job_id"].to_numpy())
    if sum(jobs > 1 for jobs in n_jobs.values()) < 2:
        return None
    return cross_validate(features, job_ids, label, seed=SEED)


def score_families(found: CrossValidation, family: dict[str, str]) -> Score | None:
    """Return the score of the families of the predicted classes: a wrong network of the right family counts.

    None where the family of a class is not known.
    """
    if not set(found.predictions["label"]) <= set(family):
        return None
    truth, predicted = ([family[label] for label in found.predictions[name]] for name in ("label", "predicted"))
    return score(truth, predicted, np.random.default_rng(SEED))


def list_jobs(jobs: pl.DataFrame, bounds: pl.DataFrame, found: CrossValidation | None) -> pl.DataFrame:
    """Return one row for each job: what it is, its predicted class, its watts, and the first bound of each cap.

    A labelled job's class comes from a model that has not seen it, another's from a model of all labelled jobs.
    """
    table = jobs.select("job_id", "label", "outside", "power_mean_w", "power_max_w", "energy_j")
    if found:
        columns = ["job_id", "predicted", "probability"]
        predicted = pl.concat([found.predictions.select(columns), found.others.select(columns)])
        table = table.join(predicted, on="job_id", how="left")
    above = sum_bounds(bounds, ["job_id"])
    for share in CAP_SHARES:
        column = above.filter(pl.col("cap_share") == share).select(
            "job_id", pl.col("above_time_share").alias(above_column(share))
        )
        table = table.join(column, on="job_id", how="left")
    return table.sort("job_id")


def summarise_classes(jobs: pl.DataFrame, bounds: pl.DataFrame, found: CrossValidation | None) -> pl.DataFrame:
    """Return one row for each kind of job with the columns of `ClassRow`: the challenge's classes, then the others."""
    kinds = jobs.group_by("label", "outside").agg(
        pl.len().cast(pl.Int64).alias("jobs"),
        (pl.col("energy_j").sum() / pl.col("covered_gpu_s").sum()).fill_nan(None).alias("power_mean_w"),
        pl.col("power_max_w").max(),
        pl.col("energy_j").sum(),
    )
    kind_of_job = jobs.select("job_id", "label", "outside")
    above = sum_bounds(bounds.join(kind_of_job, on="job_id"), ["label", "outside"]).select(
        "label", "outside", pl.col("cap_share"), "above_time_share"
    )
    for share in CAP_SHARES:
        column = above.filter(pl.col("cap_share") == share).rename({"above_time_share": above_column(share)})
        kinds = kinds.join(column.drop("cap_share"), on=["label", "outside"], how="left")
    if found:
        recall = found.recall.select("label", "recall", outside=pl.lit(False))
        kinds = kinds.join(recall, on=["label", "outside"], how="left")
    else:
        kinds = kinds.with_columns(recall=pl.lit(None, dtype=pl.Float64))
    return kinds.sort("outside", "label").select(list(ClassRow.__dataclass_fields__))


def _figures(scored: Score | None) -> dict[str, float]:
    if scored is None:
        return {}
    return {
        "accuracy": scored.accuracy,
        "low_95pct": scored.low,
        "high_95pct": scored.high,
        "majority": scored.majority,
        "chance": scored.chance,
        "jobs": scored.jobs,
        "classes": scored.classes,
    }


def _score_note(found: CrossValidation | None) -> str:
    """Return in words what the score is worth."""
    if found is None:
        return "no class was learned: fewer than two classes have two labelled jobs"
    jobs = found.score.jobs / found.score.classes
    parts = [
        f"{found.folds}-fold cross-validation by job, {jobs:.3g} jobs a class",
        f"{found.jobs_without_label} jobs of kinds outside the challenge neither learned nor scored",
    ]
    if found.few:
        parts.append(f"fewer jobs than folds: {', '.join(found.few)}")
    if found.left_out:
        parts.append(f"left out, a single job: {', '.join(found.left_out)}")
    if jobs < FEW_JOBS:
        parts.append("few to learn from: this shows the line working, not how well jobs can be told apart")
    return "; ".join(parts)


def _counts(reports: Sequence[IngestReport]) -> dict[str, int]:
    names = ("files", "rows_in", "rows_out", "rows_unchanged", "rows_merged", "rows_quarantined")
    return {name: sum(getattr(report, name) for report in reports) for name in names}
