from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.splits import folds_by_job, jobs_per_class


def test_jobs_are_counted_and_not_their_windows():
    assert jobs_per_class(["a", "a", "a", "b"], np.array([1, 1, 2, 3])) == {"a": 2, "b": 1}


@settings(deadline=None)
@given(
    jobs=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4)), min_size=6, max_size=30),
    n_folds=st.integers(2, 5),
    seed=st.integers(0, 1000),
)
def test_no_job_is_on_both_sides_and_each_window_is_tested_once(jobs: list[tuple[str, int]], n_folds: int, seed: int):
    labels = [label for label, windows in jobs for _ in range(windows)]
    job_ids = np.array([job for job, (_, windows) in enumerate(jobs) for _ in range(windows)])
    if max(labels.count(label) for label in set(labels)) < n_folds:
        with pytest.raises(ValueError, match="the largest class has"):
            folds_by_job(labels, job_ids, n_folds, seed)
        return
    tested = []
    for train, test in folds_by_job(labels, job_ids, n_folds, seed):
        assert not set(job_ids[train]) & set(job_ids[test])
        assert len(train) + len(test) == len(labels)
        tested += test.tolist()
    assert sorted(tested) == list(range(len(labels)))


def test_five_jobs_a_class_put_one_of_each_class_in_each_of_five_folds():
    labels = [label for label in "abcd" for _ in range(5)]
    for _, test in folds_by_job(labels, np.arange(20), 5, seed=1):
        assert sorted(labels[row] for row in test) == list("abcd")


def test_another_seed_makes_other_folds_and_the_same_seed_the_same():
    labels = [label for label in "abcd" for _ in range(5)]

    def tests(seed: int) -> list[list[int]]:
        return [test.tolist() for _, test in folds_by_job(labels, np.arange(20), 5, seed)]

    assert tests(1) == tests(1)
    assert tests(1) != tests(2)


def test_a_class_smaller_than_the_folds_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(folds_by_job(["a"] * 5 + ["b"] * 2, np.arange(7), 5, seed=1)) == 5


def test_fewer_jobs_than_folds_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="2 jobs cannot fill 5 folds"):
        folds_by_job(["a"] * 6, np.array([1, 1, 1, 2, 2, 2]), 5, seed=1)
    with pytest.raises(ValueError, match="n_folds is 1"):
        folds_by_job(["a"] * 6, np.arange(6), 1, seed=1)
