"""What is extracted: a feature set, of windows cut in one way. Its name tells one such table from another."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from features.sets import FeatureSet, find_set
from features.windows import CHALLENGE_CHANNELS, WindowSpec
from ingest.schemas import GPU_SAMPLES

_LONGEST_WORD: Final = 80
"""Channels whose names are longer together are told by a digest."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A feature set by name, and how the windows are cut.

    Raises
    ------
    ValueError
        If there is no such set, its definitions need longer windows, or a channel is no column of `gpu_samples`.

    Examples
    --------
    >>> Variant("statistical", WindowSpec(60)).name
    'statistical-v2-60s-middle'
    >>> Variant("covariance", WindowSpec(30, "slide", stride_s=10, samples_per_s=1)).name
    'covariance-v2-30s-slide-10s-1hz'
    >>> Variant("statistical", channels=("power_w", "sm_clock_mhz")).name
    'statistical-v2-60s-middle-power_w+sm_clock_mhz'
    """

    set_name: str
    window: WindowSpec = field(default_factory=lambda: WindowSpec(60.0))
    channels: tuple[str, ...] = CHALLENGE_CHANNELS

    def __post_init__(self) -> None:
        least = self.set.least_samples
        if self.window.n_samples < least:
            raise ValueError(
                f"a window of {self.window.seconds:g} s at {self.window.samples_per_s:g} samples a second has "
                f"{self.window.n_samples}; the set {self.set_name!r} needs {least} or more: give longer windows"
            )
        known = [name for name in dict.fromkeys(self.channels) if name in GPU_SAMPLES.columns]
        if not known or len(known) != len(self.channels):
            raise ValueError(
                f"channels are {', '.join(self.channels) or 'none'}; give each once, of gpu_samples' columns "
                f"{', '.join(GPU_SAMPLES.columns)}"
            )

    @property
    def set(self) -> FeatureSet:
        """The feature set."""
        return find_set(self.set_name)

    @property
    def name(self) -> str:
        """Set, version, seconds and place, then what is not as usual; of two variants it is never the same."""
        spec = self.window
        words = [self.set_name, f"v{self.set.version}", f"{_exact(spec.seconds)}s", spec.place]
        if spec.place == "slide":
            words.append(f"{_exact(spec.stride_s or spec.seconds)}s")
        if spec.place == "random":
            words.append(f"seed{spec.seed}")
        if spec.samples_per_s != 9.0:
            words.append(f"{_exact(spec.samples_per_s)}hz")
        if spec.max_gap_s is not None:
            words.append(f"gap{_exact(spec.max_gap_s)}s")
        if spec.even:
            words.append("even")
        if self.channels != CHALLENGE_CHANNELS:
            words.append(_channels_word(self.channels))
        return "-".join(words)


def _exact(number: float) -> str:
    """The number with all its digits, which tell two that are close apart."""
    return repr(float(number)).removesuffix(".0")


def _channels_word(channels: tuple[str, ...]) -> str:
    """The channels by name; where those are too many for the name of a folder, how many and a digest."""
    word = "+".join(channels)
    return word if len(word) <= _LONGEST_WORD else f"{len(channels)}channels+{sha256(word.encode()).hexdigest()[:12]}"
