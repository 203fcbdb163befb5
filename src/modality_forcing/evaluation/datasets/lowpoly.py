"""The procedural world: splits rendered on the fly, and shards."""

from __future__ import annotations

from pathlib import Path

from modality_forcing.errors import UserError
from modality_forcing.evaluation.datasets.common import EvalItem
from modality_forcing.types import Sample

COUNT, SIZE = 100, 128
"""Scenes of a split when no limit is given, and their side in pixels."""


class WorldSet:
    """The first scenes of a split, rendered when they are read; the same on every machine.

    Args:
        split: "test", "combination", "val" or "train".
        count: scenes.
        size: side in pixels.

    Raises:
        UserError: an unknown split.
    """

    kind, layout = "lowpoly", "rendered"

    def __init__(self, split: str, count: int = COUNT, size: int = SIZE) -> None:
        from modality_forcing.data.lowpoly import SPLITS, WORLD_VERSION

        if split not in SPLITS:
            raise UserError(f"unknown split {split[:40]!r}; the low-poly world has {', '.join(SPLITS)}")
        self.split, self.size = split, size
        self.source = f"lowpoly:{split}"
        self.layout = f"rendered at {size}x{size}, world version {WORLD_VERSION}"
        self.names = [f"{split}-{index:06d}" for index in range(count)]

    def read(self, index: int) -> EvalItem:
        """One scene; see ``EvalSet``."""
        from modality_forcing.data.lowpoly import make_sample, split_seed

        return item_of(self.names[index], make_sample(split_seed(self.split, index), self.size, self.size))


class ShardedSet:
    """All samples of a folder of shards."""

    layout = "shards"

    def __init__(self, folder: Path) -> None:
        from modality_forcing.data.shards import ShardSet

        self.shards = ShardSet(folder)
        self.source = str(folder)
        lowpoly = self.shards.manifest.generator.get("name") == "lowpoly"
        self.kind = "lowpoly" if lowpoly else "folder"
        self.names = self.shards.keys
        if not self.names:
            raise UserError(f"data {folder} holds no sample")

    def read(self, index: int) -> EvalItem:
        """One sample; see ``EvalSet``."""
        return item_of(self.names[index], self.shards.read(index))


def item_of(name: str, sample: Sample) -> EvalItem:
    """A sample as an item of an evaluation; the longest caption stands for it."""
    caption = sample.captions[-1] if sample.captions else ""
    facts = {"place": sample.meta["place"]} if "place" in sample.meta else {}
    return EvalItem(name, sample.rgb, sample.depth, caption, sample.camera, facts)
