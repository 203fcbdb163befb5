"""Which sample stands in which place of a run: pure arithmetic on (seed, step, slot), no state.

A *pool* is the samples of one source that fit one bucket. Every step takes one bucket and every slot of the
step one pool of that bucket, both by a :class:`Cycle`, so shares are exact over each cycle and the place of
any step in any pool follows without replaying the run. Each pass over a pool is a new order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modality_forcing.errors import UserError

CYCLE = 10_000
"""Draws over which the shares of a mixture are exact (to one draw)."""
WINDOW = 16
"""Shards that are open for drawing at one time."""
BUCKET, SOURCE, ORDER, REPLACEMENT, SAMPLE, SENSOR = range(6)
"""First key of each purpose of randomness."""


def rng_for(seed: int, *keys: int) -> np.random.Generator:
    """A generator for one purpose; equal keys give equal numbers in every process."""
    return np.random.default_rng([seed, *keys])


class Cycle:
    """Choices among n in given shares, as an endless series that can be entered anywhere.

    The series is made of cycles of ``CYCLE`` draws. Each holds every choice as often as its share says
    (rounded by largest remainders, at least once) in an order keyed by the cycle's number.

    Args:
        shares: n positive numbers; only their ratios count.
        keys: seed and purpose.
    """

    def __init__(self, shares: Sequence[float], keys: tuple[int, ...]) -> None:
        exact = np.asarray(shares, np.float64) / np.sum(shares) * CYCLE
        counts = np.maximum(np.floor(exact).astype(np.int64), 1)
        order = np.argsort(counts - exact, kind="stable")  # who lost most by rounding comes first
        counts[order[: max(0, CYCLE - int(counts.sum()))]] += 1
        self.counts = counts
        self.length = int(counts.sum())
        self.keys = keys
        self._cycles: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def at(self, position: int) -> tuple[int, int]:
        """(choice, how often it was chosen before) at a position of the series, from 0."""
        if len(self.counts) == 1:
            return 0, position
        number, offset = divmod(position, self.length)
        if number not in self._cycles:
            self._cycles[number] = self._make(number)
            if len(self._cycles) > 2:
                self._cycles.popitem(last=False)
        choices, ordinals = self._cycles[number]
        choice = int(choices[offset])
        return choice, number * int(self.counts[choice]) + int(ordinals[offset])

    def _make(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        choices = rng_for(*self.keys, number).permutation(np.repeat(np.arange(len(self.counts)), self.counts))
        ordinals = np.empty(self.length, np.int64)
        for choice, count in enumerate(self.counts):
            ordinals[choices == choice] = np.arange(count)
        return choices, ordinals


class Pool:
    """The samples of one source in one bucket, in a new order each pass.

    Shards are shuffled; then samples are shuffled within windows of ``WINDOW`` shards. So a disk reads a few
    shards at a time, and up to ``WINDOW`` shards the order is an ordinary shuffle.

    Args:
        shards: per shard the sample numbers of the source that belong here.
        keys: seed, purpose and the pool's own number.
    """

    def __init__(self, shards: Sequence[np.ndarray], keys: tuple[int, ...]) -> None:
        self.shards = [np.asarray(shard, np.int64) for shard in shards if len(shard)]
        self.sizes = np.array([len(shard) for shard in self.shards], np.int64)
        self.count = int(self.sizes.sum())
        self.keys = keys
        self._passes: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def at(self, position: int) -> int:
        """Sample number at a position of the endless series of passes."""
        number, offset = divmod(position, self.count)
        if number not in self._passes:
            order = rng_for(*self.keys, number).permutation(len(self.shards))
            sizes = np.add.reduceat(self.sizes[order], np.arange(0, len(order), WINDOW))
            self._passes[number] = order, np.concatenate([[0], np.cumsum(sizes)])
            if len(self._passes) > 2:
                self._passes.popitem(last=False)
        order, starts = self._passes[number]
        window = int(np.searchsorted(starts, offset, side="right")) - 1
        if (number, window) not in self._windows:
            members = [self.shards[shard] for shard in order[window * WINDOW : (window + 1) * WINDOW]]
            rng = rng_for(*self.keys, number, window)
            self._windows[number, window] = rng.permutation(np.concatenate(members))
            if len(self._windows) > 2:
                self._windows.popitem(last=False)
        return int(self._windows[number, window][offset - starts[window]])

    def any(self, rng: np.random.Generator) -> int:
        """One sample number, each as likely."""
        shard = int(rng.choice(len(self.shards), p=self.sizes / self.count))
        return int(self.shards[shard][int(rng.integers(self.sizes[shard]))])


@dataclass(frozen=True)
class Place:
    """What stands in one slot: a sample of a source, by numbers, and the bucket of its step."""

    bucket: int
    source: int
    sample: int


class Mixture:
    """Sources in given shares, one bucket per step.

    The share of a bucket is the share of the samples in it (source weights included), and within a bucket
    sources keep the ratio they would have without buckets, so over a run each source has its weight.

    Args:
        weights: one per source.
        members: ``members[source][bucket]``: per shard the sample numbers of that source and bucket.
        batch: slots of a step.
        seed: of the run.

    Raises:
        UserError: a bucket, or a source, without any sample.
    """

    def __init__(
        self,
        weights: Sequence[float],
        members: Sequence[Sequence[Sequence[np.ndarray]]],
        batch: int,
        seed: int,
    ) -> None:
        self.batch, self.seed = batch, seed
        counts = np.array([[sum(map(len, shards)) for shards in source] for source in members], np.float64)
        if not counts.size or not (counts.sum(1) > 0).all():
            raise UserError("a source of the mixture holds no sample")
        empty = np.flatnonzero(counts.sum(0) == 0)
        if len(empty):
            raise UserError(f"no sample fits bucket {int(empty[0])}")
        shares = counts / counts.sum(1, keepdims=True) * (np.asarray(weights) / np.sum(weights))[:, None]
        self._buckets = Cycle(shares.sum(0), (seed, BUCKET))
        self._sources, self._pools = [], []
        for bucket in range(counts.shape[1]):
            present = [int(source) for source in np.flatnonzero(counts[:, bucket])]
            self._sources.append((present, Cycle(shares[present, bucket], (seed, SOURCE, bucket))))
            self._pools.append(
                {source: Pool(members[source][bucket], (seed, ORDER, bucket, source)) for source in present}
            )

    def bucket(self, step: int) -> int:
        """Bucket of a step."""
        return self._buckets.at(step)[0]

    def place(self, step: int, slot: int) -> Place:
        """What stands in a slot, 0 <= slot < batch."""
        bucket, earlier = self._buckets.at(step)
        present, cycle = self._sources[bucket]
        choice, used = cycle.at(earlier * self.batch + slot)
        source = present[choice]
        return Place(bucket, source, self._pools[bucket][source].at(used))

    def replacement(self, step: int, slot: int, attempt: int) -> Place:
        """What stands there when the first choice and ``attempt - 1`` replacements could not be read."""
        place = self.place(step, slot)
        rng = rng_for(self.seed, REPLACEMENT, step, slot, attempt)
        return Place(place.bucket, place.source, self._pools[place.bucket][place.source].any(rng))
