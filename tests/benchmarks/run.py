"""Measure, and write BENCHMARKS.md: ``make bench``, or ``python tests/benchmarks/run.py [NAME...] [--quick]``."""

from __future__ import annotations

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path

BENCHMARKS = {
    "ingest": "tests.benchmarks.bench_ingest:ingest",
    "memory": "tests.benchmarks.bench_memory:memory",
    "size": "tests.benchmarks.bench_ingest:size",
    "encodings": "tests.benchmarks.bench_encodings:encodings",
    "reads": "tests.benchmarks.bench_lake:lake_reads",
    "features": "tests.benchmarks.bench_features:features",
    "extract": "tests.benchmarks.bench_extract:extract",
    "help": "tests.benchmarks.bench_help:help_time",
    "collector": "tests.benchmarks.bench_collector:collector",
}


def main() -> None:
    """Run the benchmarks that were named, or all, and put their tables into the document."""
    root = Path(__file__).resolve().parents[2]
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument(
        "--quick", action="store_true", help="small inputs, to see that it works; writes .bench/quick.md"
    )
    parser.add_argument("--runs", type=int, default=3, help="rounds of each comparison (default: 3)")
    parser.add_argument("--output", type=Path, help="the document (default: BENCHMARKS.md)")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; choose among {', '.join(BENCHMARKS)}")
    report = import_module("tests.benchmarks.report")
    output = arguments.output or root / (".bench/quick.md" if arguments.quick else "BENCHMARKS.md")
    order = ["machine", *BENCHMARKS]
    started = time.perf_counter()

    def tell(text: str) -> None:
        print(f"[{time.perf_counter() - started:6.1f} s] {text}", file=sys.stderr, flush=True)

    for name in arguments.names or BENCHMARKS:
        module, function = BENCHMARKS[name].split(":")
        tell(name)
        text = getattr(import_module(module), function)(arguments.quick, arguments.runs, tell)
        print(text, end="\n\n", flush=True)
        report.write_sections(output, {"machine": report.machine(), name: report.dated(text)}, order)
    tell(f"written to {output.name}")


if __name__ == "__main__":
    main()
