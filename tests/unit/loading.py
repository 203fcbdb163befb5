"""What the tests of the loader share: its settings in small, and ways to compare batches."""

from __future__ import annotations

from pathlib import Path

import torch

from modality_forcing.config import AugmentConfig, DataConfig, SourceConfig
from modality_forcing.training.data import Batch, Loader

COUNT, SIZE, BATCH = 12, 32, 4
PLAIN = AugmentConfig(mirror=0.0)


def config(folder: Path, depth: str = "sensors", **more) -> DataConfig:
    return DataConfig(sources=(SourceConfig(path=str(folder), depth=depth),), **more)


def loader(data: DataConfig, **changes) -> Loader:
    return Loader(data, **({"batch": BATCH, "seed": 3, "size": SIZE, "stage": "forcing"} | changes))


def index_of(id: str) -> int:
    return int(id.rpartition(":")[2])


def one(batches: list[Batch]) -> Batch:
    (batch,) = batches
    return batch


def same(a: Batch, b: Batch) -> bool:
    tensors = all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("images", "depth", "measured"))
    return tensors and (a.captions, a.ids, a.slots, a.keys) == (b.captions, b.ids, b.slots, b.keys)


def joined(batches: list[Batch]) -> Batch:
    """Micro-batches (of any rank) as one."""
    return Batch(
        **{name: torch.cat([getattr(b, name) for b in batches]) for name in ("images", "depth", "measured")},
        **{
            name: [item for b in batches for item in getattr(b, name)]
            for name in ("captions", "ids", "slots", "keys")
        },
        size=batches[0].size,
    )


FULL = AugmentConfig(mirror=0.5, crop=0.5, colour=0.5, degrade=0.5)
