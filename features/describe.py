"""Windows become rows of a feature table: the set's columns, nulls where there is nothing to say, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from features.sets import shape_of
from features.variant import Variant

FloatArray = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Described:
    """What a set says of windows, one a row, NaN where there is nothing to say; and why, where a channel lacks some.

    ``blocks`` are arrays of shape (n_windows, columns) with the names of their columns.
    """

    reasons: tuple[str | None, ...]
    blocks: tuple[tuple[tuple[str, ...], FloatArray], ...]

    @property
    def nbytes(self) -> int:
        return sum(values.nbytes for _, values in self.blocks)

    @property
    def schema(self) -> dict[str, pl.DataType]:
        """The names of the columns, with their types."""
        types = [(names, pl.Series(np.empty(0, values.dtype)).dtype) for names, values in self.blocks]
        return {name: dtype for names, dtype in types for name in names}

    def arrays(self) -> dict[str, pa.Array]:
        """Return the columns, null for NaN: views of one array a block, since a set has thousands of them."""
        made: dict[str, pa.Array] = {}
        for names, values in self.blocks:
            rows = len(values)
            flat = pl.Series(np.ascontiguousarray(values.T).reshape(-1), nan_to_null=True).to_arrow()
            made |= {name: flat.slice(index * rows, rows) for index, name in enumerate(names)}
        return made


def put_together(parts: Sequence[Described]) -> Described:
    """Return windows of one set, described in several parts, as one."""
    blocks = [
        (names, np.concatenate([part.blocks[index][1] for part in parts]))
        for index, (names, _) in enumerate(parts[0].blocks)
    ]
    return Described(tuple(reason for part in parts for reason in part.reasons), tuple(blocks))


def describe(
    values: npt.NDArray[np.float32],
    samples_per_s: npt.NDArray[np.float64],
    variant: Variant,
    context: npt.NDArray[np.float64] | None = None,
) -> Described:
    """Return the columns of the variant's set, one row a window, and the reason where something is missing.

    A channel without a reading has no features, whatever the set makes of nothing; nor has one that lacks a reading,
    where the set counts it like any other. The reason names the channels that lack some or all readings; it is null
    where none does.

    Parameters
    ----------
    values : array of shape (n_windows, n_channels, n_samples), missing readings NaN
    samples_per_s : how fast each window was read, shape (n_windows,)
    context : array of shape (n_windows, n_context), for a set that has some
    """
    made, shape = variant.set, shape_of(values, variant.channels, samples_per_s)
    absent = np.isnan(values)
    without, lacking = np.asarray(absent.all(axis=2)), np.asarray(absent.any(axis=2))
    names = made.names(shape)
    found = made.features(values, shape) if len(values) else np.empty((0, len(names)))
    void = lacking if made.whole else without
    if void.any():
        found = np.where(void[:, _channel_of(names, shape.channels)], np.nan, found)
    blocks = [(tuple(names), found)]
    if context is not None:
        blocks.append((made.context, context))
    reasons = [_reason(shape.channels, *row) for row in zip(without, lacking, strict=True)]
    return Described(tuple(reasons), tuple(blocks))


def _channel_of(names: list[str], channels: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """The number of the channel that each column is of."""
    number = {channel: index for index, channel in enumerate(channels)}
    return np.array([number[name.partition("__")[0]] for name in names], np.int64)


def _reason(channels: tuple[str, ...], without: npt.NDArray[np.bool_], lacking: npt.NDArray[np.bool_]) -> str | None:
    said = []
    for code, which in (("no_reading", without), ("missing_reading", lacking & ~without)):
        if which.any():
            said.append(f"{code}: {', '.join(np.array(channels)[which])}")
    return "; ".join(said) or None
