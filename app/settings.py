"""What a command is told besides its arguments: default, ``jobwatt.toml``, ``JOBWATT_LAKE``, flags; the last wins."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from ingest.errors import JobwattError

CONFIG_NAME = "jobwatt.toml"
DEFAULT_LAKE = Path("data/lake")
KNOWN_KEYS: dict[str, tuple[str, ...]] = {"lake": ("path",)}
"""Every key that a jobwatt.toml may have, by section."""

F = TypeVar("F", bound=Callable[..., Any])


class SettingsError(JobwattError):
    """A jobwatt.toml that says something unknown or unreadable."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Settings:
    """The folder of the lake, and who said so."""

    lake: Path
    lake_from: str


def load(
    *, lake: Path | None = None, folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> Settings:
    """Return the settings: the flag ``lake``, else $JOBWATT_LAKE, else jobwatt.toml in ``folder``, else the default.

    ``folder`` and ``environment`` are those of the process unless given. A path in jobwatt.toml counts from its folder.

    Raises
    ------
    SettingsError
        jobwatt.toml is not TOML, or has a key that jobwatt does not know; also where a flag overrules it.
    """
    config = (folder or Path()) / CONFIG_NAME
    environment = os.environ if environment is None else environment
    configured = _configured_lake(config)
    if lake is not None:
        return Settings(lake, "--lake")
    if environment.get("JOBWATT_LAKE"):
        return Settings(Path(environment["JOBWATT_LAKE"]), "JOBWATT_LAKE")
    if configured is not None:
        return Settings(configured, CONFIG_NAME)
    return Settings(DEFAULT_LAKE if folder is None else folder / DEFAULT_LAKE, "default")


def with_lake(command: F) -> F:
    """Return the command with ``--lake``; None where it is not given, which `load` understands."""
    option = click.option(
        "--lake",
        type=click.Path(path_type=Path, file_okay=False),
        help=f"Folder of the lake.  [default: $JOBWATT_LAKE, then {CONFIG_NAME}, then {DEFAULT_LAKE}]",
    )
    return option(command)


def _configured_lake(config: Path) -> Path | None:
    try:
        content = tomllib.loads(config.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{config} is not TOML ({error}); correct it or remove it") from error
    for section, keys in content.items():
        if section not in KNOWN_KEYS:
            known = ", ".join(f"[{name}]" for name in KNOWN_KEYS)
            raise SettingsError(f"{config} has {section!r}, which jobwatt does not know; it knows the section {known}")
        if not isinstance(keys, dict):
            raise SettingsError(f"{config}: {section} is {keys!r}; write a section [{section}] with its keys below")
        for key in keys:
            if key not in KNOWN_KEYS[section]:
                known = ", ".join(KNOWN_KEYS[section])
                raise SettingsError(f"{config}: [{section}] has {key!r}, which jobwatt does not know; it knows {known}")
    path = content.get("lake", {}).get("path")
    if path is None:
        return None
    if not isinstance(path, str) or not path:
        raise SettingsError(f'{config}: [lake] path is {path!r}; write a folder, as in path = "data/lake"')
    return config.parent / Path(path).expanduser()
