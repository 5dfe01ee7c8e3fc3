"""The lake that the settings name, opened for one command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from app.settings import load
from ingest.errors import LakeError

if TYPE_CHECKING:
    from ingest.lake import Lake


@contextmanager
def open_lake(flag: Path | None) -> Iterator[Lake]:
    """Give the lake of the flag, else of the settings; a file of it that cannot be read is a `LakeError`."""
    from polars.exceptions import PolarsError

    from ingest.lake import Lake

    root = load(lake=flag).lake
    try:
        yield Lake(root)
    except PolarsError as error:
        reason = str(error).strip().partition("\n")[0]
        raise LakeError(f"{root} cannot be read ({reason}); `jobwatt lake check --lake {root}` says where") from error
