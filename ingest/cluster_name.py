"""What a cluster may be called: a name that every reader of the lake's folders takes for the same text."""

from __future__ import annotations

import re
from typing import Final

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,99}")

_TAKEN_FOR_VALUES: Final = re.compile(
    r"true|false|nan|nat|inf|infinity|epoch|today"
    r"|(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*[._-]?\d.*"
    r"|[tp]\d[\dtdhmswyz.]*",
    re.IGNORECASE,
)
"""Words that one reader or another turns into a truth value, a number, a date (May-2021, T10) or a duration (P1D)."""


def check_cluster_name(name: str) -> str:
    """Return the name.

    Raises
    ------
    ValueError
        If it is no folder name that all readers take for text: polars would read ``cluster=007`` as the number 7,
        DuckDB as the text '007'.

    >>> check_cluster_name("hall-2.north")
    'hall-2.north'
    """
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"cluster is {name!r}; give a letter, then letters, digits, '.', '_' and '-', at most 100")
    if _TAKEN_FOR_VALUES.fullmatch(name) is not None:
        raise ValueError(f"cluster is {name!r}, which some readers take for a value; put a word before it: site-{name}")
    return name
