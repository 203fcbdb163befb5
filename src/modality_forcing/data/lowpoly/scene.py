"""What a scene is made of, and the builder the scene grammar writes with.

World frame: x right, y away from the camera's usual place, z up, metres. A primitive stands on the
middle of its bottom face: unit shapes span x, y in [-0.5, 0.5] and z in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
Vec3 = tuple[float, float, float]

PATTERNS = (
    "plain", "wood", "planks", "checker", "bricks", "noise", "facade", "snow", "water", "books", "leaves",
)  # fmt: skip


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
    """A captionable thing: ``looks`` are adjectives (colour or material), in caption order."""

    id: int
    name: str
    looks: tuple[str, ...]
    position: Vec3
    weight: float = 1.0


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

    def __init__(self, rng: np.random.Generator, place: str) -> None:
        self.rng, self.place = rng, place
        self.flip = -1.0 if rng.random() < 0.5 else 1.0
        self.primitives: list[Primitive] = []
        self.objects: list[SceneObject] = []
        self.light, self.view = Light(), View()
        self.facts: dict[str, Any] = {}
        self._frame, self._id = (0.0, 0.0, 0.0, 0.0), 0

    def u(self, low: float, high: float) -> float:
        """A uniform number."""
        return low + (high - low) * float(self.rng.random())

    def p(self, chance: float) -> bool:
        """True with this chance."""
        return bool(self.rng.random() < chance)

    def pick(self, items: Sequence[T]) -> T:
        """One of ``items``."""
        return items[int(self.rng.integers(len(items)))]

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
        """Like :meth:`at`, and the parts are one captionable object."""
        old = self._id
        with self.at(x, y, z, yaw):
            self.objects.append(
                SceneObject(len(self.objects) + 1, name, tuple(looks), self.world(0.0, 0.0, 0.0), weight)
            )
            self._id = len(self.objects)
            try:
                yield
            finally:
                self._id = old

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
