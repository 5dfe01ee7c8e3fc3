"""Series that break feature calculators: short, constant, tied, spiked, huge, tiny, missing, infinite."""

from __future__ import annotations

import numpy as np


def adversarial_series() -> dict[str, np.ndarray]:
    """Return the series by what is bad about them."""
    rng = np.random.default_rng(5)
    found: dict[str, np.ndarray] = {}
    for n in range(1, 11):
        found[f"{n} integers"] = rng.integers(0, 5, n)
        found[f"{n} floats"] = rng.normal(size=n)
        found[f"{n} equal"] = np.full(n, 3.0)
    for n in (11, 12, 13, 19, 20, 21, 22, 25, 31, 50, 51, 99, 129, 255, 256, 257):
        found[f"{n} floats"] = rng.normal(size=n)
        found[f"{n} integers"] = rng.integers(0, 4, n)
    noise = rng.normal(size=150)
    found |= {
        "zeros": np.zeros(120),
        "constant": np.full(120, 3.0),
        "constant 72.34": np.full(120, 72.34),
        "constant -0.1": np.full(100, -0.1),
        "spike": _with(np.zeros(150), {70: 1000}),
        "early spike": _with(np.full(150, 5.0), {3: 900}),
        "last spike": _with(np.full(150, 5.0), {149: -900}),
        "step": np.repeat([0.0, 1.0], [70, 80]),
        "ramp": np.arange(150.0),
        "alternating": np.arange(150) % 2,
        "period of five": np.tile([1.0, 2, 3, 4, 5], 30),
        "mirror": np.concatenate([np.arange(75), np.arange(75)[::-1]]),
        "sine": np.sin(np.arange(150) / 5),
        "ties": rng.integers(0, 3, 150),
        "huge": noise * 1e200,
        "enormous": noise * 1e305,
        "minute": noise * 1e-200,
        "small": noise * 1e-6,
        "high": 1e9 + noise,
        "almost constant": 50 + 1e-9 * noise,
        "one other value": _with(np.ones(150), {149: 2}),
        "walk": noise.cumsum(),
        "heavy tails": np.abs(rng.standard_cauchy(200)),
        "negative": -rng.integers(1, 9, 150),
        "both signs": rng.integers(-2, 3, 150),
        "long": rng.normal(size=700),
        "huge spike": _with(noise, {70: 1e12}),
        "negative zero": np.where(np.arange(100) % 3 == 0, -0.0, 0.0),
        "high integers": 143_000 + rng.integers(0, 3, 150),
        "first missing": _with(noise, dict.fromkeys(range(3), np.nan)),
        "one missing": _with(noise, {40: np.nan}),
        "missing among ties": _with(rng.integers(0, 4, 150), dict.fromkeys((0, 40, 41, 149), np.nan)),
        "all missing": np.full(60, np.nan),
        "infinite": _with(noise, {40: np.inf}),
        "minus infinite": _with(noise, {40: -np.inf}),
        "both infinite": _with(noise, {40: -np.inf, 5: np.inf}),
        "infinite and missing": _with(noise, {40: -np.inf, 5: np.inf, 7: np.nan}),
    }
    return {name: np.asarray(series, dtype=np.float64) for name, series in found.items()}


def _with(series: np.ndarray, changes: dict[int, float]) -> np.ndarray:
    changed = np.array(series, dtype=np.float64)
    for place, value in changes.items():
        changed[place] = value
    return changed


ILL_POSED = {
    "ar_coefficient": {"early spike", "step", "high", "almost constant", "sine", "ramp", "alternating"}
    | {"period of five", "mirror", "minus infinite", "infinite", "both infinite", "infinite and missing"},
    "augmented_dickey_fuller": {"ramp", "alternating", "high", "sine", "one other value", "period of five"}
    | {"almost constant"},
    "number_cwt_peaks": {"mirror", "alternating", "period of five", "spike", "ramp", "sine", "constant 72.34", "step"},
    "fft_aggregated": {"huge spike"},
    "fourier_entropy": {"constant 72.34", "constant -0.1"},
    "friedrich_coefficients": {"ramp"},
    "max_langevin_fixed_point": {"ramp"},
}
"""By calculator, the series for which its definition asks for more digits than a double has (differences.md)."""
