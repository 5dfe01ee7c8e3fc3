from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from features.statistical import QUANTILES, STATISTICS, statistic_names, statistics

NAN = float("nan")

LEVELS = st.one_of(st.floats(-1e6, 1e6, width=32), st.just(NAN))


def of(*readings: float) -> dict[str, float]:
    """The statistics of one channel of one window, by name."""
    return dict(zip(STATISTICS, statistics(np.array([[readings]]))[0].tolist(), strict=True))


def test_statistics_worked_out_by_hand():
    got = of(1.0, 5.0, 2.0, 4.0)
    assert got["mean"] == 3.0
    assert got["standard_deviation"] == pytest.approx(np.sqrt(2.5))  # deviations -2, 2, -1, 1 over n = 4
    assert (got["minimum"], got["maximum"]) == (1.0, 5.0)
    assert got["mean_abs_change"] == 3.0  # 4, 3, 2
    assert got["cid_ce__normalize_False"] == pytest.approx(np.sqrt(29))  # 16 + 9 + 4
    assert got["root_mean_square"] == pytest.approx(np.sqrt(11.5))  # 1, 25, 4, 16
    assert got["count_above_mean"] == 2
    assert got["quantile__q_0.5"] == 3.0
    assert got["quantile__q_0.25"] == 1.75
    assert got["quantile__q_0.9"] == pytest.approx(4.7)


def test_a_missing_reading_counts_for_nothing():
    got = of(1.0, NAN, 3.0, 9.0)
    assert got["mean"] == pytest.approx(13 / 3)
    assert got["quantile__q_0.5"] == 3.0
    assert got["mean_abs_change"] == 6.0  # 3 to 9 only: what lies between 1 and 3 is unknown


def test_an_absent_channel_has_no_statistics():
    assert np.isnan(list(of(NAN, NAN).values())).all()


def test_one_reading_has_a_mean_and_no_change():
    got = of(7.0)
    assert (got["mean"], got["standard_deviation"], got["quantile__q_0.1"]) == (7.0, 0.0, 7.0)
    assert np.isnan(got["mean_abs_change"])


def test_a_constant_channel_of_any_level_deviates_by_exactly_nothing():
    got = of(*[143_153.1] * 135)
    assert (got["standard_deviation"], got["mean_abs_change"]) == (0.0, 0.0)
    assert got["mean"] == got["minimum"] == got["maximum"] == 143_153.1


def test_columns_go_channel_by_channel_as_the_names_say():
    names = statistic_names(["gpu_util_pct", "power_w"])
    got = statistics(np.array([[[1.0, 3.0], [100.0, 300.0]]]))
    assert got.shape == (1, len(names))
    assert got[0, names.index("gpu_util_pct__mean")] == 2.0
    assert got[0, names.index("power_w__mean")] == 200.0
    assert names.index("power_w__mean") == len(STATISTICS)


def test_no_windows_and_empty_windows_keep_their_shape():
    assert statistics(np.empty((0, 2, 5))).shape == (0, 2 * len(STATISTICS))
    assert np.isnan(statistics(np.empty((1, 2, 0)))).all()


def test_a_wrong_number_of_dimensions_is_refused():
    with pytest.raises(ValueError, match="1 dimensions"):
        statistics(np.zeros(3))


@given(arrays(np.float32, (2, 2, 7), elements=LEVELS))
def test_each_agrees_with_numpy_over_what_is_there(values: np.ndarray):
    got = statistics(values).reshape(4, len(STATISTICS))
    for row, readings in zip(got, values.reshape(4, 7).astype(np.float64), strict=True):
        there = readings[~np.isnan(readings)]
        change = np.abs(np.diff(readings))
        change = change[~np.isnan(change)]
        wanted = [NAN] * 6
        if len(there):
            above = (there - there.min() > (there - there.min()).mean()).sum()
            wanted = [there.mean(), there.std(), np.sqrt((there**2).mean()), above, there.min(), there.max()]
        wanted += [NAN if not len(there) else float(np.quantile(there, q)) for q in QUANTILES]
        wanted += [NAN] * 2 if not len(change) else [float(change.mean()), float(np.sqrt((change**2).sum()))]
        np.testing.assert_allclose(row, wanted, rtol=1e-9, atol=1e-6)
