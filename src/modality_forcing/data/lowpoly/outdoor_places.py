"""Landscapes and towns. The camera stands near the origin and looks along +y."""

from __future__ import annotations

import math

from modality_forcing.data.lowpoly import objects as o
from modality_forcing.data.lowpoly import outdoor_things as t
from modality_forcing.data.lowpoly import outdoors as d
from modality_forcing.data.lowpoly import palettes
from modality_forcing.data.lowpoly.scene import Builder, Material, Stage

GRASS = Material((0.34, 0.52, 0.18), (0.46, 0.60, 0.24), "noise", 1.4)
SAND = Material((0.87, 0.72, 0.48), (0.93, 0.80, 0.57), "noise", 2.0)
WATER = Material((0.05, 0.24, 0.34), pattern="water", scale=0.8)
ROCK = Material((0.47, 0.45, 0.47), (0.96, 0.97, 1.0), "snow", 1.0)


def mood(b: Builder, choices: tuple[str, ...]) -> str:
    """Light of the day."""
    name = b.pick(choices)
    light = b.light
    light.name, b.facts["mood"] = name, name
    palettes.choose(b, name)
    light.occlusion_radius = 2.0
    b.sun_from(b.pick((-1, 1)) * b.u(35, 110), b.u(28, 52))
    light.sun, light.exposure, light.clouds = (3.3, 2.85, 2.2), 0.72, b.u(0.1, 0.7)
    light.ambient_up, light.ambient_down = (0.42, 0.58, 0.88), (0.34, 0.3, 0.24)
    light.fog = b.u(0.0008, 0.003)
    if name == "golden":
        b.sun_from(b.pick((-1, 1)) * b.u(60, 172), b.u(7, 15))
        light.sun, light.zenith, light.horizon = (3.8, 2.1, 0.95), (0.2, 0.3, 0.62), (1.25, 0.72, 0.42)
        light.ambient_up, light.ambient_down, light.fog = (
            (0.46, 0.44, 0.58),
            (0.32, 0.23, 0.2),
            b.u(0.002, 0.006),
        )
    elif name == "dusk":
        light.sun, light.zenith, light.horizon = (0.0, 0.0, 0.0), (0.09, 0.11, 0.34), (0.95, 0.42, 0.36)
        light.ambient_up, light.ambient_down, light.clouds = (0.34, 0.36, 0.62), (0.22, 0.17, 0.2), 0.4
        light.fog, light.exposure = b.u(0.003, 0.006), 0.95
    elif name == "night":
        light.sun, light.zenith, light.horizon = (0.22, 0.28, 0.45), (0.012, 0.018, 0.06), (0.05, 0.08, 0.2)
        light.ambient_up, light.ambient_down = (0.15, 0.2, 0.38), (0.08, 0.09, 0.13)
        light.stars, light.clouds, light.fog, light.exposure = True, 0.1, 0.003, 1.25
    elif name == "mist":
        light.sun, light.zenith, light.horizon = (0.9, 0.82, 0.7), (0.62, 0.7, 0.8), (0.82, 0.86, 0.9)
        light.ambient_up, light.ambient_down, light.clouds = (0.6, 0.66, 0.72), (0.4, 0.4, 0.4), 0.0
        light.fog = b.u(0.012, 0.024)
    elif name == "grey":
        light.sun, light.zenith, light.horizon = (0.25, 0.25, 0.25), (0.42, 0.47, 0.54), (0.72, 0.75, 0.79)
        light.ambient_up, light.ambient_down, light.clouds = (0.68, 0.72, 0.78), (0.42, 0.42, 0.42), 0.9
    return name


def ground(b: Builder, m: Material, z: float = 0.0) -> None:
    b.add("plane", 0, 0, z, 3000, 3000, 1, m)


def rolling(b: Builder, m: Material, x: float, y: float, wide: float, deep: float, high: float) -> None:
    """One of six height fields on the ground, turned either way."""
    yaw = b.pick((0.0, math.pi)) + b.u(-0.15, 0.15)
    b.add(f"terrain{int(b.u(0, 6))}", x, y, -0.15, wide, deep, high, m, yaw)


def hills(b: Builder, m: Material, n: int = 5, low: float = 4.0, high: float = 12.0) -> None:
    """Two ranges of hills on the horizon, the farther one higher."""
    for i in range(n):
        near = i % 2 == 0
        rolling(
            b, m, (i - n / 2 + b.u(0, 1)) * 62, b.u(85, 105) if near else b.u(125, 160),
            b.u(110, 170), b.u(40, 60), b.u(low, high) * (0.9 if near else 1.5),
        )  # fmt: skip


def park(b: Builder) -> None:
    m = mood(b, ("sun", "sun", "golden", "grey", "mist", "dusk"))
    ground(b, GRASS)
    hills(b, GRASS)
    season = b.pick(("green", "green", "green", "orange", "pink"))
    path = Material((0.8, 0.7, 0.52), (0.72, 0.62, 0.46), "noise", 0.8)
    for i in range(12):
        b.add("cylinder", 2.2 * math.sin(i * 0.45), 1 + i * 2.4, -0.02, 3.0, 4.4, 0.04 + 0.001 * i, path)
    for i in range(11):
        x = b.pick((-1, 1)) * b.u(3.2, 14)
        d.tree(b, x, b.u(7, 32) if i > 1 else b.u(6, 9), b.u(3.8, 6.2), 0, season if b.p(0.75) else "green")
    for _ in range(5):
        d.bush(b, b.pick((-1, 1)) * b.u(2.6, 8), b.u(6, 18), b.u(0.8, 1.4))
    d.bench(b, -2.5, b.u(5.2, 6.8), b.u(0.6, 1.0))
    if b.p(0.5):
        d.street_lamp(b, 2.4, b.u(6.5, 9), m == "dusk", 3.2)
    if b.p(0.45):
        with b.object("pond", (), 6.5, 16):
            b.add("cylinder", 0, 0, 0, 10, 8, 0.04, WATER)
    if b.p(0.3):
        t.fountain(b, b.pick((-1, 1)) * b.u(3.4, 5.5), b.u(11, 15), b.u(2.6, 3.4))
    if b.p(0.35):
        t.bicycle(b, b.u(0.8, 2.6), b.u(5.5, 8), b.u(-0.6, 0.6))
    if b.p(0.25):
        t.rubbish_bin(b, -3.9, 6.3)
    b.stage = Stage(
        stand=(-5, 5, -5, 2.5), floor=(-4, 4, 4.2, 11), low=0.9, high=4.5,
        aims=((0, 11, 1.3, 1.5), (-2.5, 7, 1.0, 1.0), (2.5, 9, 1.2, 1.5)),
    )  # fmt: skip


def forest(b: Builder) -> None:
    mood(b, ("sun", "golden", "mist", "mist", "grey", "night"))
    snow = b.p(0.2)
    b.light.ambient_up = tuple(1.35 * c for c in b.light.ambient_up)
    soil = Material((0.88, 0.9, 0.95), (0.8, 0.84, 0.92), "noise", 2.0) if snow else Material(
        (0.26, 0.38, 0.15), (0.37, 0.42, 0.18), "noise", 1.0)  # fmt: skip
    if snow:
        with b.object("snow", (), 0, 0, 0, 0, 0.7):
            ground(b, soil)
    else:
        ground(b, soil)
    pines = snow or b.p(0.65)
    colour = b.pick(("green", "green", "orange", "red", "yellow"))
    for i in range(46):
        x, y = b.u(-16, 16), b.u(6, 36)
        x += math.copysign(1.7, x) if abs(x) < 1.7 else 0
        if i < 4:
            x, y = b.pick((-1, 1)) * b.u(2.0, 3.4), b.u(4.5, 8)
        if pines:
            d.pine(b, x, y, b.u(4.5, 8), 0, snow)
        else:
            d.tree(b, x, y, b.u(4.5, 8), 0, colour if b.p(0.8) else "green")
    for _ in range(4):
        d.rock(b, b.pick((-1, 1)) * b.u(1.2, 4), b.u(3.5, 9), b.u(0.5, 1.2))
        if not snow:
            d.bush(b, b.pick((-1, 1)) * b.u(1.5, 5), b.u(5, 10), b.u(0.6, 1.1))
    kind = b.pick(("house", "tent", "campfire", "none", "none"))
    if snow and b.p(0.6):
        t.snowman(b, b.u(-1.2, 1.2), b.u(4.5, 7), b.u(-0.5, 0.5), b.u(1.3, 1.8))
    elif kind == "house":
        d.house(
            b, b.u(-1.5, 1.5), 18, b.u(-0.3, 0.3), 5, 4, 2.6, b.pick(tuple(d.WALLS)), b.pick(tuple(d.ROOFS))
        )
    elif kind == "tent":
        t.tent(b, b.u(-1.3, 1.3), b.u(6, 8), b.u(-0.6, 0.6))
    elif kind == "campfire":
        t.campfire(b, b.u(-1, 1), b.u(4.5, 6.5))
    b.stage = Stage(
        stand=(-1.5, 1.5, -3, 1.5), floor=(-2.2, 2.2, 3.4, 8), low=0.8, high=3.4,
        aims=((0, 12, 2.0, 1.5), (-2.5, 8, 1.6, 1.0), (2.5, 8, 1.6, 1.0)),
    )  # fmt: skip


def desert(b: Builder) -> None:
    mood(b, ("sun", "sun", "golden", "golden", "dusk", "night"))
    b.light.clouds *= 0.5
    ground(b, SAND)
    for i in range(6):
        rolling(
            b, SAND, (i - 2.5) * 17 + b.u(-6, 6), b.u(38, 85), b.u(34, 70), b.u(18, 30), b.u(2.0, 4.5)
        )  # fmt: skip
    stone = Material((0.82, 0.66, 0.42), (0.66, 0.51, 0.32), "bricks", 1.6)
    kind = b.pick(("pyramids", "pyramids", "pyramids", "mesa", "oasis"))
    if kind == "pyramids":
        x = b.u(-10, 4)
        for i in range(int(b.u(1, 3.9))):
            s = b.u(15, 22) - 4 * i
            with b.object(
                "pyramid", (), x + 18 * i * b.pick((1, 1, -1)), 34 + 13 * i, -0.2, b.u(0.2, 0.9), 2.2
            ):
                b.add("pyramid", 0, 0, 0, s, s, s * 0.72, stone)
    elif kind == "mesa":
        red = Material((0.72, 0.36, 0.2), (0.6, 0.28, 0.16), "noise", 3.0)
        for i in range(4):
            w = b.u(8, 18)
            with b.object("rock", ("red",), (i - 1.6) * 19 + b.u(-5, 5), b.u(40, 75), -0.2, b.u(0, 6), 1.5):
                b.add("rock1", 0, 0, -3, w * 1.5, w * 1.5, 7, red)
                b.add("taper", 0, 0, 0, w, w, b.u(8, 15), red)
    else:
        with b.object("pond", (), 1, 13, 0, 0, 1.5):
            b.add("cylinder", 0, 0, 0, 9, 7, 0.05, WATER)
        for _ in range(5):
            a = b.u(0, 6.3)
            d.palm(b, 1 + 5.4 * math.cos(a), 14 + 4 * math.sin(a), b.u(3.8, 5.5))
    for _ in range(int(b.u(1, 4.9)) if kind != "oasis" else 0):
        d.cactus(b, b.pick((-1, 1)) * b.u(1.6, 6), b.u(6, 14), b.u(1.8, 3.0))
    if b.p(0.35) and kind != "oasis":
        d.palm(b, b.pick((-1, 1)) * b.u(3, 5), b.u(9, 13), b.u(4, 5.5))
    for _ in range(3):
        d.rock(
            b,
            b.pick((-1, 1)) * b.u(1.5, 7),
            b.u(4.5, 12),
            b.u(0.5, 1.2),
            Material((0.7, 0.52, 0.36), (0.6, 0.42, 0.28), "noise", 0.5),
        )
    if b.p(0.3):
        t.tent(b, b.pick((-1, 1)) * b.u(1.5, 4), b.u(7, 12), b.u(-0.8, 0.8), b.u(2.2, 3.0))
        if b.p(0.5):
            t.campfire(b, b.u(-1, 1), b.u(5, 6.5))
    b.stage = Stage(
        stand=(-7, 7, -8, 2.5), floor=(-4.5, 4.5, 4.2, 12), low=0.8, high=5.0,
        aims=((0, 32, 4.0, 4.0), (0, 14, 1.8, 2.0), (-8, 36, 4.0, 3.0), (8, 36, 4.0, 3.0)),
    )  # fmt: skip


def mountains(b: Builder) -> None:
    mood(b, ("sun", "sun", "golden", "golden", "dusk", "mist"))
    if b.light.name == "mist":
        b.light.fog = 0.009
    lake = b.p(0.7)
    ground(b, GRASS, -0.02)
    for i in range(7):
        h = b.u(26, 48)
        w = h * b.u(1.5, 2.0)
        with b.object("mountain", ("snowy",), (i - 3) * 34 + b.u(-9, 9), b.u(85, 130), -1, b.u(0, 6), 1.0):
            b.add(f"peak{int(b.u(0, 5))}", 0, 0, 0, w, w, h, Material(ROCK.colour, ROCK.second, "snow", 14.0))
    hill = Material((0.22, 0.38, 0.16), (0.32, 0.46, 0.2), "noise", 5.0)
    for i in range(6):
        rolling(b, hill, (i - 2.5) * 28 + b.u(-6, 6), b.u(64, 80), b.u(55, 85), b.u(24, 30), b.u(5, 11))
    if lake:
        with b.object("lake", (), 0, 30, 0, 0, 1.5):
            b.add("cylinder", b.u(-4, 4), 0, 0.0, b.u(40, 60), 46, 0.04, WATER)
            b.add("cylinder", 0, 0, 0.01, 42, 42, 0.05, WATER)
    for i in range(18):
        s = b.pick((-1, 1))
        d.pine(b, s * b.u(3.6, 9), b.u(7, 13), b.u(3, 6)) if i < 6 else d.pine(
            b, s * b.u(22, 40), b.u(22, 55), b.u(5, 8)
        )
    for _ in range(4):
        d.rock(b, b.pick((-1, 1)) * b.u(1.0, 5), b.u(4, 8), b.u(0.5, 1.3))
    if b.p(0.35):
        d.house(
            b,
            b.u(-9, 9),
            16 if not lake else 7.5 + 6,
            b.u(-0.5, 0.5),
            4.5,
            3.6,
            2.6,
            b.pick(tuple(d.WALLS)),
            b.pick(tuple(d.ROOFS)),
        )
    if b.p(0.25):
        t.tent(b, b.u(-3, 3), b.u(5.5, 7), b.u(-0.7, 0.7))
    if lake and b.p(0.45):
        d.boat(b, b.u(-3, 3), b.u(13, 17), b.u(-0.5, 0.5), b.colour(o.BRIGHT), 1.2)
    b.stage = Stage(
        stand=(-7, 7, -5, 2.5), floor=(-4, 4, 4.0, 6.5), low=1.0, high=8.0,
        aims=((0, 60, 10.0, 7.0), (-16, 60, 9.0, 5.0), (16, 60, 9.0, 5.0), (0, 20, 1.5, 3.0)),
    )  # fmt: skip


def beach(b: Builder) -> None:
    mood(b, ("sun", "sun", "sun", "golden", "golden", "dusk"))
    ground(b, SAND, -0.3)
    b.add("box", 0, -6, -0.6, 3000, 36, 0.6, SAND)
    WATER_SEA = Material((0.04, 0.36, 0.45), pattern="water", scale=0.9)
    with b.object("sea", (), 0, 1012, 0, 0, 0.9):
        b.add("box", 0, 0, -0.5, 3000, 2000, 0.42, WATER_SEA)
    b.add("box", 0, 12.2, -0.2, 3000, 0.5, 0.16, Material((0.93, 0.96, 0.97), (0.8, 0.9, 0.93), "noise", 0.6))
    for _ in range(int(b.u(1, 3.9))):
        d.palm(b, b.pick((-1, 1)) * b.u(2.8, 6), b.u(7.5, 11), b.u(3.2, 4.6))
    c = b.colour(o.BRIGHT)
    ux, uy = b.u(-1.8, 1.8), b.u(5.5, 7.5)
    if b.p(0.75):
        d.umbrella(b, ux, uy, c)
        hue = b.colour(o.BRIGHT)
        with b.object("towel", (hue, "striped"), ux + 0.9, uy - 0.6, 0, 0.3):
            b.add(
                "box",
                0,
                0,
                0,
                0.9,
                1.8,
                0.03,
                Material(o.COLOURS[hue], o.dim(o.COLOURS[hue], 1.3), "stripes", 0.2),
            )
    if b.p(0.35):
        t.deck_chair(b, ux - 1.0, uy - 0.3, b.u(-0.5, 0.5))
    if b.p(0.3):
        t.sandcastle(b, b.u(-2, 2), b.u(3.6, 5), b.u(0.8, 1.2))
    if b.p(0.3):
        t.lifebuoy(b, b.pick((-1, 1)) * b.u(2, 4), b.u(6, 8.5), 0, b.u(-0.4, 0.4))
    if b.p(0.7):
        d.boat(b, b.u(-10, 10), b.u(17, 32), b.u(-0.5, 0.5), b.colour(o.BRIGHT), b.u(1.4, 2), True)
    if b.p(0.5):
        for i in range(3):
            w = b.u(60, 120)
            b.add("sphere", (i - 1) * 120 + b.u(-40, 40), b.u(220, 300), -8, w, w * 0.5, b.u(26, 44),
                  Material((0.25, 0.42, 0.26), (0.35, 0.5, 0.3), "noise", 9.0))  # fmt: skip
    for _ in range(3):
        d.rock(b, b.pick((-1, 1)) * b.u(2, 8), b.u(7, 12), b.u(0.5, 1.3))
    b.stage = Stage(
        stand=(-5, 5, -6, 2.0), floor=(-3, 3, 3.6, 8.5), low=0.8, high=4.5,
        aims=((0, 15, 1.1, 1.5), (ux, uy, 0.9, 0.7), (-4, 16, 1.2, 2.0), (4, 16, 1.2, 2.0)),
    )  # fmt: skip
