"""Where each job's GPU samples are, looked up in the pieces on disk, which are sorted by job."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ingest.head import MANIFEST, Head
from ingest.manifest import NO_PART

IntArray = npt.NDArray[np.int64]

_COLUMNS: Final = ["job_id", "table", "cluster", "node", "gpu_index", "part", "row_start", "rows"]
_GROUPS_KEPT: Final = 8


class SeriesIndex:
    """Reads the footer of the pieces, then for each job only the row groups that may hold it; the last few are kept.

    Raises
    ------
    OSError, ArrowException
        From any method, if the pieces are missing or damaged.
    """

    def __init__(self, root: Path, head: Head) -> None:
        self._file = pq.ParquetFile(root / MANIFEST / head.pieces, page_checksum_verification=True)
        self._groups, self._least, self._greatest = _job_ranges(self._file.metadata)
        self._kept: OrderedDict[int, tuple[IntArray, pa.Table]] = OrderedDict()

    def find(
        self, job_id: int, cluster: str | None, node: str | None, gpu_index: int | None
    ) -> list[tuple[str, int, int]]:
        """Return (part, first row, rows) of each stretch of a part, series by series; neighbours are joined.

        Raises
        ------
        ValueError
            If more than one cluster has such a job.
        """
        mine = [piece for piece in self._pieces_of(job_id) if cluster in (None, piece["cluster"])]
        clusters = sorted({piece["cluster"] for piece in mine})
        if len(clusters) > 1:
            raise ValueError(f"job {job_id} is in the clusters {' and '.join(clusters)}; give one of them as cluster")
        found: list[tuple[str, int, int]] = []
        for piece in mine:
            if node not in (None, piece["node"]) or gpu_index not in (None, piece["gpu_index"]):
                continue
            part, start, rows = piece["part"], piece["row_start"], piece["rows"]
            if found and found[-1][0] == part and found[-1][1] + found[-1][2] == start:
                found[-1] = (part, found[-1][1], found[-1][2] + rows)
            else:
                found.append((part, start, rows))
        return found

    def _pieces_of(self, job_id: int) -> list[dict[str, Any]]:
        """Return the pieces of a job's GPU samples in the order of the file."""
        first = int(np.searchsorted(self._greatest, job_id, side="left"))
        last = int(np.searchsorted(self._least, job_id, side="right"))
        pieces: list[dict[str, Any]] = []
        for group in self._groups[first:last]:
            jobs, table = self._read(group)
            begin, end = np.searchsorted(jobs, [job_id, job_id + 1]).tolist()
            found = table.slice(begin, end - begin).to_pylist()
            pieces += [piece for piece in found if piece["table"] == "gpu_samples" and piece["part"] != NO_PART]
        return pieces

    def _read(self, group: int) -> tuple[IntArray, pa.Table]:
        """Return the jobs of a row group that has any, ascending, and its pieces; those without a job come last."""
        if group in self._kept:
            self._kept.move_to_end(group)
        else:
            table = self._file.read_row_group(group, columns=_COLUMNS, use_threads=False)
            # by polars, since pyarrow would import pandas to make a numpy array
            self._kept[group] = pl.Series("job_id", table["job_id"]).drop_nulls().to_numpy(), table
            if len(self._kept) > _GROUPS_KEPT:
                self._kept.popitem(last=False)
        return self._kept[group]


def _job_ranges(metadata: pq.FileMetaData) -> tuple[list[int], IntArray, IntArray]:
    """Return the row groups that hold jobs, and the least and the greatest job of each; both ascend."""
    column = metadata.schema.names.index("job_id")
    found = []
    for group in range(metadata.num_row_groups):
        statistics = metadata.row_group(group).column(column).statistics
        if statistics is not None and statistics.has_min_max:
            found.append((group, statistics.min, statistics.max))
    groups, least, greatest = zip(*found, strict=True) if found else ((), (), ())
    return list(groups), np.array(least, np.int64), np.array(greatest, np.int64)
