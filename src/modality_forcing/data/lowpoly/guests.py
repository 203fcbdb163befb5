"""Things that visit: clutter on tops and floors, and objects from other places.

``GUESTS`` says which objects may visit which place; ``HELD_OUT`` which pairs exist only in the split
"combination". The two never share a pair, and no place makes a held-out pair of its own accord.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from modality_forcing.data.lowpoly import objects as o
from modality_forcing.data.lowpoly import outdoor_things as t
from modality_forcing.data.lowpoly import outdoors as d
from modality_forcing.data.lowpoly import things
from modality_forcing.data.lowpoly.scene import Builder, Surface

HELD_OUT: dict[str, tuple[str, ...]] = {
    "kitchen": ("armchair",), "living room": ("bicycle",), "bedroom": ("piano",), "bathroom": ("chair",),
    "office": ("fridge",), "library": ("sofa", "piano"), "street": ("boat", "bench"),
    "park": ("car",), "forest": ("bench",), "desert": ("car", "umbrella"), "mountains": ("bench",),
    "village": ("tent",), "castle": ("car",), "beach": ("armchair",), "harbour": ("umbrella",),
}  # fmt: skip
"""Pairs of place and object that train, val and test never contain, neither visible nor hidden."""

GUESTS: dict[str, tuple[str, ...]] = {
    "kitchen": ("bicycle", "floor lamp", "washing machine", "sofa", "stool", "wardrobe", "piano"),
    "living room": ("desk", "armchair", "chair", "wardrobe", "stool", "fridge", "bench", "floor lamp"),
    "bedroom": ("sofa", "armchair", "desk", "chair", "stool", "bicycle", "floor lamp", "fridge"),
    "bathroom": ("armchair", "stool", "floor lamp", "washing machine", "wardrobe"),
    "office": ("armchair", "piano", "floor lamp", "bicycle", "stool", "wardrobe"),
    "library": ("armchair", "desk", "floor lamp", "bicycle", "stool", "chair"),
    "street": ("umbrella", "sofa", "chair", "armchair", "table", "fridge", "barrel", "bicycle"),
    "park": ("umbrella", "tent", "table", "chair", "boat", "deck chair", "sofa", "bicycle", "piano"),
    "forest": ("tent", "bicycle", "table", "chair", "boat", "deck chair", "armchair", "barrel"),
    "desert": ("tent", "boat", "chair", "bench", "bicycle", "campfire", "deck chair", "piano"),
    "mountains": ("tent", "campfire", "car", "bicycle", "deck chair", "chair", "umbrella"),
    "village": ("bench", "bicycle", "table", "chair", "bus", "umbrella", "boat", "sofa"),
    "castle": ("bench", "boat", "bicycle", "table", "campfire", "umbrella", "chair"),
    "beach": ("bench", "table", "chair", "sofa", "tent", "campfire", "car", "barrel"),
    "harbour": ("bench", "bicycle", "car", "table", "chair", "sofa", "barrel"),
}  # fmt: skip
SMALL = {
    "kitchen": ("vase", "mug", "kettle", "pot", "plant", "books", "box", "ball"),
    "living room": ("vase", "mug", "books", "plant", "teddy bear", "ball", "box", "ring"),
    "bedroom": ("books", "mug", "teddy bear", "ball", "box", "ring", "plant", "vase"),
    "bathroom": ("basket", "plant", "ball", "box", "vase", "capsule"),
    "office": ("mug", "books", "box", "plant", "ball", "cylinder", "pyramid"),
    "library": ("books", "vase", "plant", "lamp", "box", "ball"),
}  # fmt: skip
FLOOR = ("ball", "box", "cone", "cylinder", "pyramid", "ring", "capsule", "teddy bear", "basket")
YARD = ("ball", "ball", "box", "cone", "cylinder", "pyramid", "ring", "capsule")

Maker = Callable[[Builder, float, float, float], None]
# Object -> (how to build it at x, y with a yaw, about how large it is in metres)
MAKERS: dict[str, tuple[Maker, float]] = {
    "armchair": (lambda b, x, y, a: o.sofa(b, x, y, a, b.colour(o.SOFT), 0.95), 1.0),
    "sofa": (lambda b, x, y, a: o.sofa(b, x, y, a, b.colour(o.SOFT), 1.7), 1.7),
    "chair": (lambda b, x, y, a: o.chair(b, x, y, a + math.pi * b.p(0.3), b.colour(("brown", *o.SOFT))), 0.9),
    "table": (lambda b, x, y, a: o.table(b, x, y, 1.3, 0.75, 0.74, b.pick(tuple(o.WOODS)), a), 1.3),
    "desk": (lambda b, x, y, a: o.table(b, x, y, 1.3, 0.65, 0.74, b.pick(tuple(o.WOODS)), a, "desk"), 1.3),
    "fridge": (lambda b, x, y, a: o.fridge(b, x, y, a, b.colour(("white", "metal", "red", "blue"))), 1.5),
    "wardrobe": (lambda b, x, y, a: o.wardrobe(b, x, y, a), 1.8),
    "floor lamp": (
        lambda b, x, y, a: o.floor_lamp(b, x, y, bool(b.facts.get("lit")), b.colour(o.SOFT)), 1.1,
    ),
    "stool": (lambda b, x, y, a: things.stool(b, x, y, a), 0.6),
    "piano": (lambda b, x, y, a: things.piano(b, x, y, a), 1.4),
    "washing machine": (lambda b, x, y, a: things.washing_machine(b, x, y, a), 0.9),
    "bicycle": (lambda b, x, y, a: t.bicycle(b, x, y, a), 1.5),
    "tent": (lambda b, x, y, a: t.tent(b, x, y, a), 2.2),
    "campfire": (lambda b, x, y, a: t.campfire(b, x, y), 1.0),
    "barrel": (lambda b, x, y, a: t.barrel(b, x, y), 0.9),
    "deck chair": (lambda b, x, y, a: t.deck_chair(b, x, y, a), 1.0),
    "umbrella": (lambda b, x, y, a: d.umbrella(b, x, y, b.colour(o.BRIGHT)), 2.2),
    "bench": (lambda b, x, y, a: d.bench(b, x, y, a), 1.5),
    "car": (lambda b, x, y, a: d.car(b, x, y, a + b.pick((-1, 1)) * b.u(0.6, 2.2), b.colour(o.BRIGHT)), 2.8),
    "bus": (lambda b, x, y, a: t.bus(b, x, y, a, b.colour(("red", "yellow", "green", "blue"))), 4.5),
    "boat": (lambda b, x, y, a: d.boat(b, x, y, a, b.colour(o.BRIGHT), 0.9), 2.4),
}  # fmt: skip


def _on_top(b: Builder, spot: Surface, kinds: tuple[str, ...]) -> None:
    """One small thing on a free top."""
    x, y = b.u(-0.35, 0.35) * spot.w, b.u(-0.25, 0.25) * spot.d
    c, s = math.cos(spot.yaw), math.sin(spot.yaw)
    wide = min(spot.w, spot.d)
    size = min(0.32, max(0.18, wide * 0.6)) if wide < 0.6 else b.u(0.2, 0.34)
    kinds = tuple(k for k in kinds if k not in ("basket", "teddy bear") or wide > 0.35)
    with b.on(spot.owner):
        b.place_free(
            lambda: things.small(b, spot.x + c * x - s * y, spot.y + s * x + c * y, spot.z, size, kinds), 0.0
        )


def clutter(b: Builder) -> None:
    """Small things: the more, the higher the clutter level."""
    assert b.stage is not None
    indoor = b.place in SMALL
    kinds = tuple(k for k in SMALL.get(b.place, YARD) if k not in b.banned)
    tops = list(b.surfaces)
    for _ in range(int(b.clutter * 3.5 + b.u(0.2, 1.0))):
        if tops:
            which = int(b.rng.integers(len(tops)))
            _on_top(b, tops[which], kinds)
            if max(tops[which].w, tops[which].d) < 0.7 or b.p(0.4):
                tops.pop(which)
    x0, x1, y0, y1 = b.stage.floor
    loose = int(b.clutter * (3.2 if indoor else 3.6) * b.u(0.4, 1.0) + 0.2)
    for _ in range(loose):
        size = b.u(0.28, 0.5) if indoor else b.u(0.5, 0.9)
        near = 0.75 if indoor else 0.6
        x, y = b.u(x0, x1), y0 + (y1 - y0) * near * b.rng.random()
        b.place_free(partial(things.small, b, x, y, b.stage.ground, size, FLOOR if indoor else YARD))


def guest(b: Builder, name: str, tries: int = 24, near: float = 1.0) -> int:
    """Place a guest on the nearest share ``near`` of the free ground; its id, 0 when nowhere is room."""
    assert b.stage is not None
    make, size = MAKERS[name]
    x0, x1, y0, y1 = b.stage.floor
    for i in range(tries):
        outdoor = y1 - y0 > 3.5
        far = min(near, size / 2.5 + 0.3) if outdoor else 1.0
        x, y = b.u(x0, x1), y0 + (y1 - y0) * far * b.rng.random()
        yaw = b.u(-0.9, 0.9)
        if not outdoor and size > 1.0 and i % 2:  # large furniture likes the side walls
            side = b.pick((-1, 1))
            x, yaw = side * (x1 - 0.1), -side * math.pi / 2
        with b.at(0, 0, b.stage.ground):
            if b.place_free(partial(make, b, x, y, yaw), 0.08):
                return b.last(name)
    return 0


def visit(b: Builder, asked: str | None = None) -> int:
    """Guests of this scene: the object asked for, close by; else now and then an allowed one.

    Returns the id of the object asked for, 0 if none was or it was not placed.
    """
    found = 0
    if asked is not None:
        found = guest(b, asked, near=0.45)
    elif b.p(0.4 + 0.2 * b.clutter):
        name = b.pick(GUESTS[b.place])
        if not b.last(name) or name in ("chair", "stool", "armchair", "barrel", "tent"):
            guest(b, name)
    clutter(b)
    return found
