"""Which colour an object of the procedural world has in a picture: did the model paint what the prompt named?

A small network says for each of 32x32 cells of a picture which of fifteen kinds of objects it shows and in
which of thirteen colours. Trained on renders, whose object ids are known, by ``recipes/lowpoly/colours.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from modality_forcing.data.lowpoly.networks import EMBEDDED, load_network, over_pictures, save_network
from modality_forcing.data.lowpoly.scene import COLOUR_NAMES
from modality_forcing.data.lowpoly.words import MATERIAL_WORDS, nouns, plural

FILE = "colours.safetensors"
SIDE = 128
CELLS = 32
"""Cells per side that the network answers for."""
OBJECTS = (
    "rug", "curtain", "chair", "sofa", "armchair", "bed", "bathtub", "cabinet", "fridge", "door", "car",
    "boat", "sailboat", "tent", "umbrella",
)  # fmt: skip
"""Kinds of objects that come in many colours, and often enough to learn them."""
OTHER = 0
"""Class of a cell that shows none of these objects; object i is class i + 1."""
UNKNOWN = -1
"""Colour of a cell without a named one."""
LEAST_PIXELS = 120
"""Of an object in a 128x128 picture; a smaller one may be overlooked."""
LEAST_CELLS = 5
"""Of an object in an answer; fewer are taken for a mistake."""

_NAMES = {word: thing for thing in OBJECTS for noun in nouns(thing) for word in (noun, plural(noun))}
_COLOURS = "|".join(COLOUR_NAMES)
_MATERIALS = "|".join(word for words in MATERIAL_WORDS.values() for word in words)
_NOUNS = "|".join(sorted(_NAMES, key=len, reverse=True))
_PAIR = re.compile(rf"\b({_COLOURS}) (?:(?:{_MATERIALS}) )?({_NOUNS})\b")  # "a red checked rug"


class ColourClassifier(nn.Module):
    """Convolutions down to 8x8 cells and up again to 32x32, with the finer levels beside; two answers per
    cell.

    Attributes:
        facts: how it was trained; "accuracy" is the share of visible objects of renders it never saw whose
            colour it names.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            [_layer(3, 24, 2), _layer(24, 48, 2), _layer(48, 96, 2), _layer(96, 128, 2)]
        )
        self.deep = nn.Sequential(_layer(128, 128), _layer(128, 128))
        self.up = nn.ModuleList([_layer(128 + 96, 96), _layer(96 + 48, 64)])
        self.things = nn.Conv2d(64, 1 + len(OBJECTS), 1)
        self.hues = nn.Conv2d(64, len(COLOUR_NAMES), 1)
        self.facts: dict[str, Any] = {}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, SIDE, SIDE) in [-1, 1] to logits of things (B, 1 + objects, CELLS, CELLS) and colours."""
        levels = []
        for layer in self.down:
            x = layer(x)
            levels.append(x)
        x = self.deep(x)
        for layer, level in zip(self.up, (levels[2], levels[1]), strict=True):
            x = layer(torch.cat([interpolate(x, scale_factor=2.0), level], dim=1))
        return self.things(x), self.hues(x)

    def histogram(self, x: Tensor) -> Tensor:
        """Cells of each object in each colour, (B, objects, colours): those shown as the object, by the
        probability of their colours."""
        things, hues = self(x)
        shown = things.argmax(dim=1)
        cells = torch.stack([shown == 1 + i for i in range(len(OBJECTS))], dim=1).float()
        return torch.einsum("bohw,bchw->boc", cells, hues.softmax(dim=1))

    @torch.no_grad()
    def colours(self, images: Sequence[np.ndarray]) -> list[dict[str, str]]:
        """The colour of every object that is seen, by object, for uint8 (H, W, 3) pictures of any sizes."""
        if not len(images):
            return []
        found = over_pictures(images, self.histogram, self.things.weight.device, SIDE)
        return [named(cells) for cells in found]


def _layer(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.GroupNorm(8, after), nn.SiLU()
    )


def named(cells: np.ndarray) -> dict[str, str]:
    """(objects, colours) cells of one picture to the colour of each object that has enough of them."""
    return {
        name: COLOUR_NAMES[int(row.argmax())]
        for name, row in zip(OBJECTS, cells, strict=True)
        if row.sum() >= LEAST_CELLS
    }


def pairs_in(text: str) -> list[tuple[str, str]]:
    """(object, colour) pairs a prompt names, of objects the classifier knows: "a green couch" is a sofa."""
    return [(_NAMES[noun], colour) for colour, noun in _PAIR.findall(text.lower())]


def colours_of(objects: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What is right for a render: the colours of objects that are large enough and have just one with a name.

    Args:
        objects: ``meta["objects"]`` of a sample of 128x128 pixels.
    """
    found = {}
    for name in OBJECTS:
        mine = [thing for thing in objects if thing["name"] == name]
        hues = {thing["colour"] for thing in mine if thing["pixels"] >= LEAST_PIXELS}
        if len(hues) == 1 and (colour := next(iter(hues))) in COLOUR_NAMES:
            found[name] = colour
    return found


def cell_labels(ids: np.ndarray, objects: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """What is right in every cell of a render, from the pixel in its middle.

    Args:
        ids: (SIDE, SIDE) object ids of the sample.
        objects: its ``meta["objects"]``.

    Returns:
        int64 (CELLS, CELLS): ``OTHER`` or 1 + the object's number; and the colour's number or ``UNKNOWN``.
    """
    things = np.full(int(max(ids.max(), max((t["id"] for t in objects), default=0))) + 1, OTHER)
    hues = np.full(len(things), UNKNOWN)
    for thing in objects:
        if thing["name"] in OBJECTS:
            things[thing["id"]] = 1 + OBJECTS.index(thing["name"])
            if thing["colour"] in COLOUR_NAMES:
                hues[thing["id"]] = COLOUR_NAMES.index(thing["colour"])
    step = SIDE // CELLS
    middle = ids[step // 2 :: step, step // 2 :: step]
    return things[middle], hues[middle]


def save_colours(model: ColourClassifier, folder: Path, facts: dict[str, Any]) -> Path:
    """Write ``colours.safetensors`` with the facts in its header."""
    known = {"objects": list(OBJECTS), "colours": list(COLOUR_NAMES)}
    return save_network(model, folder / FILE, {**facts, **known})


def load_colours(folder: Path | None = None) -> ColourClassifier | None:
    """The classifier of a folder, or of the embedded one's; None where there is only a place classifier.

    Raises:
        UserError: the file is damaged, or of a network that knows other objects or colours.
    """
    path = (EMBEDDED if folder is None else folder) / FILE
    if not path.is_file():
        return None
    model = ColourClassifier()
    known = {"objects": list(OBJECTS), "colours": list(COLOUR_NAMES)}
    model.facts = load_network(model, path, "colour classifier", known)
    return model
