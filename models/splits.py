"""Splits that keep all windows of one job on one side, since the GPUs of a job are near-duplicates of each other."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def jobs_per_class(labels: Sequence[str], job_ids: IntArray) -> dict[str, int]:
    """Return how many jobs each class has, by class.

    Examples
    --------
    >>> jobs_per_class(["vgg11", "vgg11", "pna"], np.array([7, 7, 8]))
    {'pna': 1, 'vgg11': 1}
    """
    pairs = set(zip(labels, job_ids.tolist(), strict=True))
    return dict(sorted(Counter(label for label, _ in pairs).items()))


def folds_by_job(labels: Sequence[str], job_ids: IntArray, n_folds: int, seed: int) -> list[tuple[IntArray, IntArray]]:
    """Return the folds as (training rows, test rows): no job on both sides, classes spread as evenly as they go.

    Each row is in exactly one test. A class with fewer jobs than folds is absent from some tests; one with a single job
    is never in training when it is tested.

    Raises
    ------
    ValueError
        Fewer than two folds, or fewer jobs than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    jobs = len(np.unique(job_ids))
    if n_folds < 2:
        raise ValueError(f"n_folds is {n_folds}; give 2 or more")
    if jobs < n_folds:
        raise ValueError(f"{jobs} jobs cannot fill {n_folds} folds; give more labelled jobs, or fewer folds")
    largest = max(Counter(labels).values())
    if largest < n_folds:  # scikit-learn's own limit, which counts rows
        raise ValueError(f"the largest class has {largest} windows for {n_folds} folds; give fewer folds")
    splitter = StratifiedGroupKFold(n_splits=n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class smaller than the folds is expected here, and said by who asked for the folds.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        return [
            (train.astype(np.int64), test.astype(np.int64))
            for train, test in splitter.split(np.zeros(len(labels)), np.asarray(labels), groups=job_ids)
        ]
