"""Rooms. The camera stands near the front wall (y = 0) and looks along +y at the back wall (y = depth)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from modality_forcing.data.lowpoly import objects as o
from modality_forcing.data.lowpoly import palettes, things
from modality_forcing.data.lowpoly.outdoors import tree
from modality_forcing.data.lowpoly.scene import Builder, Material, Stage

PAINTS = {"white": (0.9, 0.88, 0.84), "cream": (0.93, 0.86, 0.7), "green": (0.56, 0.68, 0.53),
          "blue": (0.5, 0.63, 0.76), "yellow": (0.93, 0.8, 0.5), "pink": (0.89, 0.68, 0.66),
          "grey": (0.66, 0.66, 0.67), "orange": (0.88, 0.56, 0.36), "teal": (0.3, 0.52, 0.53)}  # fmt: skip
LEFT, RIGHT = math.pi / 2, -math.pi / 2  # yaw of things whose back is at the left / right wall


@dataclass
class Room:
    """Half width, depth, height, and whether the lamps are on."""

    x: float
    y: float
    h: float
    night: bool


def _wall(
    b: Builder, along: str, at: float, lo: float, hi: float, h: float, m: Material, holes: float
) -> None:
    def slab(u0: float, u1: float, z0: float, z1: float) -> None:
        if u1 - u0 < 1e-6 or z1 - z0 < 1e-6:
            return
        if along == "x":
            b.add("box", (u0 + u1) / 2, at, z0, u1 - u0, 0.2, z1 - z0, m)
        else:
            b.add("box", at, (u0 + u1) / 2, z0, 0.2, u1 - u0, z1 - z0, m)

    u = lo
    for u0, u1, z0, z1 in sorted(holes):
        slab(u, u0, 0, h)
        slab(u0, u1, 0, z0)
        slab(u0, u1, z1, h)
        u = u1
        frame = Material((0.93, 0.92, 0.88))
        mid, w, t = (u0 + u1) / 2, u1 - u0, z1 - z0
        x, y, yaw = (mid, at, 0.0) if along == "x" else (at, mid, math.pi / 2)
        with b.object("window", (), x, y, 0, yaw, 0.9):
            for z in (z0 - 0.05, z1 - 0.03, (z0 + z1) / 2):
                b.add("box", 0, 0, z, w + 0.1, 0.26 if z != (z0 + z1) / 2 else 0.06, 0.07, frame)
            for k in (-0.5, 0, 0.5):
                b.add("box", k * w, 0, z0, 0.06, 0.26 if k else 0.06, t, frame)
    slab(u, hi, 0, h)


def room(
    b: Builder,
    *,
    walls: tuple[str, ...],
    floor: Material,
    back: tuple[tuple[float, float, float, float], ...] = (),
    side: tuple[tuple[float, float, float, float], ...] = (),
    half: float | None = None,
    depth: float | None = None,
    h: float = 2.6,
    wall: Material | None = None,
) -> Room:
    """Walls with window holes, light, and where the camera may stand.

    ``back`` and ``side`` list windows as (centre share, width, z0, z1).
    """
    w, d = half or b.u(1.9, 2.5), depth or b.u(3.9, 4.8)
    mood = b.pick(("sun", "sun", "sun", "morning", "grey", "evening", "night"))
    night = mood in ("evening", "night")
    palettes.choose(b, mood)
    fitting = tuple(n for n in walls if n in b.palette or n == "cream")
    name = b.pick(fitting if fitting and b.p(0.6) else walls)
    m = wall or Material(PAINTS[name], o.dim(PAINTS[name], 0.94), "noise", 1.2)
    b.facts.update(wall=name, mood=mood, room=h)
    hb = [((c * w) - s / 2, (c * w) + s / 2, z0, z1) for c, s, z0, z1 in back]
    hs = [((c * d) - s / 2, (c * d) + s / 2, z0, z1) for c, s, z0, z1 in side]
    _wall(b, "x", d + 0.1, -w - 0.2, w + 0.2, h, m, hb)
    _wall(b, "y", -w - 0.1, -0.6, d, h, m, hs)
    _wall(b, "y", w + 0.1, -0.6, d, h, m, [])
    _wall(b, "x", -0.7, -w - 0.2, w + 0.2, h, m, [])
    b.add("box", 0, d / 2, -0.2, 2 * w + 0.6, d + 1.8, 0.2, floor)
    b.add("box", 0, d / 2, h, 2 * w + 0.6, d + 1.8, 0.2, Material((0.93, 0.92, 0.89)))
    for x in (-w, w):
        b.add("box", x, d / 2, 0, 0.03, d + 1, 0.12, Material((0.9, 0.88, 0.84)))
    b.add("box", 0, d, 0, 2 * w, 0.03, 0.12, Material((0.9, 0.88, 0.84)))
    lawn = Material((0.33, 0.5, 0.2), (0.42, 0.58, 0.24), "noise", 1.0)
    b.add("plane", 0, 0, -0.4, 400, 400, 1, lawn)
    for _ in range(5):
        tree(b, b.u(-8, 8), d + b.u(5, 12), b.u(2.5, 4.5), -0.4)
        tree(b, -w - b.u(5, 11), b.u(0, d + 4), b.u(2.5, 4.5), -0.4)
    light = b.light
    light.occlusion_radius = 1.1
    light.horizon, light.zenith = (0.85, 1.0, 1.15), (0.3, 0.55, 1.0)
    light.ambient_up, light.ambient_down, light.exposure = (0.42, 0.43, 0.46), (0.36, 0.32, 0.28), 1.0
    az, el = b.u(215, 300) if side else b.u(150, 210), b.u(22, 42)
    if back and not side:
        az = b.u(150, 210)
    b.sun_from(az, el)
    light.sun = (4.6, 3.9, 2.9)
    if mood == "morning":
        light.sun, light.ambient_up = (4.8, 3.3, 1.9), (0.44, 0.40, 0.38)
        light.horizon, light.zenith = (1.3, 0.95, 0.7), (0.45, 0.6, 0.95)
        b.sun_from(az, b.u(12, 22))
    elif mood == "grey":
        light.sun, light.clouds = (0.0, 0.0, 0.0), 0.9
        light.ambient_up, light.ambient_down = (0.55, 0.58, 0.62), (0.42, 0.42, 0.42)
        light.horizon, light.zenith = (1.0, 1.05, 1.1), (0.8, 0.85, 0.95)
    elif night:
        light.sun = (0.0, 0.0, 0.0)
        light.ambient_up, light.ambient_down = (0.15, 0.14, 0.17), (0.12, 0.1, 0.1)
        late = mood == "night"
        light.horizon = (0.05, 0.07, 0.16) if late else (0.75, 0.38, 0.28)
        light.zenith = (0.01, 0.015, 0.05) if late else (0.12, 0.13, 0.34)
        light.stars, light.clouds, light.exposure = late, 0.2, 1.15
    if not night:
        for c, s, _z0, z1 in back:
            b.lamp(c * w, d - 0.3, z1 - 0.3, (0.5, 0.55, 0.65), 1.2 + s / 2)
        for c, s, _z0, z1 in side:
            b.lamp(-w + 0.3, c * d, z1 - 0.3, (0.8, 0.85, 0.95), 1.2 + s / 2)
    b.facts["lit"] = night
    sides = b.p(0.5)
    for c, s, z0, z1 in back if b.p(0.4) else ():
        things.curtain(b, c * w, d - 0.07, 0, s, z0 - (0.1 if z0 > 0.8 else 0.5), z1)
    for c, s, z0, z1 in side if sides else ():
        things.curtain(b, -w + 0.07, c * d, LEFT, s, z0 - 0.1, z1)
    b.stage = Stage(
        stand=(-w + 0.35, w - 0.35, -0.45, 0.3 * d),
        floor=(-w + 0.45, w - 0.45, 0.28 * d, 0.85 * d),
        aims=((0, 0.8 * d, 0.85, 0.35 * w), (-0.5 * w, 0.75 * d, 0.85, 0.3), (0.5 * w, 0.75 * d, 0.85, 0.3)),
        low=0.75,
        high=min(2.1, h - 0.55),
    )
    return Room(w, d, h, night)


def _door(b: Builder, r: Room) -> None:
    """A door in the wall on the right, or in the back wall where it is free."""
    look = b.colour(("wooden", "wooden", "white", "blue", "green", "red"))
    spots = [(r.x - 0.03, b.u(0.14, 0.9) * r.y, RIGHT) for _ in range(3)]
    spots += [(b.u(-0.8, 0.8) * r.x, r.y - 0.03, 0.0) for _ in range(3)]
    b.rng.shuffle(spots)
    for x, y, yaw in spots:
        if b.place_free(
            lambda x=x, y=y, yaw=yaw: o.door(b, x, y - (0.12 if yaw == 0 else 0), yaw, look), -0.1
        ):  # type: ignore[misc]
            return


def _on_walls(b: Builder, r: Room) -> None:
    """A door, and now and then a clock, a picture or a radiator where the walls are free."""
    if b.p(0.6):
        _door(b, r)
    if b.p(0.25 + 0.35 * b.clutter):
        x = b.u(-0.8, 0.8) * r.x
        if b.p(0.4):
            b.place_free(lambda: things.clock(b, x, r.y - 0.1, 1.6, 0))
        else:
            b.place_free(lambda: o.picture(b, x, r.y - 0.1, 1.35, 0, b.u(0.5, 0.9), b.u(0.4, 0.6)))
    if b.p(0.3):
        y = b.u(0.3, 0.8) * r.y
        b.place_free(lambda: things.radiator(b, r.x - 0.14, y, RIGHT))


def kitchen(b: Builder) -> None:
    tiles = Material(
        (0.82, 0.78, 0.7), b.pick(((0.55, 0.5, 0.44), (0.3, 0.36, 0.4), (0.62, 0.34, 0.25))), "checker", 0.4
    )
    if b.p(0.35):
        tiles = Material(
            b.pick(((0.72, 0.4, 0.27), (0.78, 0.74, 0.66), (0.5, 0.56, 0.58))),
            (0.85, 0.82, 0.76),
            "tiles",
            0.45,
        )
    floor = b.pick((tiles, o.wood("light", "planks", 0.16), tiles))
    wc = b.u(-0.1, 0.15)
    r = room(
        b,
        walls=("cream", "white", "yellow", "green", "blue"),
        floor=floor,
        back=((wc, b.u(1.0, 1.4), 1.15, 2.1),),
        side=((0.55, 1.3, 0.9, 2.1),) if b.p(0.6) else (),
    )
    look = b.colour(("wooden", "wooden", "wooden", "white", "blue", "green", "red"))
    top = b.pick((
        Material((0.25, 0.25, 0.27), shininess=0.3), o.wood("warm"),
        Material((0.9, 0.89, 0.87), (0.5, 0.5, 0.52), "marble", 0.5, shininess=0.4),
    ))  # fmt: skip
    b.add(
        "box",
        0,
        r.y - 0.01,
        0.9,
        2 * r.x,
        0.04,
        0.62,
        Material((0.93, 0.92, 0.9), (0.75, 0.75, 0.74), "tiles", 0.16),
    )
    o.fridge(b, r.x - 0.45, r.y - 0.36, 0, b.pick(("white", "metal", "red", "blue", "metal")))
    o.stove(b, -r.x + 1.05, r.y - 0.34, 0, b.pick(("black", "white", "metal")))
    left, right = -r.x + 1.38, r.x - 0.88
    o.cabinet_row(b, (left + right) / 2, r.y - 0.32, 0, right - left, look, top)
    o.cabinet_row(b, -r.x + 0.36, r.y - 0.34, 0, 0.7, look, top)
    o.cabinet_row(b, -r.x + 0.75, r.y - 0.18, 0, 1.3, look, top, h=0.65, z=1.55, d=0.34)
    if b.p(0.6):
        o.cabinet_row(b, r.x - 1.0, r.y - 0.18, 0, 0.7, look, top, h=0.65, z=1.55, d=0.34)
    o.sink(b, wc * r.x + 0.1, r.y - 0.36)
    if b.p(0.75):
        tx, ty = b.u(-0.2, 0.6), r.y * b.u(0.46, 0.55)
        o.table(b, tx, ty, b.u(1.0, 1.4), 0.75, kind=b.pick(("light", "warm", "dark", "marble")))
        c = b.colour(("brown", "white", "red", "blue", "yellow", "green"))
        for s, yaw in ((-0.35, 0.1), (0.35, -0.1)):
            o.chair(b, tx + s, ty + 0.55, yaw, c)
        if b.p(0.5 + 0.5 * b.clutter):
            o.chair(b, tx + 1.0, ty, -math.pi / 2, c)
    elif b.p(0.7):
        for i in range(2):
            things.stool(b, b.u(-0.4, 0.4) * r.x + 0.6 * i, r.y * b.u(0.55, 0.68))
    o.ceiling_lamp(b, 0.1, r.y * 0.52, r.h, r.night, b.colour(o.BRIGHT))
    _on_walls(b, r)


def living_room(b: Builder) -> None:
    floor = o.wood(b.pick(("light", "warm", "dark")), "planks", 0.16)
    big = b.p(0.5)
    r = room(b, walls=("white", "cream", "green", "blue", "grey", "teal", "orange"), floor=floor,
             back=((-0.45, 1.3, 0.7, 2.2),) if big else (), side=((0.6, 1.7, 0.5, 2.2),))  # fmt: skip
    c = b.colour(o.SOFT)
    o.rug(b, 0, r.y * 0.62, b.u(1.8, 2.4), b.u(1.3, 1.7), b.colour(o.SOFT), b.p(0.3))
    o.sofa(b, b.u(-0.2, 0.3), r.y - 0.5, 0, c)
    o.table(b, 0, r.y * 0.62, 1.0, 0.55, 0.4, b.pick(("light", "warm", "dark", "marble")))
    if b.p(0.6):
        o.sofa(b, -r.x + 0.65, r.y * 0.55, LEFT - 0.4, b.colour(o.SOFT), 0.95)
    wall = b.pick(("shelf", "shelf", "shelf", "piano", "television", "free"))
    if wall == "shelf":
        o.bookshelf(b, r.x - 0.2, r.y * 0.62, RIGHT, 1.3, b.u(1.5, 2.1))
    elif wall == "piano":
        things.piano(b, r.x - 0.4, r.y * 0.6, RIGHT)
    elif wall == "television":
        o.cabinet_row(
            b, r.x - 0.3, r.y * 0.6, RIGHT, 1.4, b.colour(("wooden", "white")), o.wood("warm"), 0.45, 0, 0.45
        )
        with b.on(b.last("cabinet")):
            o.television(b, r.x - 0.3, r.y * 0.6, 0.5, RIGHT)
        b.surfaces.pop()
    o.floor_lamp(b, r.x - 0.4, r.y - 0.4, r.night, b.colour(o.SOFT))
    if not big:
        o.picture(b, 0.2, r.y - 0.04, 1.35, 0, b.u(0.7, 1.1), b.u(0.5, 0.7))
    o.plant(b, -r.x + 0.4, r.y - 0.4, 0, b.u(0.9, 1.4))
    _on_walls(b, r)


def bedroom(b: Builder) -> None:
    floor = o.wood(b.pick(("light", "warm")), "planks", 0.16)
    r = room(b, walls=("white", "blue", "pink", "green", "cream", "yellow", "grey"), floor=floor,
             side=((0.6, 1.5, 0.85, 2.15),), back=((0.62, 1.0, 0.9, 2.1),) if b.p(0.3) else ())  # fmt: skip
    x = b.u(-0.35, 0.15)
    o.rug(b, x + 0.5, r.y - 2.3, 2.2, 1.3, b.colour(o.SOFT))
    o.bed(b, x, r.y - 1.15, 0, b.colour(o.SOFT), b.u(1.35, 1.7))
    for s in (-1, 1):
        o.nightstand(b, x + s * 1.15, r.y - 0.3)
        if s == 1 or b.p(0.5):
            b.surfaces.pop()
            with b.on(b.last("nightstand")):
                o.table_lamp(b, x + s * 1.15, r.y - 0.3, 0.52, r.night, b.colour(o.SOFT))
    if b.p(0.7):
        o.picture(b, x, r.y - 0.04, 1.4, 0, 0.9, 0.55)
    if b.p(0.7):
        o.wardrobe(b, r.x - 0.32, r.y * 0.5, RIGHT)
    else:
        o.plant(b, r.x - 0.4, r.y * 0.6, 0, 1.2)
    _on_walls(b, r)


def bathroom(b: Builder) -> None:
    tile = b.pick((((0.92, 0.93, 0.93), (0.6, 0.72, 0.78)), ((0.93, 0.93, 0.9), (0.25, 0.27, 0.3)),
                   ((0.9, 0.93, 0.9), (0.5, 0.68, 0.58))))  # fmt: skip
    r = room(
        b,
        walls=("white", "teal", "blue", "pink"),
        floor=Material(*tile, "checker", 0.35)
        if b.p(0.6)
        else Material((0.9, 0.89, 0.87), (0.74, 0.74, 0.76), "marble", 1.3, shininess=0.3),
        half=b.u(1.6, 2.0),
        depth=b.u(3.2, 3.8),
        side=((0.55, 0.9, 1.2, 2.1),),
        back=((0.0, 0.9, 1.25, 2.1),) if b.p(0.5) else (),
    )
    w = b.pick((
        Material(o.dim(tile[0], 0.97), o.dim(tile[1], 1.1), "checker", 0.22),
        Material(o.dim(tile[1], 1.15), (0.93, 0.93, 0.91), "tiles", 0.22),
    ))  # fmt: skip
    b.add("box", 0, r.y - 0.02, 0, 2 * r.x, 0.06, 1.15, w)
    for s in (-1, 1):
        b.add("box", s * (r.x - 0.01), r.y / 2, 0, 0.06, r.y + 1, 1.15, w)
    o.bathtub(b, -r.x + 0.95, r.y - 0.45, 0, b.pick(("white", "white", "blue", "pink", "green")))
    o.washbasin(b, r.x - 0.32, r.y * 0.55, RIGHT)
    o.toilet(b, r.x - 0.4, r.y - 0.38, 0)
    o.rug(b, -0.2, r.y * 0.58, 1.1, 0.7, b.colour(o.BRIGHT), b.p(0.4))
    if b.p(0.4):
        things.washing_machine(b, -r.x + 0.36, r.y * 0.45, LEFT)
    else:
        o.plant(b, -r.x + 0.3, r.y * 0.45, 0, 0.9)
    if b.p(0.5):
        things.basket(b, r.x - 0.35, r.y * 0.32)
    o.ceiling_lamp(b, 0, r.y * 0.6, r.h, r.night, "white")
    _on_walls(b, r)


def office(b: Builder) -> None:
    floor = b.pick(
        (Material((0.36, 0.4, 0.46), (0.42, 0.46, 0.52), "noise", 0.4), o.wood("warm", "planks", 0.16))
    )
    r = room(
        b,
        walls=("white", "grey", "blue", "cream", "green"),
        floor=floor,
        back=((-0.15, 2.0, 0.95, 2.2),),
        side=((0.55, 1.4, 0.95, 2.2),) if b.p(0.5) else (),
    )
    x = b.u(-0.4, 0.1)
    y = r.y * 0.66
    o.table(b, x, y, 1.7, 0.8, 0.74, b.pick(("light", "warm", "dark")), name="desk")
    b.surfaces.pop()
    with b.on(b.last("desk")):
        o.computer(b, x - 0.1, y + 0.15, 0.74)
        o.table_lamp(b, x + 0.62, y + 0.1, 0.74, r.night, b.colour(o.BRIGHT))
        if b.p(0.3 + 0.5 * b.clutter):
            b.pick((things.mug, things.books))(b, x - 0.66, y - 0.05, 0.74)
    o.office_chair(b, x + b.u(-0.1, 0.4), y - 0.6, math.pi + b.u(-0.5, 0.5), b.colour(o.BRIGHT))
    o.bookshelf(b, r.x - 0.2, r.y * 0.6, RIGHT, 1.5, b.u(1.6, 2.1), b.pick(("light", "warm", "dark")))
    if b.p(0.6):
        o.plant(b, -r.x + 0.4, r.y - 0.5, 0, 1.4)
    if b.p(0.4):
        o.cabinet_row(
            b,
            -r.x + 0.3,
            r.y * 0.42,
            LEFT,
            1.0,
            b.colour(("wooden", "white", "grey", "blue")),
            o.wood("light"),
            0.8,
            0,
            0.5,
        )
    o.ceiling_lamp(b, 0, r.y * 0.55, r.h, r.night, "white")
    _on_walls(b, r)


def library(b: Builder) -> None:
    floor = o.wood(b.pick(("warm", "dark")), "planks", 0.16)
    r = room(
        b,
        walls=("cream", "green", "white"),
        floor=floor,
        h=3.2,
        depth=b.u(5, 6.5),
        back=((0, 1.2, 0.9, 2.7),),
        half=b.u(1.9, 2.4),
    )
    kind = b.pick(("warm", "dark"))
    n = 3
    for i in range(n):
        y = r.y - 0.9 - i * 1.55
        for s, yaw in ((-1, LEFT), (1, RIGHT)):
            o.bookshelf(b, s * (r.x - 0.2), y, yaw, 1.5, 2.5, kind)
    for s in (-1, 1):
        if r.x > 2.0 or s > 0:
            o.bookshelf(b, s * (r.x - 0.85), r.y - 0.22, 0, 0.85, 2.5, kind)
    o.rug(b, 0, r.y * 0.6, 1.4, 2.4, b.colour(("red", "green", "blue", "purple")))
    if b.p(0.6):
        o.table(b, 0, r.y * 0.62, 1.3, 0.7, 0.74, kind)
        b.surfaces.pop()
        with b.on(b.last("table")):
            o.table_lamp(b, 0.35, r.y * 0.62, 0.74, r.night, b.colour(("green", "red", "yellow")))
            if b.p(0.3 + 0.6 * b.clutter):
                things.books(b, -0.3, r.y * 0.62, 0.74, b.u(-0.4, 0.4))
        o.chair(b, -0.25, r.y * 0.62 + 0.55, 0, b.colour(("brown", "red", "green")))
    else:
        o.sofa(b, 0, r.y - 1.3, 0, b.colour(o.SOFT), 0.95)
    o.ceiling_lamp(b, 0, r.y * 0.5, r.h, r.night, "white")
