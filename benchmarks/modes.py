"""What a user waits for: each mode of the command line from process start to files, and its peak memory.

python benchmarks/modes.py [--model lowpoly] [--repeats 3] [--json out.json]

Floor of a joint run with the embedded model, in operations: 7.6 M parameters of which a token meets about
3.8 M (its own stream's share of the triple blocks), 2 operations each, 176 tokens, 2 guided halves, 16 steps:
0.04 TFLOP, a quarter of a second on a core of 160 GFLOP/s; the rest is start-up, text, decoding and files.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _report
import numpy as np
from PIL import Image

MF = [sys.executable, "-m", "modality_forcing.cli.main"]


def measure(arguments: list[str]) -> tuple[float, float]:
    """Seconds and peak resident megabytes of one command."""
    started = time.perf_counter()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        assert process.stderr is not None
        raise SystemExit(f"{' '.join(arguments)} failed: {process.stderr.read().decode()}")
    return seconds, usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="lowpoly")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    rows, cols = np.mgrid[0:480, 0:640]
    picture = np.stack([cols % 256, rows % 256, (rows + cols) % 256], -1).astype(np.uint8)
    Image.fromarray(picture).save(folder / "image.png")
    np.save(folder / "depth.npy", (1 + rows / 100).astype(np.float32))
    modes = {
        "joint": ["--prompt", "a kitchen"],
        "joint x4": ["--prompt", "a kitchen", "--num-images", "4"],
        "i2d 640x480": ["--image", str(folder / "image.png")],
        "d2i 640x480": ["--depth", str(folder / "depth.npy"), "--prompt", "a street"],
    }
    report = []
    print(f"{'mode':<14}{'seconds':>9}{'MB':>8}   median of {arguments.repeats}")
    for name, options in modes.items():
        verb = name.split()[0]
        command = [
            *MF,
            verb,
            *options,
            "--model",
            arguments.model,
            "--out",
            str(folder / "out"),
            "--seed",
            "0",
        ]
        runs = [measure(command) for _ in range(arguments.repeats)]
        seconds, memory = statistics.median(r[0] for r in runs), max(r[1] for r in runs)
        report.append({"mode": name, "seconds": seconds, "peak_mb": memory, "runs": runs})
        print(f"{name:<14}{seconds:>9.2f}{memory:>8.0f}")
    shutil.rmtree(folder)
    _report.write(arguments.json, {"modes": report})


if __name__ == "__main__":
    main()
