"""What a caller may want to catch. Every message says what was found, what was expected, and the next step."""

from __future__ import annotations


class JobwattError(Exception):
    """Base of every error that jobwatt raises for the world's sake (not for a wrong argument).

    ``reason`` is a stable code for scripts and alerts, '' where there is none; it ends the message, in brackets.
    """

    reason = ""

    def __init__(self, message: str = "", *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or self.reason

    def __str__(self) -> str:
        """Return the message with its code."""
        message = super().__str__()
        return f"{message} [{self.reason}]" if self.reason else message


class SourceError(JobwattError):
    """An archive, folder or URL cannot be read as telemetry at all."""


class LakeError(JobwattError):
    """A lake is missing, damaged, of another schema version, or has no room left."""


class LakeBusyError(LakeError):
    """Another process is writing this lake."""


class SpoolError(JobwattError):
    """A spool cannot be written or read: no room, no permission, or another program's folder."""


class SpoolBusyError(SpoolError):
    """Another collector is writing this spool, or another process takes it into a lake."""

    reason = "spool_busy"


class HardwareError(JobwattError):
    """A meter does not answer: no driver, no permission, no such device."""


class GpuLostError(HardwareError):
    """One GPU stopped answering; the others may go on."""
