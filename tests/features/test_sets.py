from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from features.sets import FEATURE_SETS, find_set, shape_of

CHANNELS = ("gpu_util_pct", "power_w")


SLOW = {"tsfresh"}
"""Importing this one alone takes seconds."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in FEATURE_SETS]
)
def test_every_set_has_as_many_columns_as_names_and_tsfresh_s_grammar(name):
    values = np.random.default_rng(1).normal(size=(3, 2, 64)).astype(np.float32)
    shape = shape_of(values, CHANNELS, samples_per_s=9.0)
    made = find_set(name)
    names = made.names(shape)
    assert made.name == name
    assert made.features(values, shape).shape == (3, len(names))
    assert len(set(names)) == len(names)
    assert all(column.partition("__")[0] in CHANNELS for column in names)


def test_an_unknown_set_is_refused_with_the_names_of_those_there_are():
    with pytest.raises(ValueError, match="no feature set is called 'catch22'; choose among covariance, statistical"):
        find_set("catch22")


def test_windows_of_another_number_of_channels_are_refused():
    with pytest.raises(ValueError, match=r"shape \(3, 7, 64\); give \(n_windows, 2 channels, n_samples\)"):
        shape_of(np.zeros((3, 7, 64)), CHANNELS, samples_per_s=9.0)


def test_no_kernel_and_no_tsfresh_is_imported_before_it_is_used():
    code = "import sys, features.sets; sys.exit('numba' in sys.modules or 'tsfresh' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
