"""The two protocols depth papers use (spec section 11): split, size, crop, range and cap of every data set.

A protocol says which pixels of the reference count, what the model sees, and how a prediction is aligned.
Its whole text goes into the report: numbers of two protocols do not compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from modality_forcing.errors import UserError
from modality_forcing.evaluation.datasets.common import EvalItem
from modality_forcing.geometry.alignment import grid_samples
from modality_forcing.types import Camera

FAR_RATIO, NEAR_QUANTILE = 1000.0, 0.01  # MoGe drops what lies beyond 1000 times the 1 % quantile
KITTI_HEIGHT, KITTI_WIDTH = 352, 1216


@dataclass(frozen=True)
class Rules:
    """One data set under one protocol.

    Attributes:
        images: the published split's size; None where nobody published one.
        near, far: reference depth outside (near, far) does not count.
        crop: what is cut off the picture before the model sees it, a key of ``CROPS``.
        window: which part of it counts, a key of ``WINDOWS``.
        size: (width, height) the picture is brought to; None: as it is.
        clip: the aligned prediction is brought into [near, far].
        drop_far: reference depth beyond 1000 times its 1 % quantile does not count.
    """

    images: int | None = None
    near: float = 0.0
    far: float = math.inf
    crop: str = "none"
    window: str = "all"
    size: tuple[int, int] | None = None
    clip: bool = False
    drop_far: bool = False


@dataclass(frozen=True)
class Prepared:
    """What the model gets and what its answer is compared with.

    Attributes:
        name, rgb, depth, caption, facts: as of ``EvalItem``, cropped and resized.
        mask: bool (H, W): pixels that count.
        clip: range of the aligned prediction, or None.
    """

    name: str
    rgb: np.ndarray
    depth: np.ndarray
    mask: np.ndarray
    caption: str
    facts: dict[str, Any]
    clip: tuple[float, float] | None


@dataclass(frozen=True)
class Protocol:
    """A protocol by name.

    Attributes:
        name: "moge" or "marigold".
        alignments: in the order of the report; the first ranks the pictures.
        rules: per data set; ``default`` for all others.
    """

    name: str
    alignments: tuple[str, ...]
    default: Rules
    rules: dict[str, Rules] = field(default_factory=dict)

    def rules_for(self, kind: str, *, window: str | None = None) -> Rules:
        """The rules of a data set; ``window`` takes the place of KITTI's."""
        rules = self.rules.get(kind, self.default)
        if window is None:
            return rules
        if kind != "kitti":
            raise UserError(f"--kitti-crop does not fit the data set {kind!r}")
        if window not in ("eigen", "garg", "all"):
            raise UserError(f"--kitti-crop is {window[:40]!r}; right is eigen, garg or all")
        return replace(rules, window="all" if window == "all" else f"kitti_{window}")

    def prepare(self, item: EvalItem, rules: Rules) -> Prepared:
        """Apply the rules to one item.

        Raises:
            UserError: the item has another size than the rules need, or nothing in it counts.
        """
        item = CROPS[rules.crop](item)
        if rules.size is not None:
            item = resized_view(item, *rules.size)
        depth = item.depth
        mask = np.isfinite(depth) & (depth > max(rules.near, 0.0)) & (depth < rules.far)
        mask &= WINDOWS[rules.window](item)
        if rules.drop_far and mask.any():
            mask &= depth <= FAR_RATIO * np.quantile(depth[mask], NEAR_QUANTILE)
        if not mask.any():
            raise UserError(f"{item.name}: no pixel of the reference counts under the protocol {self.name}")
        clip = (rules.near, rules.far) if rules.clip else None
        return Prepared(item.name, item.rgb, depth, mask, item.caption, item.facts, clip)

    def describe(self, kind: str, rules: Rules, images: int) -> list[str]:
        """The lines of the report."""
        split = f"{images} images"
        if rules.images is not None:
            split += f" (the published split has {rules.images})"
        size = "as published" if rules.size is None else "x".join(map(str, rules.size))
        far = "none" if math.isinf(rules.far) else f"{rules.far:g} m"
        dropped = ""
        if rules.drop_far:
            dropped = f"; beyond {FAR_RATIO:g} times the {100 * NEAR_QUANTILE:g} % quantile dropped"
        cap = "predictions clipped to it" if rules.clip else "predictions not clipped"
        return [
            f"protocol: {self.name}, data set {kind}",
            f"split: {split}",
            f"size: {size}; crop: {CROP_TEXTS[rules.crop]}; counted: {CROP_TEXTS[rules.window]}",
            f"range of the reference: above {rules.near:g} m, cap {far}{dropped}; {cap}",
        ]


def nyu_window(item: EvalItem) -> np.ndarray:
    """Rows 45:471, columns 41:601 of NYUv2's 640x480 (Eigen et al. 2014)."""
    height, width = item.depth.shape
    if (height, width) != (480, 640):
        raise UserError(f"{item.name} is {width}x{height}; the Eigen crop is for 640x480")
    mask = np.zeros((height, width), dtype=bool)
    mask[45:471, 41:601] = True
    return mask


def kitti_window(rows: tuple[float, float], columns: tuple[float, float]) -> Callable[[EvalItem], np.ndarray]:
    """A window in shares of height and width; borders round down."""

    def window(item: EvalItem) -> np.ndarray:
        height, width = item.depth.shape
        mask = np.zeros((height, width), dtype=bool)
        top, bottom = (int(share * height) for share in rows)
        left, right = (int(share * width) for share in columns)
        mask[top:bottom, left:right] = True
        return mask

    return window


def kitti_benchmark_crop(item: EvalItem) -> EvalItem:
    """The lowest 352 rows and the middle 1216 columns, which all KITTI pictures have."""
    height, width = item.depth.shape
    if height < KITTI_HEIGHT or width < KITTI_WIDTH:
        raise UserError(
            f"{item.name} is {width}x{height}; KITTI pictures have at least {KITTI_WIDTH}x{KITTI_HEIGHT}"
        )
    return _cut(item, height - KITTI_HEIGHT, (width - KITTI_WIDTH) // 2, KITTI_HEIGHT, KITTI_WIDTH)


def resized_view(item: EvalItem, width: int, height: int) -> EvalItem:
    """The largest part of the shape width:height around the principal point, at that size.

    Colours are resized with Lanczos, depth takes the nearest valid pixel of each target pixel. MoGe also
    turns the view so that its centre lies on the optical axis; for a principal point near the middle that
    changes nothing.
    """
    rows, columns = item.depth.shape
    cx, cy = (item.camera.cx, item.camera.cy) if item.camera else (columns / 2, rows / 2)
    half = min(cx, columns - cx, min(cy, rows - cy) * width / height)
    if half < 8:
        raise UserError(f"{item.name}: its principal point ({cx:.0f}, {cy:.0f}) lies at the border")
    crop_width = max(1, min(columns, round(2 * half)))
    crop_height = max(1, min(rows, round(2 * half * height / width)))
    left = min(max(round(cx - crop_width / 2), 0), columns - crop_width)
    top = min(max(round(cy - crop_height / 2), 0), rows - crop_height)
    cut = _cut(item, top, left, crop_height, crop_width)
    if (crop_height, crop_width) == (height, width):
        return cut
    rgb = np.array(Image.fromarray(cut.rgb).resize((width, height), Image.Resampling.LANCZOS))
    camera = cut.camera.resized(width, height) if cut.camera else None
    return replace(cut, rgb=rgb, depth=nearest_depth(cut.depth, width, height), camera=camera)


def nearest_depth(depth: np.ndarray, width: int, height: int) -> np.ndarray:
    """Depth at another size: of the pixels inside each target pixel the known one nearest its centre.

    Making it larger takes the pixel below each centre. Sky takes part like any depth; 0 (unknown) does not.
    """
    rows, columns = depth.shape
    if height >= rows or width >= columns:
        v = np.minimum(((np.arange(height) + 0.5) * rows / height).astype(np.int64), rows - 1)
        u = np.minimum(((np.arange(width) + 0.5) * columns / width).astype(np.int64), columns - 1)
        return depth[np.ix_(v, u)]
    result = np.zeros((height, width), dtype=depth.dtype)
    found_v, found_u = grid_samples(depth > 0, (height, width))
    result[
        ((found_v + 0.5) * height / rows).astype(np.int64),
        ((found_u + 0.5) * width / columns).astype(np.int64),
    ] = depth[found_v, found_u]
    return result


def _cut(item: EvalItem, top: int, left: int, height: int, width: int) -> EvalItem:
    window = (slice(top, top + height), slice(left, left + width))
    camera = item.camera
    if camera is not None:
        camera = Camera(camera.fx, camera.fy, camera.cx - left, camera.cy - top, width, height)
    return replace(item, rgb=item.rgb[window], depth=item.depth[window], camera=camera)


CROPS: dict[str, Callable[[EvalItem], EvalItem]] = {
    "none": lambda item: item,
    "kitti_benchmark": kitti_benchmark_crop,
}
WINDOWS: dict[str, Callable[[EvalItem], np.ndarray]] = {
    "all": lambda item: np.ones(item.depth.shape, dtype=bool),
    "nyu_eigen": nyu_window,
    "kitti_eigen": kitti_window((0.3324324, 0.91351351), (0.0359477, 0.96405229)),
    "kitti_garg": kitti_window((0.40810811, 0.99189189), (0.03594771, 0.96405229)),
}
CROP_TEXTS = {
    "none": "none",
    "all": "all valid pixels",
    "kitti_benchmark": f"lowest {KITTI_HEIGHT} rows, middle {KITTI_WIDTH} columns",
    "nyu_eigen": "rows 45:471, columns 41:601 (Eigen)",
    "kitti_eigen": "Eigen's window (33.2 to 91.4 % of the rows, 3.6 to 96.4 % of the columns)",
    "kitti_garg": "Garg's window (40.8 to 99.2 % of the rows, 3.6 to 96.4 % of the columns)",
}

PROTOCOLS = {
    "moge": Protocol(
        "moge",
        ("scale", "affine", "disparity"),
        Rules(drop_far=True),
        {
            "nyuv2": Rules(654, size=(640, 480), drop_far=True),
            "kitti": Rules(652, size=(750, 375), drop_far=True),
            "eth3d": Rules(454, size=(2048, 1365), drop_far=True),
            "diode": Rules(771, size=(1024, 768), drop_far=True),
            "scannet": Rules(800, drop_far=True),
        },
    ),
    "marigold": Protocol(
        "marigold",
        ("affine_lstsq",),
        Rules(),
        {
            "nyuv2": Rules(654, 1e-3, 10.0, window="nyu_eigen", clip=True),
            "kitti": Rules(652, 1e-5, 80.0, crop="kitti_benchmark", window="kitti_eigen", clip=True),
            "eth3d": Rules(454, 1e-5, clip=True),
            "scannet": Rules(800, 1e-3, 10.0, clip=True),
            "diode": Rules(771, 0.6, 350.0, clip=True),
        },
    ),
}


def find_protocol(name: str) -> Protocol:
    """A protocol by name.

    Raises:
        UserError: an unknown one.
    """
    if name not in PROTOCOLS:
        raise UserError(f"protocol {name[:40]!r} is unknown; right is {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
