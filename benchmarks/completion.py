"""How good completion is: mean AbsRel on unseen low-poly scenes by sensor and density, beside simpler ways.

python benchmarks/completion.py [--model lowpoly] [--split test] [--scenes 8] [--steps N] [--json out.json]

Columns: "affine" image to depth, fitted by least squares to the points (scale and shift); "robust" fitted by
least relative L1; "plain" linear interpolation of the points, without any model; "complete" ``mf complete``;
"outliers" the same with 5 % of the points replaced by chance, "kept" with them and --keep-outliers, and
"affine+out" the least squares fit to them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _report
import numpy as np
from scipy.interpolate import griddata

from modality_forcing import Pipeline
from modality_forcing.config.training import SensorConfig
from modality_forcing.data.lowpoly import make_sample, split_seed
from modality_forcing.data.sensors import measure
from modality_forcing.geometry.alignment import align_affine
from modality_forcing.geometry.completion import fit, measured
from modality_forcing.types import Sample

SENSORS = ("lidar", "keypoints", "structured_light")
DENSITIES = (0.002, 0.01, 0.05)
OUTLIERS = 0.05
SIZE = 128


def points_of(sample: Sample, kind: str, density: float, seed: int) -> np.ndarray:
    """float32 (H, W): what the sensor reports, with its own noise; 0 is nothing."""
    sensor = SensorConfig(kind=kind, low=density, high=density, noise=1.0)
    rng = np.random.default_rng(seed)
    found, _ = measure(sample.depth, sample.rgb, sample.camera, sensor, rng, normals=sample.normals)
    return np.where(np.isfinite(found), found, 0.0).astype(np.float32)


def spoiled(points: np.ndarray, seed: int) -> np.ndarray:
    """The same with a share of the points replaced, log-uniformly between a third of the nearest and thrice
    the farthest."""
    rng = np.random.default_rng(seed)
    out = points.copy()
    where = np.flatnonzero(measured(points))
    bad = rng.choice(where, max(1, round(OUTLIERS * len(where))), replace=False)
    low, high = points.ravel()[where].min() / 3, points.ravel()[where].max() * 3
    out.ravel()[bad] = np.exp(rng.uniform(np.log(low), np.log(high), len(bad)))
    return out


def interpolated(points: np.ndarray) -> np.ndarray:
    """Linear between the points, nearest outside them."""
    known = measured(points)
    places = np.stack(np.nonzero(known), axis=1)
    everywhere = np.stack(np.mgrid[: points.shape[0], : points.shape[1]], axis=-1)
    nearest = griddata(places, points[known], everywhere, method="nearest")
    if len(places) < 4 or min(np.ptp(places, axis=0)) == 0:
        return nearest
    linear = griddata(places, points[known], everywhere, method="linear")
    return np.where(np.isfinite(linear), linear, nearest)


def abs_rel(depth: np.ndarray, truth: Sample) -> float:
    """Mean of |d - g| / g over all solid pixels; no alignment."""
    valid = truth.valid
    return float(np.mean(np.abs(depth[valid] - truth.depth[valid]) / truth.depth[valid]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="lowpoly")
    parser.add_argument("--split", default="test")
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--steps", type=int, help="default: the model's own")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    pipeline = Pipeline.from_pretrained(arguments.model)
    scenes = [make_sample(split_seed(arguments.split, i), SIZE, SIZE) for i in range(arguments.scenes)]
    steps = arguments.steps or pipeline.sampler_defaults.steps_of("complete")
    options = {"seed": 0, "steps": steps}
    relative = [r.depth for r in pipeline.image_to_depth([s.rgb for s in scenes], **options)]
    columns = ("affine", "robust", "plain", "complete", "affine+out", "outliers", "kept")
    print(f"{'sensor':18}{'share':>7}{'scenes':>8}" + "".join(f"{name:>12}" for name in columns))
    rows = []
    for kind in SENSORS:
        for density in DENSITIES:
            clean = [points_of(scene, kind, density, i) for i, scene in enumerate(scenes)]
            # Some sensors report nothing in some scenes (structured light in a street).
            used = [i for i, points in enumerate(clean) if np.count_nonzero(points) >= 8]
            if not used:
                continue
            truth = [scenes[i] for i in used]
            images, points = [scene.rgb for scene in truth], [clean[i] for i in used]
            wrong = [spoiled(values, i) for i, values in zip(used, points, strict=True)]
            d = [relative[i] for i in used]

            def affine(values: list[np.ndarray], d: list[np.ndarray] = d) -> list[np.ndarray]:
                return [align_affine(x, p, measured(p)).apply(x) for x, p in zip(d, values, strict=True)]

            found = {
                "affine": affine(points),
                "robust": [fit(x, p, measured(p)).apply(x) for x, p in zip(d, points, strict=True)],
                "plain": [interpolated(p) for p in points],
                "complete": [r.depth for r in pipeline.complete(images, points, **options)],
                "affine+out": affine(wrong),
                "outliers": [r.depth for r in pipeline.complete(images, wrong, **options)],
                "kept": [r.depth for r in pipeline.complete(images, wrong, drop_outliers=False, **options)],
            }
            errors = {
                name: float(np.mean([abs_rel(x, t) for x, t in zip(depths, truth, strict=True)]))
                for name, depths in found.items()
            }
            rows.append({"sensor": kind, "share": density, "scenes": len(used), "abs_rel": errors})
            numbers = "".join(f"{errors[name]:12.4f}" for name in columns)
            print(f"{kind:18}{density:7.3f}{len(used):8d}{numbers}", flush=True)
    found = {
        "model": pipeline.config.name, "weights": pipeline.weights_hash, "split": arguments.split,
        "size": SIZE, "steps": steps, "rows": rows,
    }  # fmt: skip
    _report.write(arguments.json, found)


if __name__ == "__main__":
    main()
