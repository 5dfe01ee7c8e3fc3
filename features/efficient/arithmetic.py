"""Arithmetic of numpy, to the last bit, for use inside kernels.

Many features compare a value with a mean or a quantile. One bit of difference in that mean moves a sample to the other
side, so sums are added in numpy's order and quantiles are interpolated with numpy's expression.
"""

from __future__ import annotations

import math

import numpy as np

from features.efficient.series import Values
from features.kernel import kernel, loose_kernel

_BLOCK = 128


@kernel
def _block_sum(values: Values, start: int, count: int) -> float:
    """Sum of at most 128 values, in eight strands."""
    if count < 8:
        total = -0.0
        for i in range(start, start + count):
            total += values[i]
        return total
    r0, r1, r2, r3 = values[start], values[start + 1], values[start + 2], values[start + 3]
    r4, r5, r6, r7 = values[start + 4], values[start + 5], values[start + 6], values[start + 7]
    whole = count - count % 8
    for i in range(start + 8, start + whole, 8):
        r0 += values[i]
        r1 += values[i + 1]
        r2 += values[i + 2]
        r3 += values[i + 3]
        r4 += values[i + 4]
        r5 += values[i + 5]
        r6 += values[i + 6]
        r7 += values[i + 7]
    total = ((r0 + r1) + (r2 + r3)) + ((r4 + r5) + (r6 + r7))
    for i in range(start + whole, start + count):
        total += values[i]
    return float(total)


@kernel
def pairwise_sum(values: Values, start: int, count: int) -> float:
    """Sum of ``count`` values from ``start`` on, added in numpy's pairwise order."""
    if count <= _BLOCK:
        return _block_sum(values, start, count)
    # Halves of halves, left to right; two sums of the same depth are added as soon as both are there.
    starts, counts, depths = np.empty(64, np.int64), np.empty(64, np.int64), np.empty(64, np.int64)
    sums, sum_depths = np.empty(64), np.empty(64, np.int64)
    starts[0], counts[0], depths[0] = start, count, 0
    waiting, ready = 1, 0
    while waiting:
        waiting -= 1
        first, length, depth = starts[waiting], counts[waiting], depths[waiting]
        if length > _BLOCK:
            half = length // 2
            half -= half % 8
            starts[waiting], counts[waiting], depths[waiting] = first + half, length - half, depth + 1
            starts[waiting + 1], counts[waiting + 1], depths[waiting + 1] = first, half, depth + 1
            waiting += 2
            continue
        total = _block_sum(values, first, length)
        while ready and sum_depths[ready - 1] == depth:
            ready -= 1
            depth -= 1
            total = sums[ready] + total
        sums[ready], sum_depths[ready] = total, depth
        ready += 1
    return float(sums[0])


@loose_kernel
def product_sum(one: Values, start: int, other: Values, other_start: int, count: int) -> float:
    """Sum of the products of two stretches of ``count`` values; its last digits depend on the processor."""
    total = 0.0
    for i in range(count):
        total += one[start + i] * other[other_start + i]
    return total


@kernel
def mean_of(values: Values, start: int, count: int) -> float:
    """Mean of a part of a series, as ``numpy.mean`` gives it."""
    return pairwise_sum(values, start, count) / count


@kernel
def variance_of(values: Values, start: int, count: int, room: Values) -> float:
    """Variance of a part of a series, as ``numpy.var`` gives it; ``room`` is overwritten."""
    mean = pairwise_sum(values, start, count) / count
    for i in range(count):
        offset = values[start + i] - mean
        room[i] = offset * offset
    return pairwise_sum(room, 0, count) / count


@kernel
def quantile_of(rising: Values, count: int, q: float) -> float:
    """Quantile of the first ``count`` values of a sorted series, as ``numpy.quantile`` interpolates it."""
    place = (count - 1) * q
    if place >= count - 1:
        low = high = rising[count - 1]
        weight = place + 1.0
    else:
        below = math.floor(place)
        low, high = rising[below], rising[below + 1]
        weight = place - below
    step = high - low
    if weight >= 0.5:
        return float(high - step * (1.0 - weight))
    return float(low + step * weight)


@kernel
def sorts_before(one: float, other: float) -> bool:
    """Whether ``one`` comes before ``other`` in numpy's order of sorting: by size, NaN last."""
    return one < other or (np.isnan(other) and not np.isnan(one))


@kernel
def present_count(rising: Values) -> int:
    """How many values of a sorted series are not NaN."""
    count = len(rising)
    while count and np.isnan(rising[count - 1]):
        count -= 1
    return count
