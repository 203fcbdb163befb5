"""``python benchmarks/metrics.py [--json FILE]``: time of alignment and metrics on one 640x480 picture.

Synthetic maps (walls, boxes, noise, a tenth of the pixels unknown). Per alignment: median milliseconds of one
call on one thread, and per picture with two threads, which is how an evaluation would use two cores.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import _report
import numpy as np

from modality_forcing.evaluation.fitting import ALIGNMENTS, fit_depth
from modality_forcing.evaluation.metrics import score_depth

HEIGHT, WIDTH, TARGET_MS = 480, 640, 60.0


def maps(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and reference, float32 (480, 640)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    reference = 2.0 + 3.0 * rows / HEIGHT + 2.0 * ((columns // 80 + rows // 60) % 2)
    prediction = 0.5 * reference + 0.2 + rng.normal(0.0, 0.03, reference.shape)
    reference[rng.random(reference.shape) < 0.1] = 0.0
    return prediction.astype(np.float32), reference.astype(np.float32)


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    pairs = [maps(seed) for seed in range(4)]
    rows = []
    print(f"{'alignment':14} {'fit ms':>8} {'fit + metrics ms':>17} {'per picture, 2 threads':>23}")
    for name in ALIGNMENTS:

        def whole(pair: tuple[np.ndarray, np.ndarray], name: str = name) -> None:
            score_depth(*pair, alignment=name)

        def fit(pair: tuple[np.ndarray, np.ndarray], name: str = name) -> None:
            fit_depth(*pair, pair[1] > 0, name)

        times: dict[str, list[float]] = {"fit": [], "whole": [], "two": []}
        whole(pairs[0])
        for number in range(options.rounds):
            pair = pairs[number % len(pairs)]
            for key, function in (("fit", fit), ("whole", whole)):
                begun = time.perf_counter()
                function(pair)
                times[key].append(1e3 * (time.perf_counter() - begun))
        with ThreadPoolExecutor(2) as pool:
            for _ in range(options.rounds):
                begun = time.perf_counter()
                list(pool.map(whole, pairs))
                times["two"].append(1e3 * (time.perf_counter() - begun) / len(pairs))
        medians = {key: statistics.median(values) for key, values in times.items()}
        fastest = {key: min(values) for key, values in times.items()}
        rows.append({"alignment": name, "median_ms": medians, "fastest_ms": fastest})
        print(f"{name:14} {medians['fit']:8.1f} {medians['whole']:17.1f} {medians['two']:23.1f}")
    affine = next(row for row in rows if row["alignment"] == "affine")
    best = affine["fastest_ms"]["two"]
    print(f"target for affine: {TARGET_MS:g} ms per picture on 2 cores; fastest round {best:.1f}")
    _report.write(options.json, {"width": WIDTH, "height": HEIGHT, "rows": rows}, packages=("scipy",))


if __name__ == "__main__":
    main()
