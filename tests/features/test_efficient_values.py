"""The feature set `efficient` against tsfresh itself, column by column."""

from __future__ import annotations

from fnmatch import fnmatchcase

import numpy as np
import pytest

from features.efficient import CALCULATORS, efficient_names
from features.windows import WindowSpec, cut_windows
from ingest.lake import Lake
from ingest.pipeline import ingest
from ingest.runner import SerialRunner
from tests.features.efficient_oracle import (
    differing_columns,
    disagreements,
    documented,
    documented_columns,
    is_bounded,
    rounding,
    tsfresh_features,
)
from tests.features.efficient_series import ILL_POSED, adversarial_series

pytestmark = [pytest.mark.usefixtures("kernels"), pytest.mark.slow]  # a fresh machine compiles for half a minute

ADVERSARIAL = adversarial_series()
QUICK = [
    "1 equal",
    "2 floats",
    "3 integers",
    "4 floats",
    "7 equal",
    "8 integers",
    "10 floats",
    "19 integers",
    "21 floats",
]
QUICK += ["51 integers", "constant", "spike", "ties", "one missing", "infinite"]


def unexpected(name: str) -> list[str]:
    """What differs on a difficult series beyond rounding, or farther than what is ill-posed there, or is not listed."""
    series = ADVERSARIAL[name]
    return [
        f"{column}: {ours} here, {theirs} in tsfresh"
        for column, ours, theirs in differing_columns(series, time_s=np.arange(len(series)) * 0.1)
        if not documented(column)
        or (
            not abs(ours - theirs) <= rounding(column, series)
            and not (name in ILL_POSED.get(column.partition("__")[0], ()) and is_bounded(column, series, ours, theirs))
        )
    ]


@pytest.fixture(scope="module")
def recorded(recording, tmp_path_factory) -> np.ndarray:
    """Windows of 20 s, one of each recorded series."""
    root = tmp_path_factory.mktemp("efficient") / "lake"
    ingest(str(recording), root, runner=SerialRunner())
    return cut_windows(Lake(root).scan("gpu_samples").collect(), WindowSpec(20)).values


def test_the_columns_are_those_of_tsfresh_and_no_others():
    theirs = tsfresh_features(np.arange(64.0), time_s=np.arange(64.0))
    assert sorted(efficient_names(["power_w"], timewise=True)) == sorted(f"power_w__{name}" for name in theirs)
    assert len(theirs) == 782


@pytest.mark.parametrize("name", QUICK)
def test_a_difficult_series_has_tsfresh_s_values(name):
    assert unexpected(name) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ADVERSARIAL if name not in QUICK])
def test_every_difficult_series_has_tsfresh_s_values(name):
    assert unexpected(name) == []


def test_a_recorded_window_has_tsfresh_s_values(recorded):
    window = recorded[7].astype(np.float64)
    assert [line for channel in window[[0, 6]] for line in disagreements(channel)] == []


@pytest.mark.slow
def test_recorded_windows_have_tsfresh_s_values_in_all_but_one_cell_of_two_thousand(recorded):
    windows = recorded[:: max(1, len(recorded) // 10)].astype(np.float64)
    found = [line for window in windows for channel in window for line in disagreements(channel)]
    assert len(windows) >= 10
    assert len(found) <= len(windows) * 7 * 777 / 2000, found
    assert [line for line in found if not documented(line.partition(":")[0])] == []


def test_every_column_in_the_list_of_differences_exists_and_every_tolerance_is_in_it():
    names = [name.removeprefix("x__") for name in efficient_names(["x"], timewise=True)]
    patterns = documented_columns()
    assert [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)] == []
    assert len(set(patterns)) >= len(ILL_POSED)
    some = np.arange(100.0)
    tolerated = [name for name in names if rounding(name, some) or name.partition("__")[0] in ILL_POSED]
    assert [name for name in tolerated if not documented(name) and not name.startswith("fft_aggregated")] == []


def test_a_column_that_is_not_in_the_list_may_not_differ():
    assert documented('agg_linear_trend__attr_"slope"__chunk_len_50__f_agg_"min"')
    assert not documented("mean")
    assert not documented('fft_aggregated__aggtype_"centroid"')


def test_what_is_listed_as_ill_posed_exists():
    assert set(ILL_POSED) <= set(CALCULATORS)
    assert set().union(*ILL_POSED.values()) <= set(ADVERSARIAL)


@pytest.mark.parametrize(
    ("column", "series", "ours", "theirs"),
    [
        ("number_cwt_peaks__n_1", "sine", 9, 6),
        ("number_cwt_peaks__n_1", "sine", np.nan, 6),
        ('fft_aggregated__aggtype_"skew"', "huge spike", -7.0e-13, -7.4e-13),
        ("fourier_entropy__bins_2", "constant 72.34", 0.7, 0.14),
        ("ar_coefficient__coeff_10__k_10", "sine", np.nan, 0.0),
        ("ar_coefficient__coeff_10__k_10", "infinite", 0.5, np.nan),
        ("ar_coefficient__coeff_1__k_10", "sine", 11.0, 0.5),
        ('augmented_dickey_fuller__attr_"pvalue"__autolag_"AIC"', "ramp", 1.1, 0.9),
        ('augmented_dickey_fuller__attr_"usedlag"__autolag_"AIC"', "ramp", 15.0, 5.0),
        ("friedrich_coefficients__coeff_1__m_3__r_30", "ramp", 1e-6, 0.0),
        ("max_langevin_fixed_point__m_3__r_30", "ramp", np.inf, 1e7),
    ],
)
def test_an_ill_posed_cell_may_not_be_just_anything(column, series, ours, theirs):
    assert series in ILL_POSED[column.partition("__")[0]]
    assert not is_bounded(column, ADVERSARIAL[series], ours, theirs)


def test_an_ill_posed_cell_may_be_as_far_off_as_the_list_says():
    infinite, sine = ADVERSARIAL["infinite"], ADVERSARIAL["sine"]
    assert is_bounded("ar_coefficient__coeff_10__k_10", infinite, np.nan, 0.0)
    assert is_bounded("number_cwt_peaks__n_1", sine, 8, 6)
    assert is_bounded("ar_coefficient__coeff_0__k_10", ADVERSARIAL["high"], 6e8, 1e-10)
