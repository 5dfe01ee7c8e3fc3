"""Features by the second of one core, against the libraries that define them, on windows of 60 s and 7 channels."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
from threadpoolctl import threadpool_limits

from features.covariance import covariance
from features.efficient import compilation_told, efficient, efficient_names
from features.statistical import QUANTILES, STATISTICS, statistics
from features.windows import CHALLENGE_CHANNELS, WindowSpec, cut_windows
from ingest.lake import Lake
from ingest.pipeline import ingest
from ingest.runner import SerialRunner
from ingest.synthetic import make_archive
from tests.benchmarks.archives import fresh
from tests.benchmarks.measure import ROOT, spread
from tests.benchmarks.report import table
from tests.features.efficient_oracle import agrees, tsfresh_features

SPEC = WindowSpec(60)
N_WINDOWS, QUICK_WINDOWS = 256, 16
TSFRESH_WINDOWS, QUICK_TSFRESH_WINDOWS = 8, 2
COMPARED_WINDOWS, QUICK_COMPARED_WINDOWS = 16, 2


def features(quick: bool, runs: int, tell: Callable[[str], None]) -> str:
    """Return the tables of speed and of agreement."""
    count = QUICK_WINDOWS if quick else N_WINDOWS
    windows, n_recorded = minute_windows(count, tell)
    with threadpool_limits(1), compilation_told(tell):
        efficient(windows[:2])
        speed = _speed(windows, QUICK_TSFRESH_WINDOWS if quick else TSFRESH_WINDOWS, runs, tell)
        small = _small_sets(windows, runs, tell)
        agreement = _agreement(windows, QUICK_COMPARED_WINDOWS if quick else COMPARED_WINDOWS, tell)
    return (
        f"## Features\n\nOne core, CPU seconds, {len(windows)} windows of {SPEC.n_samples} samples x "
        f"{len(CHALLENGE_CHANNELS)} channels ({n_recorded} recorded, {len(windows) - n_recorded} synthetic); "
        f"{runs} rounds, in turn. tsfresh 0.21.2 runs its own `extract_features` with `EfficientFCParameters` and "
        f"`n_jobs=0`.\n\n{speed}\n\n{small}\n\n{agreement}"
    )


def minute_windows(count: int, tell: Callable[[str], None]) -> tuple[np.ndarray, int]:
    """Return so many windows of 60 s, and how many of them are recorded; synthetic ones fill up."""
    found = [_windows_of(archive) for archive in sorted((ROOT / "data").glob("*.tar.zst"))]
    recorded = np.concatenate(found)[:count]
    missing = count - len(recorded)
    if not missing:
        return recorded, count
    tell(f"making {missing} synthetic windows")
    raw = fresh("raw/features")
    make_archive(
        raw,
        rng=20_261_124,
        n_jobs=-(-missing // 2),
        seconds_per_job=70.0,
        gpus_per_job=2,
        cpu_files=False,
        node_data=False,
    )
    return np.concatenate([recorded, _windows_of(raw)[:missing]]), len(recorded)


def _windows_of(source: Path) -> np.ndarray:
    root = fresh("lakes/features")
    ingest(str(source), root, runner=SerialRunner())
    return cut_windows(Lake(root).scan("gpu_samples").collect(), SPEC).values


def _speed(windows: np.ndarray, n_tsfresh: int, runs: int, tell: Callable[[str], None]) -> str:
    few = windows[:: max(1, len(windows) // n_tsfresh)][:n_tsfresh]
    contestants = {
        "**jobwatt `efficient`**": lambda: _per_second(lambda: efficient(windows), len(windows)),
        "tsfresh `EfficientFCParameters`": lambda: _per_second(lambda: _extract(few), len(few)),
    }
    _extract(few[:1])
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(runs):
        for name in list(contestants)[:: 1 if number % 2 else -1]:
            taken[name].append(contestants[name]())
            tell(f"{name}: {taken[name][-1]:.2f} windows a CPU second")
    ours, theirs = taken.values()
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    n_features = len(efficient_names(CHALLENGE_CHANNELS))
    rows = [
        [name, f"{n_features:,}", spread(rates), ratio, bar]
        for (name, rates), ratio, bar in zip(
            taken.items(), ["", f"ours / peer: {spread(ratios, '.0f')}"], ["", "ours ≥ 60 ×, aim 100 ×"], strict=True
        )
    ]
    return table(["", "features a window", "windows a CPU second", "ratio", "bar"], rows)


def _small_sets(windows: np.ndarray, runs: int, tell: Callable[[str], None]) -> str:
    """Return the table of the two small sets against the obvious way to each."""
    many = np.concatenate([windows] * -(-N_WINDOWS // len(windows)))
    frame = pl.DataFrame(
        {
            "window": np.repeat(np.arange(len(many)), SPEC.n_samples),
            **{name: many[:, channel].ravel() for channel, name in enumerate(CHALLENGE_CHANNELS)},
        }
    )
    upper = np.triu_indices(len(CHALLENGE_CHANNELS))
    pairs: list[tuple[str, Callable[[], object], str, Callable[[], object], str]] = [
        (
            "`covariance` (28)",
            lambda: covariance(many),
            "`np.cov`, window by window",
            lambda: [np.cov(window)[upper] for window in many],
            "≥ 1.2 ×",
        ),
        (
            f"`statistical` ({len(STATISTICS)} a channel)",
            lambda: statistics(many),
            "the same in polars `group_by`",
            lambda: _by_polars(frame),
            "≥ 2.5 ×",
        ),
    ]
    rows = []
    for name, ours, peer, theirs, bar in pairs:
        ours(), theirs()
        rates = [(_per_second(ours, len(many)), _per_second(theirs, len(many))) for _ in range(max(runs, 3))]
        tell(f"{name}: {rates[-1][0]:,.0f} and {rates[-1][1]:,.0f} windows a CPU second")
        ratios = spread([one / other for one, other in rates], ".1f")
        rows.append(
            [
                name,
                spread([one for one, _ in rates], ",.0f"),
                peer,
                spread([two for _, two in rates], ",.0f"),
                ratios,
                bar,
            ]
        )
    return table(["set", "windows a CPU second", "peer", "windows a CPU second", "ours / peer", "bar"], rows)


def _by_polars(frame: pl.DataFrame) -> pl.DataFrame:
    expressions = []
    for name in CHALLENGE_CHANNELS:
        x = pl.col(name)
        of_channel = {
            "mean": x.mean(),
            "standard_deviation": x.std(ddof=0),
            "root_mean_square": x.pow(2).mean().sqrt(),
            "count_above_mean": (x > x.mean()).sum(),
            "minimum": x.min(),
            "maximum": x.max(),
            **{f"quantile__q_{q}": x.quantile(q, "linear") for q in QUANTILES},
            "mean_abs_change": x.diff().abs().mean(),
            "cid_ce__normalize_False": x.diff().pow(2).sum().sqrt(),
        }
        expressions += [made.alias(f"{name}__{end}") for end, made in of_channel.items()]
    return frame.lazy().group_by("window").agg(expressions).collect()


def _per_second(call: Callable[[], object], count: int) -> float:
    start = time.process_time()
    call()
    return count / (time.process_time() - start)


def _extract(windows: np.ndarray) -> pd.DataFrame:
    from tsfresh import extract_features
    from tsfresh.feature_extraction.settings import EfficientFCParameters

    n_windows, _, n_samples = windows.shape
    frame = pd.DataFrame(
        windows.transpose(0, 2, 1).reshape(-1, len(CHALLENGE_CHANNELS)).astype(np.float64), columns=CHALLENGE_CHANNELS
    )
    frame["id"] = np.repeat(np.arange(n_windows), n_samples)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return extract_features(
            frame,
            column_id="id",
            default_fc_parameters=EfficientFCParameters(),
            n_jobs=0,
            disable_progressbar=True,
            show_warnings=False,
        )


def _agreement(windows: np.ndarray, count: int, tell: Callable[[str], None]) -> str:
    """Return the share of cells that agree, and every calculator with one that does not."""
    few = windows[:: max(1, len(windows) // count)][:count].astype(np.float64)
    names = [name.removeprefix("x__") for name in efficient_names(["x"])]
    ours = efficient(few).reshape(-1, len(names))
    differing: Counter[str] = Counter()
    farthest: dict[str, float] = {}
    for series, found in zip(few.reshape(-1, few.shape[2]), ours, strict=True):
        theirs = tsfresh_features(series)
        for name, value in zip(names, found, strict=True):
            if not agrees(value, theirs[name]):
                calculator = name.partition("__")[0]
                differing[calculator] += 1
                apart = abs(value - theirs[name])
                farthest[calculator] = max(farthest.get(calculator, 0.0), np.inf if np.isnan(apart) else apart)
    cells = ours.size
    share = 1 - differing.total() / cells
    tell(f"{share:.4%} of {cells:,} cells agree")
    of_each = Counter(name.partition("__")[0] for name in names)
    rows = [
        [f"`{name}`", str(bad), f"{bad / (of_each[name] * len(ours)):.2%}", f"{farthest[name]:.1g}"]
        for name, bad in differing.most_common()
    ]
    return (
        f"Agreement over {len(few)} windows, {cells:,} cells, numpy's sort made stable for tsfresh: **{share:.3%}** "
        "are the same within a relative 1e-6, a NaN on one side counted as different (bar: 99.5 %). Every exception, "
        "explained in `features/efficient/differences.md` (`inf`: NaN on one side):\n\n"
        + table(["calculator", "cells that differ", "of its cells", "at most by"], rows or [["none", "0", "0 %", ""]])
    )
