"""How long `mf` takes until it does something, beside an empty Python: prints a table.

python benchmarks/starting.py [--repeats 5] [--json out.json]

`--json` also writes it. Processor time of fresh processes, sides in turn: a busy machine stretches
the wall clock, this less. Exit code 1 where one of ours takes longer than half a second.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

import _report

WANTED = 0.5
"""Seconds."""
MEASURE = """
import time
{body}
print("seconds", time.process_time())
"""
MAIN = "from modality_forcing.cli.main import main; main({words})"
SIDES = {
    "python": "",
    "import modality_forcing": "import modality_forcing",
    "mf": MAIN.format(words=[]),
    "mf --help": MAIN.format(words=["--help"]),
    "mf joint --help": MAIN.format(words=["joint", "--help"]),
    "import torch": "import torch",
}


def seconds(body: str) -> float:
    """User and system time of a fresh process that runs ``body``."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.format(body=body)], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def main() -> int:
    """Measure, print, write; 1 where the bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(options.repeats):
        for name, body in SIDES.items():
            times[name].append(seconds(body))
    medians = {name: statistics.median(found) for name, found in times.items()}
    print(f"{'':24}{'seconds':>9}{'of python':>11}")
    for name, median in medians.items():
        print(f"{name:24}{median:9.3f}{median / medians['python']:11.1f}")
    late = [name for name in medians if name != "import torch" and medians[name] > WANTED]
    print(f"wanted: {WANTED} s; above it: {', '.join(late) or 'none'}")
    _report.write(options.json, {"seconds": medians, "all": times, "wanted": WANTED})
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
