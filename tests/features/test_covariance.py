from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from features.covariance import covariance, covariance_names
from features.windows import CHALLENGE_CHANNELS

NAN = float("nan")

LEVELS = st.one_of(st.floats(-1e6, 1e6, width=32), st.just(NAN))


def slow_covariance(window: np.ndarray) -> list[float]:
    """Pair by pair, from the definition, over the samples that both channels have."""
    out = []
    for i in range(len(window)):
        for j in range(i, len(window)):
            both = ~np.isnan(window[i]) & ~np.isnan(window[j])
            if both.sum() < 2:
                out.append(NAN)
                continue
            x, y = window[i][both].astype(float), window[j][both].astype(float)
            out.append(float(((x - x.mean()) * (y - y.mean())).sum() / (both.sum() - 1)))
    return out


def test_the_challenge_channels_give_28_names_in_the_order_of_the_upper_triangle():
    names = covariance_names(CHALLENGE_CHANNELS)
    assert len(names) == len(set(names)) == 28
    assert names[0] == "gpu_util_pct__covariance__with_gpu_util_pct"
    assert names[6] == "gpu_util_pct__covariance__with_power_w"
    assert names[7] == "memory_util_pct__covariance__with_memory_util_pct"
    assert names[-1] == "power_w__covariance__with_power_w"


def test_a_covariance_worked_out_by_hand():
    # deviations -1, 0, 1 and -2, 0, 2, divided by n - 1 = 2
    assert covariance(np.array([[[1.0, 2.0, 3.0], [10.0, 12.0, 14.0]]])).tolist() == [[1.0, 2.0, 4.0]]


def test_a_constant_channel_has_exactly_no_covariance():
    values = np.full((1, 2, 7), 0.1, dtype=np.float32)
    values[0, 1] = [1, 5, 2, 8, 3, 9, 4]
    assert covariance(values)[0, :2].tolist() == [0.0, 0.0]


def test_an_absent_channel_has_no_covariance_and_not_zero():
    got = covariance(np.array([[[1.0, 2.0, 3.0], [NAN, NAN, NAN]]]))
    assert got[0, 0] == 1.0
    assert np.isnan(got[0, 1:]).all()


def test_one_sample_has_no_covariance():
    assert np.isnan(covariance(np.array([[[1.0], [2.0]]]))).all()


def test_a_missing_sample_costs_only_the_pairs_that_lack_it():
    got = covariance(np.array([[[1.0, 2.0, 3.0, 8.0], [10.0, 12.0, 14.0, NAN]]]))
    assert got[0, 0] == np.var([1, 2, 3, 8], ddof=1)
    assert got[0, 1:].tolist() == [2.0, 4.0]


@pytest.mark.parametrize("n_samples", [7, 540])
def test_a_window_has_the_same_covariance_to_the_last_bit_whatever_its_company(n_samples):
    values = np.random.default_rng(3).normal(200, 80, (9, 7, n_samples)).astype(np.float32)
    values[[2, 5], 3, 4] = NAN
    together = covariance(values)
    for window, found in zip(values, together, strict=True):
        np.testing.assert_array_equal(covariance(window[None])[0], found)
    np.testing.assert_array_equal(covariance(values[::-1])[::-1], together)


def test_no_windows_and_empty_windows_keep_their_shape():
    assert covariance(np.empty((0, 7, 540), dtype=np.float32)).shape == (0, 28)
    assert np.isnan(covariance(np.empty((2, 3, 0)))).all()


def test_a_wrong_number_of_dimensions_is_refused():
    with pytest.raises(ValueError, match="2 dimensions"):
        covariance(np.zeros((7, 540)))


@given(arrays(np.float32, (2, 3, 6), elements=LEVELS))
def test_it_agrees_with_the_definition_pair_by_pair(values: np.ndarray):
    got = covariance(values)
    wanted = np.array([slow_covariance(window) for window in values])
    scale = max(1.0, float(np.nanmax(np.abs(values), initial=1.0))) ** 2
    np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-12 * scale)


@given(arrays(np.float32, (4, 7, 30), elements=st.floats(0, 1e5, width=32)))
def test_a_full_window_agrees_with_numpy(values: np.ndarray):
    upper = np.triu_indices(7)
    wanted = np.array([np.cov(window.astype(np.float64))[upper] for window in values])
    np.testing.assert_allclose(covariance(values), wanted, rtol=1e-9, atol=1e-4)


@given(arrays(np.float64, (1, 2, 9), elements=st.integers(-1000, 1000)), st.integers(-100_000, 100_000))
def test_the_level_of_a_channel_does_not_matter(values: np.ndarray, level: int):
    np.testing.assert_allclose(covariance(values + level), covariance(values), rtol=1e-12, atol=1e-9)
