"""What a folder of shards holds, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from modality_forcing.data.shards.reader import ShardSet
from modality_forcing.data.shards.samples import CorruptSample
from modality_forcing.types import Camera

MAX_RECORDS, MAX_DEPTHS = 20_000, 1_000  # samples looked at; more would change no percentage that is printed
PIXELS = 4096  # of each depth map that enter the percentiles
PERCENTILES = (1, 25, 50, 75, 99)
COUNTED = ("place", "light")  # entries of ``meta`` that are counted where they are


@dataclass
class Summary:
    """Counts and ranges.

    Attributes:
        samples: readable samples of the folder.
        looked_at: samples whose JSON was read; depth_looked_at: whose depth was read.
        sizes, sources, units, facts: how often each came; ``facts`` by the name of the entry of ``meta``.
        words: of the n-th captions, one list per n.
        without_caption: samples that have none.
        fields_of_view: horizontal, in degrees.
        measured, sky, unknown: shares of the pixels.
        depths: percentiles ``PERCENTILES`` of the measured depth of all samples together, for each unit.
        corrupt: one line for each sample that could not be read.
    """

    samples: int
    looked_at: int = 0
    depth_looked_at: int = 0
    sizes: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    units: Counter[str] = field(default_factory=Counter)
    facts: dict[str, Counter[str]] = field(default_factory=dict)
    words: list[list[int]] = field(default_factory=list)
    without_caption: int = 0
    fields_of_view: list[float] = field(default_factory=list)
    measured: float = 0.0
    sky: float = 0.0
    unknown: float = 0.0
    depths: dict[str, list[float]] = field(default_factory=dict)
    corrupt: list[str] = field(default_factory=list)


def summarise(shards: ShardSet, seed: int = 0, progress: Callable[[int, int], None] | None = None) -> Summary:
    """Look at the JSON of up to ``MAX_RECORDS`` samples and the depth of up to ``MAX_DEPTHS``, drawn by seed.

    Args:
        shards: the folder.
        seed: which samples are drawn when there are more.
        progress: called with (samples looked at, samples to look at).
    """
    order = np.random.default_rng(seed).permutation(len(shards))
    records, depths = np.sort(order[:MAX_RECORDS]), np.sort(order[:MAX_DEPTHS])
    found = Summary(len(shards))
    total = len(records) + len(depths)
    bad: dict[int, str] = {}
    for number, index in enumerate(records.tolist()):
        try:
            _look_at_record(found, shards, index)
        except CorruptSample as error:
            bad[index] = str(error)
        if progress is not None:
            progress(number + 1, total)
    counts = np.zeros(3, np.int64)
    values: dict[str, list[np.ndarray]] = {}
    for number, index in enumerate(depths.tolist()):
        try:
            sample = shards.read(index, ("depth",))
        except CorruptSample as error:
            bad[index] = str(error)
            continue
        valid, sky = sample.valid, np.isposinf(sample.depth)
        counts += [valid.sum(), sky.sum(), (~valid & ~sky).sum()]
        near = sample.depth[valid]
        values.setdefault(sample.meta["depth_unit"], []).append(near[:: max(1, len(near) // PIXELS)])
        found.depth_looked_at += 1
        if progress is not None:
            progress(len(records) + number + 1, total)
    if counts.sum():
        found.measured, found.sky, found.unknown = (float(share) for share in counts / counts.sum())
    for unit, parts in values.items():
        together = np.concatenate(parts)
        if len(together):
            found.depths[unit] = [float(value) for value in np.percentile(together, PERCENTILES)]
    found.corrupt = [bad[index] for index in sorted(bad)]
    return found


def _look_at_record(found: Summary, shards: ShardSet, index: int) -> None:
    record = shards.record(index)
    width, height, camera = record["width"], record["height"], record["camera"]
    found.looked_at += 1
    found.sizes[f"{width}x{height}"] += 1
    found.sources[record["source"]] += 1
    found.units[record["depth"]["unit"]] += 1
    for name in COUNTED:
        if name in record["meta"]:
            found.facts.setdefault(name, Counter())[str(record["meta"][name])] += 1
    for number, caption in enumerate(record["captions"]):
        if number == len(found.words):
            found.words.append([])
        found.words[number].append(len(caption.split()))
    found.without_caption += not record["captions"]
    found.fields_of_view.append(
        Camera(camera["fx"], camera["fy"], camera["cx"], camera["cy"], width, height).fov_x
    )
