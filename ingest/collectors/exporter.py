"""Prometheus metrics of a running service: base units, few labels, jobs through an info metric."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from ingest.errors import HardwareError

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from ingest.collectors.gpu import GpuCollector
    from ingest.collectors.service import Service

GPU_GAUGES: Final = {
    "gpu_utilization_ratio": ("Share of the last sampling period in which a kernel ran.", "gpu_util_pct", 0.01),
    "gpu_memory_utilization_ratio": ("Share of time in which memory was accessed.", "memory_util_pct", 0.01),
    "gpu_memory_used_bytes": ("Memory in use, with what the driver keeps.", "memory_used_mib", 2**20),
    "gpu_memory_free_bytes": ("Memory free.", "memory_free_mib", 2**20),
    "gpu_temperature_celsius": ("Temperature of the GPU.", "gpu_temp_c", 1),
    "gpu_memory_temperature_celsius": ("Temperature of its memory.", "memory_temp_c", 1),
    "gpu_power_watts": ("Power now.", "power_w", 1),
    "gpu_power_average_watts": ("Power, averaged by the GPU (about one second).", "power_avg_w", 1),
    "gpu_power_limit_watts": ("The limit that is enforced.", "power_limit_w", 1),
    "gpu_sm_clock_hertz": ("Clock of the streaming multiprocessors.", "sm_clock_mhz", 1e6),
    "gpu_memory_clock_hertz": ("Clock of the memory.", "memory_clock_mhz", 1e6),
    "gpu_throttle_reasons": ("NVML's bit mask of reasons for a lower clock.", "throttle_reasons", 1),
}
"""Metric to what it says, the reading it comes from, and the factor to its base unit."""

ENERGY_TEXT: Final = (
    "Energy since the driver was loaded, as last read: the counter is asked less often than all else, so that it may "
    "be older than the scrape (--energy-interval)."
)

GPU_LABELS: Final = ("gpu", "uuid", "node")


class ServiceCollector:
    """What a service knows now, as Prometheus metrics; asked at each scrape, so that sampling pays nothing for it."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        yield from self._gpus()
        yield from self._node()
        yield from self._own()

    def _gpus(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        gpu, inventory = self._service.gpu, self._service.inventory
        if gpu is None or inventory is None:
            return
        yield from self._answering(gpu)
        readings, counters_mj = dict(gpu.latest), dict(gpu.counters_mj)
        for name, (text, field, factor) in GPU_GAUGES.items():
            gauge = GaugeMetricFamily(f"jobwatt_{name}", text, labels=GPU_LABELS)
            for index, reading in readings.items():
                value = getattr(reading, field)
                if value is not None:
                    gauge.add_metric(self._labels(index), value * factor)
            yield gauge
        energy = CounterMetricFamily("jobwatt_gpu_energy_joules", ENERGY_TEXT, labels=GPU_LABELS)
        info = InfoMetricFamily("jobwatt_gpu", "What the GPU is.", labels=GPU_LABELS)
        jobs = InfoMetricFamily("jobwatt_job", "A job that uses the GPU.", labels=("jobid", *GPU_LABELS))
        for index in readings:
            labels = self._labels(index)
            if index in counters_mj:
                energy.add_metric(labels, counters_mj[index] / 1000)
            device = inventory.devices.get(index)
            if device is not None:
                info.add_metric(labels, {"name": device.name, "driver_version": device.driver_version})
            for job_id in sorted(self._service.jobs.jobs_of(index)):
                jobs.add_metric([str(job_id), *labels], {})
        yield from (energy, info, jobs)

    def _answering(self, gpu: GpuCollector) -> Iterator[Metric]:
        """Yield whether each GPU answers, and how often it was lost; also of those that are lost now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        up = GaugeMetricFamily("jobwatt_gpu_up", "1 where the GPU answers, 0 where it is lost.", labels=GPU_LABELS)
        lost = CounterMetricFamily("jobwatt_gpu_lost", "Times that the GPU stopped answering.", labels=GPU_LABELS)
        losses, gone = dict(gpu.losses), dict(gpu.lost)
        for index in gpu.indices:
            up.add_metric(self._labels(index), 0 if index in gone else 1)
            lost.add_metric(self._labels(index), losses.get(index, 0))
        yield from (up, lost)

    def _labels(self, index: int) -> list[str]:
        inventory = self._service.inventory
        device = None if inventory is None else inventory.devices.get(index)
        return [str(index), "" if device is None else device.uuid, self._service.spool.node]

    def _node(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        for name, value in self._service.node.latest.items():
            gauge = GaugeMetricFamily(f"jobwatt_node_{name}", "The last reading of this node.", labels=("node",))
            gauge.add_metric([self._service.spool.node], value)
            yield gauge

    def _own(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        node, counts = self._service.spool.node, dict(self._service.events.counts)
        cpu = CounterMetricFamily("jobwatt_collector_cpu_seconds", "CPU time of the collector.", labels=("node",))
        cpu.add_metric([node], time.process_time())
        memory = GaugeMetricFamily("jobwatt_collector_resident_bytes", "Its resident memory.", labels=("node",))
        from ingest.collectors.service import resident_mib

        memory.add_metric([node], resident_mib() * 2**20)
        yield from (cpu, memory)
        for event in ("late", "missed"):
            metric = CounterMetricFamily(
                f"jobwatt_collector_{event}_ticks", f"Ticks that were {event}.", labels=("collector", "node")
            )
            for collector in ("gpu", "process", "node"):
                metric.add_metric([collector, node], counts.get((collector, event), 0))
            yield metric
        steps = CounterMetricFamily("jobwatt_clock_steps", "Times that the wall clock was set.", labels=("node",))
        steps.add_metric([node], counts.get(("clock", "clock_step"), 0))
        yield steps
        dropped = CounterMetricFamily(
            "jobwatt_collector_dropped_rows", "Rows that the disk did not take.", labels=("kind", "node")
        )
        for kind in ("gpu", "process", "node"):
            dropped.add_metric([kind, node], self._service.spool.dropped[kind])
        yield dropped


@contextmanager
def serve(service: Service, address: str) -> Iterator[int]:
    """Serve a service's metrics at ``HOST:PORT`` (``:PORT`` and ``PORT`` are this machine alone); gives the port.

    Raises
    ------
    HardwareError
        prometheus-client is not installed, or nothing can listen there.
    """
    host, port = parse_address(address)
    try:
        from prometheus_client import make_wsgi_app
        from prometheus_client.core import CollectorRegistry
    except ImportError as error:
        raise HardwareError(
            "prometheus-client is not installed; install it, or collect without --prometheus",
            reason="no_prometheus_client",
        ) from error
    registry = CollectorRegistry()
    registry.register(ServiceCollector(service))
    try:
        server = make_server(host, port, make_wsgi_app(registry), _server_class(host), _SilentHandler)
    except OSError as error:
        why = f"nothing can listen at {host}:{port} ({error.strerror}); give another address"
        raise HardwareError(why, reason="cannot_listen") from error
    # the usual two looks a second for the end would be a good part of what a collector at 1 Hz may cost
    thread = threading.Thread(target=server.serve_forever, args=(60.0,), name="exporter", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        ending = threading.Thread(target=server.shutdown, daemon=True)
        ending.start()
        while ending.is_alive():
            with suppress(OSError):
                socket.create_connection((host, server.server_port), timeout=1).close()
            ending.join(0.1)
        server.server_close()
        thread.join(5)


class _Server(ThreadingMixIn, WSGIServer):
    """One thread for each scrape; none outlives the process."""

    daemon_threads = True

    def server_bind(self) -> None:
        """Bind without asking the DNS for this machine's full name, which nobody needs and which may take minutes."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Server6(_Server):
    """The same, of IPv6."""

    address_family = socket.AF_INET6


def _server_class(host: str) -> type[_Server]:
    return _Server6 if ":" in host else _Server


class _SilentHandler(WSGIRequestHandler):
    """Writes no line for each scrape."""

    timeout = 10

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port; without a host it is this machine alone.

    Examples
    --------
    >>> parse_address("9500"), parse_address("0.0.0.0:9500"), parse_address("[::1]:9500")
    (('127.0.0.1', 9500), ('0.0.0.0', 9500), ('::1', 9500))
    """
    found = re.fullmatch(r"(?:(?:\[([0-9a-fA-F:]+)\]|([^:\s]*)):)?(\d{1,5})", address)
    if found is None or int(found[3]) > 65535:
        raise ValueError(f"address is {address!r}; give HOST:PORT, as in 127.0.0.1:9500")
    return found[1] or found[2] or "127.0.0.1", int(found[3])
