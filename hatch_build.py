"""Builds the C functions of ingest beside their source, where there is a C compiler; without one it is only slower."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("ingest/sources/_quick.c")
LIBRARY = Path("ingest/sources/_quick.so")


class QuickParserHook(BuildHookInterface[Any]):
    """Compiles `SOURCE` to `LIBRARY` for a wheel or an editable install."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile, and mark the wheel as one for this platform if it worked."""
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        if compile_library(root / SOURCE, root / LIBRARY):
            build_data["artifacts"].append(f"/{LIBRARY}")
            build_data["pure_python"] = False
            build_data["infer_tag"] = True


def compile_library(source: Path, library: Path) -> bool:
    """Return whether ``source`` could be compiled; an old library never stays beside a newer source."""
    library.unlink(missing_ok=True)
    compiler = (
        shlex.split(os.environ.get("CC", "")) or [name for name in ("cc", "gcc", "clang") if shutil.which(name)][:1]
    )
    if not compiler:
        _tell("no C compiler: ingest will do without its C functions, more slowly")
        return False
    temporary = library.with_suffix(f".{os.getpid()}.tmp")
    command = [*compiler, "-O3", "-shared", "-fPIC", "-o", str(temporary), str(source), "-lm"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        _tell(f"{SOURCE} did not compile ({error}); ingest will do without its C functions, more slowly")
        temporary.unlink(missing_ok=True)
        return False
    temporary.replace(library)
    return True


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
