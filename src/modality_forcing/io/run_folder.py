"""One result as a folder; what stands in it is described in the docs under "run folder"."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from modality_forcing.errors import UserError
from modality_forcing.geometry.cloud import MAX_POINTS, SOR, default_edge_rtol, point_cloud
from modality_forcing.io.atomic import atomic_folder
from modality_forcing.io.depth_files import write_depth_npy, write_depth_png16, write_npy
from modality_forcing.io.exports import write_glb, write_ply
from modality_forcing.io.plain_json import plain
from modality_forcing.types import RGBD
from modality_forcing.viz import colorize


def save_run(
    rgbd: RGBD,
    folder: str | Path,
    *,
    edge_rtol: float | None = None,
    sor: bool | None = None,
    max_points: int | None = None,
    hole_edges: bool = True,
) -> Path:
    """Write a run folder, all or nothing.

    Files: ``rgb.png``; ``depth.npy`` (float32, 0 = invalid); ``depth.png`` (16 bit, scale in its text);
    ``depth_magma.png`` (disparity, near = bright); ``mask.png`` (white = valid) when a pixel is invalid;
    ``cloud.glb`` and ``cloud.ply`` unless no point is left (``metadata.json`` says why then, and the rest is
    kept); ``<name>.npy`` for each extra map; ``metadata.json``.

    Args:
        rgbd: the result.
        folder: where to; missing or empty. When it is taken, ``folder-2``, ``folder-3``, ... is used: an
            older result is never overwritten.
        edge_rtol, sor, max_points, hole_edges: see ``geometry.cloud.point_cloud``.

    Returns:
        The folder that was made.

    Raises:
        UserError: it cannot be written (disk full, no permission).
    """
    height, width = rgbd.depth.shape
    metadata: dict[str, Any] = {
        "size": {"width": width, "height": height},
        "camera": rgbd.camera.to_dict(),
        "depth": {"unit": rgbd.depth_unit, "kind": "z-depth", "invalid": 0, **depth_statistics(rgbd)},
    }
    with atomic_folder(folder) as target:
        aside = target.aside
        _save_png(aside / "rgb.png", rgbd.rgb)
        write_depth_npy(aside / "depth.npy", rgbd.depth, rgbd.mask)
        write_depth_png16(aside / "depth.png", rgbd.depth, rgbd.mask, unit=rgbd.depth_unit)
        _save_png(aside / "depth_magma.png", colorize(rgbd.depth, rgbd.mask))
        if not rgbd.mask.all():
            _save_png(aside / "mask.png", rgbd.mask.astype(np.uint8) * 255)
        for name, values in rgbd.extras.items():
            write_npy(aside / f"{re.sub(r'[^A-Za-z0-9_-]+', '_', name)}.npy", values)
        options: dict[str, Any] = {
            "edge_rtol": default_edge_rtol(rgbd.depth.shape) if edge_rtol is None else edge_rtol,
            "sor": SOR if sor is None else sor,
            "max_points": MAX_POINTS if max_points is None else max_points,
            "hole_edges": hole_edges,
        }
        try:
            cloud = point_cloud(rgbd, **options)
        except UserError as error:  # hours of sampling are worth more than a cloud
            metadata["cloud"] = {**options, "points": 0, "missing": str(error)}
        else:
            write_glb(aside / "cloud.glb", cloud)
            write_ply(aside / "cloud.ply", cloud)
            metadata["cloud"] = {
                **options,
                "points": len(cloud),
                "axes": "x right, y up, z towards the viewer",
            }
        metadata["provenance"] = rgbd.provenance
        metadata["files"] = sorted([*(item.name for item in aside.iterdir()), "metadata.json"])
        text = json.dumps(plain(metadata), indent=2, ensure_ascii=False, allow_nan=False)
        (aside / "metadata.json").write_text(text + "\n", encoding="utf-8")
    assert target.path is not None
    return target.path


def depth_statistics(rgbd: RGBD) -> dict[str, float | None]:
    """Over valid pixels, in ``rgbd.depth_unit``: min, p02, median, mean, p98, max; and the valid fraction."""
    values = rgbd.depth[rgbd.mask].astype(np.float64)
    statistics: dict[str, float | None] = {"valid_fraction": float(rgbd.mask.mean())}
    names = ("min", "p02", "median", "mean", "p98", "max")
    if not len(values):
        return statistics | dict.fromkeys(names)
    low, p02, median, p98, high = np.percentile(values, [0, 2, 50, 98, 100])
    numbers = (low, p02, median, values.mean(), p98, high)
    return statistics | {name: float(number) for name, number in zip(names, numbers, strict=True)}


def _save_png(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path, format="PNG", compress_level=3)
