from __future__ import annotations

import numpy as np
import pytest

from features.sets import find_set, shape_of

CHANNELS = ("gpu_util_pct", "power_w")


@pytest.mark.slow
def test_tsfresh_gives_its_own_columns_in_which_efficient_agrees_and_nothing_of_a_channel_with_a_missing_reading():
    values = np.random.default_rng(3).normal(100, 20, size=(2, 2, 120)).astype(np.float32)
    values[1, 0, 5] = np.nan
    shape = shape_of(values, CHANNELS, samples_per_s=9.0)
    library, ours = find_set("tsfresh"), find_set("efficient")
    found = dict(zip(library.names(shape), library.features(values, shape).T, strict=True))
    expected = dict(zip(ours.names(shape), ours.features(values, shape).T, strict=True))
    assert found.keys() == expected.keys()
    assert "power_w__quantile__q_0.9" in found
    differs = [name for name in found if not np.allclose(found[name][0], expected[name][0], rtol=1e-5, equal_nan=True)]
    assert len(differs) <= 4  # the ill-conditioned ones (features/efficient/differences.md)
    assert all(np.isnan(column[1]) for name, column in found.items() if name.startswith("gpu_util_pct"))
    assert found["power_w__mean"][1] == pytest.approx(values[1, 1].mean(dtype=np.float64))


@pytest.mark.slow
def test_a_calculator_that_raises_costs_its_own_columns_only():
    values = np.array([[[1.0, 3.0]]], np.float32)
    library = find_set("tsfresh")
    shape = shape_of(values, ["power_w"], samples_per_s=9.0)
    found = dict(zip(library.names(shape), library.features(values, shape)[0], strict=True))
    assert found["power_w__mean"] == 2.0
    assert np.isnan(found["power_w__ar_coefficient__coeff_1__k_10"])
