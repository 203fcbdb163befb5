"""Folders of shards without the renderer: pictures made here, written by the real writer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modality_forcing.data.shards import Manifest, encode_sample, write_shard
from modality_forcing.types import Camera, Sample


def toy_sample(index: int, width: int = 32, height: int = 32) -> Sample:
    """Red is 10 x index everywhere, a bright column stands at the left edge, the upper quarter is sky (+inf),
    and depth grows to the right. The two captions name the index; the longer one a side."""
    rows, cols = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(index).integers(0, 120, (-(-height // 8), -(-width // 8)))
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[..., 0] = 10 * index % 256
    rgb[..., 1] = np.kron(noise, np.ones((8, 8)))[:height, :width]
    rgb[:, 0, 2] = 255
    depth = (2.0 + index + 0.2 * cols + 0.05 * rows).astype(np.float32)
    depth[: height // 4] = np.inf
    camera = Camera(30.0, 30.0, width / 2, height / 2, width, height)
    captions = (f"sample {index}", f"sample {index} with a bar on the left, not on the right")
    return Sample(rgb, depth, camera, captions, seed=index)


def write_samples(
    folder: Path, samples: Sequence[Sample], *, per_shard: int = 6, unit: str = "m",
    generator: str = "toy", settings: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """A folder of shards with these samples; their keys are their places, 6 digits."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest({"name": generator}, settings or {})
    for number, first in enumerate(range(0, len(samples), per_shard)):
        name = f"toy-{number:06d}.tar"
        part = [
            (f"{index:06d}", encode_sample(samples[index], f"{index:06d}", source=generator, unit=unit))
            for index in range(first, min(first + per_shard, len(samples)))
        ]
        manifest.shards[name] = write_shard(folder, name, part)
    manifest.write(folder)
    return folder
