from __future__ import annotations

import numpy as np
import pytest

from features.low_overhead import N_SAMPLES, low_overhead, low_overhead_names


def of(series: np.ndarray) -> dict[str, float]:
    """The encodings of one channel of one window, by name."""
    return dict(zip(low_overhead_names(["x"]), low_overhead(np.asarray(series)[None, None])[0].tolist(), strict=True))


def test_the_three_encodings_are_a_part_a_summary_and_slow_frequencies():
    got = of(np.arange(100.0))
    assert [got[f"x__sample__n_{i}"] for i in (0, 59)] == [0, 59]
    assert (got["x__mean"], got["x__median"], got["x__maximum"]) == (49.5, 49.5, 99)
    assert got['x__fft_coefficient__attr_"abs"__coeff_1'] == pytest.approx(50 / np.sin(np.pi / 100))


def test_what_a_window_is_too_short_for_is_null():
    got = of(np.array([1.0, 3.0]))
    assert (got["x__sample__n_1"], got["x__mean"]) == (3.0, 2.0)
    assert np.isnan([got["x__sample__n_2"], got['x__fft_coefficient__attr_"abs"__coeff_2']]).all()


def test_a_missing_reading_spoils_its_own_channel_and_keeps_the_other_samples():
    values = np.ones((1, 2, 80))
    values[0, 0, 3] = np.nan
    got = low_overhead(values).reshape(2, -1)
    assert np.isnan(got[0]).sum() == 1 + 5 + 30
    assert not np.isnan(got[1]).any()


def test_empty_windows_keep_their_shape_and_wrong_ones_are_refused():
    assert low_overhead(np.empty((0, 2, N_SAMPLES))).shape == (0, len(low_overhead_names("ab")))
    assert np.isnan(low_overhead(np.empty((1, 1, 0)))).all()
    with pytest.raises(ValueError, match="1 dimensions"):
        low_overhead(np.zeros(3))
