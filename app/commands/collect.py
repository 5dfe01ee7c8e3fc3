"""``jobwatt collect``: this node's telemetry into a spool, as a service or while one command runs."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from app.cli import DATA_PROBLEM
from app.following import parse_age_s
from app.output import Show, with_format
from app.settings import load, with_lake

if TYPE_CHECKING:
    from ingest.collectors.run import Options

SECONDS = click.FloatRange(min=0)
INTERVALS = ("gpu_interval", "energy_interval", "process_interval", "node_interval")


def _node_name(ctx: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    from ingest.collectors.spool import check_node

    try:
        return name if name is None else check_node(name)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _address(ctx: click.Context, parameter: click.Parameter, address: str | None) -> str | None:
    if address is None:
        return None
    from ingest.collectors.exporter import parse_address

    try:
        parse_address(address)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return address


def _gpu_numbers(ctx: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    from ingest.collectors.run import parse_gpus

    try:
        return parse_gpus(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _cluster(ctx: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    from ingest.cluster_name import check_cluster_name

    try:
        return name if name is None else check_cluster_name(name)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _age(ctx: click.Context, parameter: click.Parameter, text: str) -> str:
    try:
        parse_age_s(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return text


@click.command()
@click.option("--spool", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write to.")
@click.option("--gpu-interval", type=SECONDS, default=0.1, show_default=True, help="Seconds; 0: no GPUs.")
@click.option(
    "--energy-interval",
    type=SECONDS,
    help="Seconds between readings of the energy counter, which takes the driver milliseconds; 0: none.  "
    "[default: 30, or 300 GPU intervals where those are longer]",
)
@click.option("--process-interval", type=SECONDS, default=10.0, show_default=True, help="Seconds; 0: no processes.")
@click.option("--node-interval", type=SECONDS, default=300.0, show_default=True, help="Seconds; 0: no node readings.")
@click.option("--node", callback=_node_name, help="Name of this node.  [default: the host's, up to its first dot]")
@click.option(
    "--probe",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder whose file system is timed by writing and syncing 4 KiB.  [default: the spool's]",
)
@click.option(
    "--prometheus", metavar="HOST:PORT", callback=_address, help="Serve metrics there; without HOST to this node alone."
)
@click.option(
    "--replay", type=click.Path(path_type=Path, exists=True), help="Play recorded GPU files instead of asking NVML."
)
@click.option("--duration", type=SECONDS, help="Stop after so many seconds.  [default: on SIGTERM or SIGINT]")
@click.option("--label", metavar="NAME", help="Collect while COMMAND runs, and note that it is a NAME.")
@click.option("--gpus", metavar="N,N", callback=_gpu_numbers, help="COMMAND's GPUs.  [default: $CUDA_VISIBLE_DEVICES]")
@click.option("--systemd", is_flag=True, help="Print systemd units for this collector and its follower, and end.")
@click.option("--cluster", callback=_cluster, help="--systemd: the follower's.")
@click.option(
    "--keep-samples",
    metavar="AGE",
    default="30d",
    show_default=True,
    callback=_age,
    help="--systemd: the follower drops older samples.",
)
@with_lake
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@with_format
def collect(
    show: Show,
    *,
    spool: Path,
    gpu_interval: float,
    energy_interval: float | None,
    process_interval: float,
    node_interval: float,
    node: str | None,
    probe: Path | None,
    prometheus: str | None,
    replay: Path | None,
    duration: float | None,
    label: str | None,
    gpus: tuple[int, ...] | None,
    systemd: bool,
    cluster: str | None,
    keep_samples: str,
    lake: Path | None,
    command: tuple[str, ...],
) -> None:
    """Collect this node's telemetry into a spool until stopped; or, with --label, while a COMMAND runs.

    GPUs are read by NVML (power, clocks, utilization, …), processes of jobs and the node by /proc and /sys. Samples
    survive a `kill -9` up to the last seconds; `jobwatt lake ingest SPOOL` takes them into a lake. A GPU's rows carry
    the Slurm job whose processes use it. Of a labelled run, the GPUs' energy is told twice at its end, by counter and
    by integral, and the exit code is that of COMMAND; --lake,
    --cluster and --keep-samples are for --systemd.

    Example: jobwatt collect --spool /var/spool/jobwatt --label resnet50 -- python train.py
    """
    if systemd:
        where = (spool.absolute(), load(lake=lake).lake.absolute(), probe)
        units = systemd_units(_given_words(), *where, cluster=cluster, keep_samples=keep_samples)
        click.echo(units, nl=False)
        return
    given = click.get_current_context().get_parameter_source
    if any(given(name) is ParameterSource.COMMANDLINE for name in ("cluster", "keep_samples")):
        raise click.UsageError("--cluster and --keep-samples are for --systemd; give them to lake ingest --follow.")
    if label is None and (command or gpus is not None):
        raise click.UsageError("a COMMAND and --gpus need --label NAME, which says what it is.")
    if label is not None and not command:
        raise click.UsageError("--label needs the COMMAND that is to run, after --.")
    if label is not None and not label.strip():
        raise click.UsageError("the label is empty, so that nobody would know what ran; give --label NAME.")
    if label is not None and duration is not None:
        raise click.UsageError("--duration is for collecting until stopped; a labelled run ends with its COMMAND.")
    from ingest.collectors.run import Options, check_run
    from ingest.collectors.service import Plan, check_intervals

    plan = Plan(gpu_interval, process_interval, node_interval, energy_interval_s=energy_interval, probe=probe)
    try:
        check_run(label, command, has_gpus=gpus is not None, has_duration=duration is not None)
        check_intervals(plan)
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error
    options = Options(spool, node, plan, replay, prometheus, duration)
    if label is None:
        from ingest.collectors.run import collect as collect_until_stopped

        collect_until_stopped(options)
        return
    _run_labelled(show, options, label, command, gpus)


def _run_labelled(
    show: Show, options: Options, label: str, command: tuple[str, ...], gpus: tuple[int, ...] | None
) -> None:
    """Run the command; what is told of it goes to standard error, and to --output where that or --format is given."""
    if shutil.which(command[0]) is None:
        raise click.UsageError(f"{command[0]}: no such command.")
    from ingest.collectors.run import collect_run, report_lines

    report = collect_run(options, label, command, gpus)
    click.echo("\n".join(report_lines(report)), err=True)
    context = click.get_current_context()
    told = (context.get_parameter_source(name) for name in ("output_format", "output"))
    if any(source is ParameterSource.COMMANDLINE for source in told):
        show(report)
    context.exit(report.exit_code or (DATA_PROBLEM if report.problem else 0))


def _given_words() -> list[str]:
    """Return the options of this command line that belong into a collector's unit, with absolute paths."""
    context, words = click.get_current_context(), []
    for name in (*INTERVALS, "node", "probe", "prometheus", "replay"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            value = context.params[name]
            words += [f"--{name.replace('_', '-')}", str(value.absolute() if isinstance(value, Path) else value)]
    return words


def systemd_units(
    words: list[str],
    spool: Path,
    lake: Path,
    probe: Path | None = None,
    *,
    cluster: str | None = None,
    keep_samples: str = "30d",
) -> str:
    """Return the units of a collector with these further options and of the follower that feeds a lake from its spool.

    Both run as root: other users' ``/proc/PID/io`` and the processor's energy counters are closed to everybody else.
    The follower begins after the collector, whose spool it needs, and has time to end a round that merges parts.
    """
    jobwatt = str(Path(sys.executable).with_name("jobwatt"))
    collector = [jobwatt, "collect", "--spool", str(spool), *words]
    follower = [jobwatt, "lake", "ingest", str(spool), "--follow", "--lake", str(lake)]
    follower += [*(() if cluster is None else ("--cluster", cluster)), "--keep-samples", keep_samples]
    after = "jobwatt-collect.service"
    own = [spool] if probe is None else [spool, probe.absolute()]
    return "\n".join(
        (
            _unit("jobwatt-collect", "jobwatt collector: telemetry of this node into a spool", collector, own),
            _unit(
                "jobwatt-follow",
                "jobwatt follower: the spool into a lake",
                follower,
                [lake, spool],
                after=after,
                stop_s=120,
            ),
        )
    )


def _unit(name: str, text: str, command: list[str], writes: list[Path], *, after: str = "", stop_s: int = 30) -> str:
    words, folders = " ".join(map(_systemd_word, command)), [_systemd_word(str(folder)) for folder in writes]
    return f"""# /etc/systemd/system/{name}.service
[Unit]
Description={text}
Wants=time-sync.target
After={" ".join(filter(None, ("local-fs.target", "remote-fs.target", "time-sync.target", after)))}

[Service]
ExecStartPre=+/bin/mkdir -p {" ".join(folders)}
ExecStart={words}
Restart=on-failure
RestartSec=30
KillSignal=SIGTERM
TimeoutStopSec={stop_s}
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=strict
ReadWritePaths={" ".join(folders)}

[Install]
WantedBy=multi-user.target
"""


def _systemd_word(word: str) -> str:
    """Return a word as systemd reads it back: %, $ and quotes taken literally, quoted where there is a space."""
    plain = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$").replace('"', '\\"')
    return f'"{plain}"' if any(letter.isspace() for letter in plain) or not plain else plain
