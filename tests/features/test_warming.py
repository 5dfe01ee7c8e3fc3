"""After warming a set no window of a lake waits for a kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.usefixtures("kernels"), pytest.mark.slow]  # a fresh machine compiles for half a minute

ROOT = Path(__file__).parents[2]

NEW_SIGNATURES = """
import sys
import numpy as np
from features.sets import find_set, shape_of
from features.warming import call_kernels

def signatures():
    kernels = {
        f"{name}.{key}": value
        for name, module in list(sys.modules.items()) if name.startswith("features.")
        for key, value in vars(module).items() if hasattr(value, "nopython_signatures")
    }
    return {(name, str(one)) for name, of in kernels.items() for one in of.nopython_signatures}

made = find_set(sys.argv[1])
call_kernels(made)
warmed = signatures()
for n_windows, n_channels, n_samples in ((4, 7, 540), (1, 1, 540), (1, 7, 66)):
    values = np.random.default_rng(1).normal(size=(n_windows, n_channels, n_samples)).astype(np.float32)
    values[0, 0, :5] = np.nan
    made.features(values, shape_of(values, [f"c{number}" for number in range(n_channels)], 9.0))
assert warmed
print(sorted(signatures() - warmed))
"""


@pytest.mark.parametrize("set_name", ["intervals", "efficient"])
def test_every_signature_that_windows_need_is_there_after_warming(set_name):
    done = subprocess.run(
        [sys.executable, "-c", NEW_SIGNATURES, set_name], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
