"""The procedural low-poly world: places, objects, light, captions and exact depth from a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modality_forcing.data.lowpoly.seeds import SPLITS, split_seed
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
    "sailboat", "umbrella", "towel", "fence", "lighthouse", "mountain", "lake", "door", "television",
    "stool", "clock", "curtain", "washing machine", "basket", "stack of books", "mug", "teddy bear", "piano",
    "radiator", "ring", "capsule", "bicycle", "snowman", "tent", "well", "barrel", "lifebuoy", "bus",
    "traffic light", "bin", "windmill", "fountain", "campfire", "sandcastle", "deck chair", "hay bale",
    "flowers", "sea", "snow", "pond",
)  # fmt: skip
WORLD_VERSION = 2
"""Changes whenever a seed may give another sample; caches and shards record it."""


def make_sample(
    seed: int, width: int = 128, height: int = 128, *, supersample: int = 2, place: str | None = None,
    backend: str = "auto", device: str | None = None,
) -> Sample:  # fmt: skip
    """Render the sample of a seed: a pure function of its arguments.

    ``backend`` and ``device`` say what renders (``render.render_batch``); the sample is the same.

    ``meta`` holds plain values only: "place", "light", "fog" (1 / metres), "clutter" (0..1), "palette",
    "walls" (colour), "camera" (height in metres over the floor, pitch, roll and fov in degrees), "objects"
    (id, name, looks, colour, material, position, support, pixels), "claims" (one per caption, see
    ``captions``) and "held_out" (the held-out object, "" but in the split "combination").

    Raises:
        UserError: a negative seed, an unknown place, backend or device.
    """
    import math

    import numpy as np

    from modality_forcing.data.lowpoly.captions import captions
    from modality_forcing.data.lowpoly.places import make_scene
    from modality_forcing.data.lowpoly.render import render
    from modality_forcing.types import Sample

    if seed < 0:
        raise UserError(f"seed {seed} is negative; seeds count from 0")
    if place is not None and place not in PLACES:
        raise UserError(f"place {place!r} is unknown; right is one of {', '.join(PLACES)}")
    scene = make_scene(seed, place)
    picture = render(scene, width, height, supersample=supersample, backend=backend, device=device)
    texts, claims = captions(
        scene, picture.object_ids, picture.depth, picture.camera, np.random.default_rng([21, seed])
    )
    counts = np.bincount(picture.object_ids.ravel(), minlength=len(scene.objects) + 1)
    things = [
        {
            "id": t.id,
            "name": t.name,
            "looks": list(t.looks),
            "colour": t.colour,
            "material": t.material,
            "position": [float(v) for v in t.position],
            "support": t.support,
            "pixels": int(counts[t.id]),
        }
        for t in scene.objects
        if counts[t.id]
    ]
    view, facts = scene.view, scene.facts
    meta = {
        "place": scene.place,
        "light": facts.get("mood", scene.light.name),
        "fog": float(scene.light.fog),
        "clutter": round(float(facts["clutter"]), 3),
        "palette": facts["palette"],
        "walls": facts.get("wall"),
        "held_out": facts["held_out"],
        "camera": {
            "height": float(view.position[2] - facts["under"]),
            "pitch": math.degrees(view.pitch),
            "roll": math.degrees(view.roll),
            "fov": float(view.fov_x),
        },
        "objects": things,
        "claims": claims,
    }
    return Sample(
        rgb=picture.rgb, depth=picture.depth, camera=picture.camera, captions=texts, seed=seed,
        normals=picture.normals, object_ids=picture.object_ids, meta=meta,
    )  # fmt: skip


__all__ = ["OBJECTS", "PLACES", "SPLITS", "WORLD_VERSION", "make_sample", "split_seed"]
