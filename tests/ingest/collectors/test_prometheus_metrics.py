"""Samples become cells, labels become nodes and jobs, and snapshots of an hour only ever grow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ingest.collectors.prometheus_api import Series
from ingest.collectors.prometheus_metrics import (
    DCGM,
    JOBWATT,
    GpuRows,
    Quantity,
    Scrapes,
    job_ids,
    node_name,
    node_rows,
    number,
)
from ingest.collectors.snapshots import read_rows, sole_writer, write_hours
from ingest.collectors.spool import HEADERS
from ingest.errors import SpoolBusyError, SpoolError
from ingest.quality import LIMITS
from ingest.schemas import GPU_SAMPLES
from ingest.sources.supercloud_columns import GPU_COLUMN_MAP, GPU_OPTIONAL_COLUMN_MAP, LAKE_COLUMN

WATTS = Quantity("power_draw_W")
HOUR_S = 1_795_399_200


@pytest.mark.parametrize(
    "text",
    [
        *("NaN", "+Inf", "-Inf", "", "x"),
        *("9.223372036854776e+18", "9223372036854775794", "1.40737488355328e+14", "2147483632", "2147483647"),
    ],
)
def test_a_sample_that_says_it_has_no_value_is_an_empty_cell_and_not_zero(text):
    assert number(text, WATTS) == ""


def test_an_energy_counter_may_pass_a_number_that_is_no_value_elsewhere():
    assert number("2147483640", DCGM["DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"]) == "2147483640"


@pytest.mark.parametrize(
    ("text", "quantity", "cell"),
    [
        ("0", WATTS, "0"),
        ("123.456", WATTS, "123.456"),
        ("0.555", JOBWATT["jobwatt_gpu_utilization_ratio"], "56"),
        ("1234.567", JOBWATT["jobwatt_gpu_energy_joules_total"], "1234567"),
        ("1.98e+09", JOBWATT["jobwatt_gpu_sm_clock_hertz"], "1980"),
        ("1572864", JOBWATT["jobwatt_gpu_memory_used_bytes"], "2"),
        ("5000000000123", DCGM["DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"], "5000000000123"),
    ],
)
def test_a_sample_is_converted_once_and_rounded_only_where_the_column_takes_whole_numbers(text, quantity, cell):
    assert number(text, quantity) == cell


@pytest.mark.parametrize("table", [DCGM, JOBWATT])
def test_every_quantity_fills_a_column_of_the_spool_and_is_whole_where_the_lake_wants_it(table):
    lake = GPU_COLUMN_MAP | GPU_OPTIONAL_COLUMN_MAP
    for name, quantity in table.items():
        assert quantity.column in HEADERS["gpu"].split(","), name
        parsed = lake[quantity.column]
        column = "throttle" if parsed == "throttle_raw" else LAKE_COLUMN.get(parsed, parsed)
        assert parsed in LIMITS or column == "throttle", name
        assert GPU_SAMPLES.columns[column].is_integer() == quantity.whole, name


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        ({"Hostname": "n1.cluster.edu", "instance": "x:9400"}, "n1"),
        ({"node": "rack1.n7", "instance": "x:9400"}, "rack1.n7"),
        ({"instance": "n9.cluster.edu:9100"}, "n9"),
        ({"instance": "10.1.2.3:9100"}, "10.1.2.3"),
        ({"instance": "[fe80::1]:9100"}, "fe80--1"),
        ({"instance": "a/b,c:9100"}, "a-b-c"),
        ({}, ""),
    ],
)
def test_a_node_is_named_as_all_collectors_name_it(labels, name):
    assert node_name(labels) == name
    assert node_name({**labels, "host": "told.edu"}, "host") == "told"


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ({"hpc_job": "17"}, {17}),
        ({"jobid": "18"}, {18}),
        ({"slurm_job_id": "19"}, {19}),
        ({"job": "20"}, set()),
        ({"hpc_job": "17_3"}, set()),
        ({"hpc_job": "0"}, set()),
        ({"hpc_job": "٣"}, set()),
        ({}, set()),
    ],
)
def test_only_a_number_in_a_label_for_jobs_is_a_job(labels, found):
    assert job_ids(labels) == found


def test_a_value_that_is_repeated_for_want_of_a_newer_one_makes_one_row():
    labels = {"__name__": "DCGM_FI_DEV_POWER_USAGE", "gpu": "0", "Hostname": "n1"}
    times = Series({k: v for k, v in labels.items() if k != "__name__"}, [(10.0, "9.5"), (20.0, "9.5"), (30.0, "29.5")])
    values = Series(labels, [(10.0, "100"), (20.0, "100"), (30.0, "200")])
    rows = GpuRows(DCGM)
    rows.add([values], Scrapes.read([times]))
    assert [(key, row[GPU_POWER]) for key, row in rows.finish().items()] == [
        (("n1", "0", "9.500"), "100"),
        (("n1", "0", "29.500"), "200"),
    ]


GPU_POWER = HEADERS["gpu"].split(",").index("power_draw_W")


def test_of_two_metrics_of_one_column_the_first_of_the_table_counts():
    labels = {"gpu": "0", "Hostname": "n1"}
    series = [
        Series({**labels, "__name__": name}, [(1.0, value)])
        for name, value in (("DCGM_FI_DEV_POWER_MGMT_LIMIT", "700"), ("DCGM_FI_DEV_ENFORCED_POWER_LIMIT", "500"))
    ]
    rows = GpuRows(DCGM)
    rows.add(series, Scrapes.read([Series(labels, [(1.0, "1")])]))
    (row,) = rows.finish().values()
    assert row[HEADERS["gpu"].split(",").index("enforced_power_limit_W")] == "500"


@pytest.mark.parametrize(
    ("later", "power"),
    [({"0": "150", "1": "250"}, "20.0"), ({"0": "150", "1": "10"}, ""), ({"0": "150"}, "")],
    ids=["rises", "one wraps", "one is gone"],
)
def test_node_power_is_told_only_where_every_meter_rose(later, power):
    def meter(index: str) -> dict[str, str]:
        return {"instance": "n1:9100", "index": index, "path": f"intel-rapl:{index}"}

    name = "node_rapl_package_joules_total"
    samples = {index: [(10.0, before)] for index, before in (("0", "100"), ("1", "100"))}
    for index, value in later.items():
        samples[index].append((20.0, value))
    series = [Series({**meter(index), "__name__": name}, found) for index, found in samples.items()]
    times = [Series(meter(index), [(t, str(t)) for t, _ in found]) for index, found in samples.items()]
    rows = node_rows(series, Scrapes.read(times), {})
    assert [row[-1] for _, row in sorted(rows.items())] == ["", power]


def test_node_power_is_not_told_over_a_gap_in_which_a_meter_may_have_gone_round():
    meter = {"instance": "n1:9100", "index": "0", "path": "intel-rapl:0"}
    rises = [(0.0, "1000"), (120.0, "49000"), (420.0, "103500")]  # 400 W all the time: 120 kJ, less once 65.5 kJ
    series = [Series({**meter, "__name__": "node_rapl_package_joules_total"}, rises)]
    rows = node_rows(series, Scrapes.read([Series(meter, [(t, str(t)) for t, _ in rises])]), {})
    told = sorted((float(time_s), row[-1]) for (_, time_s), row in rows.items())
    assert told == [(0.0, ""), (120.0, "400.0"), (420.0, "")]


# -- snapshots ---------------------------------------------------------------------------------------------------------


def gpu_cells(time_s: float, watts: str = "", mib: str = "") -> tuple[tuple[str, ...], list[str]]:
    """One row with its key."""
    cells = dict.fromkeys(HEADERS["gpu"].split(","), "")
    cells |= {
        "timestamp": f"{time_s:.3f}",
        "node": "n1",
        "gpu_index": "0",
        "power_draw_W": watts,
        "memory_used_MiB": mib,
    }
    return ("n1", "0", f"{time_s:.3f}"), list(cells.values())


def test_rows_of_an_hour_that_come_later_complete_its_file_and_take_nothing_away(tmp_path):
    first = dict([gpu_cells(HOUR_S + 1, "5"), gpu_cells(HOUR_S + 2, "", "7")])
    (path,) = write_hours(tmp_path, "gpu", "a", first)
    assert path.name == "prometheus-a-20261123T02Z.csv"
    later = dict([gpu_cells(HOUR_S + 2, "6"), gpu_cells(HOUR_S + 3600, "9")])
    assert len(write_hours(tmp_path, "gpu", "a", later)) == 2
    expected = dict([gpu_cells(HOUR_S + 1, "5"), gpu_cells(HOUR_S + 2, "6", "7")])
    assert read_rows(path, "gpu") == expected
    assert write_hours(tmp_path, "gpu", "a", first | later) == []


def test_a_file_that_is_not_ours_is_left_alone(tmp_path):
    rows = dict([gpu_cells(HOUR_S + 1, "5")])
    (path,) = write_hours(tmp_path, "gpu", "a", rows)
    path.write_text("something else\n")
    with pytest.raises(SpoolError, match="is not as jobwatt writes it"):
        write_hours(tmp_path, "gpu", "a", rows)
    assert path.read_text() == "something else\n"


def test_two_collections_of_one_source_do_not_write_at_once(tmp_path):
    busy = pytest.raises(SpoolBusyError, match="another process collects from a")
    with sole_writer(tmp_path, "a"), sole_writer(tmp_path, "b"), busy, sole_writer(tmp_path, "a"):
        pass
    with sole_writer(tmp_path, "a"):
        pass


def test_collecting_from_a_prometheus_needs_the_standard_library_alone():
    heavy = "numpy polars pyarrow dask click psutil pynvml prometheus_client"
    code = (
        f"import sys, ingest.collectors.prometheus\nprint(*[name for name in {heavy!r}.split() if name in sys.modules])"
    )
    root = Path(__file__).parents[3]
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert found.stdout.strip() == ""
