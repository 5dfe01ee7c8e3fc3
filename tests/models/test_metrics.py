from __future__ import annotations

import numpy as np
import pytest

from models.metrics import score


def test_a_score_worked_out_by_hand():
    got = score(["a", "a", "a", "b"], ["a", "a", "b", "b"], np.random.default_rng(1))
    assert (got.accuracy, got.majority, got.chance) == (0.75, 0.75, 0.5)
    assert (got.jobs, got.classes) == (4, 2)


def test_the_interval_is_that_of_a_bootstrap_of_whole_jobs():
    hits = np.array([1] * 30 + [0] * 70)
    got = score(["a"] * 100, ["a" if hit else "b" for hit in hits], np.random.default_rng(1))
    rng = np.random.default_rng(2)
    slow = np.quantile([hits[rng.integers(0, 100, 100)].mean() for _ in range(4000)], [0.025, 0.975])
    assert (got.low, got.high) == pytest.approx(tuple(slow), abs=0.02)
    assert got.low < 0.3 < got.high


def test_a_perfect_score_leaves_the_bootstrap_nothing_to_vary():
    got = score(["a", "b"], ["a", "b"], np.random.default_rng(1))
    assert (got.accuracy, got.low, got.high) == (1.0, 1.0, 1.0)


def test_a_predicted_class_that_no_job_has_is_no_class_of_the_truth():
    assert score(["a", "b"], ["c", "b"], np.random.default_rng(1)).classes == 2


def test_the_same_generator_gives_the_same_interval():
    assert score(["a"] * 9 + ["b"], ["a"] * 10, np.random.default_rng(5)) == score(
        ["a"] * 9 + ["b"], ["a"] * 10, np.random.default_rng(5)
    )


def test_nothing_to_score_is_refused():
    with pytest.raises(ValueError, match="no job to score"):
        score([], [], np.random.default_rng(1))
