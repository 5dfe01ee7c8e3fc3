"""Why a GPU's clocks are held back: NVML's bit mask, as hexadecimal (nvidia-smi) or as a plain number.

References
----------
NVIDIA, NVML API reference, nvmlClocksEventReasons; nvidia-smi --help-query-gpu, clocks_event_reasons.active.
"""

from __future__ import annotations

import re

import polars as pl

_MASK = re.compile(r"0[xX](?P<hex>[0-9a-fA-F]{1,16})|(?P<plain>\d{1,19})(\.0*)?", re.ASCII)
_GREATEST = 2**63 - 1


def parse_throttle(words: pl.Series) -> pl.Series:
    """Return the masks as int64; null for a word that is none, or that has a 64th bit.

    >>> parse_throttle(pl.Series(["0x0000000000000004", "4", "4.0", "Active", None])).to_list()
    [4, 4, 4, None, None]
    """
    texts = words.cast(pl.String)
    known = texts.drop_nulls().unique()
    masks = pl.Series([_mask(word) for word in known], dtype=pl.Int64)
    return texts.replace_strict(known, masks, default=None, return_dtype=pl.Int64)


def _mask(word: str) -> int | None:
    found = _MASK.fullmatch(word)
    if found is None:
        return None
    mask = int(found["hex"], 16) if found["hex"] else int(found["plain"])
    return mask if mask <= _GREATEST else None
