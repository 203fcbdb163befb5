"""A folder of pictures with depth maps, and ``index.json`` that says which belong together.

``index.json`` is a list of tables: ``rgb`` and ``depth`` (paths below the folder), and optionally ``name``,
``depth_scale`` (metres = value / depth_scale, 1000 for millimetres), ``kind`` ("depth" or "disparity"),
``mask`` (a picture, white = valid), ``K`` (3x3 in pixels) and ``caption``. Depth may be anything
``io.depth_files`` reads.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from modality_forcing.errors import UserError
from modality_forcing.evaluation.datasets.common import EvalItem, same_size
from modality_forcing.io.checks import existing_file
from modality_forcing.io.depth_files import read_depth
from modality_forcing.io.images import read_image, read_mask
from modality_forcing.types import Camera

INDEX = "index.json"
MAX_INDEX = 200_000_000  # bytes


class FolderSet:
    """The pictures of an ``index.json``.

    Raises:
        UserError: no index, or one that is not as described above.
    """

    kind, layout = "folder", "folder"

    def __init__(self, root: Path) -> None:
        self.root, self.source = root, str(root)
        path = existing_file(root / INDEX, "index")
        if path.stat().st_size > MAX_INDEX:
            raise UserError(f"index {path} is larger than {MAX_INDEX // 10**6} MB")
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            raise UserError(f"index {path} is not valid JSON") from None
        if not isinstance(entries, list) or not entries:
            raise UserError(f"index {path} is no list of pictures; see docs/evaluation.md")
        self.entries: list[dict[str, Any]] = []
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict) or not all(
                isinstance(entry.get(k), str) for k in ("rgb", "depth")
            ):
                raise UserError(f"index {path}, entry {number}: right is a table with 'rgb' and 'depth'")
            self.entries.append(entry)
        self.names = [str(e.get("name") or PurePosixPath(e["rgb"]).with_suffix("")) for e in self.entries]
        twice = (
            {name for name in self.names if self.names.count(name) > 1} if len(self.names) < 10_000 else {}
        )
        if twice:
            raise UserError(f"index {path} names {sorted(twice)[0]!r} more than once")

    def read(self, index: int) -> EvalItem:
        """One picture; see ``EvalSet``."""
        entry, name = self.entries[index], self.names[index]
        rgb = read_image(self._path(entry["rgb"])).pixels
        scale = entry.get("depth_scale")
        if scale is not None and not (isinstance(scale, (int, float)) and np.isfinite(scale) and scale > 0):
            raise UserError(
                f"{name}: depth_scale is {scale!r}; right is a positive number, 1000 for millimetres"
            )
        mask = None
        if entry.get("mask"):
            mask = read_mask(self._path(entry["mask"]), (rgb.shape[0], rgb.shape[1]))
        found = read_depth(
            self._path(entry["depth"]),
            kind=entry.get("kind", "depth"),
            scale=None if scale is None else 1.0 / float(scale),
            mask=mask,
        )
        depth = np.where(found.infinite, np.inf, found.depth).astype(np.float32)
        return same_size(
            EvalItem(name, rgb, depth, str(entry.get("caption") or ""), self._camera(entry, rgb))
        )

    def _path(self, text: str) -> Path:
        path = PurePosixPath(text)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"index {self.root / INDEX} names {text!r}; right is a path below the folder")
        return self.root / path

    @staticmethod
    def _camera(entry: dict[str, Any], rgb: np.ndarray) -> Camera | None:
        try:
            k = np.array(entry["K"], dtype=np.float64)
            return Camera(k[0, 0], k[1, 1], k[0, 2], k[1, 2], rgb.shape[1], rgb.shape[0])
        except (KeyError, ValueError, IndexError, TypeError):
            return None
