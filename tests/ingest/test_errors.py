"""What went wrong has a code that a script can look for."""

from __future__ import annotations

import pickle
import re

import pytest

from app.cli import run
from ingest.errors import HardwareError, JobwattError, SpoolBusyError


def test_a_code_ends_the_message_and_survives_the_way_from_another_process():
    error = pickle.loads(pickle.dumps(HardwareError("no driver answers", reason="no_driver")))
    assert (str(error), error.reason) == ("no driver answers [no_driver]", "no_driver")
    assert str(SpoolBusyError("busy")) == "busy [spool_busy]"
    assert str(JobwattError("as it was")) == "as it was"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["collect-prometheus", "http://127.0.0.1:1", "--spool", "s", "--timeout", "1"], "no_answer"),
        (["collect", "--gpu-interval", "0", "--spool", "/proc/no-such-place"], "disk_error"),
        (["collect-slurm", "--once", "--spool", "s"], "no_sacct"),
    ],
)
def test_a_fault_is_one_line_that_ends_with_its_code(words, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(words) == 1
    assert re.fullmatch(rf"jobwatt: [^\n]+ \[{code}\]\n", capsys.readouterr().err)
