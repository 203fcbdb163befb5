"""Colours of objects: what a prompt names, what a render shows, and what the classifier says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from modality_forcing.data.lowpoly import colours
from modality_forcing.data.lowpoly.scene import COLOUR_NAMES
from modality_forcing.errors import UserError


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("a living room with a green sofa", [("sofa", "green")]),
        ("a teal couch beside a red checked rug", [("sofa", "teal"), ("rug", "red")]),
        ("two white chairs and a blue refrigerator", [("chair", "white"), ("fridge", "blue")]),
        ("a red fishing boat, a white sailing boat", [("boat", "red"), ("sailboat", "white")]),
        ("a yellow deck chair, a blue beach chair, a brown bedside table, a redcar", []),
        ("a Purple TENT", [("tent", "purple")]),
    ],
)
def test_pairs_a_prompt_names(text, pairs):
    assert colours.pairs_in(text) == pairs


def thing(name: str, colour: str | None, pixels: int, id: int = 0) -> dict[str, object]:
    return {"name": name, "colour": colour, "pixels": pixels, "id": id}


def test_colours_of_a_render():
    objects = [
        thing("sofa", "red", 500), thing("sofa", "red", 300), thing("sofa", "blue", 5),
        thing("chair", "red", 500), thing("chair", "blue", 500), thing("house", "red", 900),
        thing("rug", None, 900), thing("bed", "green", 20), thing("car", "pink", 0),
    ]  # fmt: skip
    assert colours.colours_of(objects) == {"sofa": "red"}


def test_labels_of_cells():
    ids = np.zeros((colours.SIDE, colours.SIDE), np.int64)
    ids[:64, :64], ids[:64, 64:], ids[64:, :64] = 3, 4, 7
    objects = [thing("sofa", "red", 4096, 3), thing("rug", None, 4096, 4), thing("house", "blue", 4096, 7)]
    things, hues = colours.cell_labels(ids, objects)
    assert things.shape == hues.shape == (32, 32)
    sofa, rug = (1 + colours.OBJECTS.index(name) for name in ("sofa", "rug"))
    assert [things[0, 0], things[0, 31], things[31, 0], things[31, 31]] == [sofa, rug, 0, 0]
    assert [hues[0, 0], hues[0, 31], hues[31, 0]] == [COLOUR_NAMES.index("red"), -1, -1]
    assert (things == sofa).sum() == 256


def test_an_object_of_few_cells_is_not_seen():
    cells = np.zeros((len(colours.OBJECTS), len(COLOUR_NAMES)))
    cells[0, 2], cells[0, 3], cells[1, 4] = 4.0, 2.0, colours.LEAST_CELLS - 0.5
    assert colours.named(cells) == {colours.OBJECTS[0]: COLOUR_NAMES[2]}


def test_a_saved_classifier_is_the_same(tmp_path: Path):
    torch.manual_seed(0)
    model = colours.ColourClassifier().eval()
    path = colours.save_colours(model, tmp_path, {"accuracy": 0.5})
    again = colours.load_colours(tmp_path)
    assert again is not None
    assert again.facts["accuracy"] == 0.5
    images = [np.random.default_rng(i).integers(0, 255, (70, 90, 3), dtype=np.uint8) for i in range(3)]
    assert again.colours(images) == model.colours(images)
    assert again.colours([]) == []
    assert {name for row in again.colours(images) for name in row} <= set(colours.OBJECTS)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"colour classifier .* cannot be used"):
        colours.load_colours(tmp_path)
    assert colours.load_colours(tmp_path / "nowhere") is None
