"""What a GPU's sensors show while one of the 26 challenge classes trains on it: signatures, variants and signals.

Pure functions of their arguments and of a generator; nothing here reads a clock or a disk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ingest.units import US_PER_S

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

SAMPLE_PERIOD_US = 109_500
"""Mean time between two samples: asked for every 100 ms, the release's files hold a little over 9 a second."""

SAMPLE_JITTER_US = 1_500
"""Largest deviation of a sample from its tick."""

GPU_MEMORY_MIB = 32_510
"""Free + used of a V100-32GB as nvidia-smi reports it."""

POWER_LIMIT_W = 250.0
IDLE_POWER_W = 25.0
CONTEXT_POWER_W = 40.0
"""Draw of a GPU that holds a process but runs nothing: between the release's 25 W and 46 W at 0-1 % utilisation."""

POWER_EXPONENT = 1.2
"""Draw grows as utilisation to this power, which keeps its medians by utilisation inside the published 10-90 %."""

HEATING_C_PER_W = 0.22
HEATING_TIME_S = 75.0
_HEAT_BLOCK = 32


@dataclass(frozen=True, slots=True)
class Signature:
    """One workload class: its published family and job count, and the sensor pattern that we gave it.

    ``step_s`` and ``epoch_s`` are the two periods, ``duty`` the share of a step in which the GPU computes at
    ``gpu_util_pct``, ``memory_util_pct`` and (at full utilisation) ``power_w``; ``memory_used_mib`` is its footprint.
    """

    label: str
    family: str
    published_jobs: int
    step_s: float
    duty: float
    gpu_util_pct: float
    memory_util_pct: float
    memory_used_mib: float
    power_w: float
    epoch_s: float


SIGNATURES: dict[str, Signature] = {
    signature.label: signature
    for signature in (
        Signature("vgg11", "VGG", 185, 0.90, 0.90, 96, 58, 9_800, 178, 60),
        Signature("vgg16", "VGG", 176, 1.30, 0.93, 98, 62, 13_400, 190, 80),
        Signature("vgg19", "VGG", 199, 1.60, 0.94, 98, 66, 15_900, 199, 95),
        Signature("resnet50", "ResNet", 111, 0.60, 0.82, 90, 45, 10_900, 161, 44),
        Signature("resnet50_v1.5", "ResNet", 91, 0.70, 0.85, 94, 50, 12_300, 171, 50),
        Signature("resnet101", "ResNet", 77, 1.00, 0.87, 94, 50, 16_500, 172, 66),
        Signature("resnet101_v2", "ResNet", 54, 1.15, 0.84, 92, 46, 18_200, 164, 74),
        Signature("resnet152", "ResNet", 76, 1.45, 0.90, 96, 53, 21_600, 178, 88),
        Signature("resnet152_v2", "ResNet", 54, 1.65, 0.87, 94, 48, 23_900, 170, 99),
        Signature("inception3", "Inception", 241, 0.95, 0.78, 88, 38, 13_500, 149, 75),
        Signature("inception4", "Inception", 243, 1.75, 0.82, 91, 42, 20_400, 156, 120),
        Signature("U3-32", "U-Net", 165, 0.50, 0.58, 66, 26, 4_100, 160, 24),
        Signature("U3-64", "U-Net", 159, 0.90, 0.70, 78, 34, 7_000, 154, 34),
        Signature("U3-128", "U-Net", 165, 1.70, 0.82, 90, 43, 12_200, 170, 52),
        Signature("U4-32", "U-Net", 163, 0.65, 0.62, 70, 29, 4_900, 162, 29),
        Signature("U4-64", "U-Net", 158, 1.15, 0.74, 82, 37, 8_400, 160, 41),
        Signature("U4-128", "U-Net", 157, 2.15, 0.86, 93, 47, 14_700, 177, 62),
        Signature("U5-32", "U-Net", 158, 0.82, 0.66, 74, 32, 5_900, 164, 35),
        Signature("U5-64", "U-Net", 158, 1.45, 0.78, 86, 40, 10_100, 166, 49),
        Signature("U5-128", "U-Net", 148, 2.70, 0.89, 96, 51, 17_700, 184, 75),
        Signature("bert-base-uncased", "BERT", 189, 2.40, 0.93, 97, 55, 25_800, 207, 140),
        Signature("distilbert-base-uncased", "DistilBERT", 172, 1.30, 0.91, 95, 51, 15_400, 193, 85),
        Signature("dimenet", "DimeNet", 33, 3.20, 0.52, 60, 17, 6_900, 162, 36),
        Signature("schnet", "SchNet", 39, 1.40, 0.38, 44, 11, 3_400, 118, 22),
        Signature("pna", "PNA", 27, 2.10, 0.33, 36, 9, 2_700, 106, 28),
        Signature("conv", "NNConv", 32, 0.95, 0.28, 28, 7, 2_100, 94, 18),
    )
}
"""The 26 classes of the challenge by name.

Names, families and job counts are those of the MIT Supercloud Workload Classification Challenge (Tang et al., IPDPSW
2022, doi:10.1109/IPDPSW55747.2022.00122, ``labelled_jobids.csv``). The sensor patterns are ours: invented, ordered as
the networks' sizes are, and meant for tests. An accuracy on them says nothing about the real classes.
"""


@dataclass(frozen=True, slots=True)
class Variant:
    """One job's own take on its class: batch size, data and host make it differ from its siblings."""

    signature: Signature
    step_s: float
    duty: float
    gpu_util_pct: float
    memory_util_pct: float
    memory_used_mib: float
    power_w: float
    epoch_s: float
    startup_s: float
    step_phase: float
    epoch_phase: float
    ambient_c: float


@dataclass(frozen=True, slots=True)
class Signals:
    """The sensors of one GPU as they are written: whole per cents, MiB and °C, and hundredths of a watt."""

    gpu_util_pct: IntArray
    memory_util_pct: IntArray
    memory_used_mib: IntArray
    gpu_temp_c: IntArray
    memory_temp_c: IntArray
    power_cw: IntArray


def draw_variant(signature: Signature, run_s: float, rng: np.random.Generator) -> Variant:
    """Draw one job of a class that runs for ``run_s``; it spends at most a tenth of that starting up."""
    batch = float(rng.choice([0.85, 1.0, 1.15]))

    def around(value: float, sigma: float) -> float:
        return value * float(rng.lognormal(0.0, sigma))

    return Variant(
        signature=signature,
        step_s=around(signature.step_s * batch, 0.06),
        duty=min(0.97, around(signature.duty, 0.03)),
        gpu_util_pct=min(99.5, around(signature.gpu_util_pct, 0.03)),
        memory_util_pct=min(95.0, around(signature.memory_util_pct, 0.06)),
        memory_used_mib=min(GPU_MEMORY_MIB - 600.0, around(signature.memory_used_mib * (0.4 + 0.6 * batch), 0.04)),
        power_w=min(POWER_LIMIT_W - 15, around(signature.power_w, 0.04)),
        epoch_s=around(signature.epoch_s * batch, 0.10),
        startup_s=min(float(rng.uniform(15.0, 60.0)), 0.1 * run_s),
        step_phase=float(rng.random()),
        epoch_phase=float(rng.random()),
        ambient_c=float(rng.normal(28.0, 1.5)),
    )


def tick_times_us(start_us: int, stop_us: int, seed: int, first_us: int, last_us: int) -> IntArray:
    """Return the sample times in ``[first_us, last_us)`` of a clock that ticks from ``start_us`` until ``stop_us``.

    The jitter of a tick depends on the seed and on its number alone, so that a run may be cut into slices: two
    adjoining slices give together what the whole gives.

    Examples
    --------
    >>> whole = tick_times_us(0, 900_000, 7, 0, 900_000)
    >>> halves = [tick_times_us(0, 900_000, 7, 0, 400_000), tick_times_us(0, 900_000, 7, 400_000, 900_000)]
    >>> bool((np.concatenate(halves) == whole).all())
    True
    """
    lowest = max(0, (first_us - start_us) // SAMPLE_PERIOD_US - 1)
    highest = max(lowest, (min(last_us, stop_us) - start_us) // SAMPLE_PERIOD_US + 2)
    number = np.arange(lowest, highest, dtype=np.uint64)
    noise = _splitmix64(number + np.uint64(seed % 2**63))
    jitter_us = (noise % np.uint64(2 * SAMPLE_JITTER_US + 1)).astype(np.int64)
    time_us = start_us + number.astype(np.int64) * SAMPLE_PERIOD_US + jitter_us
    return time_us[(time_us >= first_us) & (time_us < min(last_us, stop_us))]


def draw_signals(variant: Variant, elapsed_s: FloatArray, rng: np.random.Generator) -> Signals:
    """Draw one GPU's sensors at the given seconds since its job began.

    A slice of a longer run starts at the temperature that the class's mean draw would have brought it to.
    """
    n = elapsed_s.size
    computing = (elapsed_s / variant.step_s + variant.step_phase) % 1.0 < variant.duty
    epoch = (elapsed_s / variant.epoch_s + variant.epoch_phase) % 1.0
    validating, checkpointing = epoch > 0.88, epoch > 0.975
    started = elapsed_s >= variant.startup_s
    active = started & ~checkpointing

    noise = _smooth(rng.standard_normal(n, dtype=np.float32), 0.85, 24)
    level = np.where(computing, 1.0, 0.25) * np.where(validating, 0.75, 1.0)
    util_pct = np.clip(np.where(active, variant.gpu_util_pct * level + 2.2 * noise, 0.0), 0.0, 100.0)
    memory_level = np.where(computing, 1.0, 0.2) * np.where(validating, 0.8, 1.0)
    memory_util_pct = np.where(active, variant.memory_util_pct * memory_level + 0.9 * noise, 0.0)

    loaded = np.floor(np.minimum(elapsed_s / max(variant.startup_s, 1e-9), 1.0) * 6) / 6
    memory_mib = (
        loaded * variant.memory_used_mib + np.where(validating & started, 220, 0) + np.where(loaded > 0, 310, 0)
    )

    idle_w = np.where(loaded > 0, CONTEXT_POWER_W, IDLE_POWER_W)
    demand_w = idle_w + (variant.power_w - CONTEXT_POWER_W) * (util_pct / 100.0) ** POWER_EXPONENT
    power_w = _smooth(demand_w + 3.5 * rng.standard_normal(n, dtype=np.float32), 0.55, 8, keep_level=True)
    power_w = np.clip(power_w, 18.0, POWER_LIMIT_W)
    temp_c = _heat(variant, elapsed_s, power_w)
    whole_util = np.rint(util_pct).astype(np.int64)
    return Signals(
        gpu_util_pct=whole_util,
        memory_util_pct=np.clip(np.rint(memory_util_pct), 0, 100).astype(np.int64),
        memory_used_mib=np.clip(np.rint(memory_mib), 0, GPU_MEMORY_MIB).astype(np.int64),
        gpu_temp_c=np.rint(temp_c).astype(np.int64),
        memory_temp_c=np.rint(temp_c - 2.0 + 0.3 * rng.standard_normal(n, dtype=np.float32)).astype(np.int64),
        power_cw=np.rint(power_w * 100.0).astype(np.int64),
    )


def seconds_since(start_us: int, time_us: IntArray) -> FloatArray:
    """Return seconds since ``start_us``."""
    return (time_us - start_us) / US_PER_S


def _splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return 64 well-mixed bits for each number.

    References
    ----------
    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    z = x * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _smooth(values: npt.NDArray[np.floating], decay: float, taps: int, *, keep_level: bool = False) -> FloatArray:
    """Return a first-order low pass; scaled to keep the level, or else to be the sum that an AR(1) process is."""
    if values.size == 0:
        return np.zeros(0)
    kernel = decay ** np.arange(taps)
    if keep_level:
        kernel /= kernel.sum()
        values = np.concatenate([np.full(taps - 1, values[0]), values])
        return np.asarray(np.convolve(values, kernel, mode="valid"), dtype=np.float64)
    return np.asarray(np.convolve(values, kernel)[: values.size], dtype=np.float64)


def _heat(variant: Variant, elapsed: FloatArray, power_w: FloatArray) -> FloatArray:
    """Return the GPU's temperature: a first-order lag behind its power, computed block by block, then interpolated."""
    n = elapsed.size
    if n == 0:
        return np.zeros(0)
    edges = np.arange(0, n, _HEAT_BLOCK)
    mean_w = np.add.reduceat(power_w, edges) / np.diff(np.append(edges, n))
    run_w = IDLE_POWER_W + (mean_w[0] - IDLE_POWER_W) * (1.0 - np.exp(-elapsed[0] / HEATING_TIME_S))
    state = variant.ambient_c + HEATING_C_PER_W * run_w
    step_s = (elapsed[-1] - elapsed[0]) / max(1, n - 1) * _HEAT_BLOCK
    keep = np.exp(-step_s / HEATING_TIME_S)
    levels = [state]
    for target in variant.ambient_c + HEATING_C_PER_W * mean_w:
        state = target + (state - target) * keep
        levels.append(state)
    knots = np.append(edges, edges[-1] + _HEAT_BLOCK)
    return np.asarray(np.interp(np.arange(n), knots, levels), dtype=np.float64)
