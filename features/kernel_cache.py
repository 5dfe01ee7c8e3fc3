"""Where compiled kernels are kept, and whether they are there: known without importing numba, which takes a second."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

KERNELS: Final = Path(__file__).parent / "efficient"
"""The folder of the modules that have kernels."""

_DECORATED = re.compile(r"^@(?:loose_)?kernel$", re.MULTILINE)


def cache_folder(sources: Path = KERNELS, environment: Mapping[str, str] = os.environ) -> Path:
    """Return where the compiled kernels of some modules are kept.

    That is `$NUMBA_CACHE_DIR`; else ``__pycache__`` beside the modules; else, where that cannot be written (an
    installation that belongs to somebody else), a folder of the user's whose name has the sources' checksum in it, so
    that no other version's code is ever loaded.
    """
    if chosen := environment.get("NUMBA_CACHE_DIR"):
        return Path(chosen)
    beside = sources / "__pycache__"
    if os.access(beside if beside.exists() else sources, os.W_OK | os.X_OK) and (
        beside.is_dir() or not beside.exists()
    ):
        return beside
    content = b"".join(path.read_bytes() for path in sorted(sources.glob("*.py")))
    above = Path(environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME", "~")).expanduser() / ".cache")
    return above / "jobwatt" / f"kernels-{hashlib.sha256(content).hexdigest()[:16]}"


def is_compiled(sources: Path = KERNELS, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether code of every kernel is kept, newer than any source, for this version of Python.

    It may still be of another processor: numba compiles again then.
    """
    tag = f".py{sys.version_info.major}{sys.version_info.minor}.nbi"
    texts = {path: path.read_text("utf-8") for path in sources.glob("*.py")}
    modules = {path.stem for path in texts}
    wanted = sum(len(_DECORATED.findall(text)) for text in texts.values())
    newest_s = max((path.stat().st_mtime for path in texts), default=0.0)
    kept = [path for path in cache_folder(sources, environment).rglob(f"*{tag}") if path.name.split(".")[0] in modules]
    return sum(path.stat().st_mtime > newest_s for path in kept) >= wanted
