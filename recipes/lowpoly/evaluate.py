"""``python recipes/lowpoly/evaluate.py MODEL [COUNT]``: every number of the model card, through ``mf eval``.

Image to depth on the test and combination splits (at several step counts, and with captions), two baselines
that know no picture, and joint generation. Each run leaves its report in a folder of
outputs/lowpoly_evaluation and goes on where it stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path

from modality_forcing.cli.main import main as mf

OUT = Path("outputs/lowpoly_evaluation")


def commands(model: str, count: int) -> dict[str, list[str]]:
    """Name of a run -> its command line behind ``mf eval``."""
    depth = ["depth", "--limit", str(count), "--model", model, "--data"]
    runs = {
        "constant": [*depth, "lowpoly:test", "--predictor", "constant"],
        "mean": [*depth, "lowpoly:test", "--predictor", "mean"],
        "steps-1": [*depth, "lowpoly:test", "--steps", "1"],
        "steps-4": [*depth, "lowpoly:test", "--steps", "4"],
        "default": [*depth, "lowpoly:test"],
        "captions": [*depth, "lowpoly:test", "--caption"],
        "combination": [*depth, "lowpoly:combination"],
        "joint": ["joint", "--limit", str(max(2, count // 4)), "--model", model],
    }
    return {name: [*words, "--out", str(OUT / name)] for name, words in runs.items()}


def main(model: str, count: int = 100) -> int:
    """Run them all; the first that fails ends it."""
    for name, words in commands(model, count).items():
        print(f"\n== {name}: mf eval {' '.join(words)}", flush=True)
        code = mf(["eval", *words])
        if code:
            return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], *map(int, sys.argv[2:3])))
