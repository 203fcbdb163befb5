"""Colours of objects: what a prompt names, what a render shows, and what the classifier says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from modality_forcing.data.lowpoly.scene import COLOUR_NAMES
from modality_forcing.errors import UserError
from modality_forcing.evaluation import colours


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


def thing(name: str, colour: str | None, pixels: int) -> dict[str, object]:
    return {"name": name, "colour": colour, "pixels": pixels}


def test_labels_of_a_render():
    objects = [
        thing("sofa", "red", 500), thing("sofa", "red", 300), thing("sofa", "blue", 5),
        thing("chair", "red", 500), thing("chair", "blue", 500),
        thing("rug", None, 900), thing("bed", "green", 20), thing("car", "pink", 0),
    ]  # fmt: skip
    found = dict(zip(colours.OBJECTS, colours.labels_of(objects), strict=True))
    assert found["sofa"] == 1 + COLOUR_NAMES.index("red")
    unclear = {name for name, label in found.items() if label == colours.UNCLEAR}
    assert unclear == {"chair", "rug", "bed"}
    assert found["car"] == found["tent"] == colours.ABSENT


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


def test_the_embedded_classifier_sees_colours():
    """On renders it never saw (validation split, far from those its facts count)."""
    pytest.importorskip("embreex")
    from modality_forcing.data.lowpoly import make_sample, split_seed

    model = colours.load_colours()
    assert model is not None
    assert model.facts["accuracy"] >= 0.8 and model.facts["validation_pictures"] >= 500
    samples = [make_sample(split_seed("val", 20_000 + i), 128, 128, supersample=1) for i in range(48)]
    seen = model.colours([sample.rgb for sample in samples])
    hits = [
        row.get(name) == COLOUR_NAMES[label - 1]
        for sample, row in zip(samples, seen, strict=True)
        for name, label in zip(colours.OBJECTS, colours.labels_of(sample.meta["objects"]), strict=True)
        if label > colours.ABSENT
    ]
    assert len(hits) >= 15
    assert np.mean(hits) >= 0.7
