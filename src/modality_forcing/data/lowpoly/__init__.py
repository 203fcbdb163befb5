"""The procedural low-poly world: places, objects, light, captions and exact depth from a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modality_forcing.errors import UserError

if TYPE_CHECKING:
    from modality_forcing.types import Sample

PLACES = (
    "kitchen", "living room", "bedroom", "bathroom", "office", "library", "street", "park", "forest",
    "desert", "mountains", "village", "castle", "beach", "harbour",
)  # fmt: skip
OBJECTS = (
    "table", "desk", "chair", "sofa", "armchair", "cushion", "bed", "nightstand", "wardrobe",
    "floor lamp", "lamp", "hanging lamp", "bookshelf", "cabinet", "fridge", "stove", "pot", "kettle",
    "sink", "mirror", "bathtub", "toilet", "rug", "picture", "plant", "vase", "computer", "window",
    "ball", "box", "cone", "cylinder", "pyramid", "pine tree", "tree", "bush", "rock", "palm tree",
    "cactus", "house", "building", "church", "tower", "castle", "car", "bench", "street lamp", "boat",
    "sailboat", "umbrella", "towel", "fence", "lighthouse", "mountain", "lake",
)  # fmt: skip
COLOUR_NAMES = (
    "red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "white", "black", "grey",
    "brown", "beige",
)  # fmt: skip

_SPAN = 1 << 40
_SPLITS = {"train": 0, "val": 1, "test": 2}


def split_seed(split: str, index: int) -> int:
    """Seed of sample ``index`` of a split; the ranges of the splits never meet.

    Raises:
        UserError: unknown split, or an index outside [0, 2^40).
    """
    if split not in _SPLITS:
        raise UserError(f"unknown split {split!r}; the low-poly world has {', '.join(_SPLITS)}")
    if not 0 <= index < _SPAN:
        raise UserError(f"sample index {index} is outside 0..{_SPAN - 1}")
    return _SPLITS[split] * _SPAN + index


def make_sample(
    seed: int, width: int = 128, height: int = 128, *, supersample: int = 2, place: str | None = None
) -> Sample:
    """Render the sample of a seed: a pure function of its arguments."""
    import numpy as np

    from modality_forcing.data.lowpoly.captions import captions
    from modality_forcing.data.lowpoly.places import make_scene
    from modality_forcing.data.lowpoly.render import render
    from modality_forcing.types import Sample

    if seed < 0:
        raise UserError(f"seed {seed} is negative; seeds count from 0")
    scene = make_scene(seed, place)
    picture = render(scene, width, height, supersample=supersample)
    texts = captions(scene, picture.object_ids, np.random.default_rng([21, seed]))
    counts = np.bincount(picture.object_ids.ravel(), minlength=len(scene.objects) + 1)
    things = [
        {
            "id": t.id,
            "name": t.name,
            "looks": list(t.looks),
            "position": list(t.position),
            "pixels": int(counts[t.id]),
        }
        for t in scene.objects
        if counts[t.id]
    ]
    meta = {"place": scene.place, "light": scene.facts.get("mood", scene.light.name), "objects": things}
    return Sample(
        rgb=picture.rgb, depth=picture.depth, camera=picture.camera, captions=texts, seed=seed,
        normals=picture.normals, object_ids=picture.object_ids, meta=meta,
    )  # fmt: skip


__all__ = ["COLOUR_NAMES", "OBJECTS", "PLACES", "make_sample", "split_seed"]
