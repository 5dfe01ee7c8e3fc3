"""What is extracted: a feature set, of windows cut in one way. Its name tells one such table from another."""

from __future__ import annotations

from dataclasses import dataclass, field

from features.sets import FeatureSet, WindowShape, find_set
from features.windows import CHALLENGE_CHANNELS, WindowSpec


@dataclass(frozen=True, slots=True)
class Variant:
    """A feature set by name, and how the windows are cut.

    Raises
    ------
    ValueError
        If there is no such set, or its definitions need longer windows.

    Examples
    --------
    >>> Variant("statistical", WindowSpec(60)).name
    'statistical-v2-60s-middle'
    >>> Variant("covariance", WindowSpec(30, "slide", stride_s=10, samples_per_s=1)).name
    'covariance-v1-30s-slide-10s-1hz'
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
        if self.window.even:
            raise ValueError("an even grid is not extracted into a lake; cut_windows has it")

    @property
    def set(self) -> FeatureSet:
        """The feature set."""
        return find_set(self.set_name)

    @property
    def shape(self) -> WindowShape:
        """What the windows have in common."""
        return WindowShape(self.channels, self.window.n_samples, self.window.samples_per_s)

    @property
    def name(self) -> str:
        """Set, version, seconds and place, then what is not as usual."""
        spec = self.window
        words = [self.set_name, f"v{self.set.version}", f"{spec.seconds:g}s", spec.place]
        if spec.place == "slide":
            words.append(f"{spec.stride_s or spec.seconds:g}s")
        if spec.place == "random":
            words.append(f"seed{spec.seed}")
        if spec.samples_per_s != 9.0:
            words.append(f"{spec.samples_per_s:g}hz")
        if spec.max_gap_s is not None:
            words.append(f"gap{spec.max_gap_s:g}s")
        return "-".join(words)
