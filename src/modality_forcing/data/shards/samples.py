"""One sample as the members of a tar, and back."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from modality_forcing.errors import UserError
from modality_forcing.io.checks import MAX_PIXELS
from modality_forcing.io.log_depth import depth_of_log_codes, log_depth_png
from modality_forcing.io.plain_json import plain
from modality_forcing.io.png import picture_from_bytes, png_bytes
from modality_forcing.types import Camera, Sample

FIELDS = ("rgb", "depth", "normals", "ids")
MEASURED, SKY, NOTHING = 255, 128, 0  # values of the mask
RGB_ENDINGS = {"rgb.png": "PNG", "rgb.jpg": "JPEG"}
CODING = "log"
# WebDataset takes the name up to its first dot as the key; a ustar name has 100 characters.
_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")


class CorruptSample(UserError):
    """A sample that cannot be read.

    Attributes:
        shard: name of the tar file.
        key: key of the sample.
        reason: what is wrong with it.
    """

    def __init__(self, shard: str, key: str, reason: str) -> None:
        super().__init__(f"sample {key} of shard {shard} cannot be read: {reason}")
        self.shard, self.key, self.reason = shard, key, reason

    def __reduce__(self) -> tuple[Any, ...]:  # it must pass from one process to another
        return type(self), (self.shard, self.key, self.reason)


def check_key(key: str) -> str:
    """``key`` itself.

    Raises:
        ValueError: it is not 1 to 80 letters, digits, hyphens and underscores.
    """
    if not _KEY.fullmatch(key):
        raise ValueError(f"key {key[:100]!r}; right is 1 to 80 letters, digits, hyphens and underscores")
    return key


def encode_sample(
    sample: Sample, key: str, *, source: str, unit: str = "m", rgb_jpeg: bytes | None = None
) -> list[tuple[str, bytes]]:
    """The members of a sample, in the order of the file: (ending, content).

    The same sample gives the same bytes with the same version of Pillow.

    Args:
        sample: depth in ``unit``: +inf is sky, 0 (or not a number) unknown. ``meta`` becomes JSON.
        key: 1 to 80 letters, digits, hyphens and underscores, unique over the folder.
        source: where it comes from: "lowpoly", the name of a data set.
        unit: "m" or "relative".
        rgb_jpeg: the JPEG file that ``sample.rgb`` was decoded from, stored as it is in place of a PNG.
            It must be upright and sRGB, of the sample's size.

    Raises:
        ValueError: shapes that do not match, a bad key or unit, object ids outside 0..65535.
    """
    height, width = sample.rgb.shape[:2]
    for name, value, shape in (
        ("rgb", sample.rgb, (height, width, 3)), ("depth", sample.depth, (height, width)),
        ("normals", sample.normals, (height, width, 3)), ("object_ids", sample.object_ids, (height, width)),
    ):  # fmt: skip
        if value is not None and value.shape != shape:
            raise ValueError(f"{name} of sample {key} has shape {value.shape} instead of {shape}")
    if (sample.camera.width, sample.camera.height) != (width, height):
        raise ValueError(f"the camera of sample {key} is for another size than its {width}x{height} image")
    if unit not in ("m", "relative"):
        raise ValueError(f"unit {unit!r}; right is 'm' or 'relative'")
    depth, near, far = log_depth_png(sample.depth, unit)
    mask = np.full((height, width), NOTHING, np.uint8)
    mask[sample.valid] = MEASURED
    mask[np.isposinf(sample.depth)] = SKY
    members = [("rgb.png", png_bytes(sample.rgb))] if rgb_jpeg is None else [("rgb.jpg", rgb_jpeg)]
    members += [("depth.png", depth), ("mask.png", png_bytes(mask))]
    if sample.normals is not None:
        codes = np.rint((np.clip(sample.normals, -1, 1) + 1) * 127.5).astype(np.uint8)
        members.append(("normals.png", png_bytes(codes)))
    if sample.object_ids is not None:
        ids = sample.object_ids
        if ids.size and not (ids.min() >= 0 and ids.max() <= 65535):
            raise ValueError(f"object ids of sample {key} lie outside 0..65535")
        members.append(("ids.png", png_bytes(ids.astype(np.uint16))))
    camera = sample.camera
    record = {
        "key": check_key(key), "seed": sample.seed, "source": source, "width": width, "height": height,
        "camera": {"fx": camera.fx, "fy": camera.fy, "cx": camera.cx, "cy": camera.cy},
        "captions": list(sample.captions),
        "depth": {"near": near, "far": far, "unit": unit, "coding": CODING},
        "meta": sample.meta,
    }  # fmt: skip
    members.append(("json", json_bytes(record)))
    return members


def json_bytes(value: Any, *, indent: int | None = None) -> bytes:
    """UTF-8 JSON, keys sorted, the same for the same value."""
    form: dict[str, Any] = {"indent": indent, "separators": (",", ":" if indent is None else ": ")}
    text = json.dumps(plain(value), sort_keys=True, ensure_ascii=False, allow_nan=False, **form)
    return text.encode("utf-8") + (b"\n" if indent is not None else b"")


def decode_record(content: bytes, key: str) -> dict[str, Any]:
    """The JSON member of a sample, checked.

    Raises:
        ValueError: no JSON, another key, or an entry that is missing or wrong.
    """
    try:
        record = json.loads(content)
        if not isinstance(record, dict):
            raise ValueError("it is no table")
        if record["key"] != key:
            raise ValueError(f"it says its key is {str(record['key'])[:80]!r}")
        width, height, camera, depth = (record[name] for name in ("width", "height", "camera", "depth"))
        numbers = [float(camera[name]) for name in ("fx", "fy", "cx", "cy")]
        if not (isinstance(width, int) and isinstance(height, int) and min(width, height) > 0):
            raise ValueError(f"its size is {width} x {height}")
        if width * height > MAX_PIXELS:
            raise ValueError(f"its size is {width} x {height}, above the limit of {MAX_PIXELS} pixels")
        if not (np.isfinite(numbers).all() and numbers[0] > 0 and numbers[1] > 0):
            raise ValueError(f"its camera is {camera}")
        if depth["coding"] != CODING:
            raise ValueError(f"its depth coding is {depth['coding']!r} instead of {CODING!r}")
        float(depth["near"]), float(depth["far"]), str(depth["unit"])
        if not all(isinstance(text, str) for text in record["captions"]):
            raise ValueError("its captions are no texts")
        int(record["seed"]), str(record["source"]), dict(record["meta"])
    except KeyError as error:
        raise ValueError(f"its json has no {error}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"its json is wrong: {' '.join(str(error).split())[:200]}") from None
    return record


def decode_sample(
    members: Mapping[str, bytes], record: Mapping[str, Any], fields: Collection[str] = FIELDS
) -> Sample:
    """A sample from its members, by ending, and its decoded JSON.

    ``meta`` gains "key", "source" and "depth_unit". Of the fields not asked for, rgb is black, depth 0
    (nothing known), normals and object ids None; so are normals and ids that the shard does not hold.

    Raises:
        ValueError: a member is missing or damaged, or of another size than the json says.
    """
    width, height = record["width"], record["height"]
    size = (width, height)
    rgb = np.zeros((height, width, 3), np.uint8)
    depth = np.zeros((height, width), np.float32)
    normals = ids = None
    if "rgb" in fields:
        ending = next((ending for ending in RGB_ENDINGS if ending in members), "rgb.png")
        rgb = _picture(members, ending, RGB_ENDINGS[ending], "RGB", size)
    if "depth" in fields:
        codes = _picture(members, "depth.png", "PNG", "I;16", size)
        depth = depth_of_log_codes(codes, float(record["depth"]["near"]), float(record["depth"]["far"]))
    if "normals" in fields and "normals.png" in members:
        normals = normals_of_codes(_picture(members, "normals.png", "PNG", "RGB", size))
    if "ids" in fields and "ids.png" in members:
        ids = _picture(members, "ids.png", "PNG", "I;16", size).astype(np.int32)
    fx, fy, cx, cy = (float(record["camera"][name]) for name in ("fx", "fy", "cx", "cy"))
    return Sample(
        rgb=rgb, depth=depth, normals=normals, object_ids=ids,
        camera=Camera(fx, fy, cx, cy, width, height),
        captions=tuple(record["captions"]), seed=int(record["seed"]),
        meta={
            **record["meta"],
            "key": record["key"], "source": record["source"], "depth_unit": record["depth"]["unit"],
        },
    )  # fmt: skip


def normals_of_codes(codes: np.ndarray) -> np.ndarray:
    """float32 (H, W, 3) unit normals of 8-bit codes; zeros where the code is mid-gray (no surface)."""
    normals = codes.astype(np.float32) / 127.5 - 1.0
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    return np.where(length > 0.5, normals / np.maximum(length, 0.5), 0.0).astype(np.float32)


def _picture(
    members: Mapping[str, bytes], ending: str, kind: str, mode: str, size: tuple[int, int]
) -> np.ndarray:
    if ending not in members:
        raise ValueError(f"it has no {ending}")
    try:
        return picture_from_bytes(members[ending], kind, mode, size)
    except ValueError as error:
        raise ValueError(f"{ending}: {error}") from None
