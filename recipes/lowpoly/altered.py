"""Shards of altered pictures of the world: patterns on the surfaces, crops, other colours, noise, JPEG.

python recipes/lowpoly/altered.py SHARDS OUT [--count 5000] [--light 0.5]

The embedded model sees them beside the plain renders, so that image to depth does not rest on the renderer's
look. Their captions begin with "an altered picture of": a prompt without these words asks for the plain
world. Made once and not during training, so that frozen encoders see each picture only once.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from modality_forcing.config.training import AugmentConfig
from modality_forcing.data.augment import augment
from modality_forcing.data.shards import Job, ShardSet, build_shards, encode_sample
from modality_forcing.errors import UserError

STRENGTH = AugmentConfig(mirror=0.5, crop=0.6, colour=1.0, degrade=0.3, texture=0.5)
PREFIX = "an altered picture of"
SHARD_SIZE = 500


def encoded(
    source: str, first: int, count: int, strength: AugmentConfig
) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Samples first, ..., first + count - 1 of ``source``, altered; each by its own place alone."""
    shards = ShardSet(source)
    for index in range(first, first + count):
        sample = shards.read(index, ("rgb", "depth", "normals", "ids"))
        sample = augment(sample, strength, np.random.default_rng([7, index]))
        key = f"altered-{index:06d}"
        sample = replace(sample, captions=tuple(f"{PREFIX} {text}" for text in sample.captions))
        yield key, encode_sample(sample, key, source="lowpoly")


def main() -> None:
    """Make the shards; finished ones are kept, bad input ends with code 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards")
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--light", type=float, default=0.0, help="share in deep shadow and glare")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    try:
        make(options)
    except UserError as error:
        parser.error(str(error))


def make(options: argparse.Namespace) -> None:
    """The shards that ``options`` describe.

    Raises:
        UserError: a share outside [0, 1], a source that cannot be read, a folder of other settings.
    """
    strength = replace(STRENGTH, light=options.light)
    starts = range(0, options.count, SHARD_SIZE)
    jobs = [
        Job(f"altered-{i:06d}.tar", n, encoded, (options.shards, first, n, strength))
        for i, first in enumerate(starts)
        for n in [min(SHARD_SIZE, options.count - first)]
    ]
    settings = {"count": options.count, "strength": vars(strength)}
    manifest = build_shards(options.out, {"name": "altered-lowpoly"}, settings, jobs, workers=options.workers)
    print(options.out, manifest.samples)


if __name__ == "__main__":
    main()
