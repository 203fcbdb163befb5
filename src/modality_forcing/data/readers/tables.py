"""Formats "csv" and "index": a table says which files belong together."""

from __future__ import annotations

import csv
import json
from pathlib import Path, PurePosixPath
from typing import Any

from modality_forcing.data.readers.base import Found, Item, Loaded, Options
from modality_forcing.data.readers.folder import load_files
from modality_forcing.errors import UserError

OPTIONS = ("depth_scale", "depth_kind", "unit", "fov_x", "sky_beyond", "rgb_only")
CSV_LAYOUT = (
    "a .csv file with the columns image, depth and, if you like, mask, sky, caption, fx, fy, cx, cy,"
    " depth_scale (value * depth_scale = metres); paths are relative to the file"
)
INDEX_LAYOUT = (
    "index.json: a list of {rgb, depth and, if you like, name, mask, sky, caption or captions, K (3x3),"
    " depth_scale (value / depth_scale = metres)}; paths are relative to it"
)
_FILES = ("image", "depth", "mask", "sky")
_NUMBERS = ("fx", "fy", "cx", "cy", "depth_scale")
_COLUMNS = (*_FILES, "caption", *_NUMBERS)
MAX_TABLE = 2_000_000_000  # bytes


def find_csv(source: Path, options: Options) -> Found:
    """One item for each row that names an image and a depth map that exist.

    Raises:
        UserError: no such table, no column "image", a column that is not known.
    """
    text = _text(source, "a CSV table", CSV_LAYOUT)
    reader = csv.DictReader(text.splitlines())
    columns = [(name or "").strip().lower() for name in reader.fieldnames or ()]
    unknown = [name for name in columns if name not in _COLUMNS]
    if "image" not in columns or unknown:
        what = f"does not know the column {unknown[0]!r}" if unknown else "has no column 'image'"
        raise UserError(f"{source} {what}; right is {CSV_LAYOUT}")
    reader.fieldnames = columns
    found = Found()
    for number, row in enumerate(reader, start=2):
        where = f"{source.name}, row {number}"
        try:
            cells = {name: (row.get(name) or "").strip() for name in _COLUMNS}
            numbers = {name: float(cells[name]) for name in _NUMBERS if cells[name]}
            camera = [numbers[name] for name in ("fx", "fy", "cx", "cy") if name in numbers]
            if len(camera) not in (0, 4):
                raise ValueError("fx, fy, cx and cy come together")
            facts: dict[str, Any] = {"camera": tuple(camera) or None}
            if "depth_scale" in numbers:
                facts["depth_scale"] = _positive(numbers["depth_scale"])
            if cells["caption"]:
                facts["captions"] = (cells["caption"],)
            _add(found, where, source.parent, {k: cells[k] for k in _FILES if cells[k]}, facts, options)
        except ValueError as error:
            found.problems.append((where, str(error)))
    return _without_twins(found)


def find_index(source: Path, options: Options) -> Found:
    """One item for each entry of ``index.json`` whose files exist.

    Raises:
        UserError: no such file, or it is no list of tables.
    """
    path = source / "index.json" if source.is_dir() else source
    try:
        entries = json.loads(_text(path, "an index", INDEX_LAYOUT))
    except (json.JSONDecodeError, RecursionError):
        raise UserError(f"{path} is not valid JSON; right is {INDEX_LAYOUT}") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path} is no list of tables; right is {INDEX_LAYOUT}")
    found = Found()
    for number, entry in enumerate(entries):
        where = f"{path.name}, entry {number} ({str(entry.get('name', ''))[:80]})"
        try:
            files = {name: entry.get(name) for name in _FILES}
            files["image"] = files["image"] or entry.get("rgb")
            texts = {name: str(value) for name, value in files.items() if value}
            captions = entry.get("captions") or ([entry["caption"]] if entry.get("caption") else [])
            facts: dict[str, Any] = {
                "camera": entry.get("K"),
                "captions": tuple(sorted((str(text) for text in captions), key=len)),
            }
            if entry.get("depth_scale") is not None:
                facts["depth_scale"] = 1.0 / _positive(float(entry["depth_scale"]))
            if entry.get("source"):
                facts["meta"] = {"origin": str(entry["source"])}
            _add(found, where, path.parent, texts, facts, options)
        except (TypeError, ValueError) as error:
            found.problems.append((where, str(error)))
    return _without_twins(found)


def load(item: Item, options: Options) -> Loaded:
    """Read the files of one row or entry."""
    loaded = load_files(item, options)
    loaded.meta.update(item.facts.get("meta", {}))
    return loaded


def _text(path: Path, what: str, layout: str) -> str:
    if not path.is_file():
        raise UserError(f"{path} is not {what}; right is {layout}")
    if path.stat().st_size > MAX_TABLE:
        raise UserError(f"{path} is larger than {MAX_TABLE // 10**6} MB; split it")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; right is {layout}") from None


def _positive(value: float) -> float:
    if not 0 < value < float("inf"):
        raise ValueError(f"depth_scale is {value:g}; right is a positive number")
    return value


def _add(
    found: Found, where: str, base: Path, files: dict[str, str], facts: dict[str, Any], options: Options
) -> None:
    if "image" not in files:
        raise ValueError("it names no image")
    if "depth" not in files and not options.rgb_only:
        raise ValueError("it names no depth map")
    paths = {name: base / text for name, text in files.items()}
    missing = [text for name, text in files.items() if not paths[name].is_file()]
    if missing:
        found.problems.append((where, f"no file {missing[0][:200]}"))
        return
    found.items.append(Item(PurePosixPath(files["image"]).with_suffix("").as_posix(), paths, facts))


def _without_twins(found: Found) -> Found:
    """Items in the order of their names; of several with one name the first."""
    seen: dict[str, Item] = {}
    for item in found.items:
        if item.name in seen:
            found.problems.append((item.paths["image"].name, "the image comes twice; its first row is used"))
        else:
            seen[item.name] = item
    found.items = [seen[name] for name in sorted(seen)]
    return found
