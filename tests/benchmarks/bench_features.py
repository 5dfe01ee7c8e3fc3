"""Features by the second of one core, against the libraries that define them, on windows of 60 s and 7 channels.

The rivals live in an environment of their own, the extra ``bench``: in ``.bench/peers``, or where $JOBWATT_BENCH_PYTHON
says. Theirs and ours run in one process there, on one core; without it in one of this environment, and what is missing
is said. Agreement with tsfresh is that of this environment, of the lock: it depends on the version of pandas.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time
import types
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
if "tests" not in sys.modules:  # one of the rivals installs a package called `tests`
    sys.modules["tests"] = types.ModuleType("tests")
    sys.modules["tests"].__path__ = [str(ROOT / "tests")]

from threadpoolctl import threadpool_limits  # noqa: E402

from features.efficient import compilation_told, efficient, efficient_names  # noqa: E402
from features.windows import CHALLENGE_CHANNELS, WindowSpec, cut_windows  # noqa: E402
from tests.benchmarks.feature_peers import Peer, efficient_by_tsflex, installed, peers  # noqa: E402
from tests.benchmarks.measure import SCRATCH, spread  # noqa: E402
from tests.benchmarks.report import table  # noqa: E402
from tests.features.efficient_oracle import agrees, tsfresh_features  # noqa: E402

SPEC = WindowSpec(60)
N_WINDOWS, QUICK_WINDOWS = 256, 16
TSFRESH_WINDOWS, QUICK_TSFRESH_WINDOWS = 8, 2
COMPARED_WINDOWS, QUICK_COMPARED_WINDOWS = 32, 2
LEAST_RUNS = 5
PACKAGES = ("numpy", "numba", "polars", "pandas", "tsfresh", "tsflex", "tsfel", "aeon", "torch")
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS")


def features(quick: bool, runs: int, tell: Callable[[str], None]) -> str:
    """Return the tables of speed and of agreement, measured by one process on one core."""
    windows, n_recorded = minute_windows(QUICK_WINDOWS if quick else N_WINDOWS, tell)
    path = SCRATCH / "features-windows.npy"
    np.save(path, windows)
    python = os.environ.get("JOBWATT_BENCH_PYTHON") or SCRATCH / "peers" / "bin" / "python"
    python = python if Path(python).exists() else sys.executable
    tell(f"measuring in a process of {python}")
    command = [str(python), "-P", __file__, str(path), str(n_recorded), "--runs", str(runs)]
    command += ["--quick"] if quick else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=_environment(), check=False)
    if done.returncode:
        raise SystemExit(f"the benchmark of features ended with {done.returncode}; what it said is above")
    compared = _mixed(windows, n_recorded, QUICK_COMPARED_WINDOWS if quick else COMPARED_WINDOWS)
    return f"{done.stdout.strip()}\n\n{_agreement(compared, tell)}"


def _environment() -> dict[str, str]:
    """One thread to each library, and compiled kernels apart from those of another numba or other sources."""
    code = b"".join(path.read_bytes() for path in sorted((ROOT / "features").rglob("*.py")))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    cache = SCRATCH / "numba" / hashlib.sha256(code).hexdigest()[:16]
    return {**kept, **dict.fromkeys(ONE_THREAD, "1"), "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}


def minute_windows(count: int, tell: Callable[[str], None]) -> tuple[np.ndarray, int]:
    """Return so many windows of 60 s, and how many of them are recorded; synthetic ones fill up."""
    archives = sorted(path for end in ("*.tar.zst", "*.tar.gz") for path in (ROOT / "data").glob(end))
    recorded = np.concatenate([_windows_of(archive) for archive in archives])[:count]
    missing = count - len(recorded)
    if not missing:
        return recorded, count
    from ingest.synthetic import make_archive
    from tests.benchmarks.archives import fresh

    tell(f"{len(recorded)} recorded windows; making {missing} synthetic ones")
    raw = fresh("raw/features")
    make_archive(
        raw,
        rng=20_261_124,
        n_jobs=-(-missing // 2),
        seconds_per_job=70.0,
        gpus_per_job=2,
        cpu_files=False,
        node_data=False,
    )
    return np.concatenate([recorded, _windows_of(raw)[:missing]]), len(recorded)


def _windows_of(source: Path) -> np.ndarray:
    from ingest.lake import Lake
    from ingest.pipeline import ingest
    from ingest.runner import SerialRunner
    from tests.benchmarks.archives import fresh

    root = fresh("lakes/features")
    ingest(str(source), root, runner=SerialRunner())
    return cut_windows(Lake(root).scan("gpu_samples").collect(), SPEC).values


# -- in the process of one core ----------------------------------------------------------------------------------------


def main() -> None:
    """Measure on the windows of a file, and print the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("windows", type=Path)
    parser.add_argument("n_recorded", type=int)
    parser.add_argument("--runs", type=int, default=LEAST_RUNS)
    parser.add_argument("--quick", action="store_true")
    told = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with threadpool_limits(1):
        print(measure(np.load(told.windows), told.n_recorded, told.quick, told.runs))


def measure(windows: np.ndarray, n_recorded: int, quick: bool, runs: int) -> str:
    """Return the section, of windows of which the first so many are recorded."""

    def tell(text: str) -> None:
        print(f"  {text}", file=sys.stderr, flush=True)

    with compilation_told(tell):
        efficient(windows[:2])
        few = _mixed(windows, n_recorded, QUICK_TSFRESH_WINDOWS if quick else TSFRESH_WINDOWS)
        speed = _speed(windows, few, runs, tell)
        shared = _shared(windows, n_recorded, max(runs, LEAST_RUNS), tell)
    versions = ", ".join(f"{name} {installed(name)}" for name in PACKAGES if installed(name))
    return (
        f"## Features\n\nOne process on one core, CPU seconds, {len(windows)} windows of {SPEC.n_samples} samples x "
        f"{len(CHALLENGE_CHANNELS)} channels ({n_recorded} recorded, {len(windows) - n_recorded} synthetic), in turn; "
        f"{versions}.\n\n{speed}\n\n{shared}"
    )


def _mixed(windows: np.ndarray, n_recorded: int, count: int) -> np.ndarray:
    """So many windows, three of four of them recorded as far as there are such."""
    recorded = min(n_recorded, count - count // 4)
    return np.concatenate([windows[:recorded], windows[n_recorded : n_recorded + count - recorded]])


def repeated(few: np.ndarray, count: int) -> np.ndarray:
    """The same windows again and again, at least so many: what a peer is timed on, in batches as large as ours are."""
    return np.tile(few, (-(-count // len(few)), 1, 1))


def _speed(windows: np.ndarray, few: np.ndarray, runs: int, tell: Callable[[str], None]) -> str:
    """Return the table of the whole efficient set, by us, by tsfresh, and by tsfresh within tsflex.

    All have the same few windows; we have them as often as makes as many as there are.
    """
    contestants: dict[str, tuple[Callable[[np.ndarray], object], np.ndarray]] = {
        "**jobwatt `efficient`**": (efficient, repeated(few, len(windows))),
        "tsfresh `EfficientFCParameters`, `n_jobs=0`": (_extract, few),
    }
    if installed("tsflex"):
        contestants["tsflex with the same of tsfresh"] = (efficient_by_tsflex, few)
    _extract(few[:1])
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(runs):
        for name in list(contestants)[:: 1 if number % 2 else -1]:
            taken[name].append(_per_second(*contestants[name]))
            tell(f"{name}: {taken[name][-1]:.2f} windows a CPU second")
    ours = next(iter(taken.values()))
    n_features = len(efficient_names(CHALLENGE_CHANNELS))
    rows = []
    for name, rates in taken.items():
        ratios = spread([one / other for one, other in zip(ours, rates, strict=True)], ".0f")
        bar = "≥ 60 ×, aim 100 ×" if name.startswith("tsfresh") else "> 1 ×" if name.startswith("tsflex") else ""
        rows.append([name, f"{n_features:,}", spread(rates), "" if rates is ours else ratios, bar])
    return table(["", "features a window", "windows a CPU second", "ours / this", "bar"], rows)


def _shared(windows: np.ndarray, n_recorded: int, runs: int, tell: Callable[[str], None]) -> str:
    """Return the table of the small sets and of shared features, each compared before it is timed."""
    rows, missing = [], []
    for peer in peers():
        if not installed(peer.package) or (peer.package == "aeon" and not installed("torch")):
            missing.append(peer.name)
            continue
        some = _mixed(windows, n_recorded, min(peer.windows, len(windows)))
        agreeing = _agreeing(peer, some)
        rates = [(_per_second(peer.ours, some), _per_second(peer.theirs, some)) for _ in range(runs)]
        tell(f"{peer.name}: {rates[-1][0]:,.0f} and {rates[-1][1]:,.0f} windows a CPU second; {agreeing:.3%} agree")
        rows.append(
            [
                peer.what,
                spread([one for one, _ in rates], ",.0f"),
                peer.name,
                spread([two for _, two in rates], ",.0f"),
                spread([one / two for one, two in rates], ".1f"),
                f"≥ {peer.bar} ×" if peer.bar > 1 else "> 1 ×",
                f"{agreeing:.3%}",
            ]
        )
    header = ["ours", "windows a CPU second", "peer", "windows a CPU second", "ours / peer", "bar", "cells that agree"]
    text = table(header, rows) + (
        "\n\nA cell agrees within a relative 1e-6; with aeon's QUANT, in single precision, within 1e-6 "
        "of 100 times the channel's largest reading (its Fourier sums are of 540). aeon's longest stretch differs "
        "where it touches the window's ends; TSFEL's slope of a constant is 1e-15 instead of 0."
    )
    if missing:
        text += f"\n\n**Not measured, since not installed: {', '.join(missing)}.** The extra `bench` has them."
        tell(f"not installed, so not measured: {', '.join(missing)}")
    return text


def _agreeing(peer: Peer, windows: np.ndarray) -> float:
    """The share of cells on which both agree; a NaN on one side counts as different."""
    ours = np.asarray(peer.ours(windows), dtype=np.float64)
    theirs = np.asarray(peer.theirs(windows), dtype=np.float64)
    if ours.shape != theirs.shape:
        raise SystemExit(f"{peer.name} has shape {theirs.shape}, ours is {ours.shape}; they do not compute the same")
    scale = np.maximum(np.abs(ours), np.abs(theirs)) if peer.scale is None else peer.scale(windows)
    same = (np.isnan(ours) & np.isnan(theirs)) | (np.abs(ours - theirs) <= 1e-6 * scale)
    return float(same.mean())


def _per_second(extract: Callable[[np.ndarray], object], windows: np.ndarray) -> float:
    start = time.process_time()
    extract(windows)
    return len(windows) / (time.process_time() - start)


def _extract(windows: np.ndarray) -> pd.DataFrame:
    from tsfresh import extract_features
    from tsfresh.feature_extraction.settings import EfficientFCParameters

    n_windows, _, n_samples = windows.shape
    frame = pd.DataFrame(
        windows.transpose(0, 2, 1).reshape(-1, len(CHALLENGE_CHANNELS)).astype(np.float64), columns=CHALLENGE_CHANNELS
    )
    frame["id"] = np.repeat(np.arange(n_windows), n_samples)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return extract_features(
            frame,
            column_id="id",
            default_fc_parameters=EfficientFCParameters(),
            n_jobs=0,
            disable_progressbar=True,
            show_warnings=False,
        )


def _agreement(windows: np.ndarray, tell: Callable[[str], None]) -> str:
    """Return the share of cells that agree, and every column with one that does not."""
    few = windows.astype(np.float64)
    names = [name.removeprefix("x__") for name in efficient_names(["x"])]
    ours = efficient(few).reshape(-1, len(names))
    differing: Counter[str] = Counter()
    farthest: dict[str, float] = {}
    for series, found in zip(few.reshape(-1, few.shape[2]), ours, strict=True):
        theirs = tsfresh_features(series)
        for name, value in zip(names, found, strict=True):
            if not agrees(value, theirs[name]):
                differing[name] += 1
                apart = abs(value - theirs[name])
                farthest[name] = max(farthest.get(name, 0.0), np.inf if np.isnan(apart) else apart)
    cells = ours.size
    share = 1 - differing.total() / cells
    tell(f"{share:.4%} of {cells:,} cells agree")
    rows = [
        [f"`{name}`", str(bad), f"{bad / len(ours):.2%}", f"{farthest[name]:.1g}"]
        for name, bad in differing.most_common()
    ]
    return (
        f"Agreement over {len(few)} windows, {cells:,} cells, with the lock's versions (pandas {installed('pandas')}) "
        f"and numpy's sort made stable for tsfresh: **{share:.3%}** "
        "are the same within a relative 1e-6, a NaN on one side counted as different (bar: 99.5 %). Every exception, "
        "explained in `features/efficient/differences.md` (`inf`: NaN on one side):\n\n"
        + table(["column", "cells that differ", "of its cells", "at most by"], rows or [["none", "0", "0 %", ""]])
    )


if __name__ == "__main__":
    main()
