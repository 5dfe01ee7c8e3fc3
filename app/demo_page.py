"""The demo's page: what was done, two figures, and the table of classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from app.charts import above_column, draw_classes, draw_examples, page
from features.windows import WindowSpec
from ingest.units import US_PER_S
from models.power.bound import CAP_SHARES, SecondAverages, second_averages

if TYPE_CHECKING:
    from app.demo import DemoReport, Recording

EXCERPT_S = 600
"""No more than this of an example job is drawn."""


def draw_page(
    recording: Recording,
    jobs: pl.DataFrame,
    bounds: pl.DataFrame,
    classes: pl.DataFrame,
    report: DemoReport,
    *,
    spec: WindowSpec,
) -> str:
    """Return the demo's page: what was done, two figures, and the table of classes."""
    readings, averages = example_power(recording, jobs, bounds)
    marked = classes.with_columns(label=pl.when("outside").then(pl.col("label") + " (outside)").otherwise("label"))
    draw, found, bound = report.figures_from.values()
    facts = [
        (
            "recordings",
            f"{', '.join(report.archives)}: {report.jobs} jobs, {report.jobs_outside} of them outside the challenge",
        ),
        ("GPUs", "; ".join(_caps_text(gpu_type, tdp_w) for gpu_type, tdp_w in report.tdp_w.items())),
        ("features", f"{report.features} of one window of {spec.seconds:g} s ({spec.place}) of each GPU of a job"),
        ("classes", _score_text(report.accuracy)),
        ("families", _score_text(report.family_accuracy)),
        ("what that is worth", report.score_note),
        ("watts and joules", draw),
        ("recall and accuracy", found),
        ("time above caps", bound),
    ]
    figures = [
        (
            "Power of one job of each family",
            "The job of median power of each family, and of each kind outside the challenge; its first ten minutes at "
            "most. A cap touches the job where the one-second average lies above its line.",
            draw_examples(readings, averages, CAP_SHARES),
        ),
        (
            "Power of each class, and how long it lies above a cap",
            "Mean and peak of all jobs of a class; share of time whose one-second average draw lies above the cap: a "
            "first bound, no prediction of a slowdown.",
            draw_classes(marked, CAP_SHARES),
        ),
    ]
    names = {
        "label": "class",
        "power_mean_w": "mean draw (W)",
        "power_max_w": "highest reading (W)",
        "energy_j": "energy (J)",
        **{above_column(share): f"time above {share:.0%} of TDP (%)" for share in CAP_SHARES},
    }
    percent = marked.with_columns(pl.col([above_column(share) for share in CAP_SHARES]) * 100)
    table = percent.drop("outside").rename(names)
    caption = (
        "“outside”: no class of the challenge, and not trained on. A dash: not known. Energy is that of all the jobs."
    )
    return page("jobwatt demo", facts, figures, [("The same in numbers", caption, table)])


def example_power(recording: Recording, jobs: pl.DataFrame, bounds: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return readings and one-second averages of one GPU of one job of each family: the job of median power."""
    kinds = jobs.with_columns(kind=pl.coalesce("family", "label"))
    chosen = (
        kinds.drop_nulls("power_mean_w")
        .sort("outside", "kind", "power_mean_w", "job_id")
        .group_by("outside", "kind", maintain_order=True)
        .agg(pl.col("job_id", "label").get((pl.len() - 1) // 2))
    )
    readings, averages = [], []
    for outside, kind, job_id, label in chosen.iter_rows():
        node, gpu_index, tdp_w = bounds.filter(pl.col("job_id") == job_id).select("node", "gpu_index", "tdp_w").row(0)
        series = recording.read_series(job_id, ("time", "power_w"), node=node, gpu_index=gpu_index)
        title = f"{label} (outside)" if outside else label if kind == label else f"{kind}: {label}"
        series = series.filter(pl.col("time") <= pl.col("time").min() + pl.duration(seconds=EXCERPT_S))
        elapsed_s = (series["time"] - series["time"].min()).dt.total_microseconds().to_numpy() / US_PER_S
        seconds = second_averages(elapsed_s, series["power_w"].cast(pl.Float64).to_numpy())
        readings.append(series.select(title=pl.lit(title), elapsed_s=pl.Series(elapsed_s), power_w="power_w"))
        averages.append(_steps(seconds).select(pl.lit(title).alias("title"), pl.all(), tdp_w=pl.lit(tdp_w, pl.Float64)))
    if not readings:
        nothing = pl.DataFrame(schema={"title": pl.String, "elapsed_s": pl.Float64, "power_w": pl.Float64})
        return nothing, nothing.with_columns(tdp_w=pl.lit(None, pl.Float64))
    return pl.concat(readings), pl.concat(averages)


def _steps(seconds: SecondAverages) -> pl.DataFrame:
    """Return elapsed_s and power_w of both ends of each second's step, with a null where a second is not known."""
    begin, power_w = seconds.second.astype(np.float64), seconds.power_w
    ends = pl.DataFrame({"elapsed_s": begin + seconds.covered_s, "power_w": power_w})
    holes = ends.filter(np.diff(seconds.second, append=seconds.second[-1:]) > 1).with_columns(power_w=None)
    # At one time, one second's end comes before the hole, and that before the next second's begin.
    steps = pl.concat([ends, holes, pl.DataFrame({"elapsed_s": begin, "power_w": power_w})])
    return steps.sort("elapsed_s", maintain_order=True)


def _caps_text(gpu_type: str, tdp_w: float | None) -> str:
    """Return what caps mean on a type of GPU.

    >>> _caps_text("h200", 700.0), _caps_text("volta", None)
    ('h200: TDP 700 W, so caps at 560 W and 420 W', 'volta: TDP not known, so no caps')
    """
    if tdp_w is None:
        return f"{gpu_type}: TDP not known, so no caps"
    return f"{gpu_type}: TDP {tdp_w:g} W, so caps at {' and '.join(f'{share * tdp_w:g} W' for share in CAP_SHARES)}"


def _score_text(figures: dict[str, float]) -> str:
    if not figures:
        return "not scored"
    return (
        f"{figures['accuracy']:.2f} of {figures['jobs']} jobs right among {figures['classes']} "
        f"(95 % interval {figures['low_95pct']:.2f} to {figures['high_95pct']:.2f}); "
        f"always the commonest {figures['majority']:.2f}, by chance {figures['chance']:.2f}"
    )
