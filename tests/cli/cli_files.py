"""Files that are wrong in one way each, made where they are needed."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def text_file(path: Path, text: str | bytes = "this is not a picture\n") -> Path:
    """A file with any content."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def image(path: Path, width: int = 64, height: int = 48, mode: str = "RGB") -> Path:
    """A plain picture."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    Image.fromarray(values if channels > 1 else values[..., 0], mode=None).save(path)
    return path


def cut_jpeg(path: Path) -> Path:
    """A JPEG whose second half is missing."""
    image(path, 256, 256)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def png_bomb(path: Path, side: int = 20_000) -> Path:
    """A PNG of a few hundred bytes that claims to be side x side pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )
    return path


def npy(path: Path, values: np.ndarray) -> Path:
    """An array."""
    np.save(path, values, allow_pickle=True)
    return path


def model(source: Path, target: Path, fault: str) -> Path:
    """A copy of a model folder with one fault."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    config, weights = target / "config.json", target / "transformer.safetensors"
    values, tensors = json.loads(config.read_text()), load_file(source / weights.name)
    first = sorted(tensors)[0]
    if fault == "no config":
        config.unlink()
    elif fault == "config no json":
        config.write_text("{")
    elif fault == "config unknown key":
        config.write_text(json.dumps(values | {"colour": "blue"}))
    elif fault == "config wrong size":
        values["transformer"]["hidden"] *= 2
        config.write_text(json.dumps(values))
    elif fault == "config no table":
        config.write_text("[1, 2]")
    elif fault == "missing tensor":
        save_file({name: t for name, t in tensors.items() if name != first}, weights)
    elif fault == "extra tensor":
        save_file(tensors | {"surplus": torch.zeros(3)}, weights)
    elif fault == "misshapen tensor":
        save_file(tensors | {first: torch.zeros(3, 5, 7)}, weights)
    elif fault == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif fault == "random weights":
        weights.write_bytes(np.random.default_rng(0).bytes(5000))
    elif fault == "empty weights":
        weights.write_bytes(b"")
    elif fault == "pickled weights":
        torch.save(tensors, weights)
    elif fault == "bare pickle":
        weights.write_bytes(pickle.dumps({"a": 1}))
    elif fault == "no transformer":
        weights.unlink()
    elif fault == "no autoencoder":
        (target / "autoencoder.safetensors").unlink()
    else:
        raise AssertionError(fault)
    return target
