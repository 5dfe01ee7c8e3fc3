"""What a caller may want to catch. Every message says what was found, what was expected, and the next step."""

from __future__ import annotations


class JobwattError(Exception):
    """Base of every error that jobwatt raises for the world's sake (not for a wrong argument)."""


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


class HardwareError(JobwattError):
    """A meter does not answer: no driver, no permission, no such device."""


class GpuLostError(HardwareError):
    """One GPU stopped answering; the others may go on."""
