"""Train the place classifier on renders: ``python recipes/lowpoly/classifier.py SHARDS VALIDATION_SHARDS``.

Both folders come from ``mf data make`` (splits train and val). The weights are written where the package
looks for them, unless they miss the wanted accuracy on the second folder, which training never sees.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from _fitting import fit, options
from torch import Tensor
from torch.nn.functional import cross_entropy, grid_sample, interpolate

from modality_forcing.data.lowpoly import PLACES
from modality_forcing.data.lowpoly.networks import EMBEDDED, shrink, to_tensor
from modality_forcing.data.shards import ShardSet
from modality_forcing.evaluation.classifier import SIDE, PlaceClassifier, save_classifier

WANTED = 0.98
BATCH = 64


def load(folder: Path, limit: int | None) -> tuple[np.ndarray, Tensor]:
    """uint8 (N, SIDE, SIDE, 3) pictures and the numbers of their places."""
    shards = ShardSet(folder)
    count = len(shards) if limit is None else min(limit, len(shards))
    pictures = np.empty((count, SIDE, SIDE, 3), np.uint8)
    places = torch.empty(count, dtype=torch.int64)
    for i in range(count):
        sample = shards.read(i, ("rgb",))
        pictures[i], places[i] = shrink(sample.rgb, SIDE), PLACES.index(sample.meta["place"])
    return pictures, places


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror, zoom, shift, brightness, tint, blur: generated pictures are softer than renders."""
    n = len(x)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    zoom, flip = uniform(0.8, 1.0), (uniform(0.0, 1.0) < 0.5).float() * -2.0 + 1.0
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = zoom * flip, zoom
    theta[:, 0, 2], theta[:, 1, 2] = uniform(-1, 1) * (1 - zoom), uniform(-1, 1) * (1 - zoom)
    grid = torch.nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    x = grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    x = x * uniform(0.8, 1.2, 1, 1, 1) + uniform(-0.15, 0.15, 1, 1, 1) + uniform(-0.06, 0.06, 3, 1, 1)
    soft = interpolate(interpolate(x, scale_factor=0.5, mode="area"), size=x.shape[-2:], mode="bilinear")
    x = torch.lerp(x, soft, uniform(0.0, 1.0, 1, 1, 1))
    return x + 0.03 * torch.randn(x.shape, generator=generator)


@torch.no_grad()
def accuracy(model: PlaceClassifier, pictures: np.ndarray, places: Tensor) -> float:
    """Share of pictures whose place is found."""
    model.eval()
    parts = [model(to_tensor(pictures[i : i + 256])).argmax(1) for i in range(0, len(pictures), 256)]
    return float((torch.cat(parts) == places).float().mean())


def main() -> int:
    """Train, measure, write; exit code 1 when the accuracy is missed."""
    chosen = options(__doc__, out=EMBEDDED, epochs=30, wanted=WANTED).parse_args()
    pictures, places = load(chosen.train, chosen.limit)
    unseen, unseen_places = load(chosen.validation, chosen.limit)
    torch.manual_seed(chosen.seed)
    model = PlaceClassifier()

    def loss(picked: Tensor, generator: torch.Generator) -> Tensor:
        x = augment(to_tensor(pictures[picked.numpy()]), generator)
        return cross_entropy(model(x), places[picked], label_smoothing=0.05)

    found = fit(
        model, len(pictures), loss, lambda: accuracy(model, unseen, unseen_places), epochs=chosen.epochs,
        batch=BATCH, seed=chosen.seed, every=5,
    )  # fmt: skip
    facts = {
        "accuracy": found, "validation_pictures": len(unseen), "training_pictures": len(pictures),
        "epochs": chosen.epochs, "seed": chosen.seed,
    }  # fmt: skip
    if found < chosen.wanted:
        print(f"accuracy {found:.4f} misses {chosen.wanted}; nothing was written", file=sys.stderr)
        return 1
    path = save_classifier(model, chosen.out, facts)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
