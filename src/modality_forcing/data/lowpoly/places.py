"""The list of places, and seed to scene: draw, look, and draw again where the picture would say little."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np

from modality_forcing.data.lowpoly import indoor, outdoor_places, towns
from modality_forcing.data.lowpoly.camera import FOV, draw_view
from modality_forcing.data.lowpoly.closeups import close_faults, draw_close_view, draw_motif
from modality_forcing.data.lowpoly.glance import Glance, glance
from modality_forcing.data.lowpoly.guests import GUESTS, HELD_OUT, visit
from modality_forcing.data.lowpoly.relations import FLAT
from modality_forcing.data.lowpoly.scene import Builder, Scene
from modality_forcing.data.lowpoly.seeds import has_visitor, is_close, is_combination

GRAMMAR: dict[str, Callable[[Builder], None]] = {
    "kitchen": indoor.kitchen, "living room": indoor.living_room, "bedroom": indoor.bedroom,
    "bathroom": indoor.bathroom, "office": indoor.office, "library": indoor.library,
    "street": towns.street, "park": outdoor_places.park, "forest": outdoor_places.forest,
    "desert": outdoor_places.desert, "mountains": outdoor_places.mountains, "village": towns.village,
    "castle": towns.castle, "beach": outdoor_places.beach, "harbour": towns.harbour,
}  # fmt: skip
ROOMS = tuple(GRAMMAR)[:6]
# What makes a place recognisable: each row is (names, least share of the picture); all rows must hold.
# "water" and "ground" are surfaces, "*" any object.
MARKS: dict[str, tuple[tuple[tuple[str, ...], float], ...]] = {
    "kitchen": ((("stove", "fridge", "cabinet", "sink"), 0.10), (("stove", "fridge"), 0.02)),
    "living room": ((("sofa", "armchair"), 0.035), (("*",), 0.14)),
    "bedroom": ((("bed",), 0.07),),
    "bathroom": ((("bathtub", "toilet", "sink"), 0.05), (("bathtub", "toilet"), 0.02)),
    "office": ((("desk",), 0.02), (("computer",), 0.012), (("*",), 0.09)),
    "library": ((("bookshelf",), 0.22),),
    "street": ((("house", "building"), 0.10), (("car", "bus", "street lamp", "traffic light"), 0.012)),
    "park": ((("tree", "bush"), 0.08), (("bench", "street lamp", "fountain"), 0.008)),
    "forest": ((("tree", "pine tree"), 0.22),),
    "desert": ((("pyramid", "cactus", "palm tree", "rock"), 0.03), (("ground",), 0.2)),
    "mountains": ((("mountain",), 0.05), (("sky",), 0.06)),
    "village": ((("house",), 0.09), (("house", "church", "tree"), 0.12)),
    "castle": ((("castle", "tower"), 0.09), (("tower",), 0.02), (("sky",), 0.05)),
    "beach": ((("palm tree", "umbrella", "sailboat"), 0.02), (("water",), 0.05), (("ground",), 0.15)),
    "harbour": (
        (("boat", "sailboat"), 0.012), (("water",), 0.12), (("house", "building", "lighthouse"), 0.02),
    ),
}  # fmt: skip
TRIES = 14
VISIBLE = 0.022
"""Least share of a coarse look that an object asked for covers; at 128 x 128 it is then above 0.01."""


def _faults(scene: Scene, seen: Glance, wanted: int) -> float:
    """0 for a picture worth keeping, else how far it is from one."""
    depth, ids = seen.depth, seen.ids
    counts = np.bincount(ids.ravel(), minlength=len(scene.objects) + 1) / ids.size
    shares: dict[str, float] = {}
    for thing in scene.objects:
        shares[thing.name] = shares.get(thing.name, 0.0) + float(counts[thing.id])
    patterns = np.array([p.material.pattern == "water" for p in scene.primitives])
    hit = seen.part >= 0
    shares["sky"] = 1.0 - float(hit.mean())
    shares["water"] = float((hit & patterns[seen.part]).mean())
    shares["*"] = float((ids > 0).mean())
    shares["ground"] = float((hit & (ids == 0)).mean())
    indoor = "wall" in scene.facts
    faults = 0.0
    for names, least in MARKS[scene.place]:
        faults += max(0.0, 1.0 - sum(shares.get(n, 0.0) for n in names) / least)
    near = 0.55 if indoor else 1.1
    faults += max(0.0, float((depth < near).mean()) - 0.004) * 20
    faults += max(0.0, float((depth < 2 * near).mean()) - 0.22) * 3
    faults += max(0.0, shares["sky"] - 0.62) * 4
    flat = [i + 1 for i, thing in enumerate(scene.objects) if thing.name in FLAT]
    counts[flat] = 0.0
    faults += max(0.0, float(counts[1:].max(initial=0.0)) - 0.38) * 5  # one thing hides the rest
    largest = np.bincount(seen.part[hit], minlength=1).max(initial=0) / ids.size
    faults += max(0.0, float(largest) - (0.45 if indoor else 0.62)) * 4  # a wall fills the picture
    if indoor:
        faults += max(0.0, 0.10 - shares["*"]) * 5
        faults += max(0.0, 1.6 - float(np.median(depth))) * 2
    faults += 0.2 * max(0, 3 - int((counts[1:] > 0.006).sum()))
    if wanted:
        faults += 10 * max(0.0, VISIBLE - float(counts[wanted])) / VISIBLE
    return faults


def _draw_view(b: Builder, fov: float, wanted: int) -> None:
    """A camera that shows the place, and mostly the object ``wanted`` (0: none) well."""
    assert b.stage is not None
    target = None
    if wanted and b.p(0.8):
        spot = b.objects[wanted - 1].position
        target = (spot[0] * b.flip, spot[1], spot[2] + 0.4)
    draw_view(b, b.stage, fov, target)


def make_scene(seed: int, place: str | None = None) -> Scene:
    """The scene of a seed (place drawn from it unless given): a pure function of its arguments.

    Scenes and cameras are drawn until a coarse look (``glance``) shows the place clearly; after ``TRIES``
    looks the best one stands, and where an object asked for has not found room by then, more are drawn.
    Seeds of the split "combination" (``seeds``) hold one held-out object in clear view; no other seed holds
    one at all. Those of the split "visitors" hold an allowed guest in the same way. Those of the split
    "close" are seen from near (``closeups``), seven in ten of them in rooms.
    """
    rng = np.random.default_rng([20, seed])
    drawn = list(GRAMMAR)[int(rng.integers(len(GRAMMAR)))]
    close = is_close(seed)
    if close and rng.random() < 0.5:
        drawn = ROOMS[int(rng.integers(len(ROOMS)))]
    name = place or drawn
    fov = FOV[0] + (FOV[1] - FOV[0]) * float(rng.random())
    held = str(rng.choice(HELD_OUT[name])) if is_combination(seed) else None
    asked = str(rng.choice(GUESTS[name])) if has_visitor(seed) else held
    banned = frozenset(HELD_OUT[name]) - {held}
    best: tuple[float, Scene] | None = None
    for attempt in count():
        if best is not None and attempt >= TRIES * (4 if asked else 1):
            break
        if attempt % 3 == 0:
            builder = Builder(np.random.default_rng([22, seed, attempt]), name, banned)
            GRAMMAR[name](builder)
            motif = draw_motif(builder) if close else None
            wanted = 0 if close else visit(builder, asked)
        if motif is None and (close or (asked and not wanted)):
            continue
        if motif is None:
            _draw_view(builder, fov, wanted)
        else:
            draw_close_view(builder, motif, fov)
        scene = builder.scene()
        scene.facts.update(
            clutter=builder.clutter, attempt=attempt, held_out=held or "", look=motif.look if motif else ""
        )
        seen = glance(scene)
        faults = _faults(scene, seen, wanted) if motif is None else close_faults(scene, seen, motif)
        if best is None or faults < best[0]:
            best = (faults, scene)
        if faults == 0.0:
            break
    best[1].facts["faults"] = best[0]
    return best[1]
