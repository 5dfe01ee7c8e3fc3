"""The feature set `efficient` as an array function: shapes, batches, missing data, compilation of its kernels."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from features.efficient import compilation_told, efficient, efficient_names
from features.efficient.arithmetic import pairwise_sum, quantile_of
from features.kernel import kernel

pytestmark = [pytest.mark.usefixtures("kernels"), pytest.mark.slow]  # a fresh machine compiles for half a minute


def values_of(series: list[float], *names: str) -> list[float]:
    found = dict(zip(efficient_names(["x"]), efficient(np.array([[series]]))[0], strict=True))
    return [float(found[f"x__{name}"]) for name in names]


def test_numbers_worked_out_by_hand():
    assert values_of([1, 2, 4, 9], "mean", "mean_change", "absolute_sum_of_changes") == [4, 8 / 3, 8]
    assert values_of([0, 3, 0, 3, 0], "number_peaks__n_1", "value_count__value_0", "has_duplicate_max") == [2, 3, 1]
    assert values_of([5, 1, 1, 9], "longest_strike_below_mean", "first_location_of_maximum") == [2, 0.75]
    # 0 | 01 | 1: three phrases of Lempel and Ziv in five samples, the last 0 seen before
    assert values_of([0, 0, 1, 1, 0], "lempel_ziv_complexity__bins_2") == [3 / 5]
    # the changes within the 0 ... 1 corridor are all changes: 1, -3, 1
    change = 'change_quantiles__f_agg_"mean"__isabs_{}__qh_1.0__ql_0.0'
    assert values_of([1, 2, -1, 0], change.format(False), change.format(True)) == pytest.approx([-1 / 3, 5 / 3])


def test_every_channel_of_every_window_has_its_own_columns():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(3, 2, 40))
    together = efficient(values)
    assert together.shape == (3, len(efficient_names(["a", "b"])))
    assert len(set(efficient_names(["a", "b"]))) == 2 * 777
    alone = efficient(values[1:2, 1:])
    np.testing.assert_allclose(together[1, 777:], alone[0], rtol=1e-9)


def test_more_series_than_one_batch_holds_come_out_as_the_same_series_alone():
    values = np.random.default_rng(2).integers(0, 50, (150, 4, 12)).astype(np.float32)
    together = efficient(values, np.broadcast_to(np.arange(12.0), (150, 12)))
    for i in (0, 111, 112, 149):
        np.testing.assert_allclose(together[i], efficient(values[i : i + 1], np.arange(12.0)[None])[0], rtol=1e-9)


def test_single_and_double_precision_give_the_same_where_they_hold_the_same_values():
    values = np.random.default_rng(3).integers(0, 100, (2, 1, 64))
    np.testing.assert_array_equal(efficient(values.astype(np.float32)), efficient(values.astype(np.float64)))


def test_times_add_the_trend_over_hours():
    values = np.array([[[1.0, 3.0, 5.0]]])
    names = efficient_names(["x"], timewise=True)
    found = dict(zip(names, efficient(values, np.array([[7.0, 8.0, 9.0]]))[0], strict=True))
    assert found['x__linear_trend_timewise__attr_"slope"'] == pytest.approx(2 * 3600)
    assert len(names) == 782


def test_some_calculators_alone_give_the_columns_that_they_have_among_all():
    values = np.random.default_rng(6).normal(size=(2, 2, 40))
    some = ["number_peaks", "mean"]
    names, every = efficient_names(["a", "b"], calculators=some), efficient_names(["a", "b"])
    assert names[0] == "a__mean"
    assert len(names) == 2 * (1 + 5)
    np.testing.assert_array_equal(
        efficient(values, calculators=some), efficient(values)[:, [every.index(n) for n in names]]
    )
    with pytest.raises(ValueError, match="no calculator is called meen; choose among variance_larger"):
        efficient(values, calculators=["meen"])


def test_an_absent_channel_is_null_and_not_zero_where_a_value_is_asked_for():
    nan = float("nan")
    found = values_of([nan] * 20, "mean", "maximum", "quantile__q_0.1", "sum_values", "cid_ce__normalize_False")
    assert np.isnan(found).all()


def test_no_windows_and_no_samples_keep_their_shape():
    assert efficient(np.empty((0, 2, 540))).shape == (0, 2 * 777)
    assert np.isnan(efficient(np.empty((2, 1, 0)))).all()


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="2 dimensions"):
        efficient(np.zeros((7, 540)))
    with pytest.raises(ValueError, match=r"time_s has shape \(3,\); give \(1, 3\)"):
        efficient(np.zeros((1, 1, 3)), np.zeros(3))


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 127, 128, 129, 255, 540, 1001, 5000])
def test_sums_have_numpy_s_rounding(count):
    values = np.random.default_rng(count).normal(size=count + 3)
    assert pairwise_sum(values, 3, count) == values[3:].sum()


@pytest.mark.parametrize("q", [0.0, 0.1, 0.3, 0.7, 0.9, 1.0])
def test_quantiles_have_numpy_s_rounding(q):
    for count in (1, 2, 3, 10, 101):
        rising = np.sort(np.random.default_rng(count).normal(size=count))
        assert quantile_of(rising, count, q) == np.quantile(rising, q)


def test_a_compilation_is_told_of_once_and_only_where_there_is_one():
    told: list[str] = []
    one, other = numba.njit(lambda x: x + 1), numba.njit(lambda x: x + 2)
    with compilation_told(told.append):
        one(1)
        other(1)
    assert len(told) == 1
    assert "compiling the kernels" in told[0]
    with compilation_told(told.append):
        one(2)
    assert len(told) == 1


def test_a_kernel_without_a_place_to_be_kept_is_compiled_all_the_same():
    names: dict[str, object] = {}
    exec("def double(x): return 2 * x", names)  # of no file, so nothing can be kept beside it
    assert kernel(names["double"])(21) == 42  # type: ignore[type-var]
