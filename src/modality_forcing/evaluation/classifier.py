"""Which place of the procedural world a picture shows: a small convolutional network, and its features for
FID.

Trained on renders by ``recipes/lowpoly/classifier.py``. It says whether a generated picture is what its
prompt named, and its pooled features stand in for Inception's where nothing can be downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modality_forcing.data.lowpoly import PLACES
from modality_forcing.data.lowpoly.networks import EMBEDDED, load_network, over_pictures, save_network

FILE = "model.safetensors"
SIDE = 64  # pixels: every picture is brought to this size
CHANNELS = (24, 48, 72, 96, 120)


class PlaceClassifier(nn.Module):
    """Five convolutions of stride 2 (but the last), global mean, one linear layer.

    Attributes:
        facts: how it was trained; "accuracy" is that on renders it never saw.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for number, channels in enumerate(CHANNELS):
            stride = 1 if number == len(CHANNELS) - 1 else 2
            layers += [
                nn.Conv2d(width, channels, 3, stride, padding=1, bias=False),
                nn.GroupNorm(8, channels),
                nn.SiLU(),
            ]
            width = channels
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, len(PLACES))
        self.facts: dict[str, Any] = {}

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, SIDE, SIDE) in [-1, 1] to (B, D)."""
        return self.body(x).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, SIDE, SIDE) in [-1, 1] to logits (B, places)."""
        return self.head(self.features(x))

    @torch.no_grad()
    def describe(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """float64 (N, D) features of uint8 (H, W, 3) pictures of any sizes."""
        return self._over(images, self.features)

    @torch.no_grad()
    def places(self, images: Sequence[np.ndarray]) -> list[str]:
        """The likeliest place of each picture."""
        return [PLACES[i] for i in self._over(images, self.forward).argmax(axis=1)] if len(images) else []

    def _over(self, images: Sequence[np.ndarray], function: Any) -> np.ndarray:
        return over_pictures(images, function, self.head.weight.device, SIDE)


def save_classifier(model: PlaceClassifier, folder: Path, facts: dict[str, Any]) -> Path:
    """Write ``model.safetensors`` with the facts in its header."""
    return save_network(model, folder / FILE, {**facts, "places": list(PLACES)})


def load_classifier(folder: Path | None = None) -> PlaceClassifier:
    """The classifier of a folder, or the embedded one.

    Raises:
        UserError: there is none, it is damaged, or it knows other places.
    """
    path = (EMBEDDED if folder is None else folder) / FILE
    model = PlaceClassifier()
    model.facts = load_network(model, path, "place classifier", {"places": list(PLACES)})
    return model


def place_in(text: str) -> str | None:
    """The place a prompt names: the one named first; None when it names none."""
    found = [(text.lower().find(place), -len(place), place) for place in PLACES if place in text.lower()]
    return min(found)[2] if found else None
