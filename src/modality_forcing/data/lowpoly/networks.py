"""Small networks that say what a picture of the procedural world shows: their files, pictures for them."""

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

from modality_forcing.data.lowpoly import WORLD_VERSION
from modality_forcing.errors import UserError
from modality_forcing.io.atomic import atomic_file

EMBEDDED = Path(__file__).resolve().parents[2] / "weights" / "lowpoly-classifier"
BATCH = 64


def over_pictures(images: Sequence[np.ndarray], function: Any, device: torch.device, side: int) -> np.ndarray:
    """What a network for ``side`` x ``side`` pixels says of uint8 (H, W, 3) pictures of any sizes, float64
    (N, ...)."""
    parts = []
    for i in range(0, len(images), BATCH):
        pixels = np.stack([shrink(image, side) for image in images[i : i + BATCH]])
        parts.append(function(to_tensor(pixels).to(device)).double().cpu().numpy())
    return np.concatenate(parts)


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 (side, side, 3): the middle square, averaged."""
    height, width = image.shape[:2]
    whole = min(height, width)
    top, left = (height - whole) // 2, (width - whole) // 2
    square = Image.fromarray(image[top : top + whole, left : left + whole])
    return np.asarray(square.resize((side, side), Image.Resampling.BOX))


def to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def save_network(model: nn.Module, path: Path, facts: dict[str, Any]) -> Path:
    """Write a network's weights whole or not at all, with the facts in the header."""
    text = {"facts": json.dumps({**facts, "world_version": WORLD_VERSION})}
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic_file(path) as aside:
        save_file(state, aside, metadata=text)
    return path


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
