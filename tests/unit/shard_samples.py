"""Small samples with everything a shard can hold, and jobs that write them: other processes import this."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator

import numpy as np

from modality_forcing.data.shards import encode_sample
from modality_forcing.types import Camera, Sample

Encoded = tuple[str, list[tuple[str, bytes]]]


def made_sample(seed: int, width: int = 20, height: int = 16) -> Sample:
    """Random pixels; sky above, a hole of unknown depth, the rest between 0.3 and 300 m."""
    rng = np.random.default_rng(seed)
    depth = np.exp(rng.uniform(np.log(0.3), np.log(300.0), (height, width))).astype(np.float32)
    normals = rng.normal(size=(height, width, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    depth[:4], normals[:4] = np.inf, 0
    depth[8:10, 5:9] = 0
    return Sample(
        rgb=rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        depth=depth,
        camera=Camera(17.25 + seed, 18.5, width / 2 + 0.125, height / 2, width, height),
        captions=("a room", "a room with a café table", "日本"),
        seed=seed,
        normals=normals,
        object_ids=rng.integers(0, 65536, (height, width)).astype(np.int32),
        meta={
            "place": f"place {seed % 3}",
            "light": "sun",
            "objects": [{"id": np.int64(1), "at": (1.5, 2.0)}],
        },
    )


def encoded(first: int, count: int) -> Iterator[Encoded]:
    """Samples ``first .. first + count``."""
    for seed in range(first, first + count):
        yield f"{seed:06d}", encode_sample(made_sample(seed), f"{seed:06d}", source="made")


def dying(first: int, count: int) -> Iterator[Encoded]:
    """As :func:`encoded`, in a process that ends at the second sample as if it were killed."""
    for number, item in enumerate(encoded(first, count)):
        if number == 1:
            os._exit(9)
        yield item


def failing(first: int, count: int) -> Iterator[Encoded]:
    """As :func:`encoded`, with an error at the second sample."""
    for number, item in enumerate(encoded(first, count)):
        if number == 1:
            raise OSError(28, "No space left on device")
        yield item


def endless(first: int, count: int) -> Iterator[Encoded]:
    """As :func:`encoded`, without an end."""
    for number in itertools.count(first):
        yield from encoded(number, 1)
        time.sleep(0.01)
