"""Scores of a classification with what they are worth: an interval, and what guessing would have got."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Score:
    """Accuracy of one prediction a job, with its 95 % bootstrap interval and two kinds of guessing.

    ``majority`` is the accuracy of calling every job the commonest class, ``chance`` that of drawing a class blindly.
    """

    accuracy: float
    low: float
    high: float
    majority: float
    chance: float
    jobs: int
    classes: int


def score(truth: Sequence[str], predicted: Sequence[str], rng: np.random.Generator, resamples: int = 2000) -> Score:
    """Return the score of one prediction for each job; the interval resamples whole jobs.

    The interval holds the trained models fixed: it tells how much other jobs of the same kinds would move the figure,
    not how much another training set would.
    """
    if not truth:
        raise ValueError("there is no job to score; give at least one")
    hits = np.array([was == said for was, said in zip(truth, predicted, strict=True)], dtype=np.float64)
    counts = Counter(truth)
    # How often each hit or miss is drawn is all that matters of a resample, and that is one binomial.
    drawn = rng.binomial(len(hits), hits.mean(), size=resamples) / len(hits)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Score(
        accuracy=float(hits.mean()),
        low=float(low),
        high=float(high),
        majority=max(counts.values()) / len(hits),
        chance=1.0 / len(counts),
        jobs=len(hits),
        classes=len(counts),
    )
