"""What a scene is made of, and the builder the scene grammar writes with.

World frame: x right, y away from the camera's usual place, z up, metres. A primitive stands on the
middle of its bottom face: unit shapes span x, y in [-0.5, 0.5] and z in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
Vec3 = tuple[float, float, float]

PATTERNS = (
    "plain", "wood", "planks", "checker", "bricks", "noise", "facade", "snow", "water", "books", "leaves",
    "tiles", "stripes", "marble",
)  # fmt: skip

COLOUR_NAMES = (
    "red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "white", "black", "grey",
    "brown", "beige",
)  # fmt: skip
MATERIAL_NAMES = ("wooden", "metal", "stone", "brick", "marble", "tiled", "striped", "checked", "wicker")


@dataclass(frozen=True)
class Material:
    """Surface look: two sRGB colours (0..1), a procedural pattern and its size in metres."""

    colour: Vec3
    second: Vec3 = (0.0, 0.0, 0.0)
    pattern: str = "plain"
    scale: float = 1.0
    emission: float = 0.0
    shininess: float = 0.0


@dataclass(frozen=True)
class Primitive:
    """One unit shape with its placement; ``object_id`` 0 is background."""

    kind: str
    position: Vec3
    size: Vec3
    material: Material
    yaw: float = 0.0
    tilt: float = 0.0
    roll: float = 0.0
    object_id: int = 0


@dataclass(frozen=True)
class PointLight:
    """A lamp: linear RGB power and the distance at which it has fallen to a half."""

    position: Vec3
    colour: Vec3
    reach: float = 2.0
    shadow: bool = False


@dataclass
class Light:
    """Sun, sky, fog and lamps; colours are linear RGB."""

    name: str = "day"
    sun_direction: Vec3 = (0.4, -0.5, 0.75)
    sun: Vec3 = (2.6, 2.3, 1.9)
    ambient_up: Vec3 = (0.55, 0.7, 0.95)
    ambient_down: Vec3 = (0.3, 0.27, 0.22)
    zenith: Vec3 = (0.13, 0.33, 0.8)
    horizon: Vec3 = (0.65, 0.8, 1.0)
    clouds: float = 0.4
    stars: bool = False
    fog: float = 0.0
    exposure: float = 0.8
    lamps: list[PointLight] = field(default_factory=list)
    occlusion_radius: float = 1.5


@dataclass
class View:
    """Camera pose: yaw 0 looks along +y and grows counter-clockwise, positive pitch looks down (radians)."""

    position: Vec3 = (0.0, 0.0, 1.6)
    yaw: float = 0.0
    pitch: float = 0.1
    roll: float = 0.0
    fov_x: float = 65.0

    def axes(self) -> np.ndarray:
        """Rows: the camera's right, down and forward axis in the world, float64 (3, 3)."""
        cy, sy, cp, sp = math.cos(self.yaw), math.sin(self.yaw), math.cos(self.pitch), math.sin(self.pitch)
        forward = np.array([-sy * cp, cy * cp, -sp])
        right = np.array([cy, sy, 0.0])
        down = np.cross(forward, right)
        c, s = math.cos(self.roll), math.sin(self.roll)
        return np.stack([c * right + s * down, c * down - s * right, forward])


@dataclass
class SceneObject:
    """A captionable thing: ``looks`` are adjectives (colour or material), in caption order.

    ``weight`` is how much it catches the eye; ``support`` the id of the object it stands on, 0 for none.
    """

    id: int
    name: str
    looks: tuple[str, ...]
    position: Vec3
    weight: float = 1.0
    support: int = 0

    @property
    def colour(self) -> str | None:
        """Its colour by name, where one is claimed."""
        return next((w for w in self.looks if w in COLOUR_NAMES), None)

    @property
    def material(self) -> str | None:
        """Its material or pattern, where one is claimed."""
        return next((w for w in self.looks if w in MATERIAL_NAMES), None)


@dataclass(frozen=True)
class Surface:
    """A free level top in the builder's world: centre, size, the object that carries it."""

    x: float
    y: float
    z: float
    w: float
    d: float
    yaw: float
    owner: int


@dataclass(frozen=True)
class Stage:
    """Where a camera may stand and what it may look at, in the builder's frame (metres).

    ``stand`` and ``floor`` are (x0, x1, y0, y1): for the camera, and for things put on free ground at height
    ``ground``. ``aims`` are points with a spread; ``low`` and ``high`` bound the camera's height.
    """

    stand: tuple[float, float, float, float]
    floor: tuple[float, float, float, float]
    aims: tuple[tuple[float, float, float, float], ...]
    low: float = 1.2
    high: float = 1.9
    ground: float = 0.0
    under: float = 0.0


@dataclass
class Scene:
    """Everything the renderer and the captions need."""

    place: str
    primitives: list[Primitive]
    objects: list[SceneObject]
    light: Light
    view: View
    facts: dict[str, Any] = field(default_factory=dict)


class Builder:
    """Collects primitives; objects nest their parts in a local frame; ``flip`` mirrors the world in x."""

    def __init__(self, rng: np.random.Generator, place: str, banned: frozenset[str] = frozenset()) -> None:
        self.rng, self.place, self.banned = rng, place, banned
        self.flip = -1.0 if rng.random() < 0.5 else 1.0
        self.clutter = float(rng.random())
        self.palette: tuple[str, ...] = ()
        self.surfaces: list[Surface] = []
        self._boxes: list[tuple[Vec3, Vec3]] = []
        self.stage: Stage | None = None
        self.primitives: list[Primitive] = []
        self.objects: list[SceneObject] = []
        self.light, self.view = Light(), View()
        self.facts: dict[str, Any] = {}
        self._frame, self._id, self._on = (0.0, 0.0, 0.0, 0.0), 0, 0

    def u(self, low: float, high: float) -> float:
        """A uniform number."""
        return low + (high - low) * float(self.rng.random())

    def p(self, chance: float) -> bool:
        """True with this chance."""
        return bool(self.rng.random() < chance)

    def pick(self, items: Sequence[T]) -> T:
        """One of ``items``."""
        return items[int(self.rng.integers(len(items)))]

    def colour(self, names: Sequence[str]) -> str:
        """One of ``names``, mostly one that belongs to the scene's palette."""
        fitting = [n for n in names if n in self.palette]
        return self.pick(fitting if fitting and self.p(0.8) else names)

    def world(self, x: float, y: float, z: float) -> Vec3:
        """A point of the current frame in the (mirrored) world."""
        ox, oy, oz, yaw = self._frame
        c, s = math.cos(yaw), math.sin(yaw)
        return ((ox + c * x - s * y) * self.flip, oy + s * x + c * y, oz + z)

    @contextmanager
    def at(self, x: float, y: float, z: float = 0.0, yaw: float = 0.0) -> Iterator[None]:
        """Put parts into a frame at (x, y, z), turned by ``yaw`` (radians)."""
        old = self._frame
        c, s = math.cos(old[3]), math.sin(old[3])
        self._frame = (old[0] + c * x - s * y, old[1] + s * x + c * y, old[2] + z, old[3] + yaw)
        try:
            yield
        finally:
            self._frame = old

    @contextmanager
    def object(
        self, name: str, looks: Sequence[str], x: float, y: float, z: float = 0.0, yaw: float = 0.0,
        weight: float = 1.0,
    ) -> Iterator[None]:  # fmt: skip
        """Like :meth:`at`, and the parts are one captionable object.

        Raises:
            ValueError: the pair of this place and object is held out of this scene.
        """
        if name in self.banned:
            raise ValueError(f"a {name} is held out of this {self.place}")
        old = self._id
        with self.at(x, y, z, yaw):
            self.objects.append(
                SceneObject(
                    len(self.objects) + 1, name, tuple(looks), self.world(0.0, 0.0, 0.0), weight, self._on
                )
            )
            self._id = len(self.objects)
            try:
                yield
            finally:
                self._id = old

    def top(self, z: float, w: float, d: float, x: float = 0.0, y: float = 0.0) -> None:
        """Offer a free top of the object being built, w by d metres at height z of its frame."""
        ox, oy, oz, yaw = self._frame
        c, s = math.cos(yaw), math.sin(yaw)
        spot = Surface(ox + c * x - s * y, oy + s * x + c * y, oz + z, w, d, yaw, self._id)
        self.surfaces.append(spot)

    @contextmanager
    def on(self, owner: int) -> Iterator[None]:
        """Objects made here stand on object ``owner``."""
        old, self._on = self._on, owner
        try:
            yield
        finally:
            self._on = old

    def last(self, name: str) -> int:
        """Id of the newest object of this name, 0 for none."""
        return next((t.id for t in reversed(self.objects) if t.name == name), 0)

    def bounds(self, first: int = 0) -> np.ndarray:
        """Axis-aligned boxes (N, 2, 3) around the primitives from ``first`` on, in the mirrored world."""
        del self._boxes[len(self.primitives) :]
        for q in self.primitives[len(self._boxes) :]:
            (cy, sy), (ct, st), (cr, sr) = ((math.cos(a), math.sin(a)) for a in (q.yaw, q.tilt, q.roll))
            turned = ((cr, 0.0, sr), (st * sr, ct, -st * cr), (-ct * sr, st, ct * cr))
            rows = (
                [cy * u - sy * v for u, v in zip(turned[0], turned[1], strict=True)],
                [sy * u + cy * v for u, v in zip(turned[0], turned[1], strict=True)],
                turned[2],
            )
            half = [sum(abs(r) * abs(n) for r, n in zip(row, q.size, strict=True)) / 2 for row in rows]
            mid = [c + row[2] * q.size[2] / 2 for c, row in zip(q.position, rows, strict=True)]
            low = (mid[0] - half[0], mid[1] - half[1], mid[2] - half[2])
            self._boxes.append((low, (mid[0] + half[0], mid[1] + half[1], mid[2] + half[2])))
        return np.array(self._boxes[first:]).reshape(-1, 2, 3)

    def place_free(self, make: Callable[[], None], margin: float = 0.05) -> bool:
        """Run ``make``; undo it (and return False) when what it adds touches what stands already.

        Flat things (rugs, roads, water) and landscape larger than 60 m do not count.
        """
        parts, things, lamps, tops = (
            len(self.primitives), len(self.objects), len(self.light.lamps), len(self.surfaces)
        )  # fmt: skip
        make()
        every = self.bounds()
        old, new = every[:parts], every[parts:]
        low, high = new[:, 0].min(0) - margin, new[:, 1].max(0) + margin
        low[2] = max(low[2] + margin + 0.06, 0.06 if self.stage is None else self.stage.ground + 0.06)
        large = (old[:, 1, :2] - old[:, 0, :2]).max(1) > 60
        meets = ((old[:, 0] < high) & (old[:, 1] > low)).all(1) & ~large
        if not meets.any():
            return True
        del (
            self._boxes[parts:],
            self.primitives[parts:],
            self.objects[things:],
            self.light.lamps[lamps:],
            self.surfaces[tops:],
        )
        return False

    def add(
        self, kind: str, x: float, y: float, z: float, sx: float, sy: float, sz: float, material: Material,
        yaw: float = 0.0, tilt: float = 0.0, roll: float = 0.0,
    ) -> None:  # fmt: skip
        """Add a shape of size (sx, sy, sz) standing on (x, y, z)."""
        f = self.flip
        self.primitives.append(
            Primitive(
                kind,
                self.world(x, y, z),
                (sx * f, sy, sz),
                material,
                (self._frame[3] + yaw) * f,
                tilt,
                roll * f,
                self._id,
            )
        )

    def lamp(
        self, x: float, y: float, z: float, colour: Vec3, reach: float = 2.0, shadow: bool = False
    ) -> None:
        """Add a point light in the current frame."""
        self.light.lamps.append(PointLight(self.world(x, y, z), colour, reach, shadow))

    def sun_from(self, azimuth: float, elevation: float) -> None:
        """Sun direction in degrees: azimuth 0 is behind the camera, 90 on the right, 180 ahead."""
        a, e = math.radians(azimuth), math.radians(elevation)
        self.light.sun_direction = (
            self.flip * math.sin(a) * math.cos(e), -math.cos(a) * math.cos(e), math.sin(e)
        )  # fmt: skip

    def look(
        self, x: float, y: float, z: float, tx: float, ty: float, tz: float, fov: float, roll: float = 0.0
    ) -> None:
        """Camera at (x, y, z) looking at (tx, ty, tz)."""
        px, py, pz = self.world(x, y, z)
        qx, qy, qz = self.world(tx, ty, tz)
        dx, dy, dz = qx - px, qy - py, qz - pz
        self.view = View(
            (px, py, pz), math.atan2(-dx, dy), -math.atan2(dz, math.hypot(dx, dy)), math.radians(roll), fov
        )

    def scene(self) -> Scene:
        """The finished scene."""
        return Scene(self.place, self.primitives, self.objects, self.light, self.view, self.facts)
