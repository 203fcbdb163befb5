"""Every number of the model card, through ``mf eval``: ``python recipes/lowpoly/evaluate.py [MODEL]``.

Image to depth on unseen scenes, on held-out combinations and, with --rgbd, on real pictures with depth, each
beside two baselines that know no picture; joint generation from 480 captions (its depth, its places, its
colours); depth to image. At the end a table of what was wanted and what was found, which is also written to
summary.json. Each part leaves its report in a folder of --out and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from modality_forcing.cli.main import main as mf

WANTED = {
    "test AbsRel": ("<=", 0.10),
    "test δ1": (">=", 0.90),
    "combination / test AbsRel": ("<=", 1.25),
    "joint AbsRel": ("<=", 0.08),
    "place recognised": (">=", 0.90),
    "colour of the object": (">=", 0.60),
    "depth to image AbsRel": ("<=", 0.10),
}
"""For a model trained on CPUs at 128x128; depth after an exact fit of one scale per picture."""


def commands(options: argparse.Namespace) -> dict[str, list[str]]:
    """Name of a part -> its command line behind ``mf eval``."""
    model = ["--model", options.model]
    runs = {}
    sets = {"test": "lowpoly:test", "combination": "lowpoly:combination"}
    if options.rgbd is not None:
        sets["rgbd"] = str(options.rgbd)
    for name, data in sets.items():
        words = ["depth", "--data", data, "--limit", str(options.count), *model]
        runs[name] = words
        for predictor in ("constant", "mean"):
            runs[f"{name}-{predictor}"] = [*words, "--predictor", predictor]
    for steps in (1, 4):
        runs[f"test-{steps}-steps"] = [*runs["test"], "--steps", str(steps)]
    runs["test-no-edges"] = [*runs["test"], "--edge-radius", "0"]
    runs["test-captions"] = [*runs["test"], "--caption"]
    runs["joint"] = ["joint", "--limit", str(options.images), *model]
    runs["control"] = ["control", "--limit", str(options.count), *model]
    return {name: [*words, "--out", str(options.out / name)] for name, words in runs.items()}


def found_in(out: Path) -> dict[str, Any]:
    """The numbers of the finished parts."""

    def read(name: str) -> Any:
        return json.loads((out / name / "results.json").read_text(encoding="utf-8"))["summary"]

    def depth(name: str, number: str) -> float:
        return float(read(name)["scale"][number]["mean"])

    (joint,), (control,) = read("joint"), read("control")
    test = depth("test", "abs_rel")
    return {
        "test AbsRel": test,
        "test δ1": depth("test", "delta1"),
        "combination / test AbsRel": depth("combination", "abs_rel") / test,
        "joint AbsRel": joint["abs_rel_scale"]["mean"],
        "place recognised": joint["prompt_accuracy"]["mean"],
        "colour of the object": joint["colour_accuracy"]["mean"],
        "depth to image AbsRel": control["abs_rel_scale"]["mean"],
    }


def main() -> int:
    """Run all parts, then compare; exit code of the first part that fails, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", default="lowpoly")
    parser.add_argument("--count", type=int, default=60, help="pictures of each depth measurement")
    parser.add_argument("--images", type=int, default=480, help="generated images of the joint part")
    parser.add_argument("--rgbd", type=Path, help="folder of real pictures with depth (index.json)")
    parser.add_argument("--out", type=Path, default=Path("outputs/lowpoly_evaluation"))
    options = parser.parse_args()
    for name, words in commands(options).items():
        print(f"\n== {name}: mf eval {' '.join(words)}", flush=True)
        code = mf(["eval", *words])
        if code:
            return code
    found = found_in(options.out)
    print(f"\n{'':28} {'found':>8} {'wanted':>10}")
    for name, (sign, value) in WANTED.items():
        text = "-" if found[name] is None else f"{found[name]:.3f}"  # no judge of colours: no number
        print(f"{name:28} {text:>8} {sign:>4} {value:5.2f}")
    (options.out / "summary.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
