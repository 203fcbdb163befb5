"""Things made of primitives. Each function places one thing; names and colours become captions."""

from __future__ import annotations

import math

from modality_forcing.data.lowpoly.scene import Builder, Material, Vec3

COLOURS: dict[str, Vec3] = {
    "red": (0.82, 0.13, 0.11), "orange": (0.93, 0.48, 0.10), "yellow": (0.95, 0.80, 0.16),
    "green": (0.20, 0.60, 0.22), "teal": (0.10, 0.58, 0.58), "blue": (0.14, 0.32, 0.80),
    "purple": (0.48, 0.20, 0.66), "pink": (0.93, 0.50, 0.63), "white": (0.92, 0.91, 0.88),
    "black": (0.09, 0.09, 0.10), "grey": (0.50, 0.51, 0.53), "brown": (0.42, 0.25, 0.13),
    "beige": (0.82, 0.72, 0.55),
}  # fmt: skip
BRIGHT = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black")
SOFT = ("red", "blue", "green", "grey", "beige", "teal", "orange", "purple", "pink", "yellow", "white")
TOYS = ("ball", "box", "cone", "cylinder", "pyramid")

WOODS = {"light": ((0.77, 0.60, 0.42), (0.67, 0.49, 0.32)), "warm": ((0.60, 0.41, 0.26), (0.48, 0.31, 0.19)),
         "dark": ((0.36, 0.21, 0.12), (0.26, 0.14, 0.08))}  # fmt: skip


def wood(kind: str = "warm", pattern: str = "wood", scale: float = 0.6) -> Material:
    """Wood of a light, warm or dark tone."""
    return Material(*WOODS[kind], pattern, scale)


def paint(name: str, shininess: float = 0.1) -> Material:
    """Plain named colour."""
    return Material(COLOURS[name], shininess=shininess)


def dim(colour: Vec3, factor: float) -> Vec3:
    """The colour, darker or lighter."""
    return tuple(min(1.0, c * factor) for c in colour)  # type: ignore[return-value]


WHITE, BLACK, GREY = paint("white"), paint("black", 0.3), paint("grey")
METAL = Material((0.62, 0.64, 0.67), shininess=0.8)
STONE = Material((0.58, 0.56, 0.53), (0.45, 0.43, 0.41), "noise", 0.5)
BARK = Material((0.36, 0.24, 0.15), (0.26, 0.17, 0.1), "noise", 0.3)


def toy(
    b: Builder, x: float, y: float, z: float, size: float, kind: str | None = None, colour: str | None = None
) -> None:
    """A simple solid in a bright colour."""
    kind, colour = kind or b.pick(TOYS), colour or b.colour(BRIGHT)
    shape = {"ball": "sphere"}.get(kind, kind)
    tall = {"cylinder": 1.3, "cone": 1.35}.get(kind, 1.0)
    with b.object(kind, (colour,), x, y, z, b.u(0, 1.5), weight=2.2):
        b.add(shape, 0, 0, 0, size, size, size * tall, paint(colour, 0.35))


def table(
    b: Builder,
    x: float,
    y: float,
    w: float = 1.4,
    d: float = 0.8,
    h: float = 0.74,
    kind: str = "warm",
    yaw: float = 0.0,
    name: str = "table",
) -> None:
    m = wood("light" if kind == "marble" else kind)
    if kind == "marble":
        m = Material((0.93, 0.92, 0.9), (0.45, 0.47, 0.5), "marble", 0.4, shininess=0.5)
    with b.object(name, ("marble" if kind == "marble" else "wooden",), x, y, 0, yaw):
        b.add("box", 0, 0, h - 0.06, w, d, 0.06, m)
        for i in (-1, 1):
            for j in (-1, 1):
                b.add("box", i * (w / 2 - 0.08), j * (d / 2 - 0.08), 0, 0.08, 0.08, h - 0.06, m)
        b.top(h, w - 0.25, d - 0.25)


def chair(b: Builder, x: float, y: float, yaw: float = 0.0, colour: str = "brown") -> None:
    m = wood("warm") if colour == "brown" else paint(colour)
    with b.object("chair", ("wooden",) if colour == "brown" else (colour,), x, y, 0, yaw):
        b.add("box", 0, 0, 0.42, 0.44, 0.44, 0.06, m)
        b.add("box", 0, 0.2, 0.48, 0.44, 0.05, 0.5, m)
        for i in (-1, 1):
            for j in (-1, 1):
                b.add("box", i * 0.18, j * 0.18, 0, 0.05, 0.05, 0.42, m)


def office_chair(b: Builder, x: float, y: float, yaw: float = 0.0, colour: str = "black") -> None:
    m = paint(colour)
    with b.object("chair", (colour,), x, y, 0, yaw):
        b.add("cylinder", 0, 0, 0, 0.55, 0.55, 0.06, BLACK)
        b.add("cylinder", 0, 0, 0.06, 0.07, 0.07, 0.4, METAL)
        b.add("box", 0, 0, 0.44, 0.5, 0.5, 0.1, m)
        b.add("box", 0, 0.24, 0.56, 0.46, 0.08, 0.6, m, tilt=-0.1)


def sofa(b: Builder, x: float, y: float, yaw: float = 0.0, colour: str = "blue", w: float = 2.0) -> None:
    m, cushion = paint(colour), Material(dim(COLOURS[colour], 1.15))
    with b.object("sofa" if w > 1.2 else "armchair", (colour,), x, y, 0, yaw, 1.4):
        b.add("box", 0, 0, 0.06, w, 0.85, 0.3, m)
        b.add("box", 0, 0.35, 0.3, w, 0.22, 0.52, m)
        for i in (-1, 1):
            b.add("box", i * (w / 2 - 0.1), 0, 0.1, 0.22, 0.87, 0.5, m)
        n = max(1, round(w / 0.8))
        for i in range(n):
            b.add("box", (i - (n - 1) / 2) * (w - 0.45) / n, -0.06, 0.36, (w - 0.5) / n, 0.68, 0.14, cushion)
    if b.p(0.6) and w > 1.2:
        c = b.colour(BRIGHT)
        m, looks = (paint(c), (c,)) if b.p(0.6) else (
            Material(COLOURS[c], (0.94, 0.92, 0.87) if c != "white" else COLOURS["grey"], "stripes", 0.1),
            (c, "striped"),
        )  # fmt: skip
        with b.on(b.last("sofa")), b.object("cushion", looks, x, y, 0, yaw):
            b.add("box", b.pick((-1, 1)) * w * 0.28, 0.1, 0.5, 0.42, 0.14, 0.4, m, tilt=-0.3)


def bed(b: Builder, x: float, y: float, yaw: float = 0.0, colour: str = "blue", w: float = 1.6) -> None:
    with b.object("bed", (colour,), x, y, 0, yaw, 1.6):
        b.add("box", 0, 0, 0.05, w + 0.1, 2.1, 0.28, wood("warm"))
        b.add("box", 0, 1.05, 0.05, w + 0.16, 0.1, 1.05, wood("warm"))
        b.add("box", 0, 0, 0.33, w, 2.0, 0.2, WHITE)
        b.add("box", 0, -0.3, 0.4, w + 0.06, 1.46, 0.18, paint(colour))
        for i in (-1, 1):
            b.add("box", i * w * 0.24, 0.72, 0.5, w * 0.4, 0.42, 0.16, WHITE, tilt=0.25)


def floor_lamp(b: Builder, x: float, y: float, on: bool = False, colour: str = "white") -> None:
    shade = Material((1.0, 0.85, 0.6), emission=2.2) if on else paint(colour)
    with b.object("floor lamp", () if on else (colour,), x, y):
        b.add("cylinder", 0, 0, 0, 0.34, 0.34, 0.04, BLACK)
        b.add("cylinder", 0, 0, 0, 0.04, 0.04, 1.45, BLACK)
        b.add("shade", 0, 0, 1.35, 0.46, 0.46, 0.34, shade)
    if on:
        b.lamp(x, y, 1.3, (2.4, 1.5, 0.75), 1.5)


def table_lamp(b: Builder, x: float, y: float, z: float, on: bool = False, colour: str = "red") -> None:
    shade = Material((1.0, 0.85, 0.6), emission=2.2) if on else paint(colour)
    with b.object("lamp", () if on else (colour,), x, y, z):
        b.add("vase", 0, 0, 0, 0.14, 0.14, 0.24, paint(colour))
        b.add("shade", 0, 0, 0.22, 0.32, 0.32, 0.24, shade)
    if on:
        b.lamp(x, y - 0.1, z + 0.45, (1.7, 1.05, 0.5), 1.2)


def ceiling_lamp(b: Builder, x: float, y: float, top: float, on: bool = False, colour: str = "white") -> None:
    with b.object("hanging lamp", () if on else (colour,), x, y, top - 0.75):
        b.add("cylinder", 0, 0, 0.2, 0.03, 0.03, 0.6, BLACK)
        b.add(
            "shade",
            0,
            0,
            0,
            0.5,
            0.5,
            0.25,
            Material((1.0, 0.88, 0.66), emission=1.8) if on else paint(colour),
        )
    if on:
        b.lamp(x, y, top - 0.85, (3.0, 2.1, 1.25), 2.0, shadow=True)


def bookshelf(
    b: Builder, x: float, y: float, yaw: float = 0.0, w: float = 1.2, h: float = 2.0, kind: str = "warm"
) -> None:
    m = wood(kind)
    hue = b.pick((((0.7, 0.2, 0.15), (0.15, 0.3, 0.5)), ((0.75, 0.55, 0.2), (0.2, 0.4, 0.35)),
                  ((0.55, 0.15, 0.2), (0.8, 0.7, 0.5))))  # fmt: skip
    rows = max(2, round(h / 0.42))
    step = (h - 0.1) / rows
    with b.object("bookshelf", ("wooden",), x, y, 0, yaw, 1.3):
        b.add("box", 0, 0.14, 0, w, 0.04, h, m)
        for i in (-1, 1):
            b.add("box", i * (w / 2 - 0.02), 0, 0, 0.05, 0.32, h, m)
        for r in range(rows + 1):
            b.add("box", 0, 0, r * step + 0.03, w, 0.32, 0.045, m)
            if r < rows:
                full = (w - 0.12) * b.u(0.6, 1.0)
                left = -(w - 0.12) / 2 + full / 2 if b.p(0.5) else (w - 0.12) / 2 - full / 2
                b.add("box", left, 0.02, r * step + 0.07, full, 0.2, step * b.u(0.62, 0.82),
                      Material(*hue, "books", 0.055))  # fmt: skip


def cabinet_row(
    b: Builder,
    x: float,
    y: float,
    yaw: float,
    w: float,
    look: str,
    top: Material,
    h: float = 0.88,
    z: float = 0.0,
    d: float = 0.58,
) -> None:
    m = wood("light") if look == "wooden" else paint(look)
    knob = Material((0.2, 0.18, 0.16))
    with b.object("cabinet", (look,), x, y, z, yaw, 0.9):
        b.add("box", 0, 0.02, 0.06 if z == 0 else 0, w, d - 0.04, h - 0.06, m)
        n = max(1, round(w / 0.55))
        for i in range(n):
            cx = (i - (n - 1) / 2) * w / n
            b.add(
                "box",
                cx,
                -d / 2 + 0.01,
                0.12 if z == 0 else 0.04,
                w / n - 0.04,
                0.03,
                h - 0.2 if z == 0 else h - 0.12,
                m,
            )
            b.add("box", cx + w / n * 0.3, -d / 2 - 0.02, h * 0.6 if z == 0 else 0.1, 0.03, 0.03, 0.14, knob)
        if z == 0:
            b.add("box", 0, -0.01, h, w + 0.02, d + 0.04, 0.05, top)
            b.top(h + 0.05, max(w - 0.3, 0.05), d - 0.3, 0, -0.05)


def fridge(b: Builder, x: float, y: float, yaw: float = 0.0, colour: str = "white") -> None:
    m = METAL if colour == "metal" else paint(colour, 0.3)
    with b.object("fridge", (colour,), x, y, 0, yaw, 1.5):
        b.add("box", 0, 0, 0.04, 0.78, 0.66, 1.8, m)
        b.add("box", 0, -0.35, 0.08, 0.74, 0.05, 1.1, m)
        b.add("box", 0, -0.35, 1.22, 0.74, 0.05, 0.58, m)
        for z in (0.8, 1.28):
            b.add("box", -0.3, -0.4, z, 0.04, 0.05, 0.32, Material((0.3, 0.3, 0.32)))


def stove(b: Builder, x: float, y: float, yaw: float = 0.0, colour: str = "black") -> None:
    m = METAL if colour == "metal" else paint(colour, 0.2)
    with b.object("stove", (colour,), x, y, 0, yaw, 1.3):
        b.add("box", 0, 0, 0, 0.62, 0.6, 0.92, m)
        b.add("box", 0, -0.31, 0.2, 0.48, 0.02, 0.36, Material((0.12, 0.1, 0.1), shininess=0.7))
        b.add("box", 0, -0.34, 0.64, 0.5, 0.04, 0.04, METAL)
        for i in (-1, 1):
            for j in (-1, 1):
                b.add("cylinder", i * 0.15, j * 0.14, 0.92, 0.2, 0.2, 0.02, Material((0.05, 0.05, 0.05)))
        for i in range(4):
            b.add("box", (i - 1.5) * 0.12, -0.32, 0.78, 0.05, 0.05, 0.05, GREY)
    if b.p(0.6):
        with b.on(b.last("stove")):
            c, s = math.cos(yaw), math.sin(yaw)
            b.pick((pot, kettle))(b, x + 0.14 * c, y + 0.14 * s, 0.94)


def pot(b: Builder, x: float, y: float, z: float) -> None:
    c = b.colour(("red", "white", "blue", "yellow", "green"))
    with b.object("pot", (c,), x, y, z, 0, 1.2):
        b.add("cylinder", 0, 0, 0, 0.27, 0.27, 0.2, paint(c, 0.4))
        b.add("box", 0, 0, 0.14, 0.4, 0.05, 0.03, BLACK)
        b.add("sphere", 0, 0, 0.19, 0.07, 0.07, 0.07, BLACK)


def kettle(b: Builder, x: float, y: float, z: float) -> None:
    c = b.colour(("red", "white", "blue", "yellow", "green"))
    m = paint(c, 0.4)
    with b.object("kettle", (c,), x, y, z, b.u(-0.5, 0.5), 1.2):
        b.add("shade", 0, 0, 0, 0.26, 0.26, 0.22, m)
        b.add("cone", 0.08, 0, 0.09, 0.08, 0.08, 0.17, m, roll=0.9)
        b.add("ring", 0, 0.015, 0.24, 0.2, 0.2, 0.03, BLACK, tilt=math.pi / 2)


def sink(b: Builder, x: float, y: float, z: float = 0.93, yaw: float = 0.0) -> None:
    with b.on(b.last("cabinet")), b.object("sink", ("metal",), x, y, 0, yaw, 0.8):
        b.add("box", 0, 0, z, 0.52, 0.4, 0.03, METAL)
        b.add("cylinder", 0, 0.16, z, 0.05, 0.05, 0.26, METAL)
        b.add("box", 0, 0.06, z + 0.24, 0.04, 0.2, 0.04, METAL)


def washbasin(b: Builder, x: float, y: float, yaw: float = 0.0) -> None:
    with b.object("sink", ("white",), x, y, 0, yaw, 1.2):
        b.add("cylinder", 0, 0.05, 0, 0.2, 0.2, 0.75, WHITE)
        b.add("bowl", 0, 0, 0.7, 0.6, 0.5, 0.18, WHITE)
        b.add("cylinder", 0, 0.2, 0.86, 0.05, 0.05, 0.18, METAL)
    with b.object("mirror", (), x, y, 0, yaw, 1.0):
        b.add("box", 0, 0.27, 1.2, 0.7, 0.04, 0.8, wood("light"))
        b.add("box", 0, 0.245, 1.25, 0.6, 0.02, 0.7, Material((0.72, 0.82, 0.88), shininess=0.9))


def bathtub(b: Builder, x: float, y: float, yaw: float = 0.0, colour: str = "white") -> None:
    m = paint(colour, 0.3)
    with b.object("bathtub", (colour,), x, y, 0, yaw, 1.6):
        b.add("box", 0, 0, 0.03, 1.6, 0.72, 0.12, m)
        for j in (-1, 1):
            b.add("box", 0, j * 0.33, 0.03, 1.7, 0.08, 0.55, m)
            b.add("box", j * 0.81, 0, 0.03, 0.08, 0.74, 0.55, m)
        b.add("box", 0, 0, 0.36, 1.56, 0.6, 0.04, Material((0.5, 0.75, 0.85), shininess=0.9))
        b.add("cylinder", 0.7, 0.3, 0.55, 0.05, 0.05, 0.22, METAL)


def toilet(b: Builder, x: float, y: float, yaw: float = 0.0) -> None:
    with b.object("toilet", ("white",), x, y, 0, yaw, 1.2):
        b.add("box", 0, 0.22, 0.36, 0.42, 0.2, 0.42, WHITE)
        b.add("bowl", 0, -0.08, 0.05, 0.4, 0.5, 0.36, WHITE)
        b.add("cylinder", 0, -0.08, 0.4, 0.42, 0.52, 0.05, Material((0.86, 0.86, 0.84)))


def rug(b: Builder, x: float, y: float, w: float, d: float, colour: str, round_: bool = False) -> None:
    c = COLOURS[colour]
    look = b.pick(("checked", "striped", "plain", "checked"))
    pattern = {"checked": "checker", "striped": "stripes", "plain": "plain"}[look]
    with b.object("rug", (colour,) if look == "plain" else (colour, look), x, y, 0, 0, 1.1):
        kind = "cylinder" if round_ else "box"
        b.add(kind, 0, 0, 0.0, w, d, 0.015, Material(c))
        b.add(
            kind,
            0,
            0,
            0.005,
            w * 0.82,
            d * 0.82,
            0.015,
            Material(dim(c, 1.25), dim(c, 0.8), pattern, w / 6),
        )


def picture(
    b: Builder, x: float, y: float, z: float, yaw: float = 0.0, w: float = 0.7, h: float = 0.55
) -> None:
    with b.object("picture", (), x, y, z, yaw, 0.7):
        sky_, land = (
            b.pick(("blue", "orange", "teal", "yellow", "pink")),
            b.pick(("green", "brown", "purple", "blue")),
        )
        b.add("box", 0, 0, 0, w + 0.1, 0.05, h + 0.1, wood(b.pick(("light", "dark"))))
        b.add("box", 0, -0.02, 0.05 + h * 0.4, w, 0.03, h * 0.6, paint(sky_))
        b.add("box", 0, -0.02, 0.05, w, 0.03, h * 0.42, paint(land))
        b.add(
            "cylinder", w * 0.2, -0.02, h * 0.7, h * 0.25, h * 0.25, 0.02, paint("yellow"), tilt=math.pi / 2
        )


def plant(b: Builder, x: float, y: float, z: float = 0.0, s: float = 1.0) -> None:
    pot = b.pick(("orange", "white", "brown", "blue"))
    g = b.u(0.85, 1.15)
    with b.object("plant", ("green",), x, y, z, b.u(0, 6), 1.1):
        b.add("vase" if b.p(0.3) else "bowl", 0, 0, 0, 0.36 * s, 0.36 * s, 0.32 * s, paint(pot))
        m = Material((0.16 * g, 0.46 * g, 0.16), (0.3, 0.58, 0.2), "leaves", 0.2 * s)
        for i in range(6):
            a = i * 1.05
            b.add(
                "leaf1",
                0.08 * s * math.cos(a),
                0.08 * s * math.sin(a),
                0.28 * s,
                0.13 * s,
                0.2 * s,
                0.75 * s,
                m,
                yaw=a + math.pi / 2,
                tilt=0.55,
            )
        b.add("leaf0", 0, 0, 0.3 * s, 0.18 * s, 0.18 * s, 0.8 * s, m)


def vase(b: Builder, x: float, y: float, z: float, colour: str | None = None, s: float = 0.34) -> None:
    c = colour or b.colour(BRIGHT)
    with b.object("vase", (c,), x, y, z, 0, 1.5):
        b.add("vase", 0, 0, 0, s * 0.55, s * 0.55, s, paint(c, 0.5))
        if b.p(0.5):
            f, k = b.colour(("red", "yellow", "pink", "white", "purple")), s / 0.34
            for i in range(4):
                u, v = math.cos(i * 1.6), math.sin(i * 1.6)
                b.add("leaf0", 0.07 * k * u, 0.07 * k * v, s * 1.1, 0.13 * k, 0.13 * k, 0.13 * k, paint(f))
                b.add("cylinder", 0.04 * k * u, 0.04 * k * v, s * 0.8, 0.02, 0.02, s * 0.45, paint("green"))


def nightstand(b: Builder, x: float, y: float, yaw: float = 0.0) -> None:
    with b.object("nightstand", ("wooden",), x, y, 0, yaw):
        b.add("box", 0, 0, 0, 0.45, 0.42, 0.52, wood("warm"))
        b.add("box", 0, -0.215, 0.28, 0.36, 0.02, 0.18, wood("light"))
        b.top(0.52, 0.2, 0.2)


def wardrobe(b: Builder, x: float, y: float, yaw: float = 0.0) -> None:
    look = b.colour(("wooden", "wooden", "white", "green"))
    m = wood("warm") if look == "wooden" else paint(look)
    with b.object("wardrobe", (look,), x, y, 0, yaw, 1.2):
        b.add("box", 0, 0, 0, 1.3, 0.58, 2.05, m)
        for i in (-1, 1):
            b.add("box", i * 0.32, -0.3, 0.1, 0.58, 0.03, 1.85, m)
            b.add("box", i * 0.06, -0.33, 1.0, 0.03, 0.03, 0.2, BLACK)


def door(b: Builder, x: float, y: float, yaw: float = 0.0, look: str = "wooden", h: float = 2.0) -> None:
    m = wood("warm") if look == "wooden" else paint(look)
    with b.object("door", (look,), x, y, 0, yaw, 1.0):
        b.add("box", 0, 0, 0, 1.06, 0.08, h + 0.08, WHITE)
        b.add("box", 0, -0.03, 0, 0.9, 0.08, h, m)
        for z in (0.2, 1.1):
            b.add("box", 0, -0.06, z, 0.6, 0.05, 0.65, m)
        b.add("sphere", 0.36, -0.1, 0.95, 0.08, 0.08, 0.08, Material((0.85, 0.7, 0.3), shininess=0.6))


def computer(b: Builder, x: float, y: float, z: float, yaw: float = 0.0) -> None:
    with b.object("computer", (), x, y, z, yaw, 1.3):
        b.add("box", 0, 0, 0.12, 0.66, 0.04, 0.42, BLACK)
        b.add("box", 0, -0.025, 0.15, 0.6, 0.01, 0.36, Material((0.35, 0.6, 0.95), emission=0.7))
        b.add("box", 0, 0.02, 0, 0.08, 0.06, 0.14, BLACK)
        b.add("box", 0, 0, 0, 0.28, 0.18, 0.02, BLACK)
        b.add("box", 0, -0.3, 0, 0.44, 0.15, 0.03, Material((0.2, 0.2, 0.22)))


def television(b: Builder, x: float, y: float, z: float, yaw: float = 0.0) -> None:
    with b.object("television", (), x, y, z, yaw, 1.2):
        b.add("box", 0, 0, 0.05, 1.2, 0.06, 0.7, BLACK)
        b.add("box", 0, -0.035, 0.09, 1.12, 0.01, 0.62, Material((0.05, 0.06, 0.09), shininess=0.9))
        b.add("box", 0, 0, 0, 0.5, 0.2, 0.05, BLACK)
