"""The first classifier: LightGBM on feature tables, scored by job-grouped cross-validation. Later ones must beat it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import lightgbm
import numpy as np
import numpy.typing as npt
import polars as pl

from models.metrics import Score, score
from models.splits import IntArray, folds_by_job, jobs_per_class

FloatArray = npt.NDArray[np.float64]

ROUNDS = 40

PARAMETERS: dict[str, object] = {
    "objective": "multiclass",
    "learning_rate": 0.1,
    "num_leaves": 7,
    "min_data_in_leaf": 2,
    "min_data_in_bin": 1,
    "feature_fraction": 0.3,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
"""Small trees with small leaves, because a class may have four jobs to learn from. Chosen once, not searched for.

One thread: with so few rows a second one saves a tenth of the time on an idle machine, and costs eight times as much
on a busy one, where each waits for the other.
"""


@dataclass(frozen=True, slots=True, eq=False)
class CrossValidation:
    """What a job-grouped cross-validation found; every figure is of jobs whose windows the model had not seen.

    ``predictions`` has one row for each scored job: job_id, label, predicted, probability (the mean over its windows
    of the probability of ``predicted``), windows, fold. ``recall`` has one row for each class: label, jobs, correct,
    recall. ``others`` has the class that a model of all labelled jobs gives to each job without a label (columns of
    ``predictions`` without label and fold): nobody can say whether it is right. ``few`` are the classes with fewer jobs
    than folds, absent from some tests; ``left_out`` those of a single job, which could not be both learned
    and tested and count nowhere; ``jobs_without_label`` were not learned from either.
    """

    score: Score
    recall: pl.DataFrame
    predictions: pl.DataFrame
    others: pl.DataFrame
    folds: int
    few: tuple[str, ...]
    left_out: tuple[str, ...]
    jobs_without_label: int


def cross_validate(
    features: FloatArray,
    job_ids: IntArray,
    labels: Sequence[str | None],
    *,
    n_folds: int = 5,
    seed: int = 37,
) -> CrossValidation:
    """Return out-of-fold predictions of each labelled job, and how good they are.

    Parameters
    ----------
    features : array of shape (n_windows, n_features), missing values NaN
    job_ids, labels : of each window; a label of None is a job that nobody has classified

    Raises
    ------
    ValueError
        Lengths differ, a job has two labels, or fewer than two classes have two jobs.
    """
    if not len(features) == len(job_ids) == len(labels):
        raise ValueError(f"{len(features)} windows have {len(job_ids)} job ids and {len(labels)} labels; give one each")
    label_of_job: dict[int, str] = {}
    for job_id, label in zip(job_ids.tolist(), labels, strict=True):
        if label is not None and label_of_job.setdefault(job_id, label) != label:
            raise ValueError(f"job {job_id} is both {label_of_job[job_id]!r} and {label!r}; give each job one label")
    n_jobs = jobs_per_class(list(label_of_job.values()), np.array(list(label_of_job), dtype=np.int64))
    left_out = tuple(label for label, jobs in n_jobs.items() if jobs < 2)
    kept = [row for row, label in enumerate(labels) if label is not None and label not in left_out]
    classes = [label for label in n_jobs if label not in left_out]
    if len(classes) < 2:
        raise ValueError(f"{len(classes)} classes have two or more jobs; give labelled jobs of at least two classes")

    used, used_jobs = features[kept], job_ids[kept]
    used_labels = [label for label in labels if label is not None and label not in left_out]
    folds = min(n_folds, max(n_jobs.values()))
    votes: dict[int, tuple[FloatArray, int, int]] = {}
    for fold, (train, test) in enumerate(folds_by_job(used_labels, used_jobs, folds, seed)):
        codes = np.array([classes.index(used_labels[row]) for row in train])
        chances = _fit_predict(used[train], codes, used_jobs[train], used[test], n_classes=len(classes), seed=seed)
        for job_id in np.unique(used_jobs[test]).tolist():
            of_job = chances[used_jobs[test] == job_id]
            votes[job_id] = (of_job.mean(axis=0), len(of_job), fold)

    predictions = pl.DataFrame(
        [
            (job_id, label_of_job[job_id], classes[int(vote.argmax())], float(vote.max()), windows, fold)
            for job_id, (vote, windows, fold) in sorted(votes.items())
        ],
        schema={
            "job_id": pl.Int64,
            "label": pl.String,
            "predicted": pl.String,
            "probability": pl.Float64,
            "windows": pl.Int64,
            "fold": pl.Int64,
        },
        orient="row",
    )
    unknown = [row for row, label in enumerate(labels) if label is None]
    others = predictions.drop("label", "fold").clear()
    if unknown:
        codes = np.array([classes.index(label) for label in used_labels])
        chances = _fit_predict(used, codes, used_jobs, features[unknown], n_classes=len(classes), seed=seed)
        others = _vote(job_ids[unknown], chances, classes)
    recall = (
        predictions.group_by("label")
        .agg(jobs=pl.len().cast(pl.Int64), correct=(pl.col("predicted") == pl.col("label")).sum().cast(pl.Int64))
        .with_columns(recall=pl.col("correct") / pl.col("jobs"))
        .sort("label")
    )
    return CrossValidation(
        score=score(predictions["label"].to_list(), predictions["predicted"].to_list(), np.random.default_rng(seed)),
        recall=recall,
        predictions=predictions,
        others=others,
        folds=folds,
        few=tuple(label for label in classes if n_jobs[label] < folds),
        left_out=left_out,
        jobs_without_label=len(set(job_ids.tolist()) - set(label_of_job)),
    )


def _vote(job_ids: IntArray, chances: FloatArray, classes: Sequence[str]) -> pl.DataFrame:
    """Return for each job the class of the greatest mean probability over its windows."""
    rows = []
    for job_id in np.unique(job_ids).tolist():
        of_job = chances[job_ids == job_id]
        mean = of_job.mean(axis=0)
        rows.append((job_id, classes[int(mean.argmax())], float(mean.max()), len(of_job)))
    schema = {"job_id": pl.Int64, "predicted": pl.String, "probability": pl.Float64, "windows": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _fit_predict(
    train: FloatArray, codes: IntArray, train_jobs: IntArray, test: FloatArray, *, n_classes: int, seed: int
) -> FloatArray:
    """Probability of each class for each test window; a job's windows weigh together as much as any other job."""
    _, which, windows = np.unique(train_jobs, return_inverse=True, return_counts=True)
    data = lightgbm.Dataset(train, label=codes, weight=1.0 / windows[which], free_raw_data=True)
    model = lightgbm.train({**PARAMETERS, "num_class": n_classes, "seed": seed}, data, num_boost_round=ROUNDS)
    return np.asarray(model.predict(test, num_threads=1), dtype=np.float64).reshape(len(test), n_classes)
