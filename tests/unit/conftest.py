"""A small rendered cache without the renderer: the documented files with pictures made here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

CACHE_SIZE = 32
CACHE_COUNT = 12


@pytest.fixture(scope="session")
def small_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two chunks of 32 x 32 samples. Sample i has red = 10 i everywhere, a bright column at its left edge,
    sky (+inf) in its upper quarter and depth that grows to the right."""
    folder = tmp_path_factory.mktemp("cache")
    settings = {"split": "train", "start": 0, "size": CACHE_SIZE, "chunk": CACHE_COUNT // 2}
    (folder / "cache.json").write_text(json.dumps(settings))
    size, half = CACHE_SIZE, CACHE_COUNT // 2
    rows, cols = np.mgrid[0:size, 0:size]
    for number in range(2):
        chunk = folder / f"chunk-{number:05d}"
        chunk.mkdir()
        rgb = np.zeros((half, size, size, 3), np.uint8)
        depth = np.zeros((half, size, size), np.float32)
        lines = []
        for i in range(half):
            index = number * half + i
            noise = np.random.default_rng(index).integers(0, 120, (size // 8, size // 8))
            rgb[i, ..., 0] = 10 * index
            rgb[i, ..., 1] = np.kron(noise, np.ones((8, 8)))
            rgb[i, :, 0, 2] = 255
            depth[i] = 2.0 + index + 0.2 * cols + 0.05 * rows
            depth[i, : size // 4] = np.inf
            captions = [f"sample {index}", f"sample {index} with a bar on the left, not on the right"]
            lines.append(json.dumps({"seed": index, "place": "street", "light": "day", "captions": captions}))
        np.save(chunk / "rgb.npy", rgb)
        np.save(chunk / "depth.npy", depth)
        np.save(chunk / "K.npy", np.tile(np.float32([30, 30, 16, 16]), (half, 1)))
        (chunk / "samples.jsonl").write_text("\n".join(lines) + "\n")
    return folder
