"""Coloured points from an image with depth: which pixels become points, and which do not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import maximum_filter, minimum_filter
from scipy.spatial import cKDTree

from modality_forcing.errors import UserError
from modality_forcing.geometry.camera import unproject
from modality_forcing.types import RGBD

EDGE_RTOL_SIZE = 512  # pixels of the long side at which EDGE_RTOL holds
# The released exporter's values.
EDGE_RTOL = 0.04
SOR = False
MAX_POINTS = 1_200_000
SOR_NEIGHBOURS = 5
SOR_STD_RATIO = 1.0


@dataclass(frozen=True)
class PointCloud:
    """Points in the camera frame.

    Attributes:
        points: float32 (N, 3), OpenCV axes, camera at the origin, in ``unit``.
        colors: uint8 (N, 3), sRGB.
        unit: "relative" or "m", as ``RGBD.depth_unit``.
    """

    points: np.ndarray
    colors: np.ndarray
    unit: str = "relative"

    def __len__(self) -> int:
        return len(self.points)


def point_cloud(
    rgbd: RGBD,
    *,
    edge_rtol: float | None = None,
    sor: bool | None = None,
    max_points: int | None = None,
    hole_edges: bool = True,
) -> PointCloud:
    """The valid pixels as coloured points, row by row.

    Args:
        rgbd: image, depth, mask and camera of one size.
        edge_rtol: drop pixels on depth edges (see :func:`edge_mask`); 0 keeps them. None:
            :func:`default_edge_rtol`.
        sor: drop statistical outliers (see :func:`outlier_mask`); slow from a million points. None: ``SOR``.
        max_points: keep a random subset of this size, the same one every time (its order is random
            too). None: ``MAX_POINTS``.
        hole_edges: whether pixels beside an invalid one count as edges. Right for a model's output, where
            invalid means sky; wrong for sensor depth, where small holes would take all points with them.

    Raises:
        UserError: sizes that differ, an option out of range, or no point is left (the message says why).
    """
    edge_rtol = default_edge_rtol(rgbd.depth.shape) if edge_rtol is None else edge_rtol
    sor = SOR if sor is None else sor
    max_points = MAX_POINTS if max_points is None else max_points
    if not (np.isfinite(edge_rtol) and edge_rtol >= 0):
        raise UserError(
            f"edge_rtol is {edge_rtol}; right is 0 (keep edges) or a small positive ratio as 0.04"
        )
    if max_points < 1:
        raise UserError(f"max_points is {max_points}; right is 1 or more")
    shape = rgbd.depth.shape
    if rgbd.mask.shape != shape or rgbd.rgb.shape != (*shape, 3):
        raise UserError(f"sizes differ: rgb {rgbd.rgb.shape}, depth {shape}, mask {rgbd.mask.shape}")

    valid = rgbd.mask & np.isfinite(rgbd.depth) & (rgbd.depth > 0)
    if not valid.any():
        raise UserError("the point cloud is empty: no pixel has a valid depth")
    keep = valid
    if edge_rtol > 0:
        depth = np.where(valid, rgbd.depth, 0.0)
        keep = valid & ~edge_mask(depth, edge_rtol, valid=None if hole_edges else valid)
        if not keep.any():
            raise UserError(
                f"the point cloud is empty: all {int(valid.sum())} valid pixels lie on depth edges"
                f" (edge_rtol {edge_rtol:g}) or beside invalid pixels; raise edge_rtol, or 0 keeps them"
            )
    points = unproject(rgbd.depth, rgbd.camera)[keep]
    colors = rgbd.rgb[keep]
    if sor:
        inliers = outlier_mask(points)
        points, colors = points[inliers], colors[inliers]
    if len(points) > max_points:
        chosen = np.random.default_rng(0).choice(len(points), max_points, replace=False)
        points, colors = points[chosen], colors[chosen]
    return PointCloud(points, colors, rgbd.depth_unit)


def default_edge_rtol(shape: tuple[int, ...]) -> float:
    """``EDGE_RTOL`` for images of 512 pixels and more, proportionally more below: there one pixel covers more
    of a slope, and at 128 pixels the release's 0.04 takes a floor for a row of edges. At most 0.2 (ours)."""
    return min(0.2, EDGE_RTOL * max(1.0, EDGE_RTOL_SIZE / max(shape[:2])))


def edge_mask(
    depth: np.ndarray, rtol: float, kernel: int = 3, *, valid: np.ndarray | None = None
) -> np.ndarray:
    """Pixels where depth jumps: (max - min over kernel x kernel) > rtol * depth.

    Args:
        depth: (H, W). Zero, negative and NaN count as depth 0, so that pixels beside a hole are edges:
            measured holes and sky borders are where flying pixels sit. +inf itself is no edge, its
            neighbours are.
        rtol: relative jump, about 0.04.
        kernel: odd window side in pixels.
        valid: bool (H, W). When given, only valid pixels are compared and a hole makes no edge: what a
            sensor's depth full of small holes needs.

    Returns:
        bool (H, W), True on an edge.
    """
    if valid is not None:
        high = maximum_filter(np.where(valid, depth, -np.inf), kernel, mode="nearest")
        low = minimum_filter(np.where(valid, depth, np.inf), kernel, mode="nearest")
        return valid & (high - low > rtol * np.where(valid, depth, 1.0))
    z = np.where(depth > 0, depth, np.float32(0.0)).astype(np.float32)
    high = maximum_filter(z, kernel, mode="nearest")
    low = minimum_filter(z, kernel, mode="nearest")
    with np.errstate(invalid="ignore"):  # inf - inf inside sky is NaN, which compares as "no edge"
        return high - low > np.float32(rtol) * z


def outlier_mask(points: np.ndarray, k: int = SOR_NEIGHBOURS, std_ratio: float = SOR_STD_RATIO) -> np.ndarray:
    """Statistical outlier removal: points whose neighbours are unusually far.

    A point stays when the mean distance to its ``k`` nearest neighbours is at most
    mean + std_ratio * std of that quantity over the cloud.

    Args:
        points: (N, 3).
        k: number of neighbours, the point itself not counted.
        std_ratio: how many standard deviations are still normal.

    Returns:
        bool (N,), True = inlier. A cloud of at most ``k`` points is kept whole.
    """
    if len(points) <= k:
        return np.ones(len(points), dtype=bool)
    distances, _ = cKDTree(points).query(points, k=k + 1, workers=-1)
    mean = distances[:, 1:].mean(axis=1)
    return mean <= mean.mean() + std_ratio * mean.std()
