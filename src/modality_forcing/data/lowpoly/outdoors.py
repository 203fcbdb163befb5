"""Things that stand outside."""

from __future__ import annotations

import math

from modality_forcing.data.lowpoly.objects import BARK, BLACK, COLOURS, STONE, WHITE, dim, paint, wood
from modality_forcing.data.lowpoly.scene import Builder, Material

GLASS = Material((0.15, 0.22, 0.3), shininess=0.9)


def pine(
    b: Builder, x: float, y: float, h: float = 5.0, z: float = 0.0, snow: bool = False, named: bool = True
) -> None:
    g = b.u(0.8, 1.2)
    m = Material((0.10 * g, 0.33 * g, 0.17), (0.18, 0.42, 0.2), "leaves", 0.5)
    if snow:
        m = Material((0.10, 0.33, 0.18), (0.95, 0.96, 1.0), "snow", 1.0)
    with b.object("pine tree", (), x, y, z, b.u(0, 6)):
        b.add("cylinder", 0, 0, 0, h * 0.07, h * 0.07, h * 0.3, BARK)
        for i in range(3):
            b.add(
                "cone",
                0,
                0,
                h * (0.16 + 0.24 * i),
                h * (0.5 - 0.12 * i),
                h * (0.5 - 0.12 * i),
                h * 0.38,
                m,
                i * 0.7,
            )


TREES = {"green": ((0.24, 0.50, 0.14), (0.36, 0.60, 0.18)), "orange": ((0.85, 0.42, 0.10), (0.93, 0.6, 0.15)),
         "red": ((0.72, 0.2, 0.1), (0.85, 0.35, 0.12)), "yellow": ((0.9, 0.72, 0.15), (0.8, 0.55, 0.12)),
         "pink": ((0.95, 0.62, 0.72), (0.98, 0.78, 0.84))}  # fmt: skip


def tree(b: Builder, x: float, y: float, h: float = 4.5, z: float = 0.0, colour: str = "green") -> None:
    m = Material(*TREES[colour], "leaves", 0.5)
    with b.object("tree", (colour,), x, y, z, b.u(0, 6)):
        b.add("cylinder", 0, 0, 0, h * 0.09, h * 0.09, h * 0.55, BARK)
        b.add("leaf0", 0, 0, h * 0.36, h * 0.6, h * 0.6, h * 0.64, m)
        b.add("leaf1", h * 0.2, h * 0.05, h * 0.34, h * 0.36, h * 0.38, h * 0.36, m)
        b.add("leaf2", -h * 0.2, -h * 0.08, h * 0.4, h * 0.36, h * 0.36, h * 0.36, m)


def bush(b: Builder, x: float, y: float, s: float = 1.0, colour: str = "green") -> None:
    with b.object("bush", (colour,), x, y, -0.1 * s, b.u(0, 6), 0.6):
        b.add("leaf1", 0, 0, 0, s, s, s * 0.8, Material(*TREES[colour], "leaves", 0.3))
        b.add("leaf2", 0.4 * s, 0.1, 0, 0.7 * s, 0.7 * s, s * 0.6, Material(*TREES[colour], "leaves", 0.3))


def rock(b: Builder, x: float, y: float, s: float = 1.0, m: Material = STONE) -> None:
    with b.object("rock", (), x, y, -0.15 * s, b.u(0, 6), 0.6):
        b.add(f"rock{int(b.u(0, 4))}", 0, 0, 0, s * b.u(0.9, 1.3), s * b.u(0.8, 1.1), s * b.u(0.6, 0.9), m)


def palm(b: Builder, x: float, y: float, h: float = 5.0) -> None:
    m = Material((0.18, 0.5, 0.18), (0.4, 0.62, 0.2), "leaves", 0.4)
    with b.object("palm tree", (), x, y, -0.1, b.u(0, 6), 1.4):
        for i in range(4):
            b.add(
                "cylinder",
                0.012 * h * i * i,
                0,
                h * i / 4,
                h * (0.085 - 0.01 * i),
                h * (0.085 - 0.01 * i),
                h * 0.27,
                BARK,
                roll=0.06 * i,
            )
        for i in range(8):
            a = i * math.pi / 4
            cx, cy = 0.19 * h + 0.12 * h * math.cos(a), 0.12 * h * math.sin(a)
            b.add("pyramid", cx, cy, h * 1.03, h * 0.13, 0.05 * h, h * 0.42, m, yaw=a, roll=1.85)
            b.add(
                "leaf0",
                0.19 * h + 0.2 * h * math.cos(a),
                0.2 * h * math.sin(a),
                h * 0.97,
                h * 0.34,
                h * 0.12,
                h * 0.06,
                m,
                yaw=a,
                roll=0.32,
            )


def cactus(b: Builder, x: float, y: float, h: float = 2.2) -> None:
    m = Material((0.2, 0.48, 0.22), (0.28, 0.56, 0.26), "leaves", 0.2)
    w = h * 0.17
    with b.object("cactus", ("green",), x, y, 0, b.u(-0.5, 0.5), 1.4):
        b.add("cylinder", 0, 0, 0, w, w, h, m)
        b.add("sphere", 0, 0, h - w / 2, w, w, w, m)
        for side, z in ((-1, 0.42), (1, 0.55)):
            b.add("box", side * h * 0.15, 0, h * z, h * 0.26, w * 0.7, w * 0.7, m)
            b.add("cylinder", side * h * 0.27, 0, h * z, w * 0.8, w * 0.8, h * 0.34, m)
            b.add("sphere", side * h * 0.27, 0, h * (z + 0.31), w * 0.8, w * 0.8, w * 0.8, m)


ROOFS = {
    "red": (0.66, 0.22, 0.15),
    "brown": (0.40, 0.25, 0.16),
    "grey": (0.36, 0.38, 0.42),
    "blue": (0.25, 0.36, 0.55),
}
WALLS = {
    "white": (0.9, 0.88, 0.83),
    "yellow": (0.93, 0.79, 0.45),
    "red": (0.7, 0.28, 0.2),
    "blue": (0.5, 0.64, 0.8),
    "pink": (0.9, 0.65, 0.62),
    "green": (0.56, 0.7, 0.5),
    "orange": (0.9, 0.58, 0.3),
    "beige": (0.84, 0.74, 0.57),
    "brick": (0.62, 0.3, 0.22),
}


def wall_material(colour: str, step: float = 2.2) -> Material:
    """A house wall with painted-on windows."""
    return Material(WALLS[colour], (0.16, 0.24, 0.34), "facade", step)


def house(
    b: Builder,
    x: float,
    y: float,
    yaw: float = 0.0,
    w: float = 6.0,
    d: float = 5.0,
    h: float = 3.4,
    colour: str = "white",
    roof: str = "red",
    z: float = 0.0,
    chimney: bool = True,
) -> None:
    """The front with its door faces local -y."""
    with b.object("house", (colour,) if colour != "brick" else ("brick",), x, y, z, yaw, 1.2):
        step = h / max(1, round(h / 2.6))
        if colour == "brick":
            b.add("box", 0, 0, 0, w, d, h, Material(WALLS["brick"], (0.8, 0.75, 0.7), "bricks", 0.6))
            pane = Material((0.16, 0.24, 0.34), shininess=0.6)
            for i in (-1, 1):
                b.add("box", i * w * 0.3, 0, 1.0, 1.0, d + 0.06, 1.1, pane)
                b.add("box", 0, i * d * 0.22, 1.0, w + 0.06, 0.9, 1.1, pane)
        else:
            b.add("box", 0, 0, 0, w, d, h, wall_material(colour, step))
        b.add(
            "wedge",
            0,
            0,
            h,
            w + 0.7,
            d + 0.8,
            h * 0.55 + 0.6,
            Material(ROOFS[roof], dim(ROOFS[roof], 0.75), "planks", 0.7),
        )
        b.add("box", 0, -d / 2, 0, 1.1, 0.12, 2.1, wood("dark"))
        b.add("box", 0, -d / 2 - 0.3, 0, 1.5, 0.7, 0.15, STONE)
        if chimney:
            b.add(
                "box",
                w * 0.28,
                d * 0.1,
                h,
                0.6,
                0.6,
                h * 0.55 + 0.9,
                Material(WALLS["brick"], (0.8, 0.75, 0.7), "bricks", 0.5),
            )


def building(
    b: Builder, x: float, y: float, w: float, d: float, h: float, colour: str, yaw: float = 0.0
) -> None:
    """A flat-roofed town house."""
    colour = "red" if colour == "brick" else colour
    with b.object("building", (colour,), x, y, 0, yaw, 1.0):
        b.add("box", 0, 0, 0, w, d, h, wall_material(colour, 2.6))
        b.add("box", 0, 0, h, w + 0.3, d + 0.3, 0.4, Material(dim(WALLS[colour], 0.7)))
        b.add("box", 0, 0, 0, w + 0.12, d + 0.12, 0.5, Material(dim(WALLS[colour], 0.5)))


def tower(
    b: Builder,
    x: float,
    y: float,
    w: float = 3.0,
    h: float = 9.0,
    roof: str = "red",
    z: float = 0.0,
    m: Material | None = None,
    name: str = "tower",
) -> None:
    m = m or Material((0.66, 0.63, 0.58), (0.5, 0.48, 0.45), "bricks", 1.1)
    with b.object(name, ("stone",), x, y, z, 0, 1.2):
        b.add("cylinder", 0, 0, 0, w, w, h, m)
        b.add("cylinder", 0, 0, h - 0.8, w * 1.18, w * 1.18, 1.2, m)
        b.add("cone", 0, 0, h + 0.4, w * 1.35, w * 1.35, w * 1.3, Material(ROOFS[roof]))
        for i in (0, 1, 2):
            a = -math.pi / 2 + (i - 1) * 0.9
            b.add(
                "box",
                math.cos(a) * w * 0.47,
                math.sin(a) * w * 0.47,
                h * 0.55,
                0.5,
                0.5,
                1.1,
                Material((0.1, 0.1, 0.13)),
                a,
            )


def car(b: Builder, x: float, y: float, yaw: float = 0.0, colour: str = "red") -> None:
    m = paint(colour, 0.45)
    with b.object("car", (colour,), x, y, 0, yaw, 2.0):
        b.add("box", 0, 0, 0.32, 1.75, 4.0, 0.55, m)
        b.add("taper", 0, -0.15, 0.87, 1.6, 2.5, 0.62, GLASS)
        b.add("taper", 0, -0.15, 1.3, 1.22, 1.9, 0.2, m)
        for i in (-1, 1):
            for j in (-1, 1):
                b.add("cylinder", i * 0.88 + 0.11, j * 1.25, 0.34, 0.68, 0.68, 0.22, BLACK, roll=-math.pi / 2)
            b.add("box", i * 0.6, -2.0, 0.58, 0.32, 0.06, 0.18, Material((1, 0.2, 0.1), emission=0.6))
            b.add("box", i * 0.6, 2.0, 0.58, 0.32, 0.06, 0.18, Material((1, 0.95, 0.7), emission=1.0))
        b.add("box", 0, 0, 0.34, 1.8, 4.1, 0.14, BLACK)


def bench(b: Builder, x: float, y: float, yaw: float = 0.0) -> None:
    m = wood("warm")
    with b.object("bench", ("wooden",), x, y, 0, yaw, 1.3):
        b.add("box", 0, 0, 0.42, 1.7, 0.5, 0.07, m)
        b.add("box", 0, 0.25, 0.55, 1.7, 0.06, 0.42, m)
        for i in (-1, 1):
            b.add("box", i * 0.7, 0, 0, 0.1, 0.45, 0.42, BLACK)


def street_lamp(b: Builder, x: float, y: float, on: bool = False, h: float = 4.2) -> None:
    with b.object("street lamp", ("metal",), x, y, 0, 0, 1.0):
        b.add("cylinder", 0, 0, 0, 0.14, 0.14, h, Material((0.13, 0.14, 0.16)))
        b.add("cylinder", 0, 0, 0, 0.3, 0.3, 0.4, Material((0.13, 0.14, 0.16)))
        b.add("sphere", 0, 0, h, 0.5, 0.5, 0.5, Material((1.0, 0.8, 0.45), emission=4.0) if on else WHITE)
    if on:
        b.lamp(x, y, h - 0.2, (4.2, 2.6, 1.1), 2.6)


def boat(
    b: Builder, x: float, y: float, yaw: float = 0.0, colour: str = "red", s: float = 1.0, sail: bool = False
) -> None:
    with b.object("sailboat" if sail else "boat", (colour,), x, y, -0.25 * s, yaw, 1.8):
        b.add("hull", 0, 0, 0, 3.4 * s, 1.5 * s, 0.8 * s, paint(colour, 0.2))
        b.add("box", -0.2 * s, 0, 0.72 * s, 2.2 * s, 1.0 * s, 0.1 * s, wood("light"))
        if sail:
            b.add("cylinder", 0.1 * s, 0, 0.8 * s, 0.09 * s, 0.09 * s, 4.0 * s, wood("dark"))
            b.add("pyramid", -0.55 * s, 0, 1.2 * s, 1.3 * s, 0.06, 3.4 * s, WHITE)
            b.add("pyramid", 0.6 * s, 0, 1.2 * s, 0.9 * s, 0.06, 2.6 * s, WHITE)
        else:
            b.add("box", -0.5 * s, 0, 0.8 * s, 0.9 * s, 0.8 * s, 0.7 * s, WHITE)
            b.add("box", -0.5 * s, 0, 1.5 * s, 1.1 * s, 1.0 * s, 0.1 * s, paint(colour))


def umbrella(b: Builder, x: float, y: float, colour: str = "red") -> None:
    with b.object("umbrella", (colour,), x, y, 0, 0, 2.0):
        b.add("cylinder", 0, 0, 0, 0.07, 0.07, 2.1, WHITE, roll=0.08)
        b.add("cone", 0.15, 0, 1.8, 2.4, 2.4, 0.6, Material(COLOURS[colour]), roll=0.08)


def fence(b: Builder, x0: float, y0: float, x1: float, y1: float, m: Material | None = None) -> None:
    m = m or wood("light")
    length, yaw = math.hypot(x1 - x0, y1 - y0), math.atan2(y1 - y0, x1 - x0)
    with b.object("fence", ("wooden",), (x0 + x1) / 2, (y0 + y1) / 2, 0, yaw, 0.6):
        n = max(2, round(length / 0.8))
        for i in range(n + 1):
            b.add("box", (i / n - 0.5) * length, 0, 0, 0.12, 0.1, 1.0, m)
        for z in (0.35, 0.75):
            b.add("box", 0, 0, z, length, 0.06, 0.12, m)


def lighthouse(b: Builder, x: float, y: float, h: float = 12.0, colour: str = "red") -> None:
    with b.object("lighthouse", (colour, "striped"), x, y, 0, 0, 2.0):
        for i in range(5):
            w = h * (0.26 - 0.025 * i)
            b.add("cylinder", 0, 0, h * 0.16 * i, w, w, h * 0.16, paint(colour) if i % 2 else WHITE)
        b.add("cylinder", 0, 0, h * 0.8, h * 0.2, h * 0.2, h * 0.02, BLACK)
        b.add("cylinder", 0, 0, h * 0.82, h * 0.1, h * 0.1, h * 0.09, Material((1, 0.9, 0.6), emission=1.5))
        b.add("cone", 0, 0, h * 0.91, h * 0.15, h * 0.15, h * 0.1, paint(colour))
