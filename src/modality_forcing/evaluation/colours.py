"""Which colour an object of the procedural world has in a picture: did the model paint what the prompt named?

One small network answers for fifteen kinds of objects at once: absent, or one of thirteen colours. Trained on
renders by ``recipes/lowpoly/classifier.py --what colours``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modality_forcing.data.lowpoly.scene import COLOUR_NAMES
from modality_forcing.data.lowpoly.words import MATERIAL_WORDS, nouns, plural
from modality_forcing.evaluation.classifier import (
    CHANNELS,
    EMBEDDED,
    convolutions,
    load_network,
    over_pictures,
    save_network,
)

FILE = "colours.safetensors"
OBJECTS = (
    "rug", "curtain", "chair", "sofa", "armchair", "bed", "bathtub", "cabinet", "fridge", "door", "car",
    "boat", "sailboat", "tent", "umbrella",
)  # fmt: skip
"""Kinds of objects that come in many colours, and often enough to learn them."""
ABSENT = 0
UNCLEAR = -1
LEAST_PIXELS = 120
"""Of an object in a 128x128 picture; a smaller one may be overlooked."""

_NAMES = {word: thing for thing in OBJECTS for noun in nouns(thing) for word in (noun, plural(noun))}
_COLOURS = "|".join(COLOUR_NAMES)
_MATERIALS = "|".join(word for words in MATERIAL_WORDS.values() for word in words)
_NOUNS = "|".join(sorted(_NAMES, key=len, reverse=True))
_PAIR = re.compile(rf"\b({_COLOURS}) (?:(?:{_MATERIALS}) )?({_NOUNS})\b")  # "a red checked rug"


class ColourClassifier(nn.Module):
    """The place classifier's convolutions, mean and maximum over the picture, one linear layer.

    Attributes:
        facts: how it was trained; "accuracy" is the share of visible objects of renders it never saw whose
            colour it names.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = convolutions()
        self.head = nn.Linear(2 * CHANNELS[-1], len(OBJECTS) * (1 + len(COLOUR_NAMES)))
        self.facts: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, SIDE, SIDE) in [-1, 1] to logits (B, objects, 1 + colours); class 0: absent."""
        found = self.body(x)
        pooled = torch.cat([found.mean(dim=(2, 3)), found.amax(dim=(2, 3))], dim=1)
        return self.head(pooled).unflatten(1, (len(OBJECTS), -1))

    @torch.no_grad()
    def colours(self, images: Sequence[np.ndarray]) -> list[dict[str, str]]:
        """The colour of every object that is seen, by object, for uint8 (H, W, 3) pictures of any sizes."""
        if not len(images):
            return []
        best = over_pictures(images, self.forward, self.head.weight.device).argmax(axis=2)
        return [
            {OBJECTS[i]: COLOUR_NAMES[k - 1] for i, k in enumerate(row) if k != ABSENT}
            for row in best.tolist()
        ]


def pairs_in(text: str) -> list[tuple[str, str]]:
    """(object, colour) pairs a prompt names, of objects the classifier knows: "a green couch" is a sofa."""
    return [(_NAMES[noun], colour) for colour, noun in _PAIR.findall(text.lower())]


def labels_of(objects: Sequence[Mapping[str, Any]]) -> list[int]:
    """What is right for a render, by object: ``ABSENT``, 1 + the colour's number, or ``UNCLEAR``: several
    colours, none with a name, or too small to tell.

    Args:
        objects: ``meta["objects"]`` of a sample of 128x128 pixels.
    """
    labels = []
    for name in OBJECTS:
        seen = [thing for thing in objects if thing["name"] == name and thing["pixels"] > 0]
        large = {thing["colour"] for thing in seen if thing["pixels"] >= LEAST_PIXELS}
        if not seen:
            labels.append(ABSENT)
        elif len(large) == 1 and (colour := next(iter(large))) in COLOUR_NAMES:
            labels.append(1 + COLOUR_NAMES.index(colour))
        else:
            labels.append(UNCLEAR)
    return labels


def save_colours(model: ColourClassifier, folder: Path, facts: dict[str, Any]) -> Path:
    """Write ``colours.safetensors`` with the facts in its header."""
    known = {"objects": list(OBJECTS), "colours": list(COLOUR_NAMES)}
    return save_network(model, folder / FILE, {**facts, **known})


def load_colours(folder: Path | None = None) -> ColourClassifier | None:
    """The classifier of a folder, or the embedded one; None where a folder has only a place classifier.

    Raises:
        UserError: the file is damaged, or of a network that knows other objects or colours.
    """
    path = (EMBEDDED if folder is None else folder) / FILE
    if folder is not None and not path.is_file():
        return None
    model = ColourClassifier()
    known = {"objects": list(OBJECTS), "colours": list(COLOUR_NAMES)}
    model.facts = load_network(model, path, "colour classifier", known)
    return model
