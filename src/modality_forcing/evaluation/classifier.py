"""Which place of the procedural world a picture shows: a small convolutional network, and its features for
FID.

Trained on renders by ``recipes/lowpoly/classifier.py``. It says whether a generated picture is what its
prompt named, and its pooled features stand in for Inception's where nothing can be downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from modality_forcing.data.lowpoly import PLACES, WORLD_VERSION
from modality_forcing.errors import UserError
from modality_forcing.io.atomic import atomic_file

EMBEDDED = Path(__file__).resolve().parent.parent / "weights" / "lowpoly-classifier"
FILE = "model.safetensors"
SIDE = 64  # pixels: every picture is brought to this size
CHANNELS = (24, 48, 72, 96, 120)
BATCH = 64


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
        return over_pictures(images, function, self.head.weight.device)


def over_pictures(
    images: Sequence[np.ndarray], function: Any, device: torch.device, side: int = SIDE
) -> np.ndarray:
    """What a network for ``side`` x ``side`` pixels says of uint8 (H, W, 3) pictures of any sizes, float64
    (N, ...)."""
    parts = []
    for i in range(0, len(images), BATCH):
        pixels = np.stack([shrink(image, side) for image in images[i : i + BATCH]])
        parts.append(function(to_tensor(pixels).to(device)).double().cpu().numpy())
    return np.concatenate(parts)


def shrink(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """uint8 (side, side, 3): the middle square, averaged."""
    height, width = image.shape[:2]
    whole = min(height, width)
    top, left = (height - whole) // 2, (width - whole) // 2
    square = Image.fromarray(image[top : top + whole, left : left + whole])
    return np.asarray(square.resize((side, side), Image.Resampling.BOX))


def to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def save_classifier(model: PlaceClassifier, folder: Path, facts: dict[str, Any]) -> Path:
    """Write ``model.safetensors`` with the facts in its header."""
    return save_network(model, folder / FILE, {**facts, "places": list(PLACES)})


def save_network(model: nn.Module, path: Path, facts: dict[str, Any]) -> Path:
    """Write a network's weights whole or not at all, with the facts in the header."""
    text = {"facts": json.dumps({**facts, "world_version": WORLD_VERSION})}
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic_file(path) as aside:
        save_file(state, aside, metadata=text)
    return path


def load_classifier(folder: Path | None = None) -> PlaceClassifier:
    """The classifier of a folder, or the embedded one.

    Raises:
        UserError: there is none, it is damaged, or it knows other places.
    """
    path = (EMBEDDED if folder is None else folder) / FILE
    model = PlaceClassifier()
    model.facts = load_network(model, path, "place classifier", {"places": list(PLACES)})
    return model


def load_network(model: nn.Module, path: Path, what: str, known: dict[str, list[str]]) -> dict[str, Any]:
    """Fill a network from its file, ready to be asked; returns the facts of the file's header.

    Args:
        what: its name in messages.
        known: what the network tells apart; the file's facts must say the same.

    Raises:
        UserError: the file is missing, damaged, or of a network that tells other things apart.
    """
    if not path.is_file():
        raise UserError(
            f"there is no {what} at {path}; train one with recipes/lowpoly/classifier.py and name"
            " it with --classifier, or go without: --features none"
        )
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, values in known.items():
            if facts[name] != values:
                raise UserError(f"{what} {path} was trained for other {name}")
        model.load_state_dict(state)
    except UserError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{what} {path} cannot be used: {' '.join(str(error).split())[:160]}") from None
    model.eval().requires_grad_(False)
    return dict(facts)


def place_in(text: str) -> str | None:
    """The place a prompt names: the one named first; None when it names none."""
    found = [(text.lower().find(place), -len(place), place) for place in PLACES if place in text.lower()]
    return min(found)[2] if found else None
