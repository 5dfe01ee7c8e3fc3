from __future__ import annotations

import pytest

from ingest.collectors.spool import HEADERS
from ingest.sources.kinds import KINDS
from ingest.sources.spool_columns import SPOOL_KINDS
from ingest.sources.spool_files import FOLDERS, classify_spool, find_spool, is_segment


def test_every_column_that_the_collectors_write_is_known():
    for folder, header in HEADERS.items():
        kind = SPOOL_KINDS[f"spool_{folder}"]
        assert set(header.split(",")) <= {*kind.column_map, *kind.optional}, folder


def test_every_folder_of_a_spool_has_a_kind_that_is_known_by_its_name():
    assert {f"spool_{folder}" for folder in FOLDERS} == SPOOL_KINDS.keys()
    assert tuple(HEADERS) == FOLDERS
    assert not any(kind.is_anonymous for kind in SPOOL_KINDS.values())
    assert SPOOL_KINDS.keys() <= KINDS.keys()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gpu/n-1-20261124T224200.123456Z-000001.csv", "spool_gpu"),
        ("gpu/prometheus-dcgm-20261124T22.csv", "spool_gpu"),
        ("jobs/one-2026-11-24.sacct.json", "sacct"),
        ("jobs/n-20261124T224200.123456Z-000001.csv", "spool_jobs"),
        ("gpu/n-20261124T224200.123456Z-000001.csv.open", "silent"),
        ("gpu/.n.csv.part", "silent"),
        ("LOCK", "silent"),
        ("LOCK.sacct", "silent"),
        ("spool.json", "silent"),
        ("gpu/README.md", "other"),
        ("more/n-20261124T224200.123456Z-000001.csv", "unknown"),
        ("slurm-log.csv", "unknown"),
    ],
)
def test_a_file_is_what_its_name_says(name, kind):
    assert classify_spool(name) == kind


def test_a_node_may_be_called_like_a_snapshot():
    assert is_segment("gpu/prometheus-1-20261124T224200.123456Z-000001.csv")
    assert not is_segment("gpu/prometheus-1-20261124T22.csv")
    assert not is_segment("jobs/one-2026-11-24.sacct.txt")


def test_two_spools_side_by_side_are_none():
    assert find_spool(["a/spool.json", "b/spool.json"]) is None
    assert find_spool(["spool.json"]) == ""
