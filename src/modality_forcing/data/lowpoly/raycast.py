"""Which triangle does a ray meet first, and does it meet any: one interface, two implementations.

``EmbreeCaster`` asks Embree (CPU, extra "train"). ``TorchCaster`` (``raycast_torch``) runs on any device and
takes many scenes at once. The renderer asks nothing else, so both give the same pictures but for rays
that pass an edge closer than float32 can tell and for faces that lie in each other.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from modality_forcing.data.lowpoly.geometry import Geometry
from modality_forcing.data.lowpoly.shading import Vec
from modality_forcing.errors import UserError

BACKENDS = ("auto", "embree", "torch")


class RayCaster(Protocol):
    """Answers rays against the triangles of a ``Geometry``.

    Origins and directions are three float32 tensors (N,) each, in metres, or (1,) where all rays agree;
    directions need no unit length.
    ``scene`` (N,) int32, ascending, names each ray's scene; None where there is only one. Neighbours in the
    row should be neighbours in space.
    """

    def closest(self, origin: Vec, direction: Vec, scene: Tensor | None) -> Tensor:
        """Index of the triangle each ray meets first, int32 (N,), -1 for none."""

    def free(self, origin: Vec, direction: Vec, reach: Tensor | None, scene: Tensor | None) -> Tensor:
        """True (N,) where nothing stands in the way up to ``reach`` directions' lengths (None: no limit)."""


class EmbreeCaster:
    """One scene, answered by Embree on the CPU."""

    def __init__(self, geometry: Geometry) -> None:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene

        assert len(geometry.eyes) == 1
        self._scene = EmbreeScene(_embree())
        self._mesh = TriangleMesh(self._scene, geometry.corners.astype(np.float32))

    def closest(self, origin: Vec, direction: Vec, scene: Tensor | None) -> Tensor:
        """See ``RayCaster``."""
        o, d = _rows(origin, direction)
        return torch.from_numpy(np.asarray(self._scene.run(o, d), np.int32))

    def free(self, origin: Vec, direction: Vec, reach: Tensor | None, scene: Tensor | None) -> Tensor:
        """See ``RayCaster``."""
        o, d = _rows(origin, direction)
        if not len(o):
            return torch.zeros(0, dtype=torch.bool)
        limit = {} if reach is None else {"dists": reach.numpy()}
        return torch.from_numpy(np.asarray(self._scene.run(o, d, query="OCCLUDED", **limit)) < 0)


@cache
def _embree() -> object:
    """Embree's device, shared by all scenes of the process."""
    from embreex.rtcore import EmbreeDevice

    return EmbreeDevice()


def ray_count(origin: Vec, direction: Vec) -> int:
    """Number of rays; coordinates of length 1 are common to all rays, of which there may be none."""
    lengths = {len(x) for x in (*origin, *direction)}
    return 0 if 0 in lengths else max(lengths)


def _rows(origin: Vec, direction: Vec) -> tuple[np.ndarray, np.ndarray]:
    """Embree's layout, (N, 3) float32 each; coordinates common to all rays are spread."""
    out = torch.empty(2, ray_count(origin, direction), 3)
    for k, vector in enumerate((origin, direction)):
        for axis in range(3):
            out[k, :, axis] = vector[axis]
    return out[0].numpy(), out[1].numpy()


def choose(backend: str, device: str | torch.device | None) -> tuple[str, torch.device]:
    """The implementation and the device to use.

    "auto" is Embree on the CPU where it is installed, else torch. ``device`` None is the CPU.

    Raises:
        UserError: an unknown backend or device, a device this computer lacks, Embree missing or asked
            to leave the CPU.
    """
    if backend not in BACKENDS:
        raise UserError(f"unknown render backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    try:
        place = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError):
        raise UserError(f"{device!r} is no device; write cpu, cuda or cuda:0") from None
    if place.type not in ("cpu", "cuda"):
        # Depth is computed in float64, which other devices lack.
        raise UserError(f"the renderer runs on cpu and cuda, not on {place.type!r}")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {str(place)!r} is not here; this computer has {torch.cuda.device_count()}")
    installed = importlib.util.find_spec("embreex") is not None
    if backend == "auto":
        backend = "embree" if installed and place.type == "cpu" else "torch"
    if backend == "embree":
        if place.type != "cpu":
            raise UserError(f"backend 'embree' runs on the CPU; for device {str(place)!r} choose 'torch'")
        if not installed:
            raise UserError(
                "backend 'embree' needs the package embreex: "
                "pip install \"modality-forcing[train]\", or choose 'torch'"
            )
    return backend, place
