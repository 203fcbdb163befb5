"""Unit shapes as triangles, and many placed primitives as one triangle soup."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np

from modality_forcing.data.lowpoly.scene import Primitive


def _quads(quads: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int]]:
    return [t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))]


def _icosphere(levels: int) -> np.ndarray:
    g = (1 + 5**0.5) / 2
    v = np.array(
        [(-1, g, 0), (1, g, 0), (-1, -g, 0), (1, -g, 0), (0, -1, g), (0, 1, g), (0, -1, -g), (0, 1, -g),
         (g, 0, -1), (g, 0, 1), (-g, 0, -1), (-g, 0, 1)], float)  # fmt: skip
    f = [(0, 11, 5), (0, 5, 1), (0, 1, 7), (0, 7, 10), (0, 10, 11), (1, 5, 9), (5, 11, 4), (11, 10, 2),
         (10, 7, 6), (7, 1, 8), (3, 9, 4), (3, 4, 2), (3, 2, 6), (3, 6, 8), (3, 8, 9), (4, 9, 5), (2, 4, 11),
         (6, 2, 10), (8, 6, 7), (9, 8, 1)]  # fmt: skip
    t = v[np.array(f)]
    t /= np.linalg.norm(t, axis=-1, keepdims=True)
    for _ in range(levels):
        a, b, c = t[:, 0], t[:, 1], t[:, 2]
        ab, bc, ca = a + b, b + c, c + a
        t = np.concatenate([np.stack(s, 1) for s in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])
        t /= np.linalg.norm(t, axis=-1, keepdims=True)
    return t * 0.5 + np.array([0, 0, 0.5])


def _lathe(radii: list[float], heights: list[float], n: int) -> np.ndarray:
    """Rings of ``n`` corners around z; radius 0 is a tip; open ends are closed with a fan."""
    a = np.arange(n) * 2 * np.pi / n
    ring = [
        np.stack([r * np.cos(a), r * np.sin(a), np.full(n, h)], 1)
        for r, h in zip(radii, heights, strict=True)
    ]
    out = []
    for low, high in pairwise(ring):
        l2, h2 = np.roll(low, -1, 0), np.roll(high, -1, 0)
        out += [np.stack([low, l2, h2], 1), np.stack([low, h2, high], 1)]
    for r, side in ((ring[0], -1), (ring[-1], 0)):
        middle = np.broadcast_to(r.mean(0), r.shape)
        nxt = np.roll(r, -1, 0)
        out.append(np.stack([middle, nxt, r] if side else [middle, r, nxt], 1))
    t = np.concatenate(out)
    area = np.linalg.norm(np.cross(t[:, 1] - t[:, 0], t[:, 2] - t[:, 0]), axis=1)
    return t[area > 1e-9]


def _torus(tube: float, around: int, across: int) -> np.ndarray:
    """A flat ring of ``around`` by ``across`` quads whose tube has this radius; height 0..1."""
    a, c = np.arange(around) * 2 * np.pi / around, np.arange(across) * 2 * np.pi / across
    r = 0.5 - tube + tube * np.cos(c)[None]
    z = np.broadcast_to(0.5 + 0.5 * np.sin(c)[None], (around, across))
    v = np.stack([r * np.cos(a)[:, None], r * np.sin(a)[:, None], z], -1)
    right, up = np.roll(v, -1, 0), np.roll(v, -1, 1)
    both = np.roll(right, -1, 1)
    t = np.stack([np.stack([v, right, both], 2), np.stack([v, both, up], 2)])
    return t.reshape(-1, 3, 3)


def _jitter(t: np.ndarray, seed: int, amount: float, keep_bottom: bool = False) -> np.ndarray:
    flat = t.reshape(-1, 3)
    keys, inverse = np.unique(np.round(flat, 5), axis=0, return_inverse=True)
    move = np.random.default_rng(seed).uniform(-amount, amount, keys.shape)
    if keep_bottom:
        move[:, 2] *= keys[:, 2] > 0.01
    return (flat + move[inverse.ravel()]).reshape(t.shape)


def _terrain(seed: int, n: int = 14) -> np.ndarray:
    """A height field on an n x n grid: round bumps that run out to zero at the border, highest point 1."""
    rng = np.random.default_rng(700 + seed)
    side = np.linspace(-0.5, 0.5, n + 1)
    x, y = np.meshgrid(side, side, indexing="ij")
    height = np.zeros_like(x)
    for _ in range(9):
        cx, cy = rng.uniform(-0.38, 0.38), rng.uniform(-0.3, 0.3)
        wide, deep = rng.uniform(0.07, 0.2), rng.uniform(0.08, 0.22)
        height += rng.uniform(0.35, 1.0) * np.exp(-(((x - cx) / wide) ** 2) - ((y - cy) / deep) ** 2)
    height *= (1 - (2 * x) ** 2) * (1 - (2 * y) ** 2)
    corner = np.stack([x, y, height / height.max()], 2)
    a, b, c, d = corner[:-1, :-1], corner[1:, :-1], corner[1:, 1:], corner[:-1, 1:]
    return np.stack([np.stack([a, b, c], 2), np.stack([a, c, d], 2)], 2).reshape(-1, 3, 3)


@cache
def unit_mesh(kind: str) -> np.ndarray:
    """Triangles of one unit shape, float64 (T, 3, 3), x, y in [-0.5, 0.5], z in [0, 1]."""
    if kind == "plane":
        v = np.array([(-0.5, -0.5, 0), (0.5, -0.5, 0), (0.5, 0.5, 0), (-0.5, 0.5, 0)], float)
        return v[np.array([(0, 1, 2), (0, 2, 3)])]
    corners = np.array([(x, y, z) for z in (0, 1) for y in (-0.5, 0.5) for x in (-0.5, 0.5)], float)
    if kind == "box":
        return corners[
            np.array(
                _quads([(0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5)])
            )
        ]
    if kind == "taper":  # a box whose top is smaller
        v = corners.copy()
        v[4:, :2] *= 0.6
        return v[
            np.array(
                _quads([(0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5)])
            )
        ]
    if kind == "wedge":  # a gable roof, ridge along x
        v = np.array(
            [(-0.5, -0.5, 0), (0.5, -0.5, 0), (0.5, 0.5, 0), (-0.5, 0.5, 0), (-0.5, 0, 1), (0.5, 0, 1)]
        )
        return v[np.array([*_quads([(0, 3, 2, 1), (0, 1, 5, 4), (2, 3, 4, 5)]), (0, 4, 3), (1, 2, 5)])]
    if kind == "pyramid":
        v = np.array([(-0.5, -0.5, 0), (0.5, -0.5, 0), (0.5, 0.5, 0), (-0.5, 0.5, 0), (0, 0, 1)])
        return v[np.array([*_quads([(0, 3, 2, 1)]), (0, 1, 4), (1, 2, 4), (2, 3, 4), (3, 0, 4)])]
    if kind == "cylinder":
        return _lathe([0.5, 0.5], [0, 1], 14)
    if kind == "cone":
        return _lathe([0.5, 0.0], [0, 1], 14)
    if kind == "shade":
        return _lathe([0.5, 0.3], [0, 1], 12)
    if kind == "vase":
        return _lathe([0.28, 0.5, 0.45, 0.2, 0.3], [0, 0.3, 0.55, 0.85, 1], 12)
    if kind == "bowl":
        return _lathe([0.25, 0.42, 0.5], [0, 0.4, 1], 12)
    if kind == "hull":  # a boat, bow at +x
        v = np.array([(-.5, -.35, 0), (.3, -.3, 0), (.3, .3, 0), (-.5, .35, 0), (-.5, -.5, 1), (.2, -.5, 1),
                      (.2, .5, 1), (-.5, .5, 1), (.5, 0, 1)])  # fmt: skip
        return v[np.array([*_quads([(0, 1, 5, 4), (2, 3, 7, 6), (3, 0, 4, 7), (4, 5, 6, 7), (0, 3, 2, 1)]),
                           (1, 8, 5), (2, 6, 8), (1, 2, 8), (5, 8, 6)])]  # fmt: skip
    if kind == "sphere":
        return _icosphere(2)
    if kind == "blob":
        return _icosphere(1)
    if kind.startswith("rock"):
        return _jitter(_icosphere(1), int(kind[4:]), 0.07)
    if kind.startswith("leaf"):
        return _jitter(_icosphere(1), 50 + int(kind[4:]), 0.05)
    if kind.startswith("peak"):
        t = _lathe([0.5, 0.4, 0.3, 0.19, 0.1, 0.0], [0, 0.14, 0.32, 0.56, 0.8, 1.0], 13)
        return _jitter(t, 90 + int(kind[4:]), 0.045, keep_bottom=True)
    if kind.startswith("terrain"):
        return _terrain(int(kind[7:]))
    if kind == "capsule":  # round ends fit a height of 2.2 widths
        a = np.linspace(0.0, np.pi / 2, 4)
        low = [(0.5 * np.sin(t), 0.227 * (1 - np.cos(t))) for t in a]
        profile = [*low, *((r, 1 - h) for r, h in reversed(low))]
        return _lathe([r for r, _ in profile], [h for _, h in profile], 12)
    if kind in ("torus", "ring"):  # lies flat; the tube is 0.28 (torus) or 0.1 (ring) wide
        return _torus(0.14 if kind == "torus" else 0.05, 18, 8 if kind == "torus" else 6)
    raise KeyError(kind)


def placements(primitives: list[Primitive]) -> tuple[np.ndarray, np.ndarray]:
    """Linear parts (N, 3, 3) and translations (N, 3) of primitives: Rz(yaw) Rx(tilt) Ry(roll) diag(size)."""
    a = np.array([(p.yaw, p.tilt, p.roll) for p in primitives])
    c, s = np.cos(a), np.sin(a)
    n, o, i = len(primitives), np.zeros(len(primitives)), np.ones(len(primitives))
    rz = np.stack([c[:, 0], -s[:, 0], o, s[:, 0], c[:, 0], o, o, o, i], 1).reshape(n, 3, 3)
    rx = np.stack([i, o, o, o, c[:, 1], -s[:, 1], o, s[:, 1], c[:, 1]], 1).reshape(n, 3, 3)
    ry = np.stack([c[:, 2], o, s[:, 2], o, i, o, -s[:, 2], o, c[:, 2]], 1).reshape(n, 3, 3)
    size = np.array([p.size for p in primitives])
    return (rz @ rx @ ry) * size[:, None, :], np.array([p.position for p in primitives])


def triangles(primitives: list[Primitive]) -> tuple[np.ndarray, np.ndarray]:
    """All triangles (T, 3, 3) in the world and the index of the primitive of each (T,)."""
    linear, move = placements(primitives)
    groups: dict[str, list[int]] = {}
    for index, primitive in enumerate(primitives):
        groups.setdefault(primitive.kind, []).append(index)
    soup, owner = [], []
    for kind, members in groups.items():
        mesh = unit_mesh(kind)
        flat = mesh.reshape(-1, 3)
        soup.append((flat @ linear[members].transpose(0, 2, 1) + move[members][:, None]).reshape(-1, 3, 3))
        owner.append(np.repeat(members, len(mesh)))
    return np.concatenate(soup), np.concatenate(owner)
