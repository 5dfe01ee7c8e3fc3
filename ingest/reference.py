"""Reference tables that ship beside the code, each row with its source."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

import polars as pl


@cache
def gpu_types() -> pl.DataFrame:
    """Return what is published of each GPU type: gpu_type, product, tdp_w (null where the word is unclear), nvml_name
    (a pattern of what NVML calls it; null where the word is unclear), source.
    """
    return _read("gpu_types.csv").with_columns(pl.col("tdp_w").cast(pl.Float32))


@cache
def type_of(name: str) -> str | None:
    """Return the type of a GPU that NVML calls so; None for one that is not in the table.

    >>> type_of("NVIDIA H100 80GB HBM3"), type_of("Tesla V100-PCIE-32GB"), type_of("NVIDIA H200"), type_of("NVIDIA X1")
    ('h100-sxm5', 'v100-pcie', 'h200', None)
    """
    for kind, pattern in gpu_types().select("gpu_type", "nvml_name").drop_nulls().iter_rows():
        if re.fullmatch(pattern, name) is not None:
            return str(kind)
    return None


@cache
def workload_classes() -> pl.DataFrame:
    """Return the known workload classes: label, family, domain, source."""
    return _read("workload_classes.csv")


def _read(name: str) -> pl.DataFrame:
    return pl.read_csv(resources.files("ingest").joinpath(name).read_bytes())
