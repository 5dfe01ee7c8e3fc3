"""Metrics of exporters and the columns of a spool: which fills which, units converted here and nowhere else. Pure.

A row is one scrape of one GPU or node: its time is the scrape's own (``timestamp()``), not the time it was asked for,
so that a value which Prometheus repeats for want of a newer one makes no second row.

References
----------
NVIDIA/dcgm-exporter, etc/default-counters.csv (names, units) and hpc.go (label hpc_job); dcgm_structs.h (blank values).
prometheus/node_exporter, rapl_linux.go. `ingest.collectors.exporter` for jobwatt's own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ingest.collectors.prometheus_api import Series
from ingest.collectors.spool import HEADERS

KIB_PER_BYTE: Final = 1 / 1024
MIB_PER_BYTE: Final = 1 / 1024**2


@dataclass(frozen=True, slots=True)
class Quantity:
    """The column that a metric fills, and what it is multiplied by. ``whole``: the column takes whole numbers alone.

    ``of_device``: true of the whole GPU, also where the metric is told for a MIG instance of it.
    """

    column: str
    factor: float = 1.0
    whole: bool = False
    of_device: bool = True


DCGM: Final[Mapping[str, Quantity]] = {
    "DCGM_FI_DEV_POWER_USAGE": Quantity("power_draw_W"),
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": Quantity("energy_mJ"),
    "DCGM_FI_DEV_GPU_UTIL": Quantity("utilization_gpu_pct", whole=True, of_device=False),
    "DCGM_FI_DEV_MEM_COPY_UTIL": Quantity("utilization_memory_pct", whole=True, of_device=False),
    "DCGM_FI_DEV_FB_FREE": Quantity("memory_free_MiB", whole=True, of_device=False),
    "DCGM_FI_DEV_FB_USED": Quantity("memory_used_MiB", whole=True, of_device=False),
    "DCGM_FI_DEV_GPU_TEMP": Quantity("temperature_gpu", whole=True),
    "DCGM_FI_DEV_MEMORY_TEMP": Quantity("temperature_memory", whole=True),
    "DCGM_FI_DEV_SM_CLOCK": Quantity("clock_sm_MHz", whole=True),
    "DCGM_FI_DEV_MEM_CLOCK": Quantity("clock_memory_MHz", whole=True),
    "DCGM_FI_DEV_ENFORCED_POWER_LIMIT": Quantity("enforced_power_limit_W"),
    "DCGM_FI_DEV_POWER_MGMT_LIMIT": Quantity("enforced_power_limit_W"),
    "DCGM_FI_DEV_CLOCKS_EVENT_REASONS": Quantity("throttle_reasons", whole=True),
    "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS": Quantity("throttle_reasons", whole=True),
    "DCGM_FI_DEV_PCIE_LINK_WIDTH": Quantity("pcie_link_width_current", whole=True),
}
"""Of two metrics of one column the first counts, where a GPU has both."""

JOBWATT: Final[Mapping[str, Quantity]] = {
    "jobwatt_gpu_power_watts": Quantity("power_draw_W"),
    "jobwatt_gpu_power_average_watts": Quantity("power_average_W"),
    "jobwatt_gpu_energy_joules_total": Quantity("energy_mJ", 1000.0),
    "jobwatt_gpu_utilization_ratio": Quantity("utilization_gpu_pct", 100.0, whole=True),
    "jobwatt_gpu_memory_utilization_ratio": Quantity("utilization_memory_pct", 100.0, whole=True),
    "jobwatt_gpu_memory_used_bytes": Quantity("memory_used_MiB", MIB_PER_BYTE, whole=True),
    "jobwatt_gpu_memory_free_bytes": Quantity("memory_free_MiB", MIB_PER_BYTE, whole=True),
    "jobwatt_gpu_temperature_celsius": Quantity("temperature_gpu", whole=True),
    "jobwatt_gpu_memory_temperature_celsius": Quantity("temperature_memory", whole=True),
    "jobwatt_gpu_sm_clock_hertz": Quantity("clock_sm_MHz", 1e-6, whole=True),
    "jobwatt_gpu_memory_clock_hertz": Quantity("clock_memory_MHz", 1e-6, whole=True),
    "jobwatt_gpu_power_limit_watts": Quantity("enforced_power_limit_W"),
    "jobwatt_gpu_throttle_reasons": Quantity("throttle_reasons", whole=True),
}
JOBWATT_JOBS: Final = "jobwatt_job_info"

LOAD: Final = "node_load1"
MEMORY: Final = ("node_memory_MemFree_bytes", "node_memory_Inactive_bytes")
RAPL: Final = ("node_rapl_package_joules_total", "node_rapl_dram_joules_total")
UNSEEN_WRAP_S: Final = 130.0
"""AMD's energy counters (65.5 kJ) go round within this at 500 W; how far a meter goes no exporter tells."""
NODE: Final = (LOAD, *MEMORY, *RAPL)
NODE_NAMES: Final = "node_uname_info"

PRESETS: Final[Mapping[str, Sequence[str]]] = {"dcgm": tuple(DCGM), "jobwatt": tuple(JOBWATT), "node": NODE}
"""Exporter to the metrics that are read of it."""

JOB_LABELS: Final = ("hpc_job", "jobid", "job_id", "slurm_job_id", "slurm_jobid", "slurm_job", "exported_jobid")
"""Labels that exporters use for a Slurm job. ``job`` is not one: it is Prometheus's own word for a group of targets."""

NODE_LABELS: Final = ("node", "Hostname", "hostname", "nodename", "exported_instance", "instance")
INSTANCE_LABEL: Final = "GPU_I_ID"

_FP64_BLANK = 2.0**47  # and above: FP64 blank (2**47), INT64 blank (2**63 - 16), 'not found', 'not supported', …
_INT32_BLANK = range(2**31 - 16, 2**31)

GPU_COLUMNS: Final = HEADERS["gpu"].split(",")
NODE_COLUMNS: Final = HEADERS["node"].split(",")
_AT = {name: i for i, name in enumerate(GPU_COLUMNS)}

Key = tuple[str, ...]
Rows = dict[Key, list[str]]
"""Rows of a snapshot by what tells one from another: cells in the order of the header."""


def number(text: str, quantity: Quantity) -> str:
    """Return a sample as a cell in the column's unit; '' for what says that there is no value.

    >>> watts, percent = Quantity("power_draw_W"), Quantity("utilization_gpu_pct", 100.0, whole=True)
    >>> number("0.29", percent), number("71.5", watts), number("NaN", watts), number("9.223372036854776e+18", watts)
    ('29', '71.5', '', '')
    """
    try:
        value = float(text)
    except ValueError:
        return ""
    if not math.isfinite(value) or value >= _FP64_BLANK or (value in _INT32_BLANK and quantity.column != "energy_mJ"):
        return ""
    value *= quantity.factor
    rounded = round(value)
    return str(rounded) if quantity.whole or value == rounded else repr(value)


def node_name(labels: Mapping[str, str], label: str = "") -> str:
    """Return the node that a series is of, as all collectors write it: up to its first dot, without a port.

    >>> node_name({"Hostname": "n1.cluster.edu", "instance": "x:9400"}), node_name({"instance": "10.0.0.7:9100"})
    ('n1', '10.0.0.7')
    """
    found = labels.get(label, "") if label else next((labels[name] for name in NODE_LABELS if labels.get(name)), "")
    host = re.sub(r":\d+$", "", found).strip("[]")
    is_address = re.fullmatch(r"[\d.]+|[0-9A-Fa-f:]*:[0-9A-Fa-f:]*", host) is not None
    return re.sub(
        r"[^A-Za-z0-9._-]", "-", host if is_address or labels.get("node") == found else host.partition(".")[0]
    )


def job_ids(labels: Mapping[str, str]) -> set[int]:
    """Return the job that a series names; none where it names none, or not by a number."""
    found = next((labels[name] for name in JOB_LABELS if labels.get(name)), "")
    return {int(found)} if found.isascii() and found.isdigit() and int(found) > 0 else set()


def without_name(labels: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    """Return the labels that tell series of one metric apart."""
    return frozenset(item for item in labels.items() if item[0] != "__name__")


@dataclass(slots=True)
class Scrapes:
    """The times of scrapes: for each set of labels, at which moment asked for (s) which scrape (ms) was the latest."""

    of: dict[frozenset[tuple[str, str]], dict[float, int]]

    @classmethod
    def read(cls, series: Iterable[Series]) -> Scrapes:
        """Return them from the answer to a query for ``timestamp(…)``."""
        return cls(
            {
                without_name(s.labels): {t: round(float(v) * 1000) for t, v in s.samples if math.isfinite(float(v))}
                for s in series
            }
        )

    def each(self, series: Series) -> Iterable[tuple[float, int, str]]:
        """Yield (moment asked for in s, scrape in ms, value) of a series, each scrape as often as it was the latest."""
        times = self.of.get(without_name(series.labels), {})
        for at, value in series.samples:
            if at in times:
                yield at, times[at], value


@dataclass(slots=True)
class GpuRows:
    """Rows of GPUs as they are put together from several answers, and what was odd about those."""

    quantities: Mapping[str, Quantity]
    node_label: str = ""
    rows: Rows = field(default_factory=dict)
    jobs: dict[Key, set[int]] = field(default_factory=dict)
    nameless: int = 0
    """Series without a node or a GPU's number."""
    jobs_unread: int = 0
    """Series that name their job otherwise than by a number."""

    def add(self, series: Iterable[Series], scrapes: Scrapes, jobs: Iterable[Series] = ()) -> None:
        """Take the samples of the metrics, and of ``jobwatt_job_info`` where that tells the jobs."""
        running = self._running(jobs)
        order = {name: i for i, name in enumerate(self.quantities)}
        for one in sorted(series, key=lambda s: order.get(s.labels.get("__name__", ""), len(order))):
            quantity = self.quantities.get(one.labels.get("__name__", ""))
            if quantity is not None:
                self._add(one, quantity, scrapes, running)

    def _add(
        self, one: Series, quantity: Quantity, scrapes: Scrapes, running: Mapping[tuple[str, str, float], set[int]]
    ) -> None:
        node, gpu = node_name(one.labels, self.node_label), one.labels.get("gpu", "")
        if not node or not (gpu.isascii() and gpu.isdigit()):
            self.nameless += 1
            return
        named = job_ids(one.labels)
        self.jobs_unread += not named and any(one.labels.get(name) for name in JOB_LABELS)
        is_part = bool(one.labels.get(INSTANCE_LABEL)) and not quantity.of_device
        for at, scrape_ms, value in scrapes.each(one):
            time_s = f"{scrape_ms / 1000:.3f}"
            key = (node, gpu, time_s)
            row = self.rows.get(key)
            if row is None:
                row = self.rows[key] = [time_s, node, "", gpu, *[""] * (len(GPU_COLUMNS) - 4)]
                self.jobs[key] = set()
            self.jobs[key] |= named | running.get((node, gpu, at), set())
            column = _AT[quantity.column]
            if not row[column] and not is_part:
                row[column] = number(value, quantity)

    def _running(self, jobs: Iterable[Series]) -> dict[tuple[str, str, float], set[int]]:
        found: dict[tuple[str, str, float], set[int]] = {}
        for one in jobs:
            node, gpu, named = node_name(one.labels, self.node_label), one.labels.get("gpu", ""), job_ids(one.labels)
            self.jobs_unread += not named
            for at, _ in one.samples:
                found.setdefault((node, gpu, at), set()).update(named)
        return found

    def finish(self) -> Rows:
        """Return the rows with their jobs; a GPU that several jobs share, or none uses, has none."""
        for key, row in self.rows.items():
            row[2] = str(min(self.jobs[key])) if len(self.jobs[key]) == 1 else ""
        return self.rows


def node_rows(series: Iterable[Series], scrapes: Scrapes, names: Mapping[str, str], node_label: str = "") -> Rows:
    """Return rows of nodes. ``names``: what ``node_uname_info`` calls the node of each instance.

    Power is the rise of every package and DRAM meter since the node's scrape before, over the time between; a meter
    that fell (it wraps) or was not there before leaves it empty.
    """
    found: dict[Key, dict[frozenset[tuple[str, str]] | str, float]] = {}
    for one in series:
        metric = one.labels.get("__name__", "")
        node = node_name(one.labels, node_label)
        if not node_label and not one.labels.get("node"):
            node = names.get(one.labels.get("instance", ""), node)
        if not node or (metric in RAPL and "mmio" in one.labels.get("path", "")):  # the same package a second time
            continue
        meter = frozenset(one.labels.items()) if metric in RAPL else metric
        for _, scrape_ms, value in scrapes.each(one):
            if math.isfinite(float(value)):
                found.setdefault((node, f"{scrape_ms / 1000:.3f}"), {})[meter] = float(value)
    rows: Rows = {}
    before: tuple[str, float, dict[frozenset[tuple[str, str]], float]] = ("", 0.0, {})
    for (node, time_s), values in sorted(found.items(), key=lambda item: (item[0][0], float(item[0][1]))):
        meters = {meter: joules for meter, joules in values.items() if isinstance(meter, frozenset)}
        cells = dict.fromkeys(NODE_COLUMNS, "")
        cells["Node"], cells["Time"] = node, time_s
        cells["LoadAvg"] = number(str(values.get(LOAD, math.nan)), Quantity("LoadAvg"))
        free = sum(values.get(metric, math.nan) for metric in MEMORY)
        cells["MemoryFreeInactiveKB"] = number(str(free), Quantity("", KIB_PER_BYTE, whole=True))
        if before[0] == node:
            cells["NodePowerW"] = _mean_power(before[2], meters, float(time_s) - before[1])
        before = (node, float(time_s), meters)
        rows[node, time_s] = list(cells.values())
    return rows


def _mean_power(
    before: Mapping[frozenset[tuple[str, str]], float], now: Mapping[frozenset[tuple[str, str]], float], passed_s: float
) -> str:
    """Return the mean power in W as a cell, '' where a meter wrapped, may have wrapped unseen, came or went."""
    if not now or before.keys() != now.keys() or any(now[meter] < before[meter] for meter in now):
        return ""
    if passed_s > UNSEEN_WRAP_S:
        return ""
    return f"{sum(now[meter] - before[meter] for meter in now) / passed_s:.1f}"
