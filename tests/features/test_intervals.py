from __future__ import annotations

import numpy as np
import pytest

from features.intervals import dyadic_intervals, interval_names, intervals


def of(series: list[float]) -> dict[str, float]:
    """The interval features of one channel of one window, by name."""
    got = intervals(np.array([[series]], dtype=np.float32))[0]
    return dict(zip(interval_names(["x"], len(series)), got.tolist(), strict=True))


def test_quantiles_worked_out_by_hand():
    got = of([9, 1, 4, 2, 8, 6, 7, 3, 5])  # nine samples: three quantiles, the mean 5 taken from the second
    assert got["x__intervals__of_values__start_0__end_9__q_0"] == 1
    assert got["x__intervals__of_values__start_0__end_9__q_0.5"] == 5 - 5
    assert got["x__intervals__of_values__start_0__end_9__q_1"] == 9
    assert got["x__intervals__of_values__start_0__end_4__q_0.5"] == 3  # 1 2 4 9, room for the median only
    assert got["x__intervals__of_second_change__start_0__end_1__q_0.5"] == 11  # -8, then 3


def test_the_first_change_is_smoothed_over_five():
    got = of([0, 0, 0, 10, 10, 10, 10])
    assert got["x__intervals__of_change__start_0__end_6__q_0"] == 0
    assert got["x__intervals__of_change__start_0__end_6__q_1"] == pytest.approx(2 - 10 / 6)  # second: less the mean


def test_every_interval_is_within_the_series_and_halves_add_up():
    for n in (1, 2, 3, 7, 64, 180, 271, 540):
        found = dyadic_intervals(n)
        assert all(0 <= start < end <= n for start, end in found)
        assert len(set(found)) == len(found)
        if n >= 64:
            assert len(found) == sum(2**level + 2**level - 1 for level in range(1, 6)) + 1


def test_an_uneven_half_is_rounded_up_and_an_interval_that_is_there_is_not_repeated():
    nine = dyadic_intervals(9)
    assert nine[:4] == [(0, 9), (0, 4), (4, 9), (3, 7)]  # 9 / 4 up is 3
    assert nine[4:9] == [(0, 2), (2, 4), (4, 6), (6, 9), (6, 8)]  # 9 / 8 up is 2: the first two moved are there already
    assert (5, 13) in dyadic_intervals(271)  # 271 / 64 up is 5
    assert (4, 12) not in dyadic_intervals(271)


def test_they_agree_with_a_plain_reading_of_the_paper_in_every_column():
    values = np.random.default_rng(4).integers(0, 9, (2, 1, 67)).astype(np.float32)
    values[1] += 140_000
    got = intervals(values)
    for window, found in zip(values[:, 0].astype(np.float64), got, strict=True):
        np.testing.assert_allclose(found, quant(window), rtol=1e-5, atol=1e-5 * np.abs(window).max())


def quant(series: np.ndarray) -> list[float]:
    """QUANT by the letter, one series in double precision."""
    change = np.convolve(np.pad(np.diff(series), 2, mode="edge"), np.full(5, 0.2), mode="valid")
    found: list[float] = []
    for shown in (series, change, np.diff(series, n=2), np.abs(np.fft.rfft(series))):
        for start, end in dyadic_intervals(len(shown)):
            count = 1 + (end - start - 1) // 4
            quantiles = np.quantile(shown[start:end], np.linspace(0, 1, count) if count > 1 else [0.5])
            quantiles[1::2] -= shown[start:end].mean()
            found += quantiles.tolist()
    return found


def test_they_agree_with_numpy_s_quantiles():
    values = np.random.default_rng(1).normal(size=(3, 2, 100)).astype(np.float32)
    names = interval_names(["a", "b"], 100)
    got = intervals(values)
    assert got.shape == (3, len(names))
    assert len(set(names)) == len(names)
    start = names.index("b__intervals__of_values__start_50__end_100__q_0")
    wanted = np.quantile(values[:, 1, 50:], np.linspace(0, 1, 13), axis=1).T
    wanted[:, 1::2] -= values[:, 1, 50:].mean(axis=1, keepdims=True)
    np.testing.assert_allclose(got[:, start : start + 13], wanted, rtol=1e-4, atol=1e-5)


def test_a_missing_reading_spoils_its_intervals_only():
    series = [1.0] * 16
    series[12] = float("nan")
    got = of(series)
    assert got["x__intervals__of_values__start_0__end_8__q_0"] == 1.0
    assert np.isnan(got["x__intervals__of_values__start_8__end_16__q_0"])
    assert np.isnan(got["x__intervals__of_values__start_0__end_16__q_0"])


def test_short_and_wrong_windows_are_refused_and_none_keep_their_shape():
    assert intervals(np.empty((0, 1, 16))).shape == (0, len(interval_names(["x"], 16)))
    with pytest.raises(ValueError, match="3 samples; give 4 or more"):
        intervals(np.zeros((1, 1, 3)))
    with pytest.raises(ValueError, match="2 dimensions"):
        intervals(np.zeros((1, 8)))
