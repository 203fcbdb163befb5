"""Scenes as tables on a device: triangles with their planes, primitives with their materials."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from modality_forcing.data.lowpoly.meshes import triangles
from modality_forcing.data.lowpoly.scene import PATTERNS, Scene
from modality_forcing.data.lowpoly.shading import FINEST, to_linear

HAIR = 5e-4


def _hairs(count: int) -> np.ndarray:
    """A shift of up to half a millimetre for each primitive, (count, 3); the first one stays.

    Faces that lie in each other would show one or the other by chance. Shifted, they have an order, the same
    for every ray caster. Multiples of these irrational numbers keep neighbours in the list far apart.
    """
    return np.arange(count)[:, None] * np.array([5**0.5 / 2 - 0.5, 2**0.5, 3**0.5]) % 1.0 * HAIR


class Geometry:
    """Tables of a batch of scenes, triangles and primitives numbered through.

    ``corners`` (T, 3, 3) float64 NumPy holds what the ray casters see: every primitive moved by a hair,
    coordinates rounded to float32.
    ``normal`` (3, T) and ``offset`` (T,) float64 are the planes n . x = offset; ``owner`` (T,) is the
    primitive of a triangle; ``starts`` (B + 1,) is the first triangle of each scene.
    """

    def __init__(self, scenes: list[Scene], device: torch.device) -> None:
        self.device = device
        soups, owners, counts, first = [], [], [0], 0
        for scene in scenes:
            soup, owner = triangles(scene.primitives)
            soups.append(soup + _hairs(len(scene.primitives))[owner][:, None])
            owners.append(owner + first)
            counts.append(len(soup))
            first += len(scene.primitives)
        self.corners = np.concatenate(soups).astype(np.float32).astype(np.float64)
        self.starts = np.cumsum(counts)
        owners_all = np.concatenate(owners)
        a, b, c = self.corners[:, 0], self.corners[:, 1], self.corners[:, 2]
        normal = np.cross(b - a, c - a)
        normal /= np.maximum(np.sqrt((normal * normal).sum(1, keepdims=True)), 1e-20)
        offset = (normal * a).sum(1)
        self.eyes = np.array([s.view.position for s in scenes], np.float32).astype(np.float64)
        self.axes = np.stack([s.view.axes() for s in scenes])
        eye = np.repeat(self.eyes, np.diff(self.starts), 0)
        self.normal, self.offset = self._put(normal.T, np.float64), self._put(offset, np.float64)
        self.plane = self._put(offset - (normal * eye).sum(1), np.float64)  # as seen from the eye
        self.normal32, self.plane32 = self.normal.float(), self.plane.float()
        self.owner = self._put(owners_all, np.int32)
        parts = [p for s in scenes for p in s.primitives]
        self.colour = self._put(to_linear(np.array([p.material.colour for p in parts])).T)
        self.second = self._put(to_linear(np.array([p.material.second for p in parts])).T)
        kinds = np.array([PATTERNS.index(p.material.pattern) for p in parts])
        self.pattern = self._put(kinds, np.int32)
        self.patterns = [PATTERNS[k] for k in np.unique(kinds)]
        self.scale = self._put(np.array([p.material.scale for p in parts]))
        # Width of the narrowest line of the pattern, metres.
        lines = [FINEST.get(p.material.pattern, np.inf) * p.material.scale for p in parts]
        self.line = self._put(np.array(lines))
        self.emission = self._put(np.array([p.material.emission for p in parts]))
        shine = np.array([p.material.shininess for p in parts])
        self.shine, self.shiny = self._put(shine), bool((shine > 0.05).any())
        self.cosine = self._put(np.array([np.cos(p.yaw) for p in parts]))
        self.sine = self._put(np.array([np.sin(p.yaw) for p in parts]))
        self.position = self._put(np.array([p.position for p in parts]).T)
        self.height = self._put(np.array([p.size[2] for p in parts]))
        self.object_id = self._put(np.array([p.object_id for p in parts]), np.int32)

    def _put(self, value: np.ndarray, dtype: type = np.float32) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(value, dtype)).to(self.device)
