from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from models.workload.baseline import cross_validate

Windows = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], list[str | None]]


def windows(jobs: dict[str, int], *, windows_per_job: int = 1, spread: float = 0.3, seed: int = 1) -> Windows:
    """Windows of jobs whose class shows in the first two features (class number + noise), not in the third."""
    rng = np.random.default_rng(seed)
    rows, job_ids, labels = [], [], []
    for code, (label, count) in enumerate(jobs.items()):
        for job in range(count):
            level = code + spread * rng.normal()
            for _ in range(windows_per_job):
                rows.append([level + 0.01 * rng.normal(), level + 0.01 * rng.normal(), rng.normal()])
                job_ids.append(100 * code + job)
                labels.append(label)
    return np.array(rows), np.array(job_ids), labels


def test_classes_that_a_feature_tells_apart_are_found():
    found = cross_validate(*windows({"a": 10, "b": 10, "c": 10}, spread=0.05))
    assert found.score.accuracy >= 0.95
    assert found.score.chance == pytest.approx(1 / 3)
    assert (found.folds, found.few, found.left_out) == (5, (), ())


def test_labels_that_mean_nothing_are_not_found():
    features, job_ids, labels = windows({"a": 60, "b": 60})
    np.random.default_rng(3).shuffle(labels)
    found = cross_validate(features, job_ids, labels)
    assert found.score.low < 0.5 < found.score.high


def test_a_job_that_can_be_recognised_by_itself_does_not_leak():
    # Each job has a number of its own that all its windows share, and that says nothing of any other job.
    rng = np.random.default_rng(4)
    job_ids = np.repeat(np.arange(60), 6)
    own = rng.permutation(60)[job_ids].astype(float)
    labels: list[str | None] = ["a" if rng.random() < 0.5 else "b" for _ in range(60)]
    found = cross_validate(own[:, None], job_ids, [labels[job] for job in job_ids])
    assert found.score.accuracy < 0.75  # a split by window gets all of them right


def test_one_prediction_for_each_job_however_many_windows_it_has():
    features, job_ids, labels = windows({"a": 6, "b": 6}, windows_per_job=3)
    found = cross_validate(features, job_ids, labels)
    assert found.predictions["job_id"].to_list() == sorted(set(job_ids.tolist()))
    assert found.predictions["windows"].to_list() == [3] * 12
    assert found.predictions["fold"].n_unique() == 5


def test_recall_adds_up_to_the_accuracy():
    found = cross_validate(*windows({"a": 8, "b": 5, "c": 7}, spread=0.8))
    assert found.recall["label"].to_list() == ["a", "b", "c"]
    assert found.recall["jobs"].to_list() == [8, 5, 7]
    assert found.recall["correct"].sum() / 20 == found.score.accuracy
    hits = found.predictions.filter(pl.col("label") == pl.col("predicted")).height
    assert hits == found.recall["correct"].sum()


def test_jobs_without_a_label_are_counted_and_change_nothing():
    features, job_ids, labels = windows({"a": 6, "b": 6})
    alone = cross_validate(features, job_ids, labels)
    rng = np.random.default_rng(9)
    more = cross_validate(
        np.vstack([features, rng.normal(size=(4, 3))]), np.append(job_ids, [900, 900, 901, 902]), [*labels, *[None] * 4]
    )
    assert (alone.jobs_without_label, more.jobs_without_label) == (0, 3)
    assert more.predictions.equals(alone.predictions)


def test_classes_with_few_jobs_are_named_and_scored_and_one_job_alone_is_left_out():
    found = cross_validate(*windows({"a": 10, "b": 10, "rare": 3, "single": 1}, spread=0.05))
    assert found.few == ("rare",)
    assert found.left_out == ("single",)
    assert found.recall["label"].to_list() == ["a", "b", "rare"]
    assert found.score.jobs == 23


def test_two_jobs_a_class_make_two_folds():
    found = cross_validate(*windows({"a": 2, "b": 2}))
    assert (found.folds, found.few, found.score.jobs) == (2, (), 4)


def test_missing_features_are_learned_from_and_not_refused():
    features, job_ids, labels = windows({"a": 10, "b": 10}, spread=0.05)
    features[:, 1] = np.nan
    features[[label == "b" for label in labels], 0] = np.nan
    assert cross_validate(features, job_ids, labels).score.accuracy == 1.0


def test_the_same_seed_gives_the_same_answer_and_another_another():
    data = windows({"a": 8, "b": 8, "c": 8}, spread=0.8)
    assert cross_validate(*data).predictions.equals(cross_validate(*data).predictions)
    assert not cross_validate(*data).predictions.equals(cross_validate(*data, seed=5).predictions)


def test_a_job_of_two_classes_is_refused_by_its_number():
    with pytest.raises(ValueError, match="job 7 is both 'a' and 'b'"):
        cross_validate(np.zeros((2, 1)), np.array([7, 7]), ["a", "b"])


def test_one_class_is_refused():
    features, job_ids, labels = windows({"a": 6, "single": 1})
    with pytest.raises(ValueError, match="1 classes have two or more jobs"):
        cross_validate(features, job_ids, labels)


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="2 windows have 1 job ids and 3 labels"):
        cross_validate(np.zeros((2, 1)), np.array([7]), ["a", "b", "c"])
