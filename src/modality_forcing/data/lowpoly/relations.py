"""When is one thing to the left of, behind or on another? Predicates over ids, depth and camera.

Columns and rows count pixels of a W x H picture; heights and distances are metres in a frame that stands
upright whatever the camera's pitch and roll. Quantiles are over an object's visible pixels. A, B are objects:

left of
    the median column of A is at least 0.08 W less than that of B, and A ends (95 % of its columns) no more
    than 0.03 W inside of where B begins (5 %); "right of" is the same with A and B exchanged
behind
    the 10 % depth of A exceeds the 90 % depth of B by 0.3 m and by 8 %, and their column ranges (5 to 95 %)
    share at least 0.3 of the narrower one; "in front of" is the same with A and B exchanged
on
    A was put on B, and in at least 0.4 of A's columns the pixel below A's lowest one shows B; the two are
    (median) within 0.25 m and two pixels of each other, the lower not more than 0.06 m higher
above
    A's lowest point (3 %) is at most 0.02 m below B's highest (97 %) and at most 1.7 m above it, their
    middles are at most 1 m apart seen from above, and column ranges share 0.3; only in rooms
next to
    the nearest visible points are at most 0.6 m apart (1.5 m outside), the bottoms differ by at most 0.6 m
    (1.2 m), the median columns by at least 0.05 W

Left and right are the viewer's, so a mirrored picture needs the two words exchanged and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modality_forcing.types import Camera

FLAT = ("rug", "towel", "lake", "sea", "snow", "pond")
"""Things that lie on the ground; nothing is behind or next to them."""
HUGE = (*FLAT, "mountain", "castle", "bookshelf")
"""Things too large or too many to be a useful landmark of left and right."""


@dataclass
class Seen:
    """What is visible of one object: quantiles of columns, rows, depth, height, and some of its points."""

    id: int
    columns: np.ndarray
    depth: np.ndarray
    height: np.ndarray
    middle: np.ndarray
    points: np.ndarray
    lowest: tuple[np.ndarray, np.ndarray]


def upright_points(depth: np.ndarray, camera: Camera, pitch: float, roll: float) -> np.ndarray:
    """Points (H, W, 3) in metres: right, ahead, up, in a level frame at the camera; zeros on sky.

    ``pitch`` (down is positive) and ``roll`` (clockwise picture is positive) are in radians.
    """
    h, w = depth.shape
    depth = np.where(np.isfinite(depth), depth, 0.0)
    x = (np.arange(w) + 0.5 - camera.cx) / camera.fx
    y = (np.arange(h) + 0.5 - camera.cy) / camera.fy
    right, down = x[None] * depth, y[:, None] * depth
    c, s = np.cos(roll), np.sin(roll)
    right, down = c * right - s * down, s * right + c * down
    ahead = np.cos(pitch) * depth - np.sin(pitch) * down
    return np.stack([right, ahead, -np.sin(pitch) * depth - np.cos(pitch) * down], -1)


def look_at(ids: np.ndarray, depth: np.ndarray, points: np.ndarray, which: list[int]) -> dict[int, Seen]:
    """Measure the objects ``which`` in a picture."""
    out = {}
    for i in which:
        rows, cols = np.nonzero(ids == i)
        p = points[rows, cols]
        lowest = np.full(ids.shape[1], -1)
        np.maximum.at(lowest, cols, rows)
        used = np.nonzero((lowest >= 0) & (lowest < ids.shape[0] - 1))[0]
        out[i] = Seen(
            i,
            np.quantile(cols, (0.05, 0.5, 0.95)),
            np.quantile(depth[rows, cols], (0.1, 0.5, 0.9)),
            np.quantile(p[:, 2], (0.03, 0.97)),
            np.median(p, 0),
            p[:: max(1, len(p) // 150)],
            (lowest[used], used),
        )
    return out


def _shared(a: Seen, b: Seen) -> float:
    overlap = min(a.columns[2], b.columns[2]) - max(a.columns[0], b.columns[0])
    return float(overlap / max(min(np.ptp(a.columns), np.ptp(b.columns)), 1.0))


def left_of(a: Seen, b: Seen, width: int) -> bool:
    """See the module text."""
    return bool(a.columns[1] + 0.08 * width <= b.columns[1] and a.columns[2] <= b.columns[0] + 0.03 * width)


def behind(a: Seen, b: Seen) -> bool:
    """See the module text."""
    far = a.depth[0] >= b.depth[2] + 0.3 and a.depth[0] >= 1.08 * b.depth[2]
    return bool(far and _shared(a, b) >= 0.3)


def on(a: Seen, b: Seen, ids: np.ndarray, points: np.ndarray, depth: np.ndarray, camera: Camera) -> bool:
    """The part of "on" that is seen; that A was put on B is the scene's to say."""
    rows, cols = a.lowest
    if not len(cols):
        return False
    below = ids[rows + 1, cols] == b.id
    if below.mean() < 0.4:
        return False
    r, c = rows[below], cols[below]
    gap = points[r, c] - points[r + 1, c]
    reach = np.linalg.norm(gap, axis=1) - 2 * depth[r, c] / camera.fx
    return bool(np.median(reach) <= 0.25 and np.median(gap[:, 2]) >= -0.06)


def above(a: Seen, b: Seen) -> bool:
    """See the module text."""
    gap = a.height[0] - b.height[1]
    apart = np.linalg.norm((a.middle - b.middle)[:2])
    return bool(-0.02 <= gap <= 1.7 and apart <= 1.0 and _shared(a, b) >= 0.3)


def next_to(a: Seen, b: Seen, width: int, indoor: bool) -> bool:
    """See the module text."""
    reach, level = (0.6, 0.6) if indoor else (1.5, 1.2)
    if abs(a.height[0] - b.height[0]) > level or abs(a.columns[1] - b.columns[1]) < 0.05 * width:
        return False
    nearest = ((a.points[:, None] - b.points[None]) ** 2).sum(2).min()
    return bool(nearest <= reach**2)
