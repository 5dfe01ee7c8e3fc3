"""NVML's functions on one GPU with their buffers, made once, so that a sample costs little more than its calls.

pynvml's own functions do the same and make their buffers anew each time, which takes most of their time.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

FIELD_VALUE: Final = struct.Struct("@IIqqII8s")
"""``nvmlFieldValue_t``: field, scope, time, latency, kind of value, return code, value."""

VALUE_KINDS: Final = tuple(struct.Struct(code) for code in ("@d", "@I", "@L", "@Q", "@q", "@i", "@H"))
"""``nvmlValueType_t`` in its order: double, unsigned int, unsigned long, …"""

THROTTLE_REASONS: Final = ("CurrentClocksEventReasons", "CurrentClocksThrottleReasons")
"""The newer and the older name of one function."""


def bind(nvml: Any, handle: Any) -> dict[str, Callable[[], Any]]:
    """Return the calls of which a sample is made; each returns its value or raises NVML's error.

    ``fields`` is instantaneous and averaged power in mW, each None where the GPU does not have it; ``energy`` is in mJ
    since the driver was loaded; ``utilization`` is in %, of the GPU and its memory; ``memory`` is free and used, in
    MiB.
    """
    powers = (nvml.NVML_FI_DEV_POWER_INSTANT, nvml.NVML_FI_DEV_POWER_AVERAGE)
    memory_temperature = _bind_fields(nvml, handle, (nvml.NVML_FI_DEV_MEMORY_TEMP,))
    sm, memory = ctypes.c_uint(nvml.NVML_CLOCK_SM), ctypes.c_uint(nvml.NVML_CLOCK_MEM)
    return {
        "fields": _bind_fields(nvml, handle, powers),
        "memory_temperature": lambda: memory_temperature()[0],
        "power": _bind_number(nvml, handle, "PowerUsage"),
        "energy": _bind_number(nvml, handle, "TotalEnergyConsumption", kind=ctypes.c_ulonglong),
        "utilization": _bind_rates(nvml, handle),
        "memory": _bind_memory(nvml, handle),
        "temperature": _bind_temperature(nvml, handle),
        "sm_clock": _bind_number(nvml, handle, "ClockInfo", before=sm),
        "memory_clock": _bind_number(nvml, handle, "ClockInfo", before=memory),
        "power_limit": _bind_number(nvml, handle, "EnforcedPowerLimit"),
        "pcie_width": _bind_number(nvml, handle, "CurrPcieLinkWidth"),
        "throttle_reasons": _bind_number(nvml, handle, *THROTTLE_REASONS, kind=ctypes.c_ulonglong),
    }


def _function(nvml: Any, *names: str) -> Callable[..., int]:
    """Return the first of some functions that NVML's library has; one that refuses where it has none of them."""
    for name in names:
        found: Callable[..., int] | None = getattr(nvml.nvmlLib, f"nvmlDeviceGet{name}", None)
        if found is not None:
            return found
    refusal = int(nvml.NVML_ERROR_FUNCTION_NOT_FOUND)
    return lambda *_: refusal


def _bind_number(
    nvml: Any, handle: Any, *names: str, before: Any = None, kind: Any = ctypes.c_uint
) -> Callable[[], Any]:
    function, out, error = _function(nvml, *names), kind(), nvml.NVMLError
    arguments = (handle, ctypes.byref(out)) if before is None else (handle, before, ctypes.byref(out))

    def call() -> Any:
        code = function(*arguments)
        if code:
            raise error(code)
        return out.value

    return call


def _bind_temperature(nvml: Any, handle: Any) -> Callable[[], Any]:
    """Return the older call, which is quicker; the newer one where NVML has dropped the older, as CUDA 14 will."""
    sensor = nvml.NVML_TEMPERATURE_GPU
    if getattr(nvml.nvmlLib, "nvmlDeviceGetTemperature", None) is None:
        return lambda: nvml.nvmlDeviceGetTemperatureV(handle, sensor)
    return _bind_number(nvml, handle, "Temperature", before=ctypes.c_uint(sensor))


def _bind_rates(nvml: Any, handle: Any) -> Callable[[], tuple[int, int]]:
    function, out, error = _function(nvml, "UtilizationRates"), nvml.c_nvmlUtilization_t(), nvml.NVMLError
    reference = ctypes.byref(out)

    def call() -> tuple[int, int]:
        code = function(handle, reference)
        if code:
            raise error(code)
        return out.gpu, out.memory

    return call


def _bind_memory(nvml: Any, handle: Any) -> Callable[[], tuple[int, int]]:
    function, out, error = _function(nvml, "MemoryInfo"), nvml.c_nvmlMemory_t(), nvml.NVMLError
    reference = ctypes.byref(out)

    def call() -> tuple[int, int]:
        code = function(handle, reference)
        if code:
            raise error(code)
        return out.free >> 20, out.used >> 20

    return call


def _bind_fields(nvml: Any, handle: Any, fields: Sequence[int]) -> Callable[[], list[float | int | None]]:
    buffer = (nvml.c_nvmlFieldValue_t * len(fields))()
    for value, number in zip(buffer, fields, strict=True):
        value.fieldId = number
    function, error = _function(nvml, "FieldValues"), nvml.NVMLError
    arguments = (handle, ctypes.c_int32(len(fields)), ctypes.byref(buffer))
    content = memoryview(buffer).cast("B")

    def call() -> list[float | int | None]:
        code = function(*arguments)
        if code:
            raise error(code)
        return [_value(kind, refusal, value) for _, _, _, _, kind, refusal, value in FIELD_VALUE.iter_unpack(content)]

    return call


def _value(kind: int, refusal: int, value: bytes) -> float | int | None:
    """Return the value of one field, of which only the bytes of its kind count; None where it was refused.

    Examples
    --------
    >>> _value(1, 0, bytes([7, 0, 0, 0, 255, 255, 255, 255]))
    7
    """
    if refusal:
        return None
    found: float | int = VALUE_KINDS[kind].unpack_from(value)[0]
    return found
