"""Street, village, castle and harbour. The camera stands near the origin and looks along +y."""

from __future__ import annotations

import math

from modality_forcing.data.lowpoly import objects as o
from modality_forcing.data.lowpoly import outdoor_things as t
from modality_forcing.data.lowpoly import outdoors as d
from modality_forcing.data.lowpoly.outdoor_places import GRASS, WATER, ground, hills, mood
from modality_forcing.data.lowpoly.scene import Builder, Material, Stage


def street(b: Builder) -> None:
    m = mood(b, ("sun", "sun", "golden", "dusk", "dusk", "night", "grey"))
    lit = m in ("dusk", "night")
    b.light.lamps, b.light.stars = [], m == "night"
    ground(b, Material((0.5, 0.5, 0.49), (0.45, 0.45, 0.44), "noise", 1.0))
    road = b.u(3.2, 4.2)
    b.add(
        "box", 0, 40, 0.0, 2 * road, 120, 0.02, Material((0.22, 0.22, 0.24), (0.27, 0.27, 0.29), "noise", 0.6)
    )
    for s in (-1, 1):
        b.add(
            "box",
            s * (road + 1.1),
            40,
            0,
            2.2,
            120,
            0.16,
            Material((0.62, 0.6, 0.57), (0.5, 0.48, 0.46), "checker", 1.0),
        )
    for i in range(14):
        b.add("box", 0, 2 + i * 4.2, 0.02, 0.18, 2.0, 0.01, Material((0.92, 0.9, 0.82)))
    town = b.p(0.55)
    palette = [b.pick(tuple(d.WALLS)) for _ in range(4)]
    for s in (-1, 1):
        y = b.u(-9, -6)
        while y < 62:
            c = b.pick(palette)
            w = b.u(5, 8)
            if town:
                h = 2.6 * int(b.u(2, 5.9))
                d.building(b, s * (road + 2.4 + 3), y + w / 2, w, 6, h, c, -s * math.pi / 2 * 0)
                y += w + b.pick((0.3, 0.3, 1.5))
            else:
                d.house(
                    b,
                    s * (road + 2.6 + 3.2),
                    y + w / 2,
                    s * math.pi / 2,
                    w,
                    5.5,
                    2.7 * int(b.u(1, 2.9)),
                    c,
                    b.pick(tuple(d.ROOFS)),
                )
                y += w + b.u(1.0, 3)
    if b.p(0.6):
        d.building(b, b.u(-6, 6), 75, 14, 6, b.u(10, 18), b.pick(tuple(d.WALLS)))
    c1, c2 = b.colour(o.BRIGHT), b.colour(o.BRIGHT)
    d.car(b, road * 0.5, b.u(6.0, 9.5), 0.0, c1)
    if b.p(0.2):
        t.bus(b, -road * 0.55, b.u(12, 18), math.pi, b.colour(("red", "yellow", "green", "blue", "white")))
    elif b.p(0.75):
        d.car(b, -road * 0.52, b.u(8, 15), math.pi, c2)
    if b.p(0.4):
        d.car(b, road * 0.6, b.u(15, 22), 0.0, b.colour(o.BRIGHT))
    for i in range(3):
        d.street_lamp(b, -(road + 0.5), 6.5 + i * 9, lit and i < 3)
        if b.p(0.6):
            d.tree(
                b, road + 1.3, 10 + i * 8, b.u(3.2, 4.6), 0, b.pick(("green", "green", "orange", "yellow"))
            )
    if b.p(0.4):
        t.traffic_light(b, road + 0.45, b.u(6.5, 9), b.u(-0.2, 0.2))
    if b.p(0.35):
        with b.at(0, 0, 0.16):
            t.bicycle(b, -(road + 1.4), b.u(5, 9), math.pi / 2 + b.u(-0.3, 0.3))
    if b.p(0.35):
        t.rubbish_bin(b, road + 1.6, b.u(4.5, 7), 0.16)
    if b.p(0.4):
        with b.at(0, 0, 0.16):
            t.planter(b, -(road + 1.5), b.u(10, 14))
    b.stage = Stage(
        stand=(-road - 0.8, road + 0.8, -5, 2), floor=(-1.6, 1.6, 4.2, 9), low=0.9, high=5.0,
        aims=((0, 20, 1.6, 1.5), (-3, 15, 1.6, 1.0), (3, 15, 1.6, 1.0), (-1, 35, 2.5, 2.0)),
    )  # fmt: skip


def village(b: Builder) -> None:
    m = mood(b, ("sun", "sun", "golden", "dusk", "mist", "grey"))
    if m == "dusk":
        b.lamp(0, 7, 2.5, (2.5, 1.5, 0.6), 2.5)
    ground(b, GRASS)
    hills(b, GRASS, 6, 6, 14)
    path = Material((0.78, 0.68, 0.5), (0.7, 0.6, 0.44), "noise", 0.8)
    for i in range(14):
        b.add("cylinder", 1.6 * math.sin(i * 0.4), i * 2.6, -0.02, 3.4, 4.6, 0.04 + 0.001 * i, path)
    for s in (-1, 1):
        for i in range(3):
            d.house(
                b,
                s * b.u(6.0, 8.0),
                9 + i * 8.5 + b.u(-1, 1),
                s * b.u(0.6, 1.2),
                b.u(4.5, 6.5),
                b.u(4, 5),
                b.u(2.6, 3.6),
                b.pick(tuple(d.WALLS)),
                b.pick(tuple(d.ROOFS)),
            )
    if b.p(0.6):
        x = b.u(-3, 3)
        with b.object("church", ("white",), x, 36, 0, 0, 1.6):
            b.add("box", 0, 0, 0, 6, 8, 5, d.wall_material("white", 2.5))
            b.add("wedge", 0, 0, 5, 8.6, 6.8, 3, Material(d.ROOFS["red"]), math.pi / 2)
            b.add("box", 0, -3.6, 0, 2.8, 2.8, 9, d.wall_material("white", 3.0))
            b.add("pyramid", 0, -3.6, 9, 3.3, 3.3, 4.5, Material(d.ROOFS["red"]))
    for _ in range(7):
        d.tree(
            b, b.pick((-1, 1)) * b.u(3.4, 15), b.u(8, 36), b.u(3, 5), 0, b.pick(("green", "green", "orange"))
        )
    if b.p(0.5):
        d.fence(b, 2.4, 4.2, 3.4, 8.5)
    for _ in range(4):
        d.bush(b, b.pick((-1, 1)) * b.u(2.6, 5), b.u(5.5, 12), b.u(0.7, 1.2))
    if b.p(0.3):
        d.car(b, b.u(-0.6, 0.6), b.u(8, 11), b.u(-0.3, 0.3), b.colour(o.BRIGHT))
    if b.p(0.4):
        t.well(b, b.pick((-1, 1)) * b.u(2.4, 3.4), b.u(7.5, 11), b.u(-0.6, 0.6))
    if b.p(0.35):
        t.windmill(b, b.pick((-1, 1)) * b.u(8, 16), b.u(34, 44), b.u(-0.4, 0.4), b.u(9, 12))
    if b.p(0.35):
        t.haystack(b, b.pick((-1, 1)) * b.u(2.6, 4), b.u(5.5, 9), b.u(-0.8, 0.8), b.u(1.1, 1.5))
    if b.p(0.4):
        t.planter(b, b.pick((-1, 1)) * b.u(2.2, 3), b.u(5, 8))
    b.stage = Stage(
        stand=(-3, 3, -6, 2), floor=(-2.4, 2.4, 4.2, 9.5), low=1.0, high=6.5,
        aims=((0, 20, 1.8, 1.5), (-4, 14, 1.6, 1.5), (4, 14, 1.6, 1.5), (0, 34, 3.0, 2.0)),
    )  # fmt: skip


def castle(b: Builder) -> None:
    m = mood(b, ("sun", "golden", "golden", "dusk", "mist", "night"))
    if m == "mist":
        b.light.fog = 0.014
    ground(b, GRASS)
    hills(b, GRASS, 6, 6, 14)
    stone = Material(*b.pick((((0.66, 0.63, 0.58), (0.5, 0.48, 0.45)), ((0.76, 0.67, 0.52), (0.6, 0.52, 0.4)),
                              ((0.5, 0.5, 0.54), (0.4, 0.4, 0.44)))), "bricks", 1.2)  # fmt: skip
    roof = b.pick(("red", "blue", "grey", "red", "blue"))
    y, w, h = b.u(26, 32), b.u(9, 11), b.u(5.5, 7)
    with b.object("castle", (), 0, y, 0, 0, 0.3):
        b.add("box", 0, 0, 0, 2 * w, 1.6, h, stone)
        for i in range(15):
            b.add("box", (i - 7) * w / 7.5, 0, h, w / 13, 1.6, 0.8, stone)
        b.add("box", 0, -0.9, 0, 3.4, 0.5, 4.2, stone)
        b.add("box", 0, -1.1, 0, 2.2, 0.3, 3.4, o.wood("dark"))
        b.add("box", 0, 7, 0, w, 7, h * 1.6, stone)
        b.add("wedge", 0, 7, h * 1.6, w + 1, 8, 4, Material(d.ROOFS[roof]))
    for s in (-1, 1):
        d.tower(b, s * w, y, b.u(3.6, 4.4), h + b.u(2.5, 4), roof, 0, stone)
        d.tower(b, s * w * 0.45, y + 6, 3.2, h + b.u(6, 9), roof, 0, stone)
    path = Material((0.78, 0.68, 0.5), (0.7, 0.6, 0.44), "noise", 0.8)
    for i in range(11):
        b.add("cylinder", 1.2 * math.sin(i * 0.5 + 2.2), i * 2.6, -0.02, 3.0, 4.6, 0.04 + 0.001 * i, path)
    for _ in range(8):
        f = d.pine if b.p(0.5) else d.tree
        f(b, b.pick((-1, 1)) * b.u(4.5, 16), b.u(9, 24), b.u(3, 5.5))
    if m in ("dusk", "night"):
        b.lamp(0, y - 5, 3.0, (5.0, 2.8, 1.0), 4.0)
    extra = b.pick(("well", "tents", "hay", "barrels", "none", "none"))
    side = b.pick((-1, 1))
    if extra == "well":
        t.well(b, side * b.u(2.5, 4), b.u(8, 12), b.u(-0.6, 0.6))
    elif extra == "tents":
        for i in range(2):
            t.tent(b, side * (2.6 + 3.4 * i), b.u(9, 13), b.u(-0.5, 0.5), 2.6)
    elif extra == "hay":
        t.haystack(b, side * b.u(2.4, 4), b.u(6, 10), b.u(-0.8, 0.8))
    elif extra == "barrels":
        for i in range(3):
            t.barrel(b, side * (2.0 + 0.75 * (i % 2)), 6.5 + 0.7 * i)
    b.stage = Stage(
        stand=(-11, 11, -6, 6), floor=(-3.5, 3.5, 4.5, 11), low=0.9, high=8.0,
        aims=((0, y, 5.0, 2.0), (-w * 0.5, y, 5.0, 1.5), (w * 0.5, y, 5.0, 1.5)),
    )  # fmt: skip


def harbour(b: Builder) -> None:
    m = mood(b, ("sun", "sun", "golden", "golden", "dusk", "grey"))
    ground(b, Material((0.3, 0.3, 0.25)), -1.0)
    with b.object("sea", (), 0, 1000, 0, 0, 0.7):
        b.add("box", 0, 0, -0.8, 3000, 2000, 0.5, WATER)
    b.add("box", b.pick((-1, 1)) * 2.6, 6, -0.9, 2.4, 18, 1.1, o.wood("warm", "planks", 0.3))
    b.add("box", 0, -4, -1, 60, 11, 1.2, Material((0.6, 0.58, 0.55), (0.5, 0.48, 0.46), "bricks", 1.0))
    b.add("box", 0, 44, -1, 160, 16, 1.5, Material((0.6, 0.58, 0.55), (0.5, 0.48, 0.46), "bricks", 1.0))
    x = -44.0
    while x < 40:
        w = b.u(4.5, 7)
        if b.p(0.5):
            d.house(
                b,
                x + w / 2,
                42,
                0,
                w,
                6,
                2.7 * int(b.u(2, 3.9)),
                b.pick(tuple(d.WALLS)),
                b.pick(tuple(d.ROOFS)),
                0.5,
            )
        else:
            d.building(b, x + w / 2, 42, w, 6, 2.7 * int(b.u(2, 4.9)), b.pick(tuple(d.WALLS)))
        x += w + b.pick((0.2, 0.2, 1.2))
    hills(b, Material((0.3, 0.45, 0.22), (0.38, 0.52, 0.26), "noise", 5.0), 5, 9, 16)
    for i in range(int(b.u(2, 4.9))):
        d.boat(
            b,
            b.u(-1, 1) * (3 + 2.5 * i),
            9 + 6 * i + b.u(-1, 1),
            b.u(-0.7, 0.7),
            b.colour(o.BRIGHT),
            b.u(1.1, 1.6),
            b.p(0.55),
        )
    if b.p(0.5):
        d.lighthouse(b, b.pick((-1, 1)) * b.u(10, 17), 34, b.u(14, 18), b.pick(("red", "blue", "black")))
    side = b.pick((-1, 1))
    if b.p(0.5):
        for i in range(int(b.u(1, 3.9))):
            t.barrel(b, side * (4.4 + 0.75 * (i % 2)), 0.9 - 0.6 * i, 0.2)
    if b.p(0.4):
        t.lifebuoy(b, -side * b.u(0.4, 1.6), 1.1, 0.2, b.u(-0.3, 0.3))
    if m == "dusk":
        b.lamp(0, 34, 4, (4, 2.4, 1.0), 5)
    b.stage = Stage(
        stand=(-9, 9, -8, -2.5), floor=(-4, 4, -1.6, 0.9), low=1.0, high=6.0, ground=0.2, under=0.2,
        aims=((0, 30, 1.8, 2.0), (-8, 28, 1.6, 2.0), (8, 28, 1.6, 2.0), (0, 14, 0.8, 2.0)),
    )  # fmt: skip
