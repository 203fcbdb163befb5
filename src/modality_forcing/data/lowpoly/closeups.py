"""Close views: an open box with things in it or a handful of things, from near, a look down, a long lens.

In the other splits a camera stands back so that the place can be recognised. Pictures of real sensors often
do not: a bin, a shelf or a table top fills them, or the view is so narrow that it starts in the middle of the
room, and the nearest point is not the floor at the lower border.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np

from modality_forcing.data.lowpoly import things
from modality_forcing.data.lowpoly.camera import MAX_ROLL
from modality_forcing.data.lowpoly.glance import Glance
from modality_forcing.data.lowpoly.guests import clutter
from modality_forcing.data.lowpoly.objects import BRIGHT, COLOURS, METAL, SOFT, WOODS, paint, wood
from modality_forcing.data.lowpoly.relations import FLAT, HUGE
from modality_forcing.data.lowpoly.scene import Builder, Material, Scene

LOOSE = ("ball", "box", "cone", "cylinder", "pyramid", "ring", "capsule", "vase", "teddy bear")
"""Kinds of small things that can be made in any size."""
ROOMY = 0.45
"""A top narrower than this (metres) carries no still life."""
LONG = (14.0, 40.0)
"""Horizontal field of view of a long lens in degrees; the other views have the world's (``camera.FOV``)."""


@dataclass(frozen=True)
class Motif:
    """What a close view shows: middle (builder's frame), width, depth, height (metres) and front (radians).

    ``ids`` are the objects that belong to it; a look at one thing of the place has that one alone. ``look``
    is "near", "down" (from above) or "long" (through a long lens, from where a camera stands otherwise).
    """

    x: float
    y: float
    z: float
    width: float
    depth: float
    height: float
    yaw: float
    ids: frozenset[int]
    look: str = "near"


def _slab(b: Builder, x: float, y: float, z: float, size: float) -> None:
    """A flat box on its edge, as a book stands: upright, leaning or turned."""
    name = b.colour(BRIGHT)
    with b.object("box", (name,), x, y, z, b.u(-1.6, 1.6), 1.6):
        lean = b.u(-0.45, 0.45) if b.p(0.6) else 0.0
        b.add("box", 0, 0, 0, size * b.u(0.5, 0.8), size * b.u(0.08, 0.2), size, paint(name, 0.3), tilt=lean)


def _bottle(b: Builder, x: float, y: float, z: float, size: float) -> None:
    """A slim cylinder with a narrower neck."""
    name = b.colour(BRIGHT)
    with b.object("cylinder", (name,), x, y, z, 0.0, 1.6):
        wide = size * b.u(0.22, 0.4)
        b.add("cylinder", 0, 0, 0, wide, wide, size * 0.72, paint(name, 0.5))
        b.add("shade", 0, 0, size * 0.72, wide, wide, size * 0.28, paint(name, 0.5))


def _thing(b: Builder, x: float, y: float, z: float, size: float) -> None:
    """One thing at most about ``size`` high and wide (metres)."""
    draw = b.rng.random()
    if draw < 0.25:
        _slab(b, x, y, z, size)
    elif draw < 0.4:
        _bottle(b, x, y, z, size)
    else:
        things.small(b, x, y, z, size * 0.8, LOOSE)


def _board(b: Builder) -> tuple[Material, tuple[str, ...]]:
    """What an open box is made of: wood, metal, brown card or a colour; and its looks."""
    draw = b.rng.random()
    if draw < 0.25:
        return wood(b.pick(tuple(WOODS)), b.pick(("wood", "planks"))), ("wooden",)
    if draw < 0.4:
        return METAL, ("metal",)
    name = b.pick(("brown", "beige")) if draw < 0.6 else b.colour((*SOFT, "black"))
    return Material(COLOURS[name]), (name,)


def _open_box(b: Builder, x: float, y: float, z: float, w: float, d: float, h: float, yaw: float) -> None:
    """A box without its front (at local -y): bottom, sides, back, often a lid, a ledge and a shelf."""
    m, looks = _board(b)
    t = 0.03 * w * b.u(0.6, 1.5)
    with b.object("box", looks, x, y, z, yaw, 1.4):
        box = b.last("box")
        b.add("box", 0, 0, 0, w, d, t, m)
        b.add("box", 0, (d - t) / 2, 0, w, t, h, m)
        for side in (-1, 1):
            b.add("box", side * (w - t) / 2, 0, 0, t, d, h, m)
        if b.p(0.6):
            b.add("box", 0, 0, h - t, w, d, t, m)
        if b.p(0.5):
            b.add("box", 0, (t - d) / 2, 0, w, t, h * b.u(0.1, 0.35), m)
        levels = [t]
        if b.p(0.25):
            levels.append(h / 2)
            b.add("box", 0, 0, h / 2 - t, w, d, t, m)
        room = (h - t) / len(levels)
    with b.at(x, y, z, yaw), b.on(box):
        for level in levels:
            n = int(b.rng.integers(2, 5))
            cell = (w - 2 * t) / n
            for i in range(n):
                size = min(cell * 1.4, room * 0.95, d) * b.u(0.6, 1.0)
                deep = max(0.0, (d - size) / 2 - t)
                _thing(b, (i + 0.5) * cell - w / 2 + t, b.u(-deep, deep), level, size)


def _still_life(b: Builder, x: float, y: float, z: float, w: float, yaw: float) -> Motif | None:
    """An open box, or loose things, ``w`` metres wide at (x, y, z); None where is no room."""
    first = len(b.objects)
    d, h = w * b.u(0.45, 0.9), w * b.u(0.5, 1.1)
    boxed = b.p(0.55)
    if boxed and not b.place_free(partial(_open_box, b, x, y, z, w, d, h, yaw), 0.0):
        return None
    for _ in range(int(b.rng.integers(1, 4) if boxed else b.rng.integers(5, 10))):
        angle, far = b.u(0, 2 * math.pi), b.u(0.7, 1.2) if boxed else b.u(0.0, 0.6)
        size = w * b.u(0.18, 0.5)
        b.place_free(
            partial(_thing, b, x + far * w * math.cos(angle), y + far * d * math.sin(angle), z, size), 0.0
        )
    ids = frozenset(range(first + 1, len(b.objects) + 1))
    return Motif(x, y, z, w, d, h if boxed else 0.5 * w, yaw, ids) if len(ids) > 2 else None


def draw_motif(b: Builder) -> Motif | None:
    """A still life or a thing of the place, and clutter around it; None: no room."""
    motif = _choose(b)
    clutter(b)
    return motif


def _choose(b: Builder) -> Motif | None:
    """Put a still life on a free top or on the ground, or choose a thing of the place."""
    assert b.stage is not None
    if b.p(0.6):
        names = [t for t in b.objects if t.name not in FLAT and t.name not in HUGE]
        if not names:
            return None
        thing = b.pick(names)
        x, y, z = thing.position
        size = b.u(0.8, 1.6)
        look = "down" if b.p(0.35) else "long"
        return Motif(x * b.flip, y, z, size, size, 0.8, b.u(-1.0, 1.0), frozenset((thing.id,)), look)
    tops = [s for s in b.surfaces if min(s.w, s.d) >= ROOMY and s.z < 1.3]
    if tops and b.p(0.6):
        top = b.pick(tops)
        with b.on(top.owner):
            width = min(top.w, b.u(0.45, 0.9))
            return _still_life(b, top.x, top.y, top.z, width, top.yaw + b.u(-0.4, 0.4))
    x0, x1, y0, y1 = b.stage.floor
    for _ in range(12):
        x, y = b.u(x0, x1), y0 + (y1 - y0) * b.rng.random()
        motif = _still_life(b, x, y, b.stage.ground, b.u(0.6, 1.4), b.u(-0.9, 0.9))
        if motif is not None:
            return motif
    return None


def draw_close_view(b: Builder, motif: Motif, fov: float) -> None:
    """Draw a camera before ``motif``: a still life fills half to more than all of the width."""
    assert b.stage is not None
    stand, floor = b.stage.stand, b.stage.floor
    tx, ty = (v + b.u(-0.2, 0.2) * motif.width for v in (motif.x, motif.y))
    tz = motif.z + motif.height * b.u(0.2, 0.8)
    if motif.look == "long":
        fov = b.u(*LONG)
        x, y = b.u(stand[0], stand[1]), b.u(stand[2], stand[3])
        z = b.stage.under + b.u(b.stage.low, b.stage.high)
    else:
        down = motif.look == "down"
        fill = b.u(0.6, 1.4) if down else b.u(1.0, 2.4)
        far = motif.width / (fill * math.tan(math.radians(fov) / 2)) + motif.depth / 2
        around = motif.yaw + b.u(-0.8, 0.8)
        up = b.u(0.15, 1.0) if down else 0.85 * b.u(0, 1) ** 1.5
        x = motif.x + far * math.cos(up) * math.sin(around)
        y = motif.y - far * math.cos(up) * math.cos(around)
        x = min(max(x, min(stand[0], floor[0])), max(stand[1], floor[1]))
        y = min(max(y, min(stand[2], floor[2])), max(stand[3], floor[3]))
        z = max(tz + far * math.sin(up), b.stage.under + 0.1)
    if "wall" in b.facts:
        z = min(z, b.facts["room"] - 0.15)
    b.look(x, y, z, tx, ty, tz, fov, b.u(-1, 1) * (MAX_ROLL if b.p(0.3) else 3.0))
    b.facts["under"] = b.stage.under


def close_faults(scene: Scene, seen: Glance, motif: Motif) -> float:
    """0 for a close view worth keeping, else how far it is from one."""
    counts = np.bincount(seen.ids.ravel(), minlength=len(scene.objects) + 1) / seen.ids.size
    hit = seen.part >= 0
    still = motif.look == "near"
    near = 0.15 if still else 0.3
    faults = max(0.0, float((seen.depth < near).mean()) - 0.004) * 20
    faults += max(0.0, 1.0 - float(hit.mean()) - 0.4) * 4
    largest = np.bincount(seen.part[hit], minlength=1).max(initial=0) / seen.ids.size
    faults += max(0.0, float(largest) - 0.5) * 4  # one surface fills the picture
    shown = sum(float(counts[i]) for i in motif.ids)
    least = 0.3 if still else 0.04
    faults += 5 * max(0.0, least - shown) / least
    faults += 0.3 * max(0, 3 - int((counts[1:] > 0.006).sum()))
    return faults
