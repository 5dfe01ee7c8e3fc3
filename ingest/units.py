"""Unit conversions, applied once, where data enters. Source: the SI brochure and IEC 80000-13 (binary prefixes)."""

from __future__ import annotations

KIB_PER_GIB = 1024 * 1024
BYTES_PER_MIB = 1024 * 1024
US_PER_S = 1_000_000
S_PER_MINUTE = 60
S_PER_DAY = 86_400
MJ_PER_J = 1_000  # millijoules
J_PER_KWH = 3_600_000
