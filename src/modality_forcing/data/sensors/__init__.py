"""What a depth sensor would have reported of a scene: where, and with which error (docs/sensors.md).

Every sensor draws how many pixels it measures, log-uniformly from the range its settings give, and reports
that many if the scene allows it. All chance comes from one generator: its state and the arguments decide the
result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np

from modality_forcing.config.training import SensorConfig
from modality_forcing.data.sensors.cameras import (
    stereo,
    stereo_noise,
    structured_light,
    structured_light_noise,
    time_of_flight,
    time_of_flight_noise,
)
from modality_forcing.data.sensors.common import View
from modality_forcing.data.sensors.lidar import lidar, lidar_noise
from modality_forcing.data.sensors.points import keypoint_noise, keypoints, random_noise, random_points
from modality_forcing.errors import UserError
from modality_forcing.types import Camera, Sample

# The share of the sky that is known to be sky lies this much above the share of measured pixels.
SKY_SHARE = 0.002

Where = Callable[[View, int, float, np.random.Generator], np.ndarray]
Noise = Callable[[View, np.ndarray, float, np.random.Generator], np.ndarray]

_SIMPLE: dict[str, tuple[Where, Noise]] = {
    "random": (random_points, random_noise),
    "lidar": (lidar, lidar_noise),
    "keypoints": (keypoints, keypoint_noise),
    "structured_light": (structured_light, structured_light_noise),
    "tof": (time_of_flight, time_of_flight_noise),
    "dense": (random_points, random_noise),
}

KINDS: tuple[str, ...] = (*_SIMPLE, "stereo")
"""The kinds of sensor that ``SensorConfig.kind`` may name."""


def measure(
    depth: np.ndarray,
    rgb: np.ndarray,
    camera: Camera,
    sensor: SensorConfig,
    rng: np.random.Generator,
    *,
    normals: np.ndarray | None = None,
    sky: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Measure a scene once.

    Args:
        depth: float (H, W) z-depth in metres, +inf is sky, 0 is unknown.
        rgb: uint8 (H, W, 3).
        camera: intrinsics for this H x W.
        sensor: kind, density, strength of the noise and range.
        rng: the only source of chance.
        normals: float (H, W, 3), unit, camera frame, towards the camera; None: taken from the depth.
        sky: also report a sparse sample of the sky as +inf ("known to be sky"), each pixel of it with the
            measured share of all pixels plus 0.2 %. No real sensor does; a segmentation would.

    Returns:
        The reported z-depth float32 (H, W) in metres, 0 where nothing is reported, and the mask bool (H, W)
        of what is reported. The share of finite reports among all H W pixels lies in
        [sensor.low, sensor.high] up to rounding, or below it where the sensor can report no more.

    Raises:
        UserError: unknown kind, or arrays whose shapes do not belong together.
    """
    _check_kind(sensor)
    shape = np.shape(depth)
    if len(shape) != 2 or np.shape(rgb) != (*shape, 3) or (camera.height, camera.width) != shape:
        raise UserError(
            f"depth {shape}, rgb {np.shape(rgb)} and a camera of {camera.width}x{camera.height} do not "
            "belong together; right is (H, W), (H, W, 3) and WxH"
        )
    if normals is not None and np.shape(normals) != (*shape, 3):
        raise UserError(f"normals have the shape {np.shape(normals)}; right is {(*shape, 3)}")
    view = View(np.asarray(depth, np.float32), rgb, camera, normals)
    share = math.exp(rng.uniform(math.log(sensor.low), math.log(sensor.high)))
    count = max(1, round(share * view.depth.size))
    where, noise = _sensor(sensor.kind, view, count, sensor.max_range, rng)
    measured = np.zeros(shape, np.float32)
    measured[where] = view.depth[where]
    if sensor.noise > 0 and where.any():
        exact = view.depth[where]
        # No error brings a surface nearer than a tenth of its depth: depth stays positive.
        measured[where] = np.maximum(noise(view, where, sensor.noise, rng), 0.1 * exact)
    if sky:
        known = np.isposinf(view.depth) & (
            rng.random(shape, dtype=np.float32) < np.count_nonzero(where) / where.size + SKY_SHARE
        )
        measured[known] = np.inf
        where = where | known
    return measured, where


def _check_kind(sensor: SensorConfig) -> None:
    if sensor.kind not in KINDS:
        raise UserError(f"unknown sensor {sensor.kind!r}; choose one of {', '.join(KINDS)}")


def _sensor(
    kind: str, view: View, count: int, reach: float, rng: np.random.Generator
) -> tuple[np.ndarray, Noise]:
    """Where this kind reports, and its noise."""
    if kind == "stereo":
        where, baseline = stereo(view, count, reach, rng)
        return where, partial(stereo_noise, baseline=baseline)
    find, noise = _SIMPLE[kind]
    return find(view, count, reach, rng), noise


@dataclass(frozen=True)
class SensorMix:
    """Several sensors, one of which looks at each scene.

    Attributes:
        sensors: the sensors with their weights.
        sky: report a sparse sample of the sky as +inf (see :func:`measure`).

    Raises:
        UserError: no sensor, an unknown kind, or no weight above 0.
    """

    sensors: tuple[SensorConfig, ...]
    sky: bool = True

    def __post_init__(self) -> None:
        if not self.sensors:
            raise UserError("a mix of sensors is empty; name at least one sensor")
        for sensor in self.sensors:
            _check_kind(sensor)
        if not sum(sensor.weight for sensor in self.sensors) > 0:
            raise UserError("every sensor of a mix has weight 0; give at least one a weight above 0")

    def measure(
        self,
        depth: np.ndarray,
        rgb: np.ndarray,
        camera: Camera,
        rng: np.random.Generator,
        *,
        normals: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Measure a scene with a sensor drawn by weight; arguments and result as of :func:`measure`.

        A sensor that cannot reach its lowest density here (structured light in a street) is put aside and
        another drawn, as nobody would carry it there. If none can, the one that reports most is taken.
        """
        left = [sensor for sensor in self.sensors if sensor.weight > 0]
        most: tuple[np.ndarray, np.ndarray] | None = None
        most_count = -1
        while left:
            weights = np.array([sensor.weight for sensor in left])
            sensor = left.pop(int(rng.choice(len(left), p=weights / weights.sum())))
            found = measure(depth, rgb, camera, sensor, rng, normals=normals, sky=self.sky)
            count = int(np.count_nonzero(np.isfinite(found[0]) & found[1]))
            if count > most_count:
                most, most_count = found, count
            if count >= max(1, math.floor(sensor.low * found[1].size)):
                return found
        assert most is not None
        return most


def mean_density(mix: SensorMix, samples: Iterable[Sample], *, seed: int = 0) -> float:
    """Mean share (0..1) of all pixels that a mix measures on these samples; reported sky does not count.

    Raises:
        UserError: no sample.
    """
    rng = np.random.default_rng(seed)
    shares = []
    for sample in samples:
        measured, mask = mix.measure(sample.depth, sample.rgb, sample.camera, rng, normals=sample.normals)
        shares.append(np.count_nonzero(mask & np.isfinite(measured)) / mask.size)
    if not shares:
        raise UserError("the density of a mix of sensors was asked for without a sample to measure")
    return float(np.mean(shares))


__all__ = ["KINDS", "SensorMix", "mean_density", "measure"]
