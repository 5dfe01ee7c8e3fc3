"""What a Prometheus server holds of GPUs and nodes, by range query into hourly snapshots of a spool.

DCGM-exporter, node-exporter and jobwatt's own metrics are known (`ingest.collectors.prometheus_metrics`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from ingest.collectors.prometheus_api import PrometheusApi, PrometheusError, Series, TooMuchError
from ingest.collectors.prometheus_metrics import (
    DCGM,
    JOBWATT,
    JOBWATT_JOBS,
    NODE_NAMES,
    PRESETS,
    GpuRows,
    Rows,
    Scrapes,
    node_name,
    node_rows,
    without_name,
)
from ingest.collectors.snapshots import HOUR_S, complete, first_hour, sole_writer, write_hours
from ingest.collectors.spool import on_disk, prepare

MAX_POINTS: Final = 10_000
"""Points of one series in one answer; the server's own limit is 11,000."""

LATE_S: Final = 120.0
"""How far back each round of `follow` looks again, for samples that reached the server late."""

HIDDEN_SHARE: Final = 0.1
"""Of more samples than this share not taken, the report says so."""

REMOVED: Final = (
    "hours that a follower removed from the spool, since they are older than what is kept, are not asked for again; "
    "another spool takes them"
)

_HOUR_MS = HOUR_S * 1000
_LATEST_S = 4_102_444_800
_LEAST_SPAN_MS = 60_000
_COUNTED_WITHIN_S = (10, 60, 300)
"""Spans in which scrapes are counted: short ones tell a short interval soon after the server began."""

_STEPS_S = (0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0)
_USUAL_STEP_S = 15.0


@dataclass(frozen=True, slots=True)
class Options:
    """What to read: which exporters (auto: those that are there), at which step (None: the scrape interval).

    ``match`` narrows every selector, as in ``cluster="a"``. ``node_label`` names the label that has the node.
    """

    preset: str = "auto"
    step_s: float | None = None
    match: str = ""
    node_label: str = ""


AS_IT_IS: Final = Options()


@dataclass(frozen=True, slots=True)
class Collected:
    """What was gathered: scrapes that the server holds, rows made of them, files changed; and what was odd."""

    url: str
    spool: str
    presets: tuple[str, ...] = ()
    step_s: float | None = None
    scrapes: int = 0
    rows: int = 0
    files_changed: int = 0
    remarks: tuple[str, ...] = ()
    problem: str = ""
    end_s: float = field(default=0.0, repr=False)
    """Up to here all is gathered."""


def collect(api: PrometheusApi, spool: Path, start_s: float, end_s: float, options: Options = AS_IT_IS) -> Collected:
    """Gather [start, end) hour by hour; where a fault ends it, what was gathered stays, and ``problem`` says why.

    Raises
    ------
    SpoolError, SpoolBusyError
        The spool cannot be written; what was written stays.
    ValueError
        An option makes no sense.
    """
    if options.preset != "auto" and options.preset not in PRESETS:
        raise ValueError(f"preset is {options.preset!r}; give auto, {', '.join(PRESETS)}")
    if options.step_s is not None and not 0.1 <= options.step_s <= HOUR_S:
        raise ValueError(f"step is {options.step_s} s; give 0.1 to {HOUR_S}")
    if not 0 <= start_s < end_s <= _LATEST_S:
        raise ValueError(f"start is {start_s} s, end {end_s} s; the start must come first, and both from 1970 to 2100")
    with on_disk(spool):
        prepare(spool)
    with sole_writer(spool, api.source):
        return _Collection(api, spool, options).run(round(start_s * 1000), round(end_s * 1000))


class _Collection:
    """One collection under the lock of its source."""

    def __init__(self, api: PrometheusApi, spool: Path, options: Options) -> None:
        self._api, self._spool, self._options = api, spool, options
        self._rows, self._scrapes, self._taken = 0, 0, 0
        self._files: set[Path] = set()
        self._remarks: dict[str, None] = {}
        self._seen: set[tuple[frozenset[tuple[str, str]], int]] = set()
        """Scrapes of the first metric in the window at hand."""

    def run(self, start_ms: int, end_ms: int) -> Collected:
        """Return what was gathered."""
        result = Collected(self._api.url, str(self._spool), end_s=start_ms / 1000)
        if self._api.is_open_to_see:
            self._remarks["the token or password goes over the network unencrypted; give an https URL"] = None
        try:
            present, start_ms, end_ms = self._present(start_ms, end_ms)
            presets = self._presets(present)
            step_s = self._options.step_s or self._interval_s([present[p] for p in presets], start_ms, end_ms)
            result = replace(result, presets=presets, step_s=step_s)
            for begin_ms in range(start_ms - start_ms % _HOUR_MS, end_ms, _HOUR_MS):
                window = (max(begin_ms, start_ms), min(begin_ms + _HOUR_MS, end_ms))
                for preset in presets:
                    self._take(preset, present[preset], window, round(step_s * 1000))
                result = replace(result, end_s=window[1] / 1000)
            self._tell_hidden(step_s)
        except PrometheusError as error:
            result = replace(result, problem=str(error))
        remarks = (*self._remarks, *(f"the server warns: {warning}" for warning in self._api.warnings))
        return replace(result, scrapes=self._scrapes, rows=self._rows, files_changed=len(self._files), remarks=remarks)

    # -- what is there ---------------------------------------------------------------------------------------------

    def _present(self, start_ms: int, end_ms: int) -> tuple[dict[str, list[str]], int, int]:
        """Return the metrics that are there, by preset, in the order of the tables; and from when to when they are."""
        wanted = PRESETS if self._options.preset == "auto" else {self._options.preset: PRESETS[self._options.preset]}
        query = f"count by (__name__) ({self._any_of([name for names in wanted.values() for name in names])})"
        coarse = _coarse(start_ms, end_ms)
        answer = [series for series in self._api.query_range(query, *coarse) if series.samples]
        found = {series.labels.get("__name__", "") for series in answer}
        present = {preset: [name for name in names if name in found] for preset, names in wanted.items()}
        present = {preset: names for preset, names in present.items() if names}
        if not present:
            names = [next(iter(names)) for names in wanted.values()]
            raise PrometheusError(
                f"{self._api.url}: none of the metrics that jobwatt knows (as {', '.join(names)}) in that time; check "
                "--start, --end, --match and what the server scrapes"
            )
        first_ms = round(min(series.samples[0][0] for series in answer) * 1000) - coarse[2]
        last_ms = round(max(series.samples[-1][0] for series in answer) * 1000) + coarse[2]
        return present, max(start_ms, first_ms), min(end_ms, last_ms)

    def _presets(self, present: dict[str, list[str]]) -> tuple[str, ...]:
        if "dcgm" in present and "jobwatt" in present:
            self._remarks["GPUs by DCGM and by jobwatt: jobwatt's are taken; --preset dcgm takes the others"] = None
            return tuple(preset for preset in present if preset != "dcgm")
        return tuple(present)

    def _interval_s(self, metrics: Sequence[Sequence[str]], start_ms: int, end_ms: int) -> float:
        """Return a step no longer than the interval of the most frequent scrapes."""
        intervals_s = []
        for names in metrics:
            for within_s in _COUNTED_WITHIN_S:
                query = f"max(count_over_time({self._selector(names[0])}[{within_s}s]))"
                for series in self._api.query_range(query, *_coarse(start_ms, end_ms)):
                    most = max(float(value) for _, value in series.samples)
                    intervals_s += [within_s / (most - 1)] if most > 1 else []
        longest_s = min(intervals_s, default=_USUAL_STEP_S)
        return max((step for step in _STEPS_S if step <= longest_s), default=_STEPS_S[0])

    def _tell_hidden(self, step_s: float) -> None:
        if self._scrapes and self._taken < (1 - HIDDEN_SHARE) * self._scrapes:
            self._remarks[
                f"took {self._taken:,} of {self._scrapes:,} scrapes: a step of {step_s:g} s is longer than their "
                "interval, and peaks between are not seen; give a shorter --step"
            ] = None

    # -- one hour --------------------------------------------------------------------------------------------------

    def _take(self, preset: str, metrics: Sequence[str], window: tuple[int, int], step_ms: int) -> None:
        """Write the rows of one preset in [start, end) ms of one hour."""
        start_ms, end_ms = window
        kind, source = "node" if preset == "node" else "gpu", f"{self._api.source}-{preset}"
        if start_ms // _HOUR_MS < first_hour(self._spool, kind, source):
            self._remarks[REMOVED] = None
            return
        rows: Rows = {}
        for begin_ms, stop_ms in _spans(start_ms - 2 * step_ms, end_ms + step_ms, step_ms):
            rows = complete(rows, self._gather(preset, metrics, begin_ms, stop_ms, step_ms))
        inside = {key: cells for key, cells in rows.items() if start_ms <= round(float(key[-1]) * 1000) < end_ms}
        self._files.update(write_hours(self._spool, kind, source, inside))
        self._rows += len(inside)
        self._count(metrics[0], window)

    def _count(self, metric: str, window: tuple[int, int]) -> None:
        """Count the scrapes that the server holds of a metric, and those of them that the step let us see."""
        start_ms, end_ms = window
        held = self._api.query(f"sum(count_over_time({self._selector(metric)}[{end_ms - start_ms}ms]))", end_ms)
        self._scrapes += sum(round(float(value)) for series in held for _, value in series.samples)
        self._taken += sum(start_ms <= scrape_ms < end_ms for _, scrape_ms in self._seen)
        self._seen.clear()

    def _gather(self, preset: str, metrics: Sequence[str], start_ms: int, end_ms: int, step_ms: int) -> Rows:
        """Return the rows of a span, in halves where it is too much at once."""
        try:
            return self._ask(preset, metrics, start_ms, end_ms, step_ms)
        except TooMuchError:
            half_ms = (end_ms - start_ms) // 2 // step_ms * step_ms
            if half_ms < max(_LEAST_SPAN_MS, step_ms):
                raise
            rows = self._gather(preset, metrics, start_ms, start_ms + half_ms, step_ms)
            # reaching back, since the rise of a meter needs the scrape before
            later = self._gather(preset, metrics, start_ms + half_ms - 2 * step_ms, end_ms, step_ms)
            return complete(rows, later)

    def _ask(self, preset: str, metrics: Sequence[str], start_ms: int, end_ms: int, step_ms: int) -> Rows:
        def ask(query: str) -> list[Series]:
            return self._api.query_range(query, start_ms, end_ms, step_ms)

        scrapes = Scrapes.read(ask(" or ".join(f"timestamp({self._selector(name)})" for name in metrics)))
        series = ask(self._any_of(metrics))
        for one in series:
            if one.labels.get("__name__") == metrics[0]:
                self._seen.update((without_name(one.labels), scrape_ms) for _, scrape_ms, _ in scrapes.each(one))
        if preset == "node":
            names = ask(self._selector(NODE_NAMES))
            known = {s.labels.get("instance", ""): node_name({"nodename": s.labels.get("nodename", "")}) for s in names}
            known.pop("", None)
            return node_rows(series, scrapes, known, self._options.node_label)
        jobs = ask(self._selector(JOBWATT_JOBS)) if preset == "jobwatt" else []
        found = GpuRows(JOBWATT if preset == "jobwatt" else DCGM, self._options.node_label)
        found.add(series, scrapes, jobs)
        if found.nameless:
            self._remarks["series without node or GPU number were left out; --node-label may name the node"] = None
        if found.jobs_unread:
            self._remarks["series that name their job otherwise than by Slurm's number have no job"] = None
        return found.finish()

    # -- queries ---------------------------------------------------------------------------------------------------

    def _selector(self, name: str) -> str:
        return f"{name}{{{self._options.match}}}" if self._options.match else name

    def _any_of(self, names: Sequence[str]) -> str:
        match = f",{self._options.match}" if self._options.match else ""
        return f'{{__name__=~"{"|".join(names)}"{match}}}'


def _coarse(start_ms: int, end_ms: int) -> tuple[int, int, int]:
    """Return start, end and step at which one answer tells of the whole time, up to its very end.

    >>> _coarse(1_000_000, 1_450_000)
    (850000, 1450000, 300000)
    """
    step_ms = max(300_000, math.ceil((end_ms - start_ms) / (MAX_POINTS - 2)))
    return end_ms - math.ceil((end_ms - start_ms) / step_ms) * step_ms, end_ms, step_ms


def _spans(start_ms: int, end_ms: int, step_ms: int) -> Iterator[tuple[int, int]]:
    """Yield spans of at most `MAX_POINTS` whole steps, on multiples of the step, the next one reaching back by two.

    >>> list(_spans(900, 2100, 1000)), len(list(_spans(0, 100_000_000, 1000)))
    ([(0, 3000)], 11)
    """
    begin_ms, last_ms = start_ms - start_ms % step_ms, end_ms + -end_ms % step_ms
    while True:
        stop_ms = min(begin_ms + (MAX_POINTS - 1) * step_ms, last_ms)
        yield begin_ms, stop_ms
        if stop_ms >= last_ms:
            return
        begin_ms = stop_ms - 2 * step_ms


def follow(
    api: PrometheusApi,
    spool: Path,
    start_s: float,
    options: Options = AS_IT_IS,
    *,
    every_s: float,
    wait: Callable[[float], bool],
    wall: Callable[[], float] = time.time,
) -> Iterator[Collected]:
    """Yield what each round gathered, until ``wait`` (for so many seconds) says that it is enough.

    A round that a fault ended is made up for by the next one.
    """
    while True:
        now_s = wall()
        found = collect(api, spool, start_s, max(now_s, start_s + 1), options)
        yield found
        if wait(max(every_s - (wall() - now_s), 0.0)):
            return
        start_s = max(start_s, found.end_s - LATE_S)
