"""A lake as an older jobwatt left it: without the columns and tables that came since."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

GROWN = {
    "node_samples": ["nfs_ops"],
    "job_parameters": ["image_size", "atoms_max", "gpus"],
    "job_stats": ["energy_gap_pct"],
}
"""The columns that each table got with schema version 2."""


def make_older(root: Path) -> None:
    """Turn a lake into one of format 2 and schema version 1; it must have no collectors' tables."""
    path = root / "_manifest" / "HEAD.json"
    head = json.loads(path.read_text())
    for part in head["parts"]:
        file = root / part["file"]
        if part["table"] in GROWN:
            table = pq.read_table(file, partitioning=None).drop_columns(GROWN[part["table"]])
            pq.write_table(table, file)
            part["bytes"] = file.stat().st_size
    pieces = pq.read_table(root / "_manifest" / head["pieces"])
    later = [name for name in pieces.column_names if name.startswith("both_") or name == "power_gaps"]
    pq.write_table(pieces.drop_columns(later), root / "_manifest" / head["pieces"])
    path.write_text(json.dumps({**head, "format": 2, "schema_version": 1}))


def forget_rates(root: Path) -> None:
    """Turn a lake into one of schema version 2, in which windows do not tell how fast they were read."""
    path = root / "_manifest" / "HEAD.json"
    head = json.loads(path.read_text())
    for part in head["parts"]:
        if part["table"] == "features":
            file = root / part["file"]
            table = pq.read_table(file, partitioning=None).drop_columns("samples_per_s")
            pq.write_table(table, file)
            part["bytes"] = file.stat().st_size
    path.write_text(json.dumps({**head, "schema_version": 2}))
