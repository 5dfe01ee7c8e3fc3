"""GPUs behind one small protocol: NVML, or a recording (`ingest.collectors.replay`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any, Final, NamedTuple, Protocol

from ingest.collectors.clock import steady_time
from ingest.collectors.nvml_calls import bind
from ingest.errors import GpuLostError, HardwareError

CALLS: Final[Mapping[str, float]] = {
    "fields": 0.0,
    "energy": 0.0,
    "utilization": 0.0,
    "memory": 0.0,
    "temperature": 0.0,
    "sm_clock": 0.0,
    "throttle_reasons": 0.0,
    "memory_temperature": 2.0,
    "memory_clock": 5.0,
    "power_limit": 2.0,
    "pcie_width": 60.0,
}
"""What is asked of NVML for one sample, and how many seconds old the answer may be; 0: asked anew for every sample.

What changes slowly is asked less often, since every call takes CPU time from the jobs; its last value stands in the
samples between. ``fields`` is one call for two values: instantaneous and averaged power.

``energy`` is made only for a sample that is to have the counter, and its value never stands in for another's: the
driver makes the caller wait for it, be it a call of its own or a field among others, many times as long as for one
sample's other calls together. What each call costs is in ``tests/benchmarks/nvml_call_cost.csv``, as measured, with GPU
and driver.
"""

SELDOM_S: Final = 5.0
"""How old answers of `CALLS` that are not asked for every sample may be at least, at one sample a second or fewer."""

HOLD_NONE_S: Final = 1.0
"""A slow value that was not told is asked again after so long at most."""

NO_FIELDS: Final = (None, None)

HELD_FIELDS: Final = {"time_s", "memory_temp_c", "memory_clock_mhz", "power_limit_w", "pcie_link_width"}
"""What a reading may have though the GPU answers nothing now."""


def calls_at(interval_s: float) -> dict[str, float]:
    """Return `CALLS` as they are made for a sample every ``interval_s``: for few samples, slow values are asked less.

    >>> [calls_at(interval_s)["power_limit"] for interval_s in (0.1, 1.0)]
    [2.0, 5.0]
    """
    least_s = SELDOM_S if interval_s >= 1 else 0.0
    return {name: max(age_s, least_s) if age_s else 0.0 for name, age_s in CALLS.items()}


class GpuReading(NamedTuple):
    """One sample of one GPU; None where it has no such sensor or the sensor did not answer. Units last in the names."""

    time_s: float
    gpu_util_pct: int | None = None
    memory_util_pct: int | None = None
    memory_free_mib: int | None = None
    memory_used_mib: int | None = None
    gpu_temp_c: int | None = None
    memory_temp_c: int | None = None
    power_w: float | None = None
    pcie_link_width: int | None = None
    power_avg_w: float | None = None
    energy_mj: int | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    power_limit_w: float | None = None
    throttle_reasons: int | None = None


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """What one GPU is; ``mig_mode`` is 1 where it is cut into instances, 0 where not, None where it cannot be."""

    index: int
    uuid: str
    name: str
    memory_total_mib: int | None = None
    power_limit_w: float | None = None
    power_limit_default_w: float | None = None
    power_limit_min_w: float | None = None
    power_limit_max_w: float | None = None
    mig_mode: int | None = None
    driver_version: str = ""


class GpuBackend(Protocol):
    """GPUs of one node. Methods may be called from several threads."""

    def indices(self) -> Sequence[int]:
        """Return the numbers of the GPUs."""
        ...

    def read(self, index: int, *, with_energy: bool) -> GpuReading:
        """Return one sample, taken now; raises `GpuLostError` where the GPU answers nothing any more.

        The energy counter, which costs more than all else, is None unless it is asked for.
        """
        ...

    def describe(self, index: int) -> GpuDevice:
        """Return what the GPU is; raises `GpuLostError` where it no longer answers."""
        ...

    def process_ids(self, index: int) -> Sequence[int] | None:
        """Return the processes that compute on the GPU, as far as they can be seen; None where it does not say now."""
        ...

    def take_refusals(self) -> list[Refusal]:
        """Return what was refused since the last call (no permission, …), each once."""
        ...

    def close(self) -> None:
        """Let the GPUs go."""
        ...


class Refusal(NamedTuple):
    """What the driver refused, in words, and a stable code for it: ``no_permission`` or ``refused``."""

    text: str
    reason: str


@dataclass(slots=True)
class _Device:
    """One GPU's handle, what it cannot tell, what it told of its slow values, and what it refuses at present."""

    index: int
    handle: Any
    uuid: str
    absent: set[str]
    held: dict[str, tuple[float, Any]]
    calls: dict[str, Callable[[], Any]]
    refused: dict[str, str] = field(default_factory=dict)
    is_lost: bool = False


class NvmlBackend:
    """The GPUs of this machine, through NVIDIA's management library.

    Parameters
    ----------
    nvml
        The module ``pynvml``; imported here unless given.
    calls
        As `calls_at` returns them: how many seconds old the answer of each call may be.
    monotonic
        The clock that decides when a slow value is asked again.

    Raises
    ------
    HardwareError
        No driver answers, or nobody may ask it.
    """

    def __init__(
        self,
        nvml: ModuleType | None = None,
        *,
        calls: Mapping[str, float] = CALLS,
        wall: Callable[[], float] = steady_time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._nvml: Any = nvml if nvml is not None else _import_nvml()
        self._calls, self._wall, self._monotonic = calls, wall, monotonic
        self._refusals: dict[Refusal, None] = {}
        n = self._nvml
        try:
            n.nvmlInit()
        except n.NVMLError as error:
            raise HardwareError(
                f"no NVIDIA driver answers ({error}); load the driver, check /dev/nvidia*, or collect without "
                "GPUs: --gpu-interval 0",
                reason="no_driver",
            ) from error
        self._unloaded = {n.NVML_ERROR_UNINITIALIZED, n.NVML_ERROR_DRIVER_NOT_LOADED}
        self._lost = {n.NVML_ERROR_GPU_IS_LOST, n.NVML_ERROR_RESET_REQUIRED, n.NVML_ERROR_GPU_NOT_FOUND}
        self._lost |= {*self._unloaded, n.NVML_ERROR_LIB_RM_VERSION_MISMATCH}
        self._never = {n.NVML_ERROR_NOT_SUPPORTED, n.NVML_ERROR_FUNCTION_NOT_FOUND, n.NVML_ERROR_NO_PERMISSION}
        self._never |= {n.NVML_ERROR_INVALID_ARGUMENT, n.NVML_ERROR_NOT_FOUND}
        self._devices = self._open()

    def indices(self) -> Sequence[int]:
        """Return the numbers of the GPUs, as NVML counts them."""
        return tuple(self._devices)

    def read(self, index: int, *, with_energy: bool) -> GpuReading:
        """Return one sample; its time is the moment before power is read. One thread at a time may read a GPU."""
        device = self._devices[index]
        ask, hold = self._ask_bound, self._hold
        time_s = self._wall()
        power_mw, average_mw = ask(device, "fields") or NO_FIELDS
        if power_mw is None:
            power_mw = ask(device, "power")
        energy_mj = ask(device, "energy") if with_energy else None
        gpu_util_pct, memory_util_pct = ask(device, "utilization") or (None, None)
        free_mib, used_mib = ask(device, "memory") or (None, None)
        limit_mw = hold(device, "power_limit")
        reading = GpuReading(
            time_s,
            gpu_util_pct,
            memory_util_pct,
            free_mib,
            used_mib,
            ask(device, "temperature"),
            hold(device, "memory_temperature"),
            None if power_mw is None else power_mw / 1000,
            hold(device, "pcie_width"),
            None if average_mw is None else average_mw / 1000,
            energy_mj,
            ask(device, "sm_clock"),
            hold(device, "memory_clock"),
            None if limit_mw is None else limit_mw / 1000,
            ask(device, "throttle_reasons"),
        )
        if power_mw is None and used_mib is None:
            self._check_answers(device, reading)
        return reading

    def time_call(self, index: int, name: str) -> None:
        """Make one of `read`'s calls, as `read` makes it, to see what it costs; raises NVML's error."""
        self._devices[index].calls[name]()

    def describe(self, index: int) -> GpuDevice:
        """Return what the GPU is; also finds a GPU again that was lost and came back.

        What it could not tell before, it is asked again from now on: it may have left MIG, or a right may be given.
        """
        n, device = self._nvml, self._devices[index]
        handle = self._handle(device)
        device.handle, device.calls = handle, bind(n, handle)
        device.absent.clear()
        if device.is_lost:
            device.is_lost = False
            device.held.clear()
        memory = self._ask(device, "memory", n.nvmlDeviceGetMemoryInfo, handle)
        limits = (
            self._ask(device, "power limits", n.nvmlDeviceGetPowerManagementLimitConstraints, handle) or (None,) * 2
        )
        mig = self._ask(device, "MIG mode", n.nvmlDeviceGetMigMode, handle)
        return GpuDevice(
            index,
            device.uuid,
            self._ask(device, "name", n.nvmlDeviceGetName, handle) or "",
            None if memory is None else memory.total >> 20,
            _watts(self._ask(device, "power_limit", n.nvmlDeviceGetEnforcedPowerLimit, handle)),
            _watts(self._ask(device, "default limit", n.nvmlDeviceGetPowerManagementDefaultLimit, handle)),
            _watts(limits[0]),
            _watts(limits[1]),
            None if mig is None else mig[0],
            self._ask(device, "driver version", n.nvmlSystemGetDriverVersion) or "",
        )

    def process_ids(self, index: int) -> Sequence[int] | None:
        """Return the processes that compute on the GPU; None where the driver does not say."""
        device = self._devices[index]
        found = self._ask(device, "processes", self._nvml.nvmlDeviceGetComputeRunningProcesses, device.handle)
        return None if found is None else [process.pid for process in found]

    def take_refusals(self) -> list[Refusal]:
        """Return what NVML refused since the last call; each once, until the same call is answered again."""
        taken, self._refusals = self._refusals, {}
        return list(taken)

    def close(self) -> None:
        """Let NVML go; it may have gone by itself."""
        with suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    def _open(self) -> dict[int, _Device]:
        n = self._nvml
        devices = {}
        try:
            count = n.nvmlDeviceGetCount()
        except n.NVMLError as error:
            raise HardwareError(
                f"NVML does not count the GPUs ({error}); run nvidia-smi to see why", reason="no_gpu"
            ) from error
        for index in range(count):
            try:
                handle = n.nvmlDeviceGetHandleByIndex(index)
                devices[index] = _Device(index, handle, n.nvmlDeviceGetUUID(handle), set(), {}, bind(n, handle))
            except n.NVMLError as error:
                self._note(f"GPU {index} cannot be opened: {error}", error.value)
        if not devices:
            why = "; ".join(refusal.text for refusal in self._refusals) or "NVML counts none"
            raise HardwareError(f"no GPU can be read ({why}); collect without GPUs: --gpu-interval 0", reason="no_gpu")
        return devices

    def _handle(self, device: _Device) -> Any:
        """Return a GPU's handle; a driver that was unloaded and loaded again is asked to begin anew."""
        n = self._nvml
        try:
            try:
                return n.nvmlDeviceGetHandleByUUID(device.uuid)
            except n.NVMLError as error:
                if error.value not in self._unloaded:
                    raise
            n.nvmlInit()
            return n.nvmlDeviceGetHandleByUUID(device.uuid)
        except n.NVMLError as error:
            raise self._losing(device, str(error)) from error

    def _losing(self, device: _Device, why: str) -> GpuLostError:
        """Return the error of a GPU that is lost; what it told before no longer stands for anything."""
        device.is_lost = True
        device.held.clear()
        return GpuLostError(f"GPU {device.index}: {why}")

    def _check_answers(self, device: _Device, reading: GpuReading) -> None:
        """Raise `GpuLostError` where a reading holds nothing but what was told before."""
        if any(value is not None for name, value in reading._asdict().items() if name not in HELD_FIELDS):
            return
        raise self._losing(device, next(iter(device.refused.values()), "none of its sensors answers"))

    def _hold(self, device: _Device, name: str) -> Any:
        """Return a slow value: the one that was told last while it is young enough, else a new one."""
        now_s = self._monotonic()
        held = device.held.get(name)
        if held is not None and now_s < held[0]:
            return held[1]
        value = self._ask_bound(device, name)
        # the first time, each GPU gets another phase, so that they do not all ask in the same tick
        age_s = self._calls[name] * (1.0 if held is not None else (1 + device.index % 8) / 8)
        if value is None:
            age_s = min(age_s, HOLD_NONE_S)
        device.held[name] = (now_s + age_s - 0.005, value)
        return value

    def _ask_bound(self, device: _Device, name: str) -> Any:
        """Return what one of `read`'s calls answers; None for what this GPU does not have or this user may not see."""
        if name in device.absent:
            return None
        try:
            value = device.calls[name]()
        except self._nvml.NVMLError as error:
            return self._refused(device, name, error)
        if device.refused:
            device.refused.pop(name, None)
        return value

    def _ask(self, device: _Device, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what NVML answers to a call of `describe`; None as in `_ask_bound`."""
        if name in device.absent:
            return None
        try:
            value = function(*arguments)
        except self._nvml.NVMLError as error:
            return self._refused(device, name, error)
        if device.refused:
            device.refused.pop(name, None)
        return value

    def _refused(self, device: _Device, name: str, error: Any) -> None:
        """Remember what is never answered, and what was refused; a lost GPU is raised."""
        code = error.value
        if code in self._lost:
            raise self._losing(device, str(error)) from error
        if code in self._never:
            device.absent.add(name)
        if code in (self._nvml.NVML_ERROR_NOT_SUPPORTED, self._nvml.NVML_ERROR_FUNCTION_NOT_FOUND):
            return
        if device.refused.get(name) != str(error):
            device.refused[name] = str(error)
            self._note(f"GPU {device.index}, {name}: {error}", code)

    def _note(self, text: str, code: int) -> None:
        reason = "no_permission" if code == self._nvml.NVML_ERROR_NO_PERMISSION else "refused"
        self._refusals[Refusal(text, reason)] = None


def _import_nvml() -> ModuleType:
    try:
        return import_module("pynvml")
    except ImportError as error:
        raise HardwareError(
            "nvidia-ml-py is not installed, so no GPU can be read; install it, or collect without: --gpu-interval 0",
            reason="no_nvml",
        ) from error


def _watts(milliwatts: float | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000
