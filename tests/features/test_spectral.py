from __future__ import annotations

import numpy as np
import pytest

from features.spectral import FEATURES, spectral, spectral_names

RATE = 9.0
TIME_S = np.arange(540) / RATE


def of(series: np.ndarray) -> dict[str, float]:
    """The spectral features of one channel of one window, by name."""
    return dict(zip(FEATURES, spectral(np.asarray(series)[None, None], RATE)[0].tolist(), strict=True))


@pytest.mark.parametrize("period_s", [1.0, 2.0, 3.3, 12.0])
def test_the_period_of_an_iteration_is_found_through_noise(period_s):
    noise = np.random.default_rng(1).normal(size=540)
    got = of(300 + 40 * (np.sin(2 * np.pi * TIME_S / period_s) > 0.3) + 4 * noise)
    assert got["period_s"] == pytest.approx(period_s, rel=0.05)
    assert got["period_strength"] > 0.8


def test_a_sine_has_its_power_at_its_frequency():
    got = of(np.sin(2 * np.pi * 1.5 * TIME_S))
    assert got["spectrum_peak_hz"] == pytest.approx(1.5)
    assert got["spectrum_centroid_hz"] == pytest.approx(1.5)
    assert got["spectrum_peak_share"] == pytest.approx(1.0)
    assert got["spectrum_entropy"] == pytest.approx(0.0, abs=1e-6)
    assert got["spectrum_share__octave_2"] == pytest.approx(1.0)  # 1.125 to 2.25 Hz of 4.5
    assert got["period_s"] == pytest.approx(2 / 3, rel=0.02)


def test_noise_has_no_strong_period_and_shares_its_power_out():
    got = of(np.random.default_rng(2).normal(size=540))
    assert got["period_strength"] < 0.3
    assert got["spectrum_entropy"] > 0.85
    assert got["spectrum_share__octave_1"] == pytest.approx(0.5, abs=0.1)
    assert abs(got["autocorrelation__lag_1"]) < 0.15


def test_a_ramp_has_no_period():
    assert np.isnan(of(np.arange(540.0))["period_s"])


@pytest.mark.parametrize(
    "series", [np.full(540, 72.34), np.full(540, np.nan), [1.0, 2.0, 1.0], [1.0, np.nan, 2.0, 5.0]]
)
def test_what_has_no_spectrum_has_null_features(series):
    assert np.isnan(list(of(np.asarray(series)).values())).all()


def test_a_missing_reading_spoils_its_own_channel_only():
    values = np.random.default_rng(3).normal(size=(2, 3, 64))
    values[1, 1, 5] = np.nan
    got = spectral(values, RATE).reshape(2, 3, -1)
    assert np.isnan(got[1, 1]).all()
    assert not np.isnan(got[1, [0, 2], : FEATURES.index("period_s")]).any()
    assert len(spectral_names("abc")) == got.shape[1] * got.shape[2]


def test_a_window_read_at_another_rate_has_its_own_seconds():
    wave = np.sin(np.arange(300) / 5)
    same = spectral(np.stack([wave, wave, wave])[:, None], np.array([10.0, 5.0, np.nan]))
    place = {name: index for index, name in enumerate(FEATURES)}
    assert same[1, place["period_s"]] == pytest.approx(2 * same[0, place["period_s"]])
    assert same[0, place["period_s"]] == pytest.approx(np.pi, rel=0.01)  # 10 pi samples, ten a second
    assert same[1, place["spectrum_peak_hz"]] == pytest.approx(same[0, place["spectrum_peak_hz"]] / 2)
    assert np.isnan(same[2, [place["period_s"], place["spectrum_centroid_hz"]]]).all()
    assert same[2, place["period_strength"]] == same[0, place["period_strength"]]
    with pytest.raises(ValueError, match=r"samples_per_s has shape \(2,\); give one number, or one for each of 3"):
        spectral(np.zeros((3, 1, 9)), np.ones(2))
    with pytest.raises(ValueError, match="samples_per_s is -1"):
        spectral(np.zeros((1, 1, 9)), np.array([-1.0]))


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_no_series_is_too_large_or_too_small(size):
    wave = np.sin(np.arange(200.0))
    np.testing.assert_allclose(list(of(size * wave).values()), list(of(wave).values()), rtol=1e-6)


def test_an_infinite_reading_has_no_spectrum():
    wave = np.sin(np.arange(100.0))
    wave[3] = np.inf
    assert np.isnan(list(of(wave).values())).all()


def test_no_windows_keep_their_shape_and_wrong_input_is_refused():
    assert spectral(np.empty((0, 2, 540)), RATE).shape == (0, 2 * len(FEATURES))
    with pytest.raises(ValueError, match="1 dimensions"):
        spectral(np.zeros(3), RATE)
    with pytest.raises(ValueError, match="samples_per_s is 0"):
        spectral(np.zeros((1, 1, 8)), 0)
