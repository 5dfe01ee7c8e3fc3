"""A series explained by its own past: autoregressive coefficients and the augmented Dickey-Fuller test."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtr

from features.efficient.arithmetic import mean_of, pairwise_sum, product_sum
from features.efficient.series import Calculator, SeriesBatch, Values
from features.kernel import kernel

_ORDER = 10
_LEAST_PIVOT = 1e-8
"""Where less than this share of a regressor is left unexplained by the others, singular values take over."""
_LEAST_SINGULAR = 1e-15
_NO_COEFFICIENT = 1e-9
"""A smaller coefficient may be rounding; singular values then give tsfresh's rounding, for what it is worth."""

_TAU_MAX, _TAU_MIN, _TAU_STAR = 2.74, -18.83, -1.61
_SMALL_P = (0.038269, 1.4412, 2.1659)
_LARGE_P = (-0.010368, -0.12745, 0.93202, 1.7339)
"""MacKinnon, "Approximate asymptotic distribution functions for unit-root and cointegration tests", Journal of Business
& Economic Statistics 12 (1994), tables 3 and 4: a constant, no trend, one series; polynomials, highest power first."""


@kernel
def _factor(gram: Values, size: int, lower: Values) -> bool:
    """Cholesky's factor of the leading part of a Gram matrix, and the last row for the target; False if ill-posed."""
    least = 0.0
    for i in range(size):
        least = max(least, _LEAST_PIVOT * gram[i, i])
    for i in range(size + 1):
        for j in range(i + 1):
            rest = gram[i, j]
            for q in range(j):
                rest -= lower[i, q] * lower[j, q]
            if i != j:
                lower[i, j] = rest / lower[j, j]
            elif i < size:
                if not rest > least:
                    return False
                lower[i, i] = math.sqrt(rest)
            else:
                lower[i, i] = math.sqrt(max(rest, 0.0))
    return True


@kernel
def _solve(lower: Values, size: int, out: Values) -> None:
    """The coefficients that Cholesky's factor leads to."""
    for i in range(size - 1, -1, -1):
        rest = lower[size, i]
        for j in range(i + 1, size):
            rest -= lower[j, i] * out[j]
        out[i] = rest / lower[i, i]


@kernel
def _lag_gram(z: Values, size: int, count: int, gram: Values) -> None:
    """Centred products of ``z`` moved by 0 ... size - 1 samples, over ``count`` samples each."""
    total = np.empty(size)
    total[0] = pairwise_sum(z, 0, count)
    for i in range(1, size):
        total[i] = total[i - 1] - z[i - 1] + z[i - 1 + count]
    for j in range(size):
        gram[0, j] = product_sum(z, 0, z, j, count)
    for i in range(1, size):
        for j in range(i, size):
            gram[i, j] = gram[i - 1, j - 1] - z[i - 1] * z[j - 1] + z[i - 1 + count] * z[j - 1 + count]
    for i in range(size):
        for j in range(i, size):
            gram[i, j] -= total[i] * total[j] / count
            gram[j, i] = gram[i, j]


@kernel
def _autoregress(standard: Values, order: int) -> Values:
    """Coefficients of lags 1 to ``order`` of standardised series, NaN where they are ill-posed."""
    n_series, n_samples = standard.shape
    out = np.full((n_series, order), np.nan)
    gram, lower = np.empty((order + 1, order + 1)), np.empty((order + 1, order + 1))
    solution = np.empty(order)
    for i in range(n_series):
        _lag_gram(standard[i], order + 1, n_samples - order, gram)
        if _factor(gram, order, lower):
            _solve(lower, order, solution)
            out[i] = solution[::-1]
    return out


def _ar_coefficient(batch: SeriesBatch) -> Values:
    """Constant and lags 1 to 10 of a least-squares autoregression, the shortest solution where there are many.

    A series too short for it has NaN and a last coefficient of zero, which is tsfresh's answer.
    """
    n, order = batch.n_samples, _ORDER
    out = np.full((batch.n_series, order + 1), np.nan)
    if n - order < order + 1:
        out[:, order] = np.where(batch.finite, 0.0, np.nan)
        return out
    scale = np.where(batch.deviation > 0, batch.deviation, 1.0)
    standard = batch.offset / scale[:, None]
    out[:, 1:] = _autoregress(standard, order)
    # the constant, from the means of the target and of each lag
    windows = [standard[:, order - lag : n - lag].mean(axis=1) for lag in range(order + 1)]
    constant = windows[0] - np.einsum("ij,ij->i", out[:, 1:], np.stack(windows[1:], axis=1))
    out[:, 0] = batch.mean * (1 - out[:, 1:].sum(axis=1)) + scale * constant
    unsure = ~(np.abs(out[:, 1:]) > _NO_COEFFICIENT).all(axis=1)
    for i in np.flatnonzero(batch.finite & unsure):
        x = batch.values[i]
        lags = np.lib.stride_tricks.sliding_window_view(x[:-1], order)[:, ::-1]
        out[i] = _shortest_fit(np.column_stack([np.ones(len(lags)), lags]), x[order:])[0]
    return out


def _shortest_fit(regressors: Values, target: Values) -> tuple[Values, Values, float, int]:
    """Least squares by singular values: coefficients, their t values, sum of squared residuals, rank."""
    u, singular, vt = np.linalg.svd(regressors, full_matrices=False)
    kept = singular > _LEAST_SINGULAR * singular.max()
    inverse = vt.T @ (np.where(kept, 1 / np.where(kept, singular, 1.0), 0.0)[:, None] * u.T)
    coefficients = inverse @ target
    residual = target - regressors @ coefficients
    rank = int((singular > singular.max() * len(singular) * np.finfo(float).eps).sum())
    squares = float(residual @ residual)
    variance = np.diag(inverse @ inverse.T) * squares / (len(target) - rank)
    return coefficients, coefficients / np.sqrt(variance), squares, rank


@kernel
def _unit_roots(values: Values, longest: int) -> Values:
    """The Dickey-Fuller statistic, and the number of lags that Akaike's criterion chose; NaN where ill-posed."""
    n_series, n_samples = values.shape
    out = np.full((n_series, 2), np.nan)
    gram, lower = np.empty((longest + 2, longest + 2)), np.empty((longest + 2, longest + 2))
    step = np.empty(n_samples - 1)
    solution, inverse = np.empty(longest + 1), np.empty(longest + 1)
    for i in range(n_series):
        x = values[i]
        for t in range(n_samples - 1):
            step[t] = x[t + 1] - x[t]
        _regression_gram(x, step, longest, gram)
        if not _factor(gram, longest + 1, lower):
            continue
        count = n_samples - 1 - longest
        unexplained = gram[longest + 1, longest + 1]
        least = gram[longest + 1, longest + 1] * 1e-14
        best, lags = np.inf, 0
        for k in range(longest + 1):
            unexplained -= lower[longest + 1, k] ** 2
            criterion = count * math.log(max(unexplained, least)) + 2 * (k + 2)
            if criterion < best:
                best, lags = criterion, k
        _regression_gram(x, step, lags, gram)
        size = lags + 1
        if not _factor(gram, size, lower) or lower[size, size] ** 2 <= gram[size, size] * 1e-12:
            continue
        _solve(lower, size, solution)
        squares = 0.0
        for k in range(size):  # the first row of the inverse, for the variance of the first coefficient
            rest = 1.0 if k == 0 else 0.0
            for q in range(k):
                rest -= lower[k, q] * inverse[q]
            inverse[k] = rest / lower[k, k]
            squares += inverse[k] ** 2
        residual = lower[size, size] ** 2 / (n_samples - 1 - lags - size - 1)
        out[i, 0], out[i, 1] = solution[0] / math.sqrt(residual * squares), lags
    return out


@kernel
def _regression_gram(x: Values, step: Values, lags: int, gram: Values) -> None:
    """Centred products of the level, of the earlier steps (1 to ``lags`` before) and of the step to explain."""
    count = len(step) - lags
    size = lags + 2
    lagged = np.empty((lags + 1, lags + 1))
    _lag_gram(step, lags + 1, count, lagged)
    level = x[lags : lags + count] - mean_of(x, lags, count)
    for j in range(lags + 1):  # of the level with the steps, the latest first and the target last
        place = size - 1 if j == lags else lags - j
        gram[0, place] = gram[place, 0] = product_sum(level, 0, step, j, count)
    gram[0, 0] = product_sum(level, 0, level, 0, count)
    for a in range(lags + 1):
        for b in range(lags + 1):
            row = size - 1 if a == lags else lags - a
            column = size - 1 if b == lags else lags - b
            gram[row, column] = lagged[a, b]


def _augmented_dickey_fuller(batch: SeriesBatch) -> Values:
    """The statistic, its p value and the lags used; NaN for a constant or a series shorter than four samples."""
    n = batch.n_samples
    longest = min(n // 2 - 2, math.ceil(12.0 * (n / 100.0) ** 0.25))
    out = np.full((batch.n_series, 3), np.nan)
    if longest < 0:
        return out
    changing = batch.finite & (batch.minimum != batch.maximum)
    scale = np.where(batch.deviation > 0, batch.deviation, 1.0)
    out[:, ::2] = _unit_roots(batch.offset / scale[:, None], longest)
    out[~changing] = np.nan
    for i in np.flatnonzero(changing & np.isnan(out[:, 0])):
        out[i, ::2] = _unit_root_by_singular_values(batch.values[i], longest)
    out[:, 1] = _p_value(out[:, 0])
    return out


def _unit_root_by_singular_values(x: Values, longest: int) -> tuple[float, int]:
    """The statistic and the lags of one series with collinear steps, as statsmodels takes them."""

    def regression(lags: int) -> tuple[Values, Values]:
        step = np.diff(x)
        earlier = [step[lags - k : len(step) - k] for k in range(1, lags + 1)]
        return np.column_stack([x[lags:-1], *earlier, np.ones(len(step) - lags)]), step[lags:]

    regressors, target = regression(longest)
    half = len(target) / 2
    criteria = []
    for lags in range(longest + 1):
        used = np.column_stack([regressors[:, -1], regressors[:, : lags + 1]])
        _, _, squares, rank = _shortest_fit(used, target)
        criteria.append(2 * half * (np.log(squares) + 1 + math.log(math.pi / half)) + 2 * rank)
    lags = min((value, k) for k, value in enumerate(criteria))[1]
    return float(_shortest_fit(*regression(lags))[1][0]), lags


def _p_value(statistic: Values) -> Values:
    """MacKinnon's approximate p value of the statistic."""
    small, large = ndtr(np.polyval(_SMALL_P, statistic)), ndtr(np.polyval(_LARGE_P, statistic))
    inner = np.where(statistic <= _TAU_STAR, small, large)
    return np.where(statistic > _TAU_MAX, 1.0, np.where(statistic < _TAU_MIN, 0.0, inner))


CALCULATORS: dict[str, Calculator] = {
    "ar_coefficient": Calculator(tuple(f"coeff_{k}__k_{_ORDER}" for k in range(_ORDER + 1)), _ar_coefficient),
    "augmented_dickey_fuller": Calculator(
        tuple(f'attr_"{name}"__autolag_"AIC"' for name in ("teststat", "pvalue", "usedlag")), _augmented_dickey_fuller
    ),
}
