"""More things that stand outside."""

from __future__ import annotations

import math

from modality_forcing.data.lowpoly.objects import (
    BLACK,
    BRIGHT,
    COLOURS,
    METAL,
    STONE,
    WHITE,
    dim,
    paint,
    wood,
)
from modality_forcing.data.lowpoly.outdoors import GLASS
from modality_forcing.data.lowpoly.scene import Builder, Material
from modality_forcing.data.lowpoly.things import UPRIGHT, cloth

CANVAS = ("red", "orange", "yellow", "green", "teal", "blue", "beige")


def bicycle(b: Builder, x: float, y: float, yaw: float = 0.0, colour: str | None = None) -> None:
    """Seen from its side along local y; wheels are rings."""
    c = colour or b.colour(("red", "orange", "yellow", "green", "blue", "black"))
    m = paint(c, 0.3)

    def bar(x0: float, z0: float, x1: float, z1: float, w: float = 0.05) -> None:
        length = math.hypot(x1 - x0, z1 - z0)
        b.add("box", x0, 0, z0, w, w, length, m, roll=math.atan2(x1 - x0, z1 - z0))

    with b.object("bicycle", (c,), x, y, 0, yaw, 1.8):
        for s in (-1, 1):
            b.add("ring", s * 0.52, 0.025, 0.34, 0.68, 0.68, 0.05, BLACK, tilt=UPRIGHT)
            b.add("cylinder", s * 0.52, 0.03, 0.34, 0.09, 0.09, 0.06, METAL, tilt=UPRIGHT)
        bar(-0.52, 0.34, -0.18, 0.8)
        bar(-0.52, 0.34, -0.02, 0.32)
        bar(-0.02, 0.32, -0.2, 0.86)
        bar(-0.02, 0.32, 0.4, 0.78)
        bar(-0.18, 0.8, 0.38, 0.84)
        bar(0.52, 0.34, 0.36, 0.98)
        b.add("box", -0.21, 0, 0.86, 0.28, 0.14, 0.06, BLACK)
        b.add("box", 0.36, 0, 0.96, 0.06, 0.5, 0.05, BLACK)


def snowman(b: Builder, x: float, y: float, yaw: float = 0.0, s: float = 1.5) -> None:
    m = Material((0.93, 0.95, 0.99), (0.82, 0.87, 0.95), "noise", 0.4)
    with b.object("snowman", ("white",), x, y, 0, yaw, 2.2):
        for z, w in ((-0.03, 0.52), (0.38, 0.4), (0.7, 0.28)):
            b.add("sphere", 0, 0, z * s, w * s, w * s, w * s, m)
        b.add("cone", 0, -0.12 * s, 0.84 * s, 0.07 * s, 0.07 * s, 0.22 * s, paint("orange"), tilt=UPRIGHT)
        b.add("cylinder", 0, 0, 0.94 * s, 0.34 * s, 0.34 * s, 0.03 * s, BLACK)
        b.add("cylinder", 0, 0, 0.95 * s, 0.22 * s, 0.22 * s, 0.2 * s, BLACK)
        b.add("torus", 0, 0, 0.68 * s, 0.34 * s, 0.34 * s, 0.09 * s, paint(b.colour(BRIGHT[:5])))
        for i in (-1, 1):
            b.add("sphere", i * 0.06 * s, -0.13 * s, 0.88 * s, 0.04 * s, 0.03 * s, 0.04 * s, BLACK)


def tent(b: Builder, x: float, y: float, yaw: float = 0.0, s: float = 2.2) -> None:
    m, looks = cloth(b, b.colour(CANVAS), 0.5)
    with b.object("tent", looks, x, y, 0, yaw + math.pi / 2, 1.9):
        b.add("wedge", 0, 0, 0, s * 1.15, s, s * 0.72, m)
        dark = Material(dim(m.colour, 0.3))
        b.add("wedge", -s * 0.575, 0, 0, 0.06, s * 0.36, s * 0.5, dark)


def well(b: Builder, x: float, y: float, yaw: float = 0.0) -> None:
    stone = Material((0.62, 0.6, 0.56), (0.42, 0.4, 0.38), "bricks", 0.5)
    with b.object("well", ("stone",), x, y, 0, yaw, 1.7):
        b.add("cylinder", 0, 0, 0, 1.5, 1.5, 0.8, stone)
        b.add("cylinder", 0, 0, 0.8, 1.2, 1.2, 0.01, Material((0.04, 0.08, 0.12)))
        for i in (-1, 1):
            b.add("box", i * 0.66, 0, 0.6, 0.12, 0.12, 1.3, wood("dark"))
        b.add("cylinder", -0.7, 0, 1.4, 0.1, 0.1, 1.4, wood("warm"), roll=math.pi / 2)
        b.add(
            "wedge",
            0,
            0,
            1.85,
            1.9,
            1.6,
            0.65,
            Material((0.6, 0.24, 0.17), (0.45, 0.17, 0.12), "planks", 0.25),
        )


def barrel(b: Builder, x: float, y: float, z: float = 0.0, s: float = 0.9) -> None:
    with b.object("barrel", ("wooden",), x, y, z, b.u(0, 3), 1.5):
        m = wood("warm", "stripes", 0.12)
        b.add("cylinder", 0, 0, s * 0.16, 0.72 * s, 0.72 * s, s * 0.68, m)
        b.add("cylinder", 0, 0, 0, 0.62 * s, 0.62 * s, s, m)
        b.top(s, 0.4 * s, 0.4 * s)
        for z0 in (0.2, 0.72):
            b.add("cylinder", 0, 0, z0 * s, 0.74 * s, 0.74 * s, 0.06 * s, BLACK)


def lifebuoy(b: Builder, x: float, y: float, z: float = 0.0, yaw: float = 0.0, s: float = 0.8) -> None:
    """A standing ring on a post."""
    with b.object("lifebuoy", ("red",), x, y, z, yaw, 1.8):
        b.add("box", 0, 0.1, 0, 0.1, 0.1, 1.5, WHITE)
        b.add("torus", 0, 0.05, 1.05, s, s, 0.16, paint("red", 0.3), tilt=UPRIGHT)
        for i in range(4):
            a = math.pi / 4 + i * math.pi / 2
            b.add("box", 0.36 * s * math.cos(a), -0.03, 0.95 + 0.36 * s * math.sin(a), 0.2, 0.18, 0.2, WHITE)


def bus(b: Builder, x: float, y: float, yaw: float = 0.0, colour: str = "red") -> None:
    m = paint(colour, 0.4)
    with b.object("bus", (colour,), x, y, 0, yaw, 2.0):
        b.add("box", 0, 0, 0.4, 2.3, 7.5, 1.0, m)
        b.add("box", 0, 0, 1.4, 2.26, 7.4, 0.85, GLASS)
        b.add("box", 0, 0, 2.2, 2.3, 7.5, 0.45, m)
        for j in range(5):
            b.add("box", 0, -3.0 + 1.5 * j, 1.35, 2.32, 0.14, 0.9, m)
        for i in (-1, 1):
            for j in (-1, 1):
                b.add("cylinder", i * 1.14 + 0.12, j * 2.4, 0.48, 0.96, 0.96, 0.24, BLACK, roll=-math.pi / 2)
            b.add("box", i * 0.8, -3.77, 0.6, 0.35, 0.06, 0.22, Material((1, 0.2, 0.1), emission=0.6))
            b.add("box", i * 0.8, 3.77, 0.6, 0.35, 0.06, 0.22, Material((1, 0.95, 0.7), emission=1.0))


def traffic_light(b: Builder, x: float, y: float, yaw: float = 0.0) -> None:
    on = int(b.u(0, 2.99))
    with b.object("traffic light", (), x, y, 0, yaw, 1.6):
        b.add("cylinder", 0, 0, 0, 0.14, 0.14, 2.6, Material((0.16, 0.17, 0.19)))
        b.add("box", 0, 0, 2.3, 0.42, 0.34, 1.15, Material((0.1, 0.11, 0.12)))
        for i, c in enumerate(((0.2, 1.0, 0.35), (1.0, 0.75, 0.15), (1.0, 0.18, 0.12))):
            m = Material(c, emission=1.6) if i == on else Material(dim(c, 0.35))
            b.add("sphere", 0, -0.14, 2.36 + 0.36 * i, 0.28, 0.2, 0.28, m)


def rubbish_bin(b: Builder, x: float, y: float, z: float = 0.0) -> None:
    c = b.colour(("green", "blue", "grey", "black", "orange"))
    with b.object("bin", (c,), x, y, z, 0, 1.2):
        b.add("shade", 0, 0, 0.85, 0.55, 0.55, -0.85, paint(c))
        b.add("cylinder", 0, 0, 0.83, 0.6, 0.6, 0.08, Material(dim(COLOURS[c], 0.7)))
        b.add("sphere", 0, 0, 0.78, 0.5, 0.5, 0.28, Material(dim(COLOURS[c], 0.7)))


def windmill(b: Builder, x: float, y: float, yaw: float = 0.0, h: float = 8.0, z: float = 0.0) -> None:
    with b.object("windmill", ("white",), x, y, z, yaw, 2.0):
        b.add("shade", 0, 0, 0, h * 0.5, h * 0.5, h * 0.8, Material((0.92, 0.9, 0.85)))
        b.add("cone", 0, 0, h * 0.8, h * 0.38, h * 0.38, h * 0.22, Material((0.55, 0.22, 0.16)))
        b.add("box", 0, -h * 0.25, 0, h * 0.12, 0.1, h * 0.22, wood("dark"))
        b.add("cylinder", 0, 0, h * 0.82, 0.3, 0.3, h * 0.25, wood("dark"), tilt=UPRIGHT)
        turn = b.u(0, 1.5)
        sail = Material((0.9, 0.86, 0.78), (0.45, 0.3, 0.2), "checker", 0.5)
        for i in range(4):
            b.add("box", 0, -h * 0.23, h * 0.82, h * 0.11, 0.08, h * 0.5, sail, roll=turn + i * UPRIGHT)


def fountain(b: Builder, x: float, y: float, s: float = 3.0) -> None:
    stone = Material((0.78, 0.76, 0.72), (0.62, 0.6, 0.57), "noise", 0.5)
    water = Material((0.1, 0.4, 0.52), pattern="water", scale=0.3)
    with b.object("fountain", ("stone",), x, y, 0, 0, 1.8):
        b.add("cylinder", 0, 0, 0, s, s, 0.5, stone)
        b.add("cylinder", 0, 0, 0.42, s * 0.88, s * 0.88, 0.1, water)
        b.add("cylinder", 0, 0, 0, s * 0.1, s * 0.1, s * 0.45, stone)
        b.add("bowl", 0, 0, s * 0.4, s * 0.42, s * 0.42, 0.28, stone)
        b.add("vase", 0, 0, s * 0.44, s * 0.12, s * 0.12, s * 0.22, stone)
        for i in range(5):
            a = i * 1.257
            x1, y1 = s * 0.1 * math.cos(a), s * 0.1 * math.sin(a)
            b.add("capsule", x1, y1, s * 0.5, s * 0.05, s * 0.05, s * 0.22,
                  Material((0.75, 0.9, 1.0), shininess=0.6), a, 0, 0.45)  # fmt: skip


def campfire(b: Builder, x: float, y: float, s: float = 1.0) -> None:
    with b.object("campfire", (), x, y, 0, b.u(0, 3), 1.9):
        for i in range(6):
            a = i * 1.05
            b.add(
                f"rock{i % 4}", 0.5 * s * math.cos(a), 0.5 * s * math.sin(a), -0.05, 0.26, 0.26, 0.22, STONE
            )
            if i % 2:
                b.add("cylinder", 0.3 * s * math.cos(a), 0.3 * s * math.sin(a), 0, 0.09, 0.09, 0.55 * s,
                      wood("dark"), a, 0, -0.75)  # fmt: skip
        b.add("cone", 0, 0, 0.08, 0.42 * s, 0.42 * s, 0.8 * s, Material((1.0, 0.45, 0.1), emission=1.6))
        b.add("cone", 0, 0, 0.06, 0.24 * s, 0.24 * s, 0.55 * s, Material((1.0, 0.85, 0.3), emission=2.4))
    b.lamp(x, y - 0.1, 0.9, (2.6, 1.3, 0.4), 1.5)


def sandcastle(b: Builder, x: float, y: float, s: float = 1.0) -> None:
    m = Material((0.8, 0.64, 0.4), (0.7, 0.55, 0.33), "noise", 0.1)
    with b.object("sandcastle", (), x, y, 0, b.u(-0.4, 0.4), 1.8):
        b.add("box", 0, 0, -0.05, 0.9 * s, 0.9 * s, 0.35 * s, m)
        for i in (-1, 1):
            for j in (-1, 1):
                b.add("shade", i * 0.42 * s, j * 0.42 * s, 0, 0.34 * s, 0.34 * s, 0.62 * s, m)
        b.add("shade", 0, 0, 0.28 * s, 0.42 * s, 0.42 * s, 0.5 * s, m)
        b.add("cylinder", 0, 0, 0.7 * s, 0.03, 0.03, 0.5 * s, wood("dark"))
        b.add("box", 0.11 * s, 0, 1.02 * s, 0.22 * s, 0.02, 0.16 * s, paint("red"))


def deck_chair(b: Builder, x: float, y: float, yaw: float = 0.0) -> None:
    m, looks = cloth(b, b.colour(CANVAS), 0.2, 0.7)
    with b.object("deck chair", looks, x, y, 0, yaw, 1.6):
        b.add("box", 0, 0.28, 0.28, 0.62, 0.04, 0.85, m, tilt=-0.6)
        b.add("box", 0, -0.22, 0.26, 0.62, 0.62, 0.05, m)
        for i in (-1, 1):
            b.add("box", i * 0.33, 0.0, 0, 0.05, 0.05, 0.6, wood("light"), tilt=0.5)
            b.add("box", i * 0.33, 0.25, 0, 0.05, 0.05, 1.1, wood("light"), tilt=-0.55)


def haystack(b: Builder, x: float, y: float, yaw: float = 0.0, s: float = 1.5) -> None:
    m = Material((0.86, 0.7, 0.32), (0.72, 0.55, 0.22), "noise", 0.12)
    with b.object("hay bale", ("yellow",), x, y, 0, yaw, 1.4):
        b.add("cylinder", s * 0.6, 0, s / 2, s, s, s * 1.2, m, roll=-math.pi / 2)


def planter(b: Builder, x: float, y: float, s: float = 1.0) -> None:
    """A wooden tub with flowers."""
    f = b.colour(("red", "yellow", "pink", "white", "purple"))
    with b.object("flowers", (f,), x, y, 0, b.u(0, 1), 1.4):
        b.add("taper", 0, 0, 0.45 * s, 0.8 * s, 0.8 * s, -0.45 * s, wood("warm", "planks", 0.12))
        b.add(
            "leaf1",
            0,
            0,
            0.32 * s,
            0.72 * s,
            0.72 * s,
            0.34 * s,
            Material((0.2, 0.5, 0.18), (0.3, 0.6, 0.2), "leaves", 0.1),
        )
        for i in range(6):
            a = i * 1.05
            x1, y1, z1 = 0.22 * s * math.cos(a), 0.22 * s * math.sin(a), (0.52 + 0.06 * (i % 2)) * s
            b.add("leaf0", x1, y1, z1, 0.2 * s, 0.2 * s, 0.2 * s, paint(f))
