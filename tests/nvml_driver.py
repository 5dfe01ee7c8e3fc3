"""A driver that plays a table of answers where NVML's library would be, so that pynvml itself runs unchanged above it.

The table is what a driver would say: for each GPU and function a value, or the error code that NVML gives instead; for
fields, a value for each field.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pynvml as nv

H200: dict[str, Any] = {
    "UUID": "GPU-aaaa",
    "Name": "NVIDIA H200",
    "UtilizationRates": (87, 31),
    "MemoryInfo": (150754820096, 120259084288, 30495735808),
    "Temperature": 41,
    "ClockInfo": {1: 1980, 2: 3201},
    "CurrentClocksEventReasons": 4,
    "EnforcedPowerLimit": 700000,
    "PowerManagementDefaultLimit": 700000,
    "PowerManagementLimitConstraints": (200000, 700000),
    "CurrPcieLinkWidth": 16,
    "MigMode": (0, 0),
    "ComputeRunningProcesses_v3": (),
    "TotalEnergyConsumption": 435205165,
    "fields": {186: 612345, 185: 600001, 82: 48},
}
"""Answers of the kind that an H200 gives; the numbers are made up."""


@dataclass
class PlayedDriver:
    """Answers for each GPU; ``code`` refuses a function of a GPU from now on, or all of them."""

    gpus: list[dict[str, Any]]
    codes: dict[tuple[int, str], int] = field(default_factory=dict)
    init_code: int = 0
    asked: list[tuple[int, str]] = field(default_factory=list)
    is_up: bool = False

    def refuse(self, gpu: int, code: int, function: str = "*") -> None:
        """Let a function of a GPU, or all of them, give an error."""
        self.codes[gpu, function] = code

    def shut_down(self) -> None:
        """Refuse everything until it is initialized again, as after the driver was unloaded."""
        self.is_up = False

    def __getattr__(self, name: str) -> Callable[..., int]:
        """Give one of the library's functions."""
        if not name.startswith("nvml"):
            raise AttributeError(name)
        return lambda *arguments: self._call(name.removeprefix("nvml"), [getattr(a, "_obj", a) for a in arguments])

    def _call(self, name: str, arguments: list[Any]) -> int:
        if name == "InitWithFlags":
            self.is_up = self.init_code == 0
            return self.init_code
        if not self.is_up:
            return int(nv.NVML_ERROR_UNINITIALIZED)
        if name in ("Shutdown", "SystemGetDriverVersion", "DeviceGetCount_v2"):
            if arguments:
                arguments[0].value = b"580.159" if name == "SystemGetDriverVersion" else len(self.gpus)
            return 0
        if name == "DeviceGetHandleByIndex_v2":
            return self._handle(arguments[0].value, arguments[1])
        if name == "DeviceGetHandleByUUID":
            uuids = [gpu["UUID"].encode() for gpu in self.gpus]
            return self._handle(uuids.index(arguments[0].value), arguments[1])
        gpu = (ctypes.cast(arguments[0], ctypes.c_void_p).value or 0) - 1
        return self._answer(gpu, name.removeprefix("DeviceGet"), arguments[1:])

    def _handle(self, gpu: int, out: Any) -> int:
        code = self.codes.get((gpu, "handle"), self.codes.get((gpu, "*"), 0))
        if not code:
            number = ctypes.c_void_p(gpu + 1)  # a handle is a pointer that nobody follows
            ctypes.memmove(ctypes.byref(out), ctypes.byref(number), ctypes.sizeof(number))
        return code

    def _answer(self, gpu: int, name: str, out: list[Any]) -> int:
        self.asked.append((gpu, name))
        code = self.codes.get((gpu, name), self.codes.get((gpu, "*"), 0))
        if code:
            return code
        table = self.gpus[gpu]
        if name == "FieldValues":
            return _fill_fields(out[1], table.get("fields"))
        if name not in table:
            return int(nv.NVML_ERROR_NOT_SUPPORTED)
        return _fill(name, table[name], out)


def _fill_fields(values: Any, answers: Mapping[int, int] | None) -> int:
    if answers is None:
        return int(nv.NVML_ERROR_NOT_SUPPORTED)
    for value in values:
        answer = answers.get(value.fieldId)
        value.nvmlReturn = nv.NVML_ERROR_NOT_SUPPORTED if answer is None else 0
        value.valueType = nv.NVML_VALUE_TYPE_UNSIGNED_INT
        if answer is not None:
            value.value.ullVal = answer
    return 0


def _fill(name: str, answer: Any, out: list[Any]) -> int:
    if isinstance(answer, str):
        out[0].value = answer.encode()
    elif name == "UtilizationRates":
        out[0].gpu, out[0].memory = answer
    elif name == "MemoryInfo":
        out[0].total, out[0].free, out[0].used = answer
    elif name == "ClockInfo":
        out[1].value = answer[out[0].value]
    elif name == "Temperature":
        out[1].value = answer
    elif name == "ComputeRunningProcesses_v3":
        if out[1] is None:
            out[0].value = len(answer)
            return int(nv.NVML_ERROR_INSUFFICIENT_SIZE) if answer else 0
        for place, pid in enumerate(answer):
            out[1][place].pid = pid
        out[0].value = len(answer)
    else:
        for target, value in zip(out, answer if isinstance(answer, tuple) else (answer,), strict=True):
            target.value = value
    return 0
