"""Format "folder": images, depth maps, masks, sky masks and captions that belong together by name."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from modality_forcing.data.readers.base import (
    DEPTH_ENDINGS,
    IMAGE_ENDINGS,
    Found,
    Item,
    Loaded,
    Options,
    files_below,
    find_camera,
    read_depth_file,
    read_picture,
)
from modality_forcing.errors import UserError
from modality_forcing.io.images import read_mask
from modality_forcing.io.intrinsics import read_intrinsics

OPTIONS = ("depth_scale", "depth_kind", "unit", "fov_x", "sky_beyond", "rgb_only")
LAYOUT = (
    "images/NAME.jpg + depth/NAME.png (.npy, .npz, .exr, .tif, .pfm) [+ masks/, sky/, captions/NAME.txt],"
    " or NAME.jpg + NAME_depth.png [+ NAME_mask.png, NAME_sky.png, NAME.txt] beside each other"
)
FOLDERS = {
    "image": ("images", "image", "imgs", "img", "rgb", "color", "colour"),
    "depth": ("depth", "depths", "depth_map", "depth_maps"),
    "mask": ("mask", "masks", "valid"),
    "sky": ("sky", "sky_mask", "sky_masks"),
    "caption": ("caption", "captions", "text", "texts"),
}
_ENDINGS = {"image": IMAGE_ENDINGS, "depth": DEPTH_ENDINGS, "mask": IMAGE_ENDINGS, "sky": IMAGE_ENDINGS,
            "caption": (".txt",)}  # fmt: skip
_ROLE_OF_FOLDER = {name: role for role, names in FOLDERS.items() for name in names}
_TAIL = re.compile(r"[._-](depth|mask|sky|rgb|image|color|colour)$", re.IGNORECASE)
_ROLE_OF_TAIL = {"depth": "depth", "mask": "mask", "sky": "sky"}
INTRINSICS = ("intrinsics.json", "intrinsics.txt")
MAX_CAPTION_BYTES = 100_000


def find(source: Path, options: Options) -> Found:
    """Match files by name.

    A file's part follows from the end of its name ("_depth", "_mask", "_sky"), else from the folder it lies
    in (``FOLDERS``), else from its ending. Without that end and that folder, files that belong together have
    the same path. ``intrinsics.json`` or ``intrinsics.txt`` in ``source`` is the camera of all images
    (:func:`modality_forcing.io.intrinsics.read_intrinsics`).

    Raises:
        UserError: a camera file that cannot be read.
    """
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; right is {LAYOUT}")
    camera = next((read_intrinsics(source / name) for name in INTRINSICS if (source / name).exists()), None)
    found = Found()
    groups: dict[str, dict[str, Path]] = {}
    for path in files_below(source):
        inside = path.relative_to(source).as_posix()
        if inside in INTRINSICS:
            continue
        role, name = _role_and_name(path.relative_to(source))
        if role is None:
            found.problems.append((inside, "neither an image nor a depth map, mask or caption"))
        elif role in groups.setdefault(name, {}):
            found.problems.append((inside, f"a second {role} for {name}; {groups[name][role].name} is used"))
        else:
            groups[name][role] = path
    for name in sorted(groups):
        paths = groups[name]
        if "image" in paths and ("depth" in paths or options.rgb_only):
            found.items.append(Item(name, paths, {"camera": camera}))
        else:
            lacks = "depth map" if "image" in paths else "image"
            found.problems += [
                (path.relative_to(source).as_posix(), f"no {lacks} of the same name")
                for role, path in sorted(paths.items())
                if role in ("image", "depth") or "image" not in paths
            ]
    return found


def _role_and_name(path: Path) -> tuple[str | None, str]:
    """What a file is, and the path it shares with those it belongs to."""
    parts, role = [], None
    for part in path.parts[:-1]:
        if role is None and part.lower() in _ROLE_OF_FOLDER:
            role = _ROLE_OF_FOLDER[part.lower()]
        else:
            parts.append(part)
    stem, ending = path.stem, path.suffix.lower()
    tail = _TAIL.search(stem)
    if tail is not None:
        stem = stem[: tail.start()]
        role = _ROLE_OF_TAIL.get(tail[1].lower(), role or "image")
    if role is None:
        role = "image" if ending in IMAGE_ENDINGS else "depth" if ending in DEPTH_ENDINGS else "caption"
    if ending not in _ENDINGS[role]:
        # A caption may lie beside its image, an image's folder may hold other things too.
        role = "caption" if ending == ".txt" else None
    return role, "/".join([*parts, stem])


def load(item: Item, options: Options) -> Loaded:
    """Read one group of files; see :func:`load_files`."""
    return load_files(item, options)


def load_files(item: Item, options: Options) -> Loaded:
    """Read an image and what belongs to it.

    Args:
        item: ``paths`` may hold image, depth, mask, sky and caption, ``facts`` camera, depth_scale, captions.

    Raises:
        UserError: a file that cannot be used, or sizes that do not match.
    """
    rgb, jpeg = read_picture(item.paths["image"])
    height, width = rgb.shape[:2]
    unit = options.unit or "m"
    notes: list[str] = []
    if "depth" in item.paths:
        depth, unit, notes = read_depth_file(
            item.paths["depth"], options, scale=item.facts.get("depth_scale"), mask=item.paths.get("mask")
        )
    else:
        depth = np.zeros((height, width), np.float32)
    if "sky" in item.paths:
        depth[read_mask(item.paths["sky"], (depth.shape[0], depth.shape[1]))] = np.inf
    camera, known = find_camera(width, height, item.facts.get("camera"), options, item.paths["image"])
    captions = tuple(item.facts.get("captions", ()))
    if "caption" in item.paths:
        captions += read_captions(item.paths["caption"])
    return Loaded(rgb, depth, camera, known, unit, jpeg, captions, notes)


def read_captions(path: Path) -> tuple[str, ...]:
    """The lines of a text file that are not empty, from short to long.

    Raises:
        UserError: not UTF-8, or too large for captions.
    """
    if path.stat().st_size > MAX_CAPTION_BYTES:
        raise UserError(f"caption file {path.name} is larger than {MAX_CAPTION_BYTES // 1000} kB")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"caption file {path.name} is not UTF-8 text") from None
    return tuple(sorted((line.strip() for line in lines if line.strip()), key=len))
