"""Clocks that a test moves: waiting takes no time."""

from __future__ import annotations


class Clocks:
    """A monotonic and a wall clock; `wait` moves both, and ends at ``until_s``."""

    def __init__(self, wall_s: float = 1_800_000_000.0, until_s: float = float("inf")) -> None:
        self.monotonic_s = 50.0
        self.offset_s = wall_s - self.monotonic_s
        self.until_s = self.monotonic_s + until_s

    def monotonic(self) -> float:
        """Return the monotonic clock in s."""
        return self.monotonic_s

    def wall(self) -> float:
        """Return the wall clock in s."""
        return self.monotonic_s + self.offset_s

    def wait(self, seconds: float) -> bool:
        """Let time pass, and return whether it is time to end."""
        self.monotonic_s += seconds
        return self.monotonic_s >= self.until_s
