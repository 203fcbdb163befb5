"""Train what finds the colours of objects in pictures.

``python recipes/lowpoly/colours.py SHARDS VALIDATION_SHARDS [--through MODEL]``

Both folders come from ``mf data make`` (128x128, splits train and val); object ids say what every cell shows.
The weights are written where the package looks for them, unless they miss the wanted accuracy on the second
folder, which training never sees. With ``--through`` every second picture that it trains on comes through
that model's autoencoder, as generated ones do, and the accuracy on unseen renders is measured both ways.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _fitting import fit, options
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from modality_forcing import Pipeline
from modality_forcing.codecs.image import pixels_to_tensor, tensor_to_pixels
from modality_forcing.data.lowpoly.colours import (
    CELLS,
    OTHER,
    SIDE,
    UNKNOWN,
    ColourClassifier,
    cell_labels,
    colours_of,
    save_colours,
)
from modality_forcing.data.lowpoly.networks import EMBEDDED, to_tensor
from modality_forcing.data.shards import ShardSet
from modality_forcing.model.autoencoder import Autoencoder

WANTED = 0.85
BATCH = 32


class Renders:
    """uint8 (N, SIDE, SIDE, 3) pictures, int64 (N, CELLS, CELLS) things and colours, and lists of objects."""

    def __init__(self, folder: Path, limit: int | None, autoencoder: Autoencoder | None = None) -> None:
        shards = ShardSet(folder)
        count = len(shards) if limit is None else min(limit, len(shards))
        self.pictures = np.empty((count, SIDE, SIDE, 3), np.uint8)
        self.things = torch.empty(count, CELLS, CELLS, dtype=torch.int64)
        self.hues = torch.empty(count, CELLS, CELLS, dtype=torch.int64)
        self.objects: list[list[dict[str, Any]]] = []
        for i in range(count):
            sample = shards.read(i, ("rgb", "ids"))
            assert sample.object_ids is not None
            self.pictures[i] = sample.rgb
            self.objects.append(sample.meta["objects"])
            things, hues = cell_labels(sample.object_ids, sample.meta["objects"])
            self.things[i], self.hues[i] = torch.from_numpy(things), torch.from_numpy(hues)
        if autoencoder is not None:
            self.pictures[::2] = through(autoencoder, self.pictures[::2])


@torch.no_grad()
def through(autoencoder: Autoencoder, pictures: np.ndarray) -> np.ndarray:
    """What an autoencoder makes of uint8 (N, H, W, 3) pictures, one by one: that is fastest on a CPU."""
    decoded = [
        tensor_to_pixels(autoencoder.decode(autoencoder.encode(pixels_to_tensor(one)))) for one in pictures
    ]
    return np.concatenate(decoded)


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness, a little tint, blur, noise: generated pictures are softer than renders."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(x), *shape, generator=generator)

    x = x * uniform(0.85, 1.15, 1, 1, 1) + uniform(-0.1, 0.1, 1, 1, 1) + uniform(-0.02, 0.02, 3, 1, 1)
    soft = interpolate(interpolate(x, scale_factor=0.25, mode="area"), size=x.shape[-2:], mode="bilinear")
    x = torch.lerp(x, soft, uniform(0.0, 0.8, 1, 1, 1))
    return x + 0.03 * torch.randn(x.shape, generator=generator)


def accuracy(model: ColourClassifier, renders: Renders) -> float:
    """Share of the visible objects of one named colour whose colour is named."""
    model.eval()
    seen = model.colours(list(renders.pictures))
    right = [colours_of(objects) for objects in renders.objects]
    hits = [
        row.get(name) == colour
        for row, true in zip(seen, right, strict=True)
        for name, colour in true.items()
    ]
    return float(np.mean(hits))


def loss_of(model: ColourClassifier, x: Tensor, things: Tensor, hues: Tensor) -> Tensor:
    """Things everywhere (objects, which are few, count four times), colours on objects with a named one."""
    shown, painted = model(x)
    weight = torch.full((shown.shape[1],), 4.0)
    weight[OTHER] = 1.0
    return cross_entropy(shown, things, weight) + cross_entropy(painted, hues, ignore_index=UNKNOWN)


def main() -> int:
    """Train, measure, write; exit code 1 when the accuracy is missed."""
    parser = options(__doc__, out=EMBEDDED, epochs=4, wanted=WANTED)
    parser.add_argument("--through", metavar="MODEL")
    chosen = parser.parse_args()
    autoencoder = None if chosen.through is None else Pipeline.from_pretrained(chosen.through).autoencoder
    renders = Renders(chosen.train, chosen.limit, autoencoder)
    unseen = Renders(chosen.validation, chosen.limit)
    torch.manual_seed(chosen.seed)
    model = ColourClassifier()

    def loss(picked: Tensor, generator: torch.Generator) -> Tensor:
        x = augment(to_tensor(renders.pictures[picked.numpy()]), generator)
        things, hues = renders.things[picked], renders.hues[picked]
        if torch.rand((), generator=generator) < 0.5:
            x, things, hues = x.flip(-1), things.flip(-1), hues.flip(-1)
        return loss_of(model, x, things, hues)

    found = fit(
        model, len(renders.pictures), loss, lambda: accuracy(model, unseen), epochs=chosen.epochs,
        batch=BATCH, seed=chosen.seed, muon=5e-3,
    )  # fmt: skip
    facts = {
        "accuracy": found, "validation_pictures": len(unseen.pictures),
        "training_pictures": len(renders.pictures), "epochs": chosen.epochs, "seed": chosen.seed,
    }  # fmt: skip
    if autoencoder is not None:
        unseen.pictures = through(autoencoder, unseen.pictures)
        facts["accuracy_through_autoencoder"] = accuracy(model, unseen)
        print(f"after the autoencoder {facts['accuracy_through_autoencoder']:.4f}")
    if found < chosen.wanted:
        print(f"accuracy {found:.4f} misses {chosen.wanted}; nothing was written", file=sys.stderr)
        return 1
    path = save_colours(model, chosen.out, facts)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
