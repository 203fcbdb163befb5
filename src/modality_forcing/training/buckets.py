"""Aspect-ratio buckets: the sizes a run trains at, which one a sample goes to, and how it is made to fit."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from modality_forcing.errors import UserError
from modality_forcing.types import Camera, Sample

_SIZE = re.compile(r"^\s*(\d+)\s*[xX]\s*(\d+)\s*$")
SAME_ASPECT = 1e-6  # difference of log aspects below which two buckets have the same shape

Size = tuple[int, int]
"""(width, height) in pixels."""


def parse_buckets(texts: Sequence[str], size: int, multiple: int) -> list[Size]:
    """Sizes (width, height) of the buckets "WIDTHxHEIGHT"; without any, one square of side ``size``.

    Args:
        multiple: pixels per token; both sides must be multiples of it.

    Raises:
        UserError: another form, a side that is no positive multiple, or a bucket named twice.
    """
    sizes: list[Size] = []
    for text in texts or (f"{size}x{size}",):
        name = f"bucket {text!r}" if texts else f"image_size {size}"
        match = _SIZE.match(text)
        if match is None:
            raise UserError(f"data.buckets holds {text!r}; right is WIDTHxHEIGHT, for example 512x384")
        width, height = int(match[1]), int(match[2])
        if width % multiple or height % multiple or not width or not height:
            raise UserError(
                f"{name} does not fit the model; right is a positive multiple of {multiple} per side"
            )
        if (width, height) in sizes:
            raise UserError(f"data.buckets names {width}x{height} twice")
        sizes.append((width, height))
    return sizes


def nearest_bucket(buckets: Sequence[Size], width: int, height: int) -> int:
    """Number of the bucket whose aspect is nearest to that of a width x height image (in the logarithm).

    Of several with that aspect: the largest that does not enlarge the image, else the smallest.
    """
    aspect = math.log(width / height)
    distance = [abs(math.log(w / h) - aspect) for w, h in buckets]
    near = [i for i, d in enumerate(distance) if d < min(distance) + SAME_ASPECT]
    fitting = [i for i in near if buckets[i][0] <= width and buckets[i][1] <= height]
    if fitting:
        return max(fitting, key=lambda i: buckets[i][0] * buckets[i][1])
    return min(near, key=lambda i: buckets[i][0] * buckets[i][1])


def fit(sample: Sample, size: Size) -> Sample:
    """The centre of a sample in the shape of ``size``, resized to it.

    The image is antialiased (bicubic). Depth, normals and object ids take the nearest pixel: a mean of two
    depths is a point where nothing is, and sparse depth keeps its density. The camera follows exactly.

    Args:
        sample: H x W.
        size: (width, height) of the result.
    """
    width, height = size
    h, w = sample.rgb.shape[:2]
    if (w, h) == (width, height):
        return sample
    scale = max(width / w, height / h)
    crop_w, crop_h = width / scale, height / scale
    left, top = (w - crop_w) / 2, (h - crop_h) / 2
    box = (left, top, left + crop_w, top + crop_h)
    rgb = np.asarray(Image.fromarray(sample.rgb).resize(size, Image.Resampling.BICUBIC, box=box))
    rows = np.clip(((np.arange(height) + 0.5) / scale + top).astype(np.int64), 0, h - 1)[:, None]
    cols = np.clip(((np.arange(width) + 0.5) / scale + left).astype(np.int64), 0, w - 1)[None]
    c = sample.camera
    camera = Camera(c.fx * scale, c.fy * scale, (c.cx - left) * scale, (c.cy - top) * scale, width, height)
    return replace(
        sample,
        rgb=rgb,
        camera=camera,
        depth=sample.depth[rows, cols],
        normals=None if sample.normals is None else sample.normals[rows, cols],
        object_ids=None if sample.object_ids is None else sample.object_ids[rows, cols],
    )
