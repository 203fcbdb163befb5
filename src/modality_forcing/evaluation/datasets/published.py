"""NYUv2, KITTI, ETH3D, ScanNet and DIODE in the layout of Marigold's evaluation archives (spec section 11).

Which pictures belong to a split stands in a list: one line per picture, "rgb depth [more]", paths relative
    to the
archive, "None" for a missing depth. Without a list every picture that has a depth file is taken; the
published archives hold the split and nothing else.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modality_forcing.errors import UserError
from modality_forcing.evaluation.datasets.common import (
    EvalItem,
    Files,
    decode_integers,
    decode_rgb,
    same_size,
)


@dataclass(frozen=True)
class Layout:
    """Where the depth of a picture stands, and what its numbers are.

    Attributes:
        rgb: pattern of a picture's path.
        depth: template of its depth's path, from the groups of ``rgb``.
        coding: "png" (16 bit, depth = value / divisor), "raw" (float32 of the picture's size) or
            "npy" (metres).
        divisor: of a PNG's values.
        mask: template of the path of a mask (.npy), "" for none.
        names: what a picture is called in the report, from the groups.
    """

    rgb: str
    depth: str
    coding: str
    divisor: float = 1.0
    mask: str = ""


LAYOUTS = {
    "nyuv2": Layout(r"(?P<a>.*/)?rgb_(?P<b>\d+)\.png", "{a}depth_{b}.png", "png", 1000.0),
    "kitti": Layout(
        r"(?P<a>[^/]+)/(?P<b>[^/]+)/image_02/data/(?P<c>\d+)\.png",
        "{b}/proj_depth/groundtruth/image_02/{c}.png", "png", 256.0,
    ),
    "eth3d": Layout(
        r"rgb/(?P<a>[^/]+)/images/dslr_images/(?P<b>[^/]+)\.JPG",
        "depth/{a}_dslr_depth/{a}/ground_truth_depth/dslr_images/{b}.JPG", "raw",
    ),
    "scannet": Layout(r"(?P<a>[^/]+)/color/(?P<b>\d+)\.jpg", "{a}/depth/{b}.png", "png", 1000.0),
    "diode": Layout(r"(?P<a>.+)\.png", "{a}_depth.npy", "npy", mask="{a}_depth_mask.npy"),
}  # fmt: skip


class PublishedSet:
    """One of the five sets.

    Args:
        kind: a key of ``LAYOUTS``.
        root: the unpacked archive or the (uncompressed) tar itself.
        split: file with the list of pictures; None: all that have depth.

    Raises:
        UserError: nothing of this layout is there, or a list that does not fit.
    """

    layout = "marigold"

    def __init__(self, kind: str, root: Path, split: Path | None = None) -> None:
        self.kind, self.source = kind, str(root)
        self.rules = LAYOUTS[kind]
        self.files = Files(root)
        self.entries = self._from_list(split) if split else self._discover()
        if not self.entries:
            raise UserError(
                f"data {root} holds no {kind} picture with depth; right is the layout of Marigold's archive"
                f" ({self.rules.rgb} beside {self.rules.depth}) or MoGe's (.index.txt)"
            )
        self.names = [rgb for rgb, _, _ in self.entries]

    def read(self, index: int) -> EvalItem:
        """One picture; see ``EvalSet``."""
        rgb_path, depth_path, mask_path = self.entries[index]
        rgb = decode_rgb(self.files.read(rgb_path), rgb_path)
        content = self.files.read(depth_path)
        if self.rules.coding == "png":
            depth = decode_integers(content, depth_path).astype(np.float32) / np.float32(self.rules.divisor)
        elif self.rules.coding == "raw":
            if len(content) != 4 * rgb.shape[0] * rgb.shape[1]:
                raise UserError(
                    f"{depth_path} has {len(content)} bytes; a float32 map of the picture's size"
                    f" {rgb.shape[1]}x{rgb.shape[0]} has {4 * rgb.shape[0] * rgb.shape[1]}"
                )
            depth = np.frombuffer(content, dtype="<f4").reshape(rgb.shape[:2]).astype(np.float32)
            depth[~np.isfinite(depth)] = 0.0  # here infinity means "no laser return"
        else:
            depth = _array(content, depth_path).astype(np.float32)
        if mask_path:
            mask = _array(self.files.read(mask_path), mask_path)
            if mask.shape != depth.shape:
                raise UserError(f"{mask_path} is {mask.shape}; its depth is {depth.shape}")
            depth = np.where(mask > 0, depth, 0.0).astype(np.float32)
        depth = np.where(np.isfinite(depth) & (depth > 0), depth, 0.0).astype(np.float32)
        return same_size(EvalItem(rgb_path, rgb, depth))

    def _discover(self) -> list[tuple[str, str, str]]:
        names = self.files.names()
        there = set(names)
        found = []
        for name in names:
            entry = self._paths(name)
            if entry is not None and entry[1] in there and (not entry[2] or entry[2] in there):
                found.append(entry)
        return found

    def _paths(self, rgb: str) -> tuple[str, str, str] | None:
        match = re.fullmatch(self.rules.rgb, rgb)
        if match is None:
            return None
        groups = {key: value or "" for key, value in match.groupdict().items()}
        return rgb, self.rules.depth.format(**groups), self.rules.mask.format(**groups)

    def _from_list(self, split: Path) -> list[tuple[str, str, str]]:
        try:
            lines = split.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"split {split} cannot be read: {error}") from None
        entries = []
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or (len(words) > 1 and words[1] == "None"):
                continue
            if len(words) < 2 or (self.rules.mask and len(words) < 3):
                raise UserError(f"split {split}, line {number}: right is 'rgb depth', three paths for DIODE")
            entries.append((words[0], words[1], words[2] if self.rules.mask else ""))
        missing = [path for entry in entries for path in entry if path and path not in self.files]
        if missing and len(missing) == sum(len([p for p in e if p]) for e in entries):
            raise UserError(f"split {split} does not belong to {self.source}: {missing[0]} is not there")
        return entries


def _array(content: bytes, name: str) -> np.ndarray:
    """(H, W) of an .npy file; axes of length one are dropped."""
    try:
        values = np.load(io.BytesIO(content), allow_pickle=False).squeeze()
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{name} is no whole .npy array: {' '.join(str(error).split())[:120]}") from None
    if values.ndim != 2 or values.dtype.kind not in "fuib":
        raise UserError(f"{name} is {values.dtype} {values.shape}; right is numbers (height, width)")
    return values
