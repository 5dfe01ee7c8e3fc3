"""Reference tables that ship beside the code, each row with its source."""

from __future__ import annotations

from functools import cache
from importlib import resources

import polars as pl


@cache
def gpu_types() -> pl.DataFrame:
    """Return what is published of each GPU type: gpu_type, product, tdp_w (null where the word is unclear), source."""
    return _read("gpu_types.csv").with_columns(pl.col("tdp_w").cast(pl.Float32))


@cache
def workload_classes() -> pl.DataFrame:
    """Return the known workload classes: label, family, domain, source."""
    return _read("workload_classes.csv")


def _read(name: str) -> pl.DataFrame:
    return pl.read_csv(resources.files("ingest").joinpath(name).read_bytes())
