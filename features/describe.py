"""Windows become rows of a feature table: the set's columns, nulls where there is nothing to say, and why."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from features.sets import shape_of
from features.variant import Variant

FloatArray = npt.NDArray[np.floating]


def describe(
    values: npt.NDArray[np.float32],
    samples_per_s: npt.NDArray[np.float64],
    variant: Variant,
    context: npt.NDArray[np.float64] | None = None,
) -> pl.DataFrame:
    """Return ``reason`` and the columns of the variant's set, one row a window.

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
    columns = {name: found[:, index] for index, name in enumerate(names)}
    if context is not None:
        columns |= {name: context[:, index] for index, name in enumerate(made.context)}
    reasons = [_reason(shape.channels, *row) for row in zip(without, lacking, strict=True)]
    frame = pl.DataFrame(columns, nan_to_null=True)
    return frame.insert_column(0, pl.Series("reason", reasons, dtype=pl.String))


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
