"""Random changes of a sample that leave its depth true: geometry follows the pixels, captions what they name.

In this order: patterns on the surfaces, crop, mirror, shadow and glare, colour, defects of the camera. All
chance comes from one generator; the result depends on the sample, the settings and its state alone.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from modality_forcing.config.training import AugmentConfig
from modality_forcing.types import Camera, Sample

# The ranges at strength 1 (all ours). Hue and white balance stay small because captions name colours:
# docs/sensors.md says what was measured.
GAMMA_STOPS = 0.5
GAIN_STOPS = 0.5
CONTRAST = 0.4
SATURATION = 0.4
HUE_DEGREES = 8.0
WHITE_BALANCE = 0.08

SMALLEST_CROP = 0.5
BLUR = (0.3, 1.2)
"""Standard deviation in pixels of a picture 128 wide."""
SHOT = (2e-4, 1e-2)
READ = (1e-3, 2e-2)
"""Variance per unit of linear light, and standard deviation in the dark."""
JPEG_QUALITY = (25, 90)
SHADOW_STOPS = (-6.0, -1.0)
GLARE_STOPS = (-0.5, 1.5)
DARKENED = 0.2
"""Share of the objects with a light of their own, in every second of the pictures whose light changes."""
WAVELENGTHS = (4.0, 40.0)
"""Of the patterns, in pixels at the object's mean depth."""

_SIDES = re.compile(r"\b(left|right)(?=\b|most\b)", re.IGNORECASE)
_BYTES = np.arange(256) / 255.0
_TO_LINEAR = np.where(_BYTES <= 0.04045, _BYTES / 12.92, ((_BYTES + 0.055) / 1.055) ** 2.4).astype(np.float32)
_LIGHT = np.arange(4096) / 4095.0
_TO_BYTES = np.rint(
    255.0 * np.where(_LIGHT <= 0.0031308, 12.92 * _LIGHT, 1.055 * _LIGHT ** (1 / 2.4) - 0.055)
).astype(np.uint8)
_LUMA = np.array([0.299, 0.587, 0.114])


def augment(sample: Sample, config: AugmentConfig, rng: np.random.Generator) -> Sample:
    """A changed copy of a sample of the same size; the given one stays as it is.

    ``depth``, ``normals``, ``object_ids`` and ``camera`` follow the pixels; colour, patterns and defects
    change ``rgb`` only. ``meta["augment"]`` lists what was done, earlier calls included. Positions of
    objects, which no longer hold, leave ``meta["objects"]`` when the picture was mirrored, and so do objects
    a crop has cut away.

    Args:
        sample: rgb uint8 (H, W, 3) with what belongs to it.
        config: probabilities and strengths.
        rng: the only source of chance.
    """
    done: list[str] = list(sample.meta.get("augment", ()))
    if rng.random() < config.texture and sample.object_ids is not None:
        sample = replace(sample, rgb=_patterned(sample, rng))
        done.append("texture")
    if rng.random() < config.crop:
        sample = cropped(sample, *_crop_window(sample, rng))
        done.append("crop")
    if rng.random() < config.mirror:
        sample = mirrored(sample)
        done.append("mirror")
    rgb = sample.rgb
    if config.light > 0 and rng.random() < config.light:
        rgb = _lit(sample, rng)
        done.append("light")
    if config.colour > 0:
        rgb = recoloured(rgb, config.colour, rng)
        done.append("colour")
    if rng.random() < config.degrade:
        rgb = degraded(rgb, rng)
        done.append("degrade")
    return replace(sample, rgb=rgb, meta={**sample.meta, "augment": done})


def mirrored_caption(caption: str) -> str:
    """The caption of the mirrored picture: the words left and right (leftmost, left-hand) change places."""

    def other(match: re.Match[str]) -> str:
        word = match.group(1)
        swapped = "right" if word.lower() == "left" else "left"
        return swapped.upper() if word.isupper() else swapped.capitalize() if word[0].isupper() else swapped

    return _SIDES.sub(other, caption)


def mirrored(sample: Sample) -> Sample:
    """The sample with left and right swapped: pixels, normals (x changes sign), camera and captions."""
    camera = sample.camera
    normals = sample.normals
    if normals is not None:
        normals = normals[:, ::-1].copy()
        normals[..., 0] *= -1.0
    return replace(
        sample,
        rgb=np.ascontiguousarray(sample.rgb[:, ::-1]),
        depth=np.ascontiguousarray(sample.depth[:, ::-1]),
        camera=replace(camera, cx=camera.width - camera.cx),
        captions=tuple(mirrored_caption(text) for text in sample.captions),
        normals=normals,
        object_ids=None if sample.object_ids is None else np.ascontiguousarray(sample.object_ids[:, ::-1]),
        meta=_objects(sample.meta, lambda thing: {k: v for k, v in thing.items() if k != "position"}),
    )


def cropped(sample: Sample, x: int, y: int, width: int, height: int) -> Sample:
    """The window [x, x + width) x [y, y + height) of a sample, resized back to the sample's size.

    Colour is interpolated (bicubic), depth, normals and ids are taken from the nearest pixel; z-depth does
    not change, focal lengths grow and the principal point moves with the window. A crop may cut away what
    the longer captions name: only the shortest is kept.
    """
    h, w = sample.depth.shape
    camera = sample.camera
    sx, sy = w / width, h / height
    rows = y + ((np.arange(h) + 0.5) * height / h).astype(np.intp)
    columns = x + ((np.arange(w) + 0.5) * width / w).astype(np.intp)
    at = np.ix_(rows, columns)
    part = Image.fromarray(np.ascontiguousarray(sample.rgb[y : y + height, x : x + width]))
    ids = None if sample.object_ids is None else sample.object_ids[at]
    meta = sample.meta
    if ids is not None:
        counts = np.bincount(ids.ravel())

        def visible(thing: dict[str, Any]) -> dict[str, Any] | None:
            number = int(thing.get("id", 0))
            pixels = int(counts[number]) if number < counts.size else 0
            return {**thing, "pixels": pixels} if pixels else None

        meta = _objects(meta, visible)
    return replace(
        sample,
        rgb=np.array(part.resize((w, h), Image.Resampling.BICUBIC)),
        depth=sample.depth[at],
        camera=Camera(camera.fx * sx, camera.fy * sy, (camera.cx - x) * sx, (camera.cy - y) * sy, w, h),
        captions=sample.captions[:1],
        normals=None if sample.normals is None else sample.normals[at],
        object_ids=ids,
        meta=meta,
    )


def _crop_window(sample: Sample, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """x, y, width, height of a window of at least half of each side with the picture's aspect. Windows with
    less than a quarter of the known depth per pixel are drawn again; after four of them the whole picture
    stays."""
    h, w = sample.depth.shape
    valid = sample.valid
    least = 0.25 * np.count_nonzero(valid) / valid.size
    for _ in range(4):
        share = rng.uniform(SMALLEST_CROP, 1.0)
        width, height = max(1, round(share * w)), max(1, round(share * h))
        x, y = int(rng.integers(w - width + 1)), int(rng.integers(h - height + 1))
        if np.count_nonzero(valid[y : y + height, x : x + width]) >= least * width * height:
            return x, y, width, height
    return 0, 0, w, h


def _objects(
    meta: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any] | None]
) -> dict[str, Any]:
    """The facts with each object changed, or left out where ``change`` gives None."""
    things = meta.get("objects")
    if not isinstance(things, list) or not all(isinstance(thing, dict) for thing in things):
        return meta
    return {**meta, "objects": [new for thing in things if (new := change(thing)) is not None]}


def recoloured(rgb: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """uint8 (H, W, 3) with other gamma, exposure, white balance, contrast, saturation and hue.

    At strength 1 gamma and exposure change by up to half a stop, contrast and saturation by up to 40 %, white
    balance by up to 8 % in red and blue, hue by up to 8 degrees (a turn about the grey axis); the ranges are
    proportional to the strength.
    """
    u = rng.uniform(-1.0, 1.0, 8) * strength
    gamma, gain = 2.0 ** (GAMMA_STOPS * u[0]), 2.0 ** (GAIN_STOPS * u[1])
    balance = 1.0 + WHITE_BALANCE * np.array([u[2], 0.0, u[3]])
    contrast, saturation = 1.0 + CONTRAST * u[4], 1.0 + SATURATION * u[5]
    angle = math.radians(HUE_DEGREES) * u[6]
    # Everything up to contrast is a curve per channel: 256 entries instead of a picture.
    curves = (_BYTES**gamma * gain)[:, None] * balance
    mean = float(curves[rgb[::4, ::4].reshape(-1, 3), np.arange(3)].mean())
    curves = 255.0 * (mean + contrast * (curves - mean))
    axis = np.full((3, 3), 1.0 / 3.0)
    cross = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3.0)
    turn = math.cos(angle) * np.eye(3) + math.sin(angle) * cross + (1.0 - math.cos(angle)) * axis
    grey = np.tile(_LUMA, (3, 1))
    matrix = (saturation * np.eye(3) + (1.0 - saturation) * grey) @ turn
    curves32 = curves.astype(np.float32)
    bent = np.stack([curves32[:, c][rgb[..., c]] for c in range(3)], axis=-1)
    return _to_uint8(bent @ matrix.T.astype(np.float32))


def _lit(sample: Sample, rng: np.random.Generator) -> np.ndarray:
    """uint8 (H, W, 3) under another light: a region of random shape in shadow, the rest as it was or glaring,
    and in every second picture some objects much darker or brighter than they were.

    Factors are on linear light. A renderer's light is kind; real pictures have black corners that are near
    and white walls that are not sky.
    """
    h, w = sample.depth.shape
    cells = int(rng.integers(2, 6))
    coarse = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
    field = np.asarray(coarse.resize((w, h), Image.Resampling.BICUBIC))
    softness = math.exp(rng.uniform(math.log(0.02), math.log(0.5)))
    shadow = 0.5 + 0.5 * np.tanh(field / softness)
    stops = rng.uniform(*SHADOW_STOPS) * shadow + rng.uniform(*GLARE_STOPS) * (1.0 - shadow)
    if sample.object_ids is not None and rng.random() < 0.5:
        ids = sample.object_ids.astype(np.intp)
        own = rng.uniform(SHADOW_STOPS[0], GLARE_STOPS[1], int(ids.max()) + 1)
        own *= rng.random(own.size) < DARKENED
        own[0] = 0.0  # no object: ground, walls, sky
        stops = stops + own[ids]
    light = _TO_LINEAR[sample.rgb] * np.exp2(stops)[..., None]
    return _TO_BYTES[(np.clip(light, 0.0, 1.0) * 4095.0 + 0.5).astype(np.int16)]


def degraded(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 (H, W, 3) as a poorer camera gives it: blur, noise and JPEG, each with probability 1/2, at least
    one.

    Noise is added in linear light with variance a I + b^2 (Foi et al. 2008, "Practical Poissonian-Gaussian
    noise modeling and fitting for single-image raw-data"), a and b drawn log-uniformly.
    """
    blur, noise, jpeg = rng.random(3) < 0.5
    if not (blur or noise or jpeg):
        blur, noise, jpeg = np.arange(3) == rng.integers(3)
    if blur:
        radius = rng.uniform(*BLUR) * rgb.shape[1] / 128.0
        rgb = np.array(Image.fromarray(rgb).filter(ImageFilter.GaussianBlur(radius)))
    if noise:
        shot = math.exp(rng.uniform(math.log(SHOT[0]), math.log(SHOT[1])))
        read = math.exp(rng.uniform(math.log(READ[0]), math.log(READ[1])))
        deviation = np.sqrt(shot * _TO_LINEAR + read * read)
        light = _TO_LINEAR[rgb] + deviation[rgb] * rng.standard_normal(rgb.shape, dtype=np.float32)
        rgb = _TO_BYTES[(np.clip(light, 0.0, 1.0) * 4095.0 + 0.5).astype(np.int16)]
    if jpeg:
        buffer = io.BytesIO()
        low, high = JPEG_QUALITY
        Image.fromarray(rgb).save(buffer, "JPEG", quality=int(rng.integers(low, high + 1)))
        buffer.seek(0)
        rgb = np.array(Image.open(buffer))
    return rgb


def _patterned(sample: Sample, rng: np.random.Generator) -> np.ndarray:
    """uint8 (H, W, 3): stripes, checks or clouds on the surfaces of most objects, drawn per object id.

    The patterns are plane waves in space, so they run along the surfaces in true perspective; they fade
    where a wave is shorter than the pixels. They change brightness only: colour names stay true.
    """
    assert sample.object_ids is not None
    camera, ids = sample.camera, sample.object_ids.ravel().astype(np.intp)
    h, w = sample.depth.shape
    count = int(ids.max()) + 1
    valid = sample.valid.ravel()
    z = np.where(valid, sample.depth.ravel(), np.float32(0.0))
    mean = np.bincount(ids, z, count) / np.maximum(np.bincount(ids, valid, count), 1)
    direction = rng.standard_normal((count, 3, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    low, high = (math.log(value * w / 128.0) for value in WAVELENGTHS)
    length = np.exp(rng.uniform(low, high, (count, 3))) * np.maximum(mean, 1e-3)[:, None] / camera.fx
    wave = (2.0 * np.pi * direction / length[..., None]).astype(np.float32)
    start = rng.uniform(0.0, 2.0 * np.pi, (count, 3)).astype(np.float32)
    stripes = rng.random(count).astype(np.float32)
    hard = np.exp(rng.uniform(0.0, math.log(8.0), count)).astype(np.float32)
    depth_of = (rng.uniform(0.1, 0.5, count) * (rng.random(count) < 0.7)).astype(np.float32)

    x = np.tile((np.arange(w, dtype=np.float32) + 0.5 - camera.cx) / camera.fx, h) * z
    y = np.repeat((np.arange(h, dtype=np.float32) + 0.5 - camera.cy) / camera.fy, w) * z
    values = []
    for i in range(3):
        k = wave[:, i]
        phase = k[ids, 0] * x + k[ids, 1] * y + k[ids, 2] * z + start[ids, i]
        pixels = (1.0 / (length[:, i] * camera.fx)).astype(np.float32)[ids] * z
        values.append(np.sin(phase) * np.exp(-((3.0 * pixels) ** 2)))
    mix = stripes[ids]
    pattern = np.tanh(hard[ids] * (mix * values[0] + (1.0 - mix) * values[1] * values[2]))
    factor = np.where(valid, 1.0 + depth_of[ids] * pattern, np.float32(1.0)).astype(np.float32)
    return _to_uint8(sample.rgb * factor.reshape(h, w, 1))


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return (np.clip(values, 0.0, 255.0) + 0.5).astype(np.uint8)
