"""Energy twice: by the GPU's own counter and by integrating its power; pure, and without numpy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

MAX_GAP_S: Final = 10.0
"""Power is not integrated between two samples further apart than this; as in the lake (`ingest.quality`)."""


@dataclass(frozen=True, slots=True)
class EnergyTwice:
    """Both energies of one GPU over the same covered time.

    ``gap_ratio`` is integral / counter - 1; None where the counter did not move.
    """

    gpu_index: int
    counter_j: float
    integral_j: float
    covered_s: float
    gap_ratio: float | None


class EnergySum:
    """Both energies of one GPU, summed up while its samples come in order of time.

    Power is integrated over all samples from one reading of the counter to the next, so that the two are energies of
    the same time. What lies between two readings counts only if no step between samples with power is longer than
    ``max_gap_s`` there, and not if the counter fell (the driver was loaded anew). A reading without power is none.
    """

    __slots__ = ("_before", "_counter_j", "_covered_s", "_integral_j", "_max_gap_s", "_read", "_since_j")

    def __init__(self, max_gap_s: float = MAX_GAP_S) -> None:
        self._max_gap_s = max_gap_s
        self._counter_j = self._integral_j = self._covered_s = self._since_j = 0.0
        self._before: tuple[float, float] | None = None
        self._read: tuple[float, float] | None = None

    def add(self, time_s: float, power_w: float | None, energy_mj: float | None) -> None:
        """Take the next sample; the counter, in mJ, is None where it was not asked. Any clock that never falls does."""
        if power_w is None:
            return
        before, read = self._before, self._read
        if before is not None and 0 <= time_s - before[0] <= self._max_gap_s:
            self._since_j += (time_s - before[0]) * (power_w + before[1]) / 2
        else:
            read = None
        self._before, self._read = (time_s, power_w), read
        if energy_mj is None:
            return
        if read is not None and time_s > read[0] and energy_mj >= read[1]:
            self._covered_s += time_s - read[0]
            self._integral_j += self._since_j
            self._counter_j += (energy_mj - read[1]) / 1000
        self._read, self._since_j = (time_s, energy_mj), 0.0

    def told(self, gpu_index: int) -> EnergyTwice:
        """Return both energies up to the last reading of the counter."""
        gap = self._integral_j / self._counter_j - 1 if self._counter_j > 0 else None
        return EnergyTwice(gpu_index, self._counter_j, self._integral_j, self._covered_s, gap)


def energy_twice(
    gpu_index: int, samples: Iterable[tuple[float, float | None, float | None]], max_gap_s: float = MAX_GAP_S
) -> EnergyTwice:
    """Return both energies of one GPU's samples in order of time, as `EnergySum` sums them up.

    Parameters
    ----------
    samples
        (time in s, power in W or None, energy counter in mJ or None).

    Examples
    --------
    >>> energy_twice(0, [(0.0, 100.0, 0), (0.5, 100.0, None), (1.0, 100.0, 80_000)]).gap_ratio
    0.25
    """
    energy = EnergySum(max_gap_s)
    for time_s, power_w, energy_mj in samples:
        energy.add(time_s, power_w, energy_mj)
    return energy.told(gpu_index)
