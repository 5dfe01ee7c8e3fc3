"""The command ``jobwatt``: finds the command by name, loads only that one, and turns every fault into one line."""

from __future__ import annotations

import errno
import os
import signal
import sys
from importlib import import_module
from types import FrameType
from typing import NoReturn, cast

import click

OK, DATA_PROBLEM, USAGE, PARTLY_DONE = 0, 1, 2, 3
INTERRUPTED = 128 + 2  # as a shell counts SIGINT
BROKEN_PIPE = 128 + 13  # and SIGPIPE
TERMINATED = 128 + 15  # and SIGTERM

ROOMS = ("ingest", "features", "models", "app")

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("app.commands.demo:demo", "The whole line once, on a recording that ships with jobwatt."),
    "lake": ("app.commands.lake:lake", "Fill a lake from raw telemetry, and look after it."),
    "collect": ("app.commands.collect:collect", "Collect telemetry of this node, or of one run of a command."),
    "collect-prometheus": (
        "app.commands.collect_prometheus:collect_prometheus",
        "Collect what a Prometheus server holds of GPUs and nodes.",
    ),
    "jobs": ("app.commands.jobs:jobs", "List the jobs of a lake, or show one."),
    "features": ("app.commands.features:features", "Describe the windows of jobs in numbers, into the lake or live."),
    "data": ("app.commands.data:data", "List public data sets, or fetch one."),
    "collect-slurm": ("app.commands.collect_slurm:collect_slurm", "Slurm's accounting into a spool, kept current."),
    "doctor": ("app.commands.doctor:doctor", "Say what is wrong with this installation, lake or machine."),
}
"""Command to where it is and what the list of commands says of it, so that the list imports nothing."""


class Terminated(KeyboardInterrupt):
    """Somebody sent SIGTERM (systemd, Slurm, a shutdown): to be cleaned up after like Ctrl-C."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called for, not when they are listed."""

    def list_commands(self, _: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, _: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command, imported now; None for a name that is not in the table."""
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name][0].split(":")
        return cast(click.Command, getattr(import_module(module), name))

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands out of the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        click.echo(f"jobwatt {version('jobwatt')}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 1 data problem, 2 usage, 3 partly done (something was quarantined).",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """GPU and CPU jobs of a datacenter: what is running, what it costs in watts, what a power cap would do.

    Start with `jobwatt demo`, or fill a lake:

    \b
      jobwatt lake ingest recording.tar.zst --lake data/lake
      jobwatt jobs list --lake data/lake
    """


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Return the exit code of one command line; what went wrong is said in one line on standard error."""
    try:
        code = cli.main(arguments, prog_name="jobwatt", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else OK
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except SystemExit:  # click leaves so when standard output was closed under it
        return _pipe_closed()
    except (click.Abort, OSError, ImportError) as error:
        return _stopped(error)
    except _own_errors() as error:
        return _complain(str(error), getattr(error, "exit_code", DATA_PROBLEM))


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated


def _own_errors() -> tuple[type[Exception], ...]:
    """Return what jobwatt raises for the world's faults; nothing where a foreign ``ingest`` is in the way."""
    try:
        from ingest.errors import JobwattError
    except ImportError:
        return ()
    return (JobwattError,)


def _stopped(error: click.Abort | OSError | ImportError) -> int:
    """Return the code where the user or the system stopped it, or a foreign module hides a room; else raise."""
    if isinstance(error, click.Abort):
        if isinstance(error.__cause__, Terminated):
            return _complain("terminated", TERMINATED)
        if isinstance(error.__cause__, KeyboardInterrupt):
            return _complain("interrupted", INTERRUPTED)
        return _complain("stopped", DATA_PROBLEM)
    if isinstance(error, OSError):
        if error.errno == errno.EPIPE:
            return _pipe_closed()
        return _complain(os_error_text(error), DATA_PROBLEM)
    if (error.name or "").partition(".")[0] not in ROOMS:
        raise error
    return _complain(f"{error}: is another module of that name in the way? Run `jobwatt doctor`.", DATA_PROBLEM)


def os_error_text(error: OSError) -> str:
    """Return what the system refused, in one line that says what to do about it."""
    where = f"{error.filename}: " if error.filename is not None else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{where}no space left ({error.strerror}); make room, or choose another folder, and run it again"
    if isinstance(error, PermissionError):
        return f"{where}permission denied; use a folder that you may read and write"
    if isinstance(error, FileNotFoundError):
        return f"{where}no such file or folder"
    return f"{where}{error.strerror or error}"


def _complain(message: str, code: int) -> int:
    click.echo(f"jobwatt: {' '.join(message.split())}", err=True)
    return code


def _pipe_closed() -> int:
    """Return the code of a closed pipe; what Python would still flush into it at exit goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return BROKEN_PIPE
