"""Point clouds as files other programs open.

Inside the project clouds have OpenCV axes (x right, y down, z forward). Files have glTF axes: x right, y up,
z towards the viewer, so that viewers show them upright; the camera stays at the origin, looking along -z.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from modality_forcing.geometry.cloud import PointCloud
from modality_forcing.io.atomic import atomic_file

_FLOAT, _ARRAY_BUFFER, _POINTS = 5126, 34962, 0  # glTF component type, buffer target, primitive mode


def to_gltf_axes(points: np.ndarray) -> np.ndarray:
    """(N, 3) OpenCV axes to glTF axes (and back: it is its own inverse), float32."""
    return np.asarray(points, dtype=np.float32) * np.array([1, -1, -1], dtype=np.float32)


def write_ply(path: str | Path, cloud: PointCloud) -> None:
    """Binary PLY: float32 x, y, z (glTF axes) and uint8 red, green, blue (sRGB), 15 bytes a point.

    Raises:
        UserError: it cannot be written.
    """
    header = (
        "ply\nformat binary_little_endian 1.0\n"
        f"comment axes: x right, y up, z towards the viewer; camera at the origin; unit: {cloud.unit}\n"
        f"element vertex {len(cloud)}\n"
        "property float x\nproperty float y\nproperty float z\n"
        "property uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n"
    )
    vertices = np.empty(len(cloud), dtype=[("position", "<f4", 3), ("color", "u1", 3)])
    vertices["position"] = to_gltf_axes(cloud.points)
    vertices["color"] = cloud.colors
    with atomic_file(path) as aside, aside.open("wb") as stream:
        stream.write(header.encode("ascii"))
        stream.write(vertices.view(np.uint8).data)


def write_glb(path: str | Path, cloud: PointCloud) -> None:
    """Binary glTF 2.0 with one primitive of points, 24 bytes a point.

    glTF vertex colours are linear light, not sRGB: without the conversion viewers show them washed out.
    They are floats because 8 bits of linear light show steps in the darks, and because not every reader
    understands 16-bit colours. The material is unlit: what is seen is the picture.

    Raises:
        UserError: it cannot be written.
    """
    points = to_gltf_axes(cloud.points).astype("<f4", copy=False)
    colors = _SRGB_TO_LINEAR[cloud.colors]
    count = len(cloud)
    primitive = {"attributes": {"POSITION": 0, "COLOR_0": 1}, "mode": _POINTS, "material": 0}
    document = {
        "asset": {"version": "2.0", "generator": "modality-forcing", "extras": {"unit": cloud.unit}},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "cloud"}],
        "meshes": [{"primitives": [primitive]}],
        "materials": [
            {
                "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0},
                "extensions": {"KHR_materials_unlit": {}},
            }
        ],
        "accessors": [
            {
                "bufferView": 0, "componentType": _FLOAT, "count": count, "type": "VEC3",
                "min": [float(v) for v in points.min(axis=0)], "max": [float(v) for v in points.max(axis=0)],
            },
            {"bufferView": 1, "componentType": _FLOAT, "count": count, "type": "VEC3"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": points.nbytes, "target": _ARRAY_BUFFER},
            {"buffer": 0, "byteOffset": points.nbytes, "byteLength": colors.nbytes, "target": _ARRAY_BUFFER},
        ],
        "buffers": [{"byteLength": points.nbytes + colors.nbytes}],
    }  # fmt: skip
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)  # chunks start at multiples of 4; both arrays keep that by themselves
    binary = points.nbytes + colors.nbytes
    with atomic_file(path) as aside, aside.open("wb") as stream:
        stream.write(struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + binary))
        stream.write(struct.pack("<I4s", len(text), b"JSON") + text)
        stream.write(struct.pack("<I4s", binary, b"BIN\0"))
        stream.write(points.data)
        stream.write(colors.data)


def _srgb_to_linear() -> np.ndarray:
    """IEC 61966-2-1 as a table: uint8 sRGB to float32 linear light, 0..1."""
    c = np.arange(256) / 255.0
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return linear.astype("<f4")


_SRGB_TO_LINEAR = _srgb_to_linear()
