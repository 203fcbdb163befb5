"""Training samples per second that one core reads from shards: prints a table, optionally writes JSON.

python benchmarks/loader.py [--data FOLDER] [--samples 256] [--size 128] [--steps 30] [--workers 2] [--json F]

Without --data the procedural world is rendered into a temporary folder first. The floor is decoding alone:
the same PNG files through Pillow, and the logarithmic depth codes through a table, with nothing around it.
Rows with one process count its processor time, so that other programs do not matter; the rows with readers
ahead count wall time.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import _report
import numpy as np
import torch
from PIL import Image

from modality_forcing.config import AugmentConfig, DataConfig, SensorConfig, SourceConfig
from modality_forcing.data.sensors import KINDS
from modality_forcing.data.shards import ShardSet
from modality_forcing.training.data import Loader

BATCH = 32
STILL = AugmentConfig(mirror=0.0)
ALL = AugmentConfig(mirror=0.5, crop=0.5, colour=0.5, degrade=0.5, texture=0.5)
SENSORS = tuple(SensorConfig(kind, 1.0, 0.002, 0.3, noise=1.0) for kind in KINDS)


def floor(shards: ShardSet) -> Callable[[int], None]:
    """Decodes the two pictures of ``BATCH`` samples from memory."""
    pairs: list[tuple[bytes, bytes]] = []
    for index in range(min(len(shards), 64)):
        shard, row = shards.locate(index)
        _, members = shards._members(shard, row, {"rgb.png", "rgb.jpg", "depth.png", "json"})
        pairs.append((members.get("rgb.png") or members["rgb.jpg"], members["depth.png"]))
    table = np.geomspace(0.1, 100.0, 65536).astype(np.float32)

    def decode(step: int) -> None:
        for slot in range(BATCH):
            rgb, depth = pairs[(step * BATCH + slot) % len(pairs)]
            np.asarray(Image.open(io.BytesIO(rgb)))
            table[np.asarray(Image.open(io.BytesIO(depth)))]

    return decode


def rate(function: Callable[[int], Any], steps: int, clock: Callable[[], float]) -> float:
    """Samples per second over ``steps`` steps after two for warming up."""
    for step in range(2):
        function(step)
    started = clock()
    for step in range(2, steps + 2):
        function(step)
    return steps * BATCH / (clock() - started)


def rows(folder: Path, size: int, steps: int, workers: int) -> list[dict[str, Any]]:
    """One row per kind of work."""
    source = SourceConfig(str(folder))
    measured = SourceConfig(str(folder), depth="measured")
    plain = DataConfig(sources=(source,))
    work = {
        "rgb (autoencoder, t2i)": ("t2i", replace(plain, augment=STILL)),
        "rgb, mirrored": ("t2i", plain),
        "rgb + depth, all of it": ("forcing", replace(plain, sources=(measured,), augment=STILL)),
        "rgb + depth, default sensors, mirrored": ("forcing", plain),
        "rgb + depth, every sensor with noise, mirrored": ("forcing", replace(plain, sensors=SENSORS)),
        "the same, augmented": ("forcing", replace(plain, sensors=SENSORS, augment=ALL)),
        "default sensors, resized from another size": (
            "forcing",
            replace(plain, buckets=(f"{size}x{size // 2}",)),
        ),
    }
    out = [
        {"work": "floor: decoding rgb + depth", "workers": 0,
         "samples_per_s": rate(floor(ShardSet(folder)), steps, time.process_time)},
    ]  # fmt: skip

    def loader(stage: str, data: DataConfig) -> Loader:
        return Loader(data, batch=BATCH, seed=0, size=size, stage=stage)

    for name, (stage, data) in work.items():
        read = loader(stage, data).load
        out.append({"work": name, "workers": 0, "samples_per_s": rate(read, steps, time.process_time)})
    if workers:
        name = "rgb + depth, default sensors, mirrored"
        walk = loader("forcing", replace(plain, workers=workers)).steps()
        speed = rate(lambda step: next(walk), steps, time.perf_counter)
        walk.close()
        out.append({"work": name, "workers": workers, "samples_per_s": speed})
    return out


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a folder of shards")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.data
        if folder is None:
            from modality_forcing.data.lowpoly.shards import make_shards

            folder = Path(temporary) / "shards"
            make_shards(folder, count=arguments.samples, size=arguments.size)
        table = rows(folder, arguments.size, arguments.steps, arguments.workers)
        shards = ShardSet(folder)
        size = sum(shard.bytes for shard in shards.manifest.shards.values()) / len(shards)
    print(f"{len(shards)} samples of {size / 1e3:.1f} kB, batches of {BATCH} at {arguments.size} pixels")
    print(f"{'work':<50}{'readers':>8}{'samples/s':>11}")
    for row in table:
        print(f"{row['work']:<50}{row['workers'] or 'none':>8}{row['samples_per_s']:>11.0f}")
    _report.write(arguments.json, {"bytes_per_sample": size, "rows": table})


if __name__ == "__main__":
    main()
