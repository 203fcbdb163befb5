"""One source of a mixture: a folder of shards, what of it fits which bucket, and who its bad samples are."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

import numpy as np

from modality_forcing.config import SourceConfig
from modality_forcing.data.shards import CorruptSample, ShardSet
from modality_forcing.errors import UserError
from modality_forcing.training.buckets import Size, nearest_bucket
from modality_forcing.types import Sample


class BadSample(Exception):
    """A sample that cannot be read: its ``id`` and the ``reason``."""

    def __init__(self, id: str, reason: str) -> None:
        super().__init__(f"{id}: {reason}")
        self.id, self.reason = id, reason


class Source:
    """The samples of one folder of shards. It may be forked and sent to other processes.

    Args:
        config: which folder, its weight, and what its depth is used for.

    Attributes:
        config: as given.
        shards: the reader.
        bad: (id, reason) of what is known to be unreadable before any sample is asked for: what a cut shard
            has lost, and, with buckets, samples without a size.

    Raises:
        UserError: no folder of shards, a damaged manifest, a shard that is not there, or no sample.
    """

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        self.shards = ShardSet(config.path)
        short = sorted({lost.shard for lost in self.shards.lost})
        missing = [name for name in short if not (self.shards.folder / name).is_file()]
        if missing:
            raise UserError(
                f"{config.path} lacks {len(missing)} of its {len(self.shards.names)} shards, {missing[0]} "
                "first; make it again"
            )
        if not len(self.shards):
            raise UserError(f"{config.path} holds no sample; its shards are empty or were not made yet")
        self.bad = [
            (f"{config.path}:{lost.key or f'{lost.shard} sample {number}'}", lost.reason)
            for number, lost in enumerate(self.shards.lost)
        ]

    def __len__(self) -> int:
        return len(self.shards)

    def by_bucket(self, buckets: Sequence[Size]) -> list[list[np.ndarray]]:
        """Per bucket and shard: the numbers of the samples whose shape is nearest to that bucket's.

        With one bucket everything is in it, and nothing is read. With more, every shard's index is.
        """
        starts = self.shards.starts
        spans = [np.arange(a, b) for a, b in itertools.pairwise(starts)]
        if len(buckets) == 1:
            return [spans]
        known: dict[Size, int] = {}
        fits = np.full(len(self), -1)
        for index in range(len(self)):
            try:
                size = self.shards.size(index)
            except CorruptSample as error:
                self.bad.append((f"{self.config.path}:{error.key}", error.reason))
                continue
            if size not in known:
                known[size] = nearest_bucket(buckets, *size)
            fits[index] = known[size]
        return [[span[fits[span] == i] for span in spans] for i in range(len(buckets))]

    def read(self, index: int, fields: Collection[str], with_depth: bool) -> Sample:
        """One sample, with these fields decoded, and its depth if it is wanted and this source uses it.

        Raises:
            BadSample: it is damaged or cannot be read.
        """
        depth = {"depth"} if with_depth and self.config.depth != "none" else set()
        try:
            return self.shards.read(index, {*fields, *depth})
        except CorruptSample as error:
            raise BadSample(f"{self.config.path}:{error.key}", error.reason) from None

    def id(self, sample: Sample) -> str:
        """ "folder:key" of a sample that was read from here."""
        return f"{self.config.path}:{sample.meta['key']}"

    def content_key(self, index: int, sample: Sample) -> str:
        """Names the content of a sample, wherever the folder lies: its shard's checksum and its key."""
        shard, _ = self.shards.locate(index)
        info = self.shards.manifest.shards[self.shards.names[shard]]
        return f"{info.sha256[:32]}:{sample.meta['key']}"
