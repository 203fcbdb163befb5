"""Train what finds the colours of objects in pictures.

``python recipes/lowpoly/colours.py SHARDS VALIDATION_SHARDS``

Both folders come from ``mf data make`` (128x128, splits train and val); object ids say what every cell shows.
The weights are written where the package looks for them, unless they miss the wanted accuracy on the second
folder, which training never sees.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from modality_forcing.data.shards import ShardSet
from modality_forcing.evaluation.classifier import EMBEDDED, to_tensor
from modality_forcing.evaluation.colours import (
    CELLS,
    OTHER,
    SIDE,
    UNKNOWN,
    ColourClassifier,
    cell_labels,
    colours_of,
    save_colours,
)

WANTED = 0.85
BATCH = 32


class Renders:
    """uint8 (N, SIDE, SIDE, 3) pictures, int64 (N, CELLS, CELLS) things and colours, and lists of objects."""

    def __init__(self, folder: Path, limit: int | None) -> None:
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wanted", type=float, default=WANTED)
    options = parser.parse_args()
    renders, unseen = Renders(options.train, options.limit), Renders(options.validation, options.limit)
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    model = ColourClassifier()
    steps = options.epochs * max(1, len(renders.pictures) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / 50) * 0.5 * (1 + math.cos(math.pi * min(1.0, i / steps)))
    )
    for epoch in range(options.epochs):
        model.train()
        order, total = torch.randperm(len(renders.pictures), generator=generator), []
        for i in range(0, max(1, len(order) - BATCH + 1), BATCH):
            chosen = order[i : i + BATCH]
            x = augment(to_tensor(renders.pictures[chosen.numpy()]), generator)
            things, hues = renders.things[chosen], renders.hues[chosen]
            if torch.rand((), generator=generator) < 0.5:
                x, things, hues = x.flip(-1), things.flip(-1), hues.flip(-1)
            loss = loss_of(model, x, things, hues)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            total.append(float(loss.detach()))
        found = accuracy(model, unseen)
        print(
            f"epoch {epoch + 1}: loss {np.mean(total):.3f}, accuracy on unseen renders {found:.4f}",
            flush=True,
        )
    facts = {
        "accuracy": found, "validation_pictures": len(unseen.pictures),
        "training_pictures": len(renders.pictures), "epochs": options.epochs, "seed": options.seed,
    }  # fmt: skip
    if found < options.wanted:
        print(f"accuracy {found:.4f} misses {options.wanted}; nothing was written", file=sys.stderr)
        return 1
    path = save_colours(model, options.out, facts)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
