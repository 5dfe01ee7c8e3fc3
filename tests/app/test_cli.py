from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from app.cli import COMMANDS, ROOMS, cli, os_error_text, run
from ingest.errors import LakeError

START = "import sys; from app.cli import main; main()"


def walk(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    """Every command below this one with the words that call it."""
    found = [(path, command)]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None, name
            found += walk(child, (*path, name))
    return found


EVERY = walk(cli)


@pytest.fixture
def failing(monkeypatch):
    """A function that makes ``jobwatt doctor`` raise."""

    def fail(error: BaseException) -> None:
        def raise_it(lake: object) -> None:
            raise error

        monkeypatch.setattr("app.commands.doctor.examine", raise_it)

    return fail


@pytest.mark.parametrize(("words", "command"), EVERY, ids=[" ".join(words) or "jobwatt" for words, _ in EVERY])
def test_every_command_has_help_and_every_leaf_an_example_and_formats(words, command):
    result = CliRunner().invoke(cli, [*words, "--help"])
    assert result.exit_code == 0
    assert command.help
    if not isinstance(command, click.Group):
        assert f"Example: jobwatt {' '.join(words)}" in " ".join(result.output.split())
        assert "--format [table|json|csv|parquet]" in result.output


def test_the_examples_in_the_help_use_options_that_exist():
    for words, command in EVERY:
        example = re.search(r"Example: jobwatt (.*?)(\n\n|$)", command.help or "", re.DOTALL)
        if example is not None:
            options = {option for parameter in command.params for option in parameter.opts}
            used = re.findall(r"(?<!\S)--[a-z-]+", example.group(1))
            assert set(used) <= options, words


def test_the_list_of_commands_imports_none_of_them():
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", START, "--help"], capture_output=True, text=True, check=True
    )
    imported = {line.rpartition("|")[2].strip() for line in loaded.stderr.splitlines()}
    heavy = {"polars", "pyarrow", "numpy", "dask", "fsspec", "tqdm", "ingest", "importlib.metadata", "app.output"}
    assert not imported & heavy
    assert "click" in imported
    assert all(name in loaded.stdout for name in COMMANDS)


def test_the_version_is_that_of_the_package():
    result = CliRunner().invoke(cli, ["--version"])
    assert re.fullmatch(r"jobwatt \d+\.\d+\.\d+\n", result.output)


@pytest.mark.parametrize("arguments", [["nonsense"], ["doctor", "--nonsense"], ["jobs", "show", "1.5e13"], ["jobs"]])
def test_wrong_usage_ends_in_code_2(arguments):
    assert run(arguments) == 2


def test_a_fault_of_the_world_is_one_line_on_standard_error_and_code_1(failing, capsys):
    failing(LakeError("data/lake has\nno room; make room"))
    assert run(["doctor"]) == 1
    assert capsys.readouterr() == ("", "jobwatt: data/lake has no room; make room\n")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.parquet"), "x.parquet: no space left"),
        (OSError(errno.EFBIG, "File too large"), "no space left"),
        (PermissionError(errno.EACCES, "Permission denied", "lake"), "lake: permission denied"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), "x: no such file"),
        (OSError(errno.EIO, "Input/output error", "x"), "x: Input/output error"),
        (OSError("only words"), "only words"),
    ],
)
def test_what_the_system_refuses_is_one_clear_line_and_code_1(error, says, failing, capsys):
    failing(error)
    assert run(["doctor"]) == 1
    assert capsys.readouterr().err == f"jobwatt: {os_error_text(error)}\n"
    assert says in os_error_text(error)


def test_an_interruption_ends_in_code_130_without_a_traceback(failing, capsys):
    failing(KeyboardInterrupt())
    assert run(["doctor"]) == 130
    assert capsys.readouterr().err.strip() == "jobwatt: interrupted"


def test_sigterm_ends_in_code_143_with_one_line_after_everything_was_cleaned_up():
    script = (
        "import os, signal, sys; import app.commands.doctor as doctor; from app.cli import main\n"
        "def examine(lake):\n"
        "    try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    finally: print('cleaned up')\n"
        "doctor.examine = examine; sys.argv[1:] = ['doctor']; main()"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout.strip()) == (143, "cleaned up")
    assert ended.stderr.strip() == "jobwatt: terminated"


def test_a_room_that_another_module_hides_is_answered_with_the_doctor(failing, capsys):
    failing(ImportError("cannot import name 'Lake' from 'ingest'", name="ingest"))
    assert run(["doctor"]) == 1
    assert "jobwatt doctor" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ZeroDivisionError(), ImportError("no torch", name="torch")])
def test_a_mistake_of_ours_is_not_hidden(error, failing):
    failing(error)
    with pytest.raises(type(error)):
        run(["doctor"])


def test_a_settings_file_that_is_wrong_ends_in_code_2(tmp_path, monkeypatch, capsys):
    (tmp_path / "jobwatt.toml").write_text("[lake]\nsize = 3\n")
    monkeypatch.chdir(tmp_path)
    assert run(["lake", "info"]) == 2
    assert capsys.readouterr().err == (
        "jobwatt: jobwatt.toml: [lake] has 'size', which jobwatt does not know; it knows path\n"
    )


def test_a_reader_that_closes_the_pipe_is_no_error_worth_words():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", START, "data", "list"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_disk_is_one_line():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", START, "data", "list"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert "no space left" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_rooms_are_the_packages_that_are_installed():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    assert list(ROOMS) == project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
