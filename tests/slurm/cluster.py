"""A real Slurm of one node, started in a fresh folder on loopback: munge, MariaDB, slurmdbd, slurmctld, slurmd.

Nothing outside the folder is written, no fixed port is used, and every wait has a limit. The daemons stay in the
foreground as children of this process and die with it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

NOT_INSTALLED = "Slurm is not installed (apt-get install slurm-wlm slurmdbd munge mariadb-server)"
NOT_ROOT = "Slurm's daemons start jobs for other users, so they need root"
PROGRAMS = (
    *("slurmctld", "slurmd", "slurmdbd", "sacct", "sacctmgr", "sbatch", "scancel", "scontrol", "sinfo", "squeue"),
    *("munged", "munge", "mariadbd", "mariadb", "mariadb-admin", "mariadb-install-db"),
)
START_LIMIT_S = 30.0
STOP_LIMIT_S = 10.0

_SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket
MpiDefault=none
MailProg=/bin/true
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmdParameters=config_overrides
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldLogFile={root}/log/slurmctld
SlurmdLogFile={root}/log/slurmd
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
ReturnToService=2
KillWait=2
InactiveLimit=0
MinJobAge=300
JobRequeue=1
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
AccountingStoragePass={root}/munge/socket
AccountingStorageTRES=gres/gpu,gres/gpu:v100
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=12000 Gres=gpu:v100:2 Feature=blue,green State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE DefMemPerCPU=100 State=UP
"""
_GRES_CONF = "NodeName={host} Name=gpu Type=v100 File=/dev/null,/dev/zero\n"
_SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={dbd_port}
CommunicationParameters=NoInAddrAny
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={sql_port}
StorageUser=slurm
StoragePass=x
StorageLoc=slurm_acct_db
LogFile={root}/log/slurmdbd
PidFile={root}/slurmdbd.pid
"""
_SQL = """\
CREATE DATABASE slurm_acct_db;
CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY 'x';
GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';
"""


def why_not() -> str:
    """Return why Slurm cannot be started here, '' where it can."""
    if any(shutil.which(program, path=_path()) is None for program in PROGRAMS):
        return NOT_INSTALLED
    return "" if os.geteuid() == 0 else NOT_ROOT


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


class SlurmCluster:
    """One node called as this machine, with two GPUs of type v100 that are none; running inside a ``with``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.node = socket.gethostname().partition(".")[0]
        self.env = {**os.environ, "PATH": _path(), "SLURM_CONF": str(root / "etc" / "slurm.conf"), "TZ": "UTC"}
        self._last_error = ""
        self._daemons: list[tuple[str, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, *command: str, limit_s: float = 20.0, **env: str) -> str:
        """Return what a command of Slurm prints; its failure is an error with what it said."""
        ended = subprocess.run(
            command,
            env={**self.env, **env},
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
        if ended.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr.strip()}")
        return ended.stdout

    def submit(self, script: str, *options: str) -> int:
        """Return the id of a batch job of one line of shell."""
        said = self.run("sbatch", "--parsable", "--output=/dev/null", *options, f"--wrap={script}")
        return int(said.strip().partition(";")[0])

    @property
    def pids(self) -> list[int]:
        """The processes of its daemons."""
        return [process.pid for _, process in self._daemons]

    def state(self, job: str) -> str:
        """Return what the controller says of a job's state ('' where it has forgotten it)."""
        said = self.run("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}")
        return said.strip()

    # -- daemons ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._write_settings()
        self._daemon("munged", "--foreground", "--force", *self._munge_options())
        self._wait("munge", lambda: self._answers("munge", "--no-input", f"--socket={self.root}/munge/socket"))
        data, sql = self.root / "sql", str(self.root / "sql.socket")
        self.run(
            *("mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root"),
            *("--auth-root-authentication-method=normal", "--skip-test-db"),
        )
        self._daemon(
            *("mariadbd", "--no-defaults", f"--datadir={data}", "--user=root", f"--socket={sql}"),
            *("--bind-address=127.0.0.1", f"--port={self._ports['sql_port']}", f"--pid-file={self.root}/sql.pid"),
            *("--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=2"),
        )
        self._wait("MariaDB", lambda: self._answers("mariadb-admin", "--no-defaults", f"--socket={sql}", "ping"))
        self.run("mariadb", "--no-defaults", f"--socket={sql}", "--execute", _SQL)
        self._daemon("slurmdbd", "-D")
        self._wait("slurmdbd", lambda: self._answers("sacctmgr", "-n", "list", "cluster"))
        self.run("sacctmgr", "-i", "add", "cluster", "test")
        self._daemon("slurmctld", "-D", "-i")
        self._wait("slurmctld", lambda: "is UP" in self._said("scontrol", "ping"))
        self._daemon("slurmd", "-D")
        self._wait("slurmd", lambda: self._said("sinfo", "-h", "-o", "%T").strip() == "idle")

    def _write_settings(self) -> None:
        self._ports = dict(zip(("ctld_port", "slurmd_port", "dbd_port", "sql_port"), free_ports(4), strict=True))
        for name in ("etc", "log", "munge", "state", "spool"):
            (self.root / name).mkdir(parents=True)
        self.root.chmod(0o755)
        (self.root / "munge" / "key").write_bytes(os.urandom(128))
        (self.root / "munge" / "key").chmod(0o600)
        words = {"host": self.node, "root": str(self.root), **self._ports}
        for name, text in {
            "slurm.conf": _SLURM_CONF,
            "gres.conf": _GRES_CONF,
            "slurmdbd.conf": _SLURMDBD_CONF,
        }.items():
            (self.root / "etc" / name).write_text(text.format(**words))
            (self.root / "etc" / name).chmod(0o600 if name == "slurmdbd.conf" else 0o644)

    def _munge_options(self) -> list[str]:
        places = {"key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed", "socket": "socket"}
        return [f"--{option}={self.root}/munge/{name}" for option, name in places.items()]

    def _daemon(self, *command: str) -> None:
        log = (self.root / "log" / f"{command[0]}.out").open("wb")
        with log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command],
                env=self.env,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._daemons.append((command[0], process))

    def _said(self, *command: str) -> str:
        try:
            return self.run(*command, limit_s=5.0)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            self._last_error = str(error)
            return ""

    def _answers(self, *command: str) -> bool:
        try:
            self.run(*command, limit_s=5.0)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            self._last_error = str(error)
            return False
        return True

    def _wait(self, what: str, is_ready: Callable[[], bool]) -> None:
        until = time.monotonic() + START_LIMIT_S
        while not is_ready():
            name, process = self._daemons[-1]
            if process.poll() is not None or time.monotonic() > until:
                logs = [self.root / "log" / f"{name}.out", self.root / "log" / name]
                said = "".join(log.read_text("utf-8", "replace")[-2000:] for log in logs if log.exists())
                raise RuntimeError(f"{what} did not come up within {START_LIMIT_S:g} s: {self._last_error} {said}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End all jobs and daemons, the last started first."""
        names = [name for name, _ in self._daemons]
        if "slurmd" in names:
            self._said("scancel", "--user=root", "--signal=KILL", "--full")
            self._said("scancel", "--user=root")
        for _, process in reversed(self._daemons):
            process.terminate()
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._daemons = []


def free_ports(n: int) -> list[int]:
    """Return so many ports of loopback at which nobody listens."""
    sockets = [socket.socket() for _ in range(n)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def wait_until(is_true: Callable[[], bool], limit_s: float, what: str) -> None:
    """Return once a condition holds; fail when it does not within the limit."""
    until = time.monotonic() + limit_s
    while not is_true():
        if time.monotonic() > until:
            raise AssertionError(f"not within {limit_s:g} s: {what}")
        time.sleep(0.1)
