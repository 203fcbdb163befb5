"""``python recipes/lowpoly/evaluate.py MODEL [COUNT]``: the embedded model's numbers on scenes it never saw.

Image to depth on the test split (scale- and affine-aligned AbsRel and delta1 at several step counts), against
two baselines that know no picture: constant depth, and the mean depth map of training scenes. Joint: depth of
generated images against image-to-depth on them. Writes JSON beside the printed table.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from modality_forcing import Pipeline
from modality_forcing.data.lowpoly import make_sample, split_seed
from modality_forcing.evaluation.metrics import mean_score, score_depth
from modality_forcing.types import Sample

ALIGNMENTS = ("scale", "affine")


def table_row(name: str, predictions: list[np.ndarray], samples: list[Sample]) -> dict[str, object]:
    """Mean scores of one predictor."""
    row: dict[str, object] = {"predictor": name}
    for alignment in ALIGNMENTS:
        pairs = zip(predictions, samples, strict=True)
        score = mean_score([score_depth(p, s.depth, alignment=alignment) for p, s in pairs])
        row[f"{alignment}_abs_rel"], row[f"{alignment}_delta1"] = score.abs_rel, score.delta1
    return row


def main(model: str, count: int = 100, out: str = "outputs/lowpoly_evaluation.json") -> None:
    """Print the table and write it as JSON."""
    pipeline = Pipeline.from_pretrained(model)
    side = pipeline.sampler_defaults.width
    samples = [make_sample(split_seed("test", i), side, side) for i in range(count)]
    training = [make_sample(split_seed("train", i), side, side) for i in range(count)]
    normalised = [np.where(s.valid, s.depth / s.depth[s.valid].mean(), np.nan) for s in training]
    average = np.nan_to_num(np.nanmean(normalised, axis=0), nan=1.0)
    rows = [
        table_row("constant depth", [np.ones((side, side))] * count, samples),
        table_row("mean training depth", [average] * count, samples),
    ]
    images = [s.rgb for s in samples]
    default = pipeline.sampler_defaults.steps
    for steps, prompted in ((1, False), (4, False), (default, False), (default, True)):
        prompts = [s.captions[-1] if prompted else "" for s in samples]
        results = pipeline.image_to_depth(images, prompt=prompts, steps=steps, seed=0)
        name = f"i2d, {steps} steps, {'caption' if prompted else 'no prompt'}"
        rows.append(table_row(name, [r.depth for r in results], samples))
    prompts = [s.captions[-1] for s in samples[: count // 4]]
    joint = pipeline.joint(prompts, seed=0)
    again = pipeline.image_to_depth([r.rgb for r in joint], prompt=prompts, seed=1)
    masked = [np.where(b.mask, b.depth, np.inf).astype(np.float32) for b in again]
    agreement = mean_score(
        [score_depth(a.depth, b, alignment="scale") for a, b in zip(joint, masked, strict=True)]
    )
    for row in rows:
        print("  ".join(f"{v:.4f}" if isinstance(v, float) else f"{v!s:32}" for v in row.values()))
    print(f"joint depth against i2d on the generated image: AbsRel {agreement.abs_rel:.4f}")
    report = {"model": model, "count": count, "weights": pipeline.weights_hash, "torch": torch.__version__}
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(json.dumps({**report, "rows": rows, "joint_abs_rel": agreement.abs_rel}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
