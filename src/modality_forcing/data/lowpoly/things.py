"""More things for rooms and tables. Each function places one thing, its back at local +y."""

from __future__ import annotations

import math

from modality_forcing.data.lowpoly.objects import (
    BLACK,
    BRIGHT,
    COLOURS,
    GREY,
    METAL,
    SOFT,
    WHITE,
    dim,
    paint,
    wood,
)
from modality_forcing.data.lowpoly.scene import Builder, Material

UPRIGHT = math.pi / 2  # tilt that stands a flat ring or disc up, facing -y
CLOTHS = {"striped": "stripes", "checked": "checker"}


def cloth(
    b: Builder, colour: str, scale: float = 0.25, chance: float = 0.4
) -> tuple[Material, tuple[str, ...]]:
    """A fabric in this colour, plain or with a pattern, and its looks."""
    c = COLOURS[colour]
    if not b.p(chance):
        return Material(c), (colour,)
    look = b.pick(tuple(CLOTHS))
    other = (0.95, 0.93, 0.88) if colour not in ("white", "beige", "yellow") else (0.45, 0.47, 0.55)
    return Material(c, other, CLOTHS[look], scale), (colour, look)


def stool(b: Builder, x: float, y: float, yaw: float = 0.0) -> None:
    colour = b.pick(("wooden", "wooden", *SOFT))
    m = wood("warm") if colour == "wooden" else paint(colour)
    with b.object("stool", (colour,), x, y, 0, yaw):
        b.add("cylinder", 0, 0, 0.44, 0.4, 0.4, 0.07, m)
        b.top(0.51, 0.28, 0.28)
        for i in range(3):
            a = i * 2.1
            b.add("cylinder", 0.13 * math.cos(a), 0.13 * math.sin(a), 0, 0.05, 0.05, 0.45, m)


def clock(b: Builder, x: float, y: float, z: float, yaw: float = 0.0) -> None:
    colour = b.colour(BRIGHT)
    with b.object("clock", (colour,), x, y, z, yaw, 0.9):
        b.add("cylinder", 0, 0.02, 0.2, 0.42, 0.42, 0.05, paint(colour), tilt=UPRIGHT)
        b.add("cylinder", 0, -0.02, 0.2, 0.33, 0.33, 0.03, Material((0.95, 0.94, 0.9)), tilt=UPRIGHT)
        b.add("box", 0, -0.055, 0.2, 0.025, 0.01, 0.13, BLACK)
        b.add("box", 0.045, -0.055, 0.19, 0.1, 0.01, 0.025, BLACK)


def curtain(b: Builder, x: float, y: float, yaw: float, width: float, bottom: float, top: float) -> None:
    """A pair of curtains beside a window of this width."""
    m, looks = cloth(b, b.colour(SOFT), 0.12, 0.5)
    with b.object("curtain", looks, x, y, 0, yaw, 0.9):
        b.add("box", 0, 0, top + 0.06, width + 0.7, 0.03, 0.03, wood("dark"))
        for s in (-1, 1):
            b.add("box", s * (width / 2 + 0.08), 0, bottom, 0.34, 0.06, top - bottom + 0.08, m)


def washing_machine(b: Builder, x: float, y: float, yaw: float = 0.0) -> None:
    with b.object("washing machine", ("white",), x, y, 0, yaw, 1.3):
        b.add("box", 0, 0, 0.02, 0.62, 0.6, 0.86, WHITE)
        b.top(0.88, 0.5, 0.5)
        b.add("torus", 0, -0.3, 0.42, 0.42, 0.42, 0.05, METAL, tilt=UPRIGHT)
        b.add(
            "cylinder", 0, -0.3, 0.42, 0.3, 0.3, 0.02, Material((0.12, 0.2, 0.3), shininess=0.8), tilt=UPRIGHT
        )
        b.add("box", 0, -0.31, 0.74, 0.56, 0.02, 0.1, GREY)


def basket(b: Builder, x: float, y: float, z: float = 0.0) -> None:
    m = Material((0.72, 0.52, 0.3), (0.55, 0.38, 0.2), "checker", 0.045)
    with b.object("basket", ("wicker",), x, y, z, 0, 1.1):
        b.add("bowl", 0, 0, 0, 0.46, 0.46, 0.36, m)
        b.add("ring", 0, 0, 0.34, 0.48, 0.48, 0.05, m)
        c = b.colour(SOFT)
        b.add("leaf1", 0.02, 0, 0.26, 0.38, 0.36, 0.18, Material(COLOURS[c]))


def books(b: Builder, x: float, y: float, z: float, yaw: float = 0.0) -> None:
    with b.object("stack of books", (), x, y, z, yaw, 1.2):
        h = 0.0
        for _ in range(3):
            c, t = b.colour(BRIGHT), b.u(0.04, 0.07)
            b.add("box", 0, 0, h, 0.28, 0.2, t, paint(c), b.u(-0.3, 0.3))
            h += t


def mug(b: Builder, x: float, y: float, z: float, yaw: float = 0.0) -> None:
    c = b.colour(BRIGHT)
    with b.object("mug", (c,), x, y, z, yaw, 1.2):
        b.add("cylinder", 0, 0, 0, 0.13, 0.13, 0.16, paint(c, 0.4))
        b.add("torus", 0.07, 0.02, 0.08, 0.12, 0.12, 0.03, paint(c, 0.4), tilt=UPRIGHT)


def teddy(b: Builder, x: float, y: float, z: float = 0.0, yaw: float = 0.0, s: float = 0.5) -> None:
    m = Material((0.62, 0.4, 0.2), (0.52, 0.32, 0.15), "noise", 0.05)
    light = Material((0.86, 0.7, 0.5))
    with b.object("teddy bear", ("brown",), x, y, z, yaw, 1.8):
        b.add("sphere", 0, 0, 0, 0.56 * s, 0.5 * s, 0.58 * s, m)
        b.add("sphere", 0, -0.02 * s, 0.48 * s, 0.46 * s, 0.44 * s, 0.44 * s, m)
        b.add("sphere", 0, -0.24 * s, 0.56 * s, 0.2 * s, 0.16 * s, 0.16 * s, light)
        b.add("sphere", 0, -0.32 * s, 0.64 * s, 0.06 * s, 0.05 * s, 0.05 * s, BLACK)
        for i in (-1, 1):
            b.add("sphere", i * 0.19 * s, 0, 0.8 * s, 0.17 * s, 0.1 * s, 0.17 * s, m)
            b.add("capsule", i * 0.25 * s, -0.08 * s, 0.3 * s, 0.16 * s, 0.16 * s, 0.34 * s, m, 0, 1.1, 0)
            b.add("capsule", i * 0.2 * s, -0.12 * s, 0.1 * s, 0.19 * s, 0.19 * s, 0.36 * s, m, 0, 1.5, 0)
            b.add("sphere", i * 0.08 * s, -0.2 * s, 0.72 * s, 0.05 * s, 0.04 * s, 0.05 * s, BLACK)


def piano(b: Builder, x: float, y: float, yaw: float = 0.0) -> None:
    m = b.pick((paint("black", 0.6), wood("dark"), wood("warm")))
    look = "black" if m.pattern == "plain" else "wooden"
    with b.object("piano", (look,), x, y, 0, yaw, 1.6):
        b.add("box", 0, 0.12, 0, 1.4, 0.34, 1.15, m)
        b.top(1.15, 1.2, 0.24, 0, 0.12)
        b.add("box", 0, -0.18, 0.58, 1.4, 0.34, 0.1, m)
        b.add(
            "box",
            0,
            -0.2,
            0.68,
            1.24,
            0.2,
            0.02,
            Material((0.97, 0.96, 0.92), (0.05, 0.05, 0.06), "stripes", 0.11),
        )
        for i in (-1, 1):
            b.add("box", i * 0.64, -0.26, 0, 0.1, 0.12, 0.6, m)


def radiator(b: Builder, x: float, y: float, yaw: float = 0.0, w: float = 0.9) -> None:
    with b.object("radiator", ("white",), x, y, 0, yaw, 0.7):
        for i in range(7):
            b.add("box", (i - 3) * w / 7, 0, 0.12, w / 9, 0.12, 0.56, WHITE)
        b.add("box", 0, 0.02, 0.16, w, 0.05, 0.05, WHITE)
        b.add("box", 0, 0.02, 0.58, w, 0.05, 0.05, WHITE)


def ring(b: Builder, x: float, y: float, z: float, size: float) -> None:
    """A thick ring, lying or standing."""
    c = b.colour(BRIGHT)
    stands = b.p(0.5)
    with b.object("ring", (c,), x, y, z, b.u(-0.6, 0.6), 2.0):
        if stands:
            b.add("torus", 0, size * 0.14, size / 2, size, size, size * 0.28, paint(c, 0.4), tilt=UPRIGHT)
        else:
            b.add("torus", 0, 0, 0, size, size, size * 0.28, paint(c, 0.4))


def capsule(b: Builder, x: float, y: float, z: float, size: float) -> None:
    """A round-ended post in one colour."""
    c = b.colour(BRIGHT)
    with b.object("capsule", (c,), x, y, z, b.u(0, 3), 2.0):
        b.add("capsule", 0, 0, 0, size * 0.62, size * 0.62, size * 1.36, paint(c, 0.4))


def block(b: Builder, x: float, y: float, z: float, size: float) -> None:
    """A box of wood, stone, brick, marble or patterned card."""
    look = b.pick(("wooden", "stone", "brick", "marble", "checked", "striped"))
    c = b.colour(BRIGHT)
    looks: tuple[str, ...] = (look,)
    if look == "wooden":
        m = wood("warm", "planks", size * 0.3)
    elif look == "stone":
        m = Material((0.58, 0.56, 0.53), (0.45, 0.43, 0.41), "noise", size * 0.5)
    elif look == "brick":
        m = Material((0.62, 0.3, 0.22), (0.8, 0.75, 0.7), "bricks", size * 0.4)
    elif look == "marble":
        m = Material((0.93, 0.92, 0.9), (0.45, 0.47, 0.5), "marble", size * 0.5, shininess=0.5)
    else:
        m, looks = cloth(b, c, size * 0.33, 1.0)
    with b.object("box", looks, x, y, z, b.u(0, 1.5), 2.0):
        b.add("box", 0, 0, 0, size, size, size * 0.9, m)
        b.top(size * 0.9, size * 0.7, size * 0.7)


def small(b: Builder, x: float, y: float, z: float, size: float, allowed: tuple[str, ...]) -> None:
    """One loose thing about ``size`` high (metres), of the named kinds."""
    from modality_forcing.data.lowpoly import objects as o

    kind = b.pick(allowed)
    if kind in o.TOYS:
        if kind == "box" and b.p(0.5):
            block(b, x, y, z, size)
        else:
            o.toy(b, x, y, z, size, kind)
    elif kind == "ring":
        ring(b, x, y, z, size)
    elif kind == "capsule":
        capsule(b, x, y, z, size * 0.8)
    elif kind == "vase":
        o.vase(b, x, y, z, None, size)
    elif kind == "plant":
        o.plant(b, x, y, z, size)
    elif kind == "lamp":
        o.table_lamp(b, x, y, z, bool(b.facts.get("lit")), b.colour(BRIGHT))
    elif kind == "teddy bear":
        teddy(b, x, y, z, b.u(-0.5, 0.5), size)
    elif kind == "basket":
        basket(b, x, y, z)
    elif kind == "mug":
        mug(b, x, y, z, b.u(-1, 1))
    elif kind == "kettle":
        o.kettle(b, x, y, z)
    elif kind == "pot":
        o.pot(b, x, y, z)
    else:
        books(b, x, y, z, b.u(-0.5, 0.5))


__all__ = [
    "CLOTHS", "UPRIGHT", "basket", "block", "books", "capsule", "clock", "cloth", "curtain", "dim", "mug",
    "piano", "radiator", "ring", "small", "stool", "teddy", "washing_machine",
]  # fmt: skip
