"""How long ``jobwatt --help`` takes, and of that how long Python itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from tests.benchmarks.measure import JOBWATT, run_pairs, run_process, spread
from tests.benchmarks.report import table


def help_time(quick: bool, runs: int, tell: Callable[[str], None]) -> str:
    """Return the table of start-up times."""
    contestants = {
        "`jobwatt --help`": [str(JOBWATT), "--help"],
        "`python -c pass`": [sys.executable, "-c", "pass"],
    }
    rounds = max(runs, 5 if quick else 15)
    taken = run_pairs({name: partial(run_process, command) for name, command in contestants.items()}, rounds, tell)
    rows = [[name, spread([run.wall_s for run in taken[name]], ".3f")] for name in contestants]
    return f"## Start-up\n\n{rounds} rounds, warm. Bar: 0.3 s.\n\n" + table(["", "wall s"], rows)
