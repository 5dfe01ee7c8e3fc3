"""The README's blocks that are marked as tested run from top to bottom in a folder with nothing but the recording."""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
TESTED = re.compile(r"^<!-- tested -->\n```(console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a console block with the output that the README shows for it; ... stands for anything."""

    command: str
    shown: str


def console_steps(block: str) -> list[Step]:
    """Return the commands (after ``$``) of a console block, each with the lines that follow it."""
    steps = []
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        steps.append(Step(command, shown))
    return steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory, recording):
    """A folder like that of a fresh checkout, as far as the README knows it."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "data").mkdir()
    shutil.copy(recording, folder / "data")
    return folder


@pytest.fixture(scope="module")
def environment():
    """The environment of somebody who has activated .venv and set nothing else."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JOBWATT_")}
    return kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}


def test_the_quickstart_prints_what_the_readme_shows(folder, environment):
    blocks = TESTED.findall(README)
    assert [kind for kind, _ in blocks] == ["console"] * 3 + ["python"] * 2 + ["console"]
    steps = [step for kind, block in blocks if kind == "console" for step in console_steps(block)]
    exports = "".join(f"{step.command}\n" for step in steps if step.command.startswith("export "))
    checker = doctest.OutputChecker()
    for step in steps:
        script = step.command if step.command.startswith("export ") else exports + step.command
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{step.command}\n{done.stderr}"
        assert checker.check_output(step.shown, done.stdout, doctest.ELLIPSIS), f"{step.command}\n{done.stdout}"
    script = "".join(block for kind, block in blocks if kind == "python")
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0.314 kWh in all; 232 samples of one job\n"


def test_every_command_and_target_that_the_readme_names_exists():
    from app.cli import COMMANDS

    named = set(re.findall(r"(?:`|\$ |^ {4})jobwatt ([a-z-]+)", README, re.MULTILINE))
    assert {"lake", "jobs", "data", "doctor"} <= named <= set(COMMANDS)
    targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)`", README)) | {"demo", "test"} <= targets


def test_every_table_of_the_lake_is_in_the_readme_and_no_other():
    from ingest.schemas import TABLES

    section = README.partition("## The lake")[2].partition("## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(TABLES)


def test_every_file_that_the_readme_links_is_there():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
