"""Batches from shards: mixed sources, aspect-ratio buckets, sensors and augmentation.

A step is a pure function of (seed, step): which samples stand in which slots, and everything random about
each of them, is keyed by (seed, step, slot). So a resumed run goes on as if it had never stopped, any number
of processes and micro-batches sees the same samples, and a checkpoint holds no state of the data.
"""

from __future__ import annotations

import atexit
import itertools
import os
import signal
import weakref
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from modality_forcing.config import STAGES, AugmentConfig, DataConfig
from modality_forcing.data.augment import augment
from modality_forcing.data.sensors import SensorMix
from modality_forcing.errors import TrainingError, UserError
from modality_forcing.training.buckets import Size, fit, parse_buckets
from modality_forcing.training.mixture import SAMPLE, SENSOR, Mixture, Place, rng_for
from modality_forcing.training.named import named_shares
from modality_forcing.training.sources import BadSample, Source
from modality_forcing.types import Sample

WITH_DEPTH = ("forcing", "refiner")
"""Stages that learn from depth; the others never decode it."""
TYPICAL_METRES = 4.0
"""Median depth of a map of unknown scale while a simulated sensor, which thinks in metres, looks at it."""
ATTEMPTS = 1000
"""Replacements in one slot before a source counts as unreadable, however many bad samples are allowed."""
AHEAD = 2  # steps each worker reads ahead


class Bad(NamedTuple):
    """A sample that could not be read: "folder:key" and why."""

    id: str
    reason: str


@dataclass
class Batch:
    """One micro-batch.

    Attributes:
        images: (b, 3, H, W) float32 in [-1, 1].
        depth: (b, H, W) float32: 0 where nothing is known, +inf is sky, else metres or the source's own
            unit. Zeros in stages that need no depth.
        measured: (b, H, W) bool: where depth says something (sky that is known to be sky included).
        captions: one per sample; "" where a sample has none.
        ids: "folder:key" of each sample.
        slots: position of each in the step's batch over all processes, 0..B-1.
        size: (H, W).
        keys: names each image for a memory of encoders; None where it was changed at random and will not
            come again. Empty: no names.
        latents: (b, C, h, w) where something filled them in; None otherwise.
        named: (b, h, w) how much of the things that the captions name each token shows
            (``training.named``); None where nobody asked.
    """

    images: Tensor | None
    depth: Tensor
    measured: Tensor
    captions: list[str]
    ids: list[str]
    slots: list[int]
    size: tuple[int, int]
    keys: list[str | None] = field(default_factory=list)
    latents: Tensor | None = None
    named: Tensor | None = None

    def __len__(self) -> int:
        return len(self.slots)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on a device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            images=None if self.images is None else move(self.images),
            depth=move(self.depth),
            measured=move(self.measured),
            latents=None if self.latents is None else move(self.latents),
            named=None if self.named is None else move(self.named),
        )


@dataclass
class _Slot:
    """One finished sample: uint8 (H, W, 3), float32 and bool (H, W), ``named`` (h, w), what belongs to it."""

    rgb: np.ndarray
    depth: np.ndarray
    measured: np.ndarray
    caption: str
    id: str
    key: str | None
    named: np.ndarray | None


@dataclass
class _Step:
    """What a reader sends: micro-batches whose images are still uint8 (b, H, W, 3), and who was left out."""

    batches: list[Batch]
    bad: list[Bad]
    failure: str = ""


class _NothingReadable(Exception):
    """A slot found no sample."""


class _Steps:
    """Step number -> this process's micro-batches. Holds no open file, so it can go to other processes."""

    def __init__(
        self, data: DataConfig, mixture: Mixture, sources: list[Source], buckets: list[Size], stage: str,
        seed: int, slots: range, accumulate: int, named_cell: int,
    ) -> None:  # fmt: skip
        self.named_cell = named_cell
        self.data, self.mixture, self.sources, self.buckets = data, mixture, sources, buckets
        self.seed, self.slots, self.accumulate = seed, slots, accumulate
        self.with_depth = stage in WITH_DEPTH
        self.fields = {"rgb", "ids"} if data.augment.texture or named_cell else {"rgb"}
        sensed = any(source.config.depth == "sensors" for source in sources)
        self.sensors = SensorMix(data.sensors) if self.with_depth and sensed else None

    def __getitem__(self, step: int) -> _Step:
        bad: list[Bad] = []
        try:
            slots = [self._slot(step, slot, bad) for slot in self.slots]
        except _NothingReadable as error:
            return _Step([], bad, str(error))
        size = len(slots) // self.accumulate
        parts = [slice(i * size, (i + 1) * size) for i in range(self.accumulate)]
        return _Step([_collate(slots[part], list(self.slots[part])) for part in parts], bad)

    def _slot(self, step: int, slot: int, bad: list[Bad]) -> _Slot:
        place = self.mixture.place(step, slot)
        for attempt in itertools.count(1):
            source = self.sources[place.source]
            try:
                sample = source.read(place.sample, self.fields, self.with_depth)
                return self._prepare(sample, place, step, slot)
            except BadSample as error:
                bad.append(Bad(error.id, error.reason))
            if len(set(bad)) > self.data.max_bad or attempt == ATTEMPTS:
                raise _NothingReadable(f"step {step} finds no readable sample for slot {slot}")
            place = self.mixture.replacement(step, slot, attempt)
        raise AssertionError

    def _prepare(self, sample: Sample, place: Place, step: int, slot: int) -> _Slot:
        source = self.sources[place.source]
        width, height = self.buckets[place.bucket]
        rng = rng_for(self.seed, SAMPLE, step, slot)
        which, changes = rng.random(), self.data.augment
        stored = len(
            sample.meta.get("augment", ())
        )  # what was changed when the sample was written comes again
        if changes.crop and sample.rgb.shape[:2] != (height, width):
            # Before the image shrinks, so that a crop keeps the detail there is.
            sample = augment(sample, AugmentConfig(mirror=0.0, crop=changes.crop), rng)
            changes = replace(changes, crop=0.0)
        sample = augment(fit(sample, (width, height)), changes, rng)
        done = set(sample.meta["augment"][stored:])
        depth = np.ascontiguousarray(sample.depth, np.float32)
        if not self.with_depth or source.config.depth == "none":
            depth, measured = np.zeros_like(depth), np.zeros(depth.shape, bool)
        elif source.config.depth == "measured":
            measured = depth > 0
        else:
            depth, measured = self._measure(sample, depth, rng_for(self.seed, SENSOR, step, slot))
        captions = sample.captions or ("",)
        caption = int(which * len(captions))
        side = "mirrored" if "mirror" in done else "plain"
        key = f"{source.content_key(place.sample, sample)}:{width}x{height}:{side}"
        return _Slot(
            np.ascontiguousarray(sample.rgb), depth, measured, captions[caption],
            source.id(sample), key if done <= {"mirror"} else None,
            named_shares(sample, caption, self.named_cell) if self.named_cell else None,
        )  # fmt: skip

    def _measure(
        self, sample: Sample, depth: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        assert self.sensors is not None
        valid = sample.valid
        if sample.meta.get("depth_unit", "m") == "m" or not valid.any():
            return self.sensors.measure(depth, sample.rgb, sample.camera, rng, normals=sample.normals)
        scale = np.float32(TYPICAL_METRES / np.median(depth[valid]))
        depth, measured = self.sensors.measure(
            depth * scale, sample.rgb, sample.camera, rng, normals=sample.normals
        )
        return depth / scale, measured


def _collate(slots: list[_Slot], numbers: list[int]) -> Batch:
    named = [slot.named for slot in slots if slot.named is not None]
    return Batch(
        images=torch.from_numpy(np.stack([slot.rgb for slot in slots])),
        depth=torch.from_numpy(np.stack([slot.depth for slot in slots])),
        measured=torch.from_numpy(np.stack([slot.measured for slot in slots])),
        captions=[slot.caption for slot in slots],
        ids=[slot.id for slot in slots],
        slots=numbers,
        size=slots[0].rgb.shape[:2],
        keys=[slot.key for slot in slots],
        named=torch.from_numpy(np.stack(named)) if named else None,
    )


def _as_it_is(value: Any) -> Any:
    return value


def _quiet(worker: int) -> None:
    """A signal to the whole group is the training process's to answer; it still needs its readers then.

    The second SIGTERM ends a reader all the same: at its exit the training process sends one or two.
    """
    asked = itertools.count(1)

    def leave(number: int, frame: object) -> None:
        if next(asked) > 1:
            os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, leave)


# Readers that still wait at the end of the program would keep it from ending.
_reading: weakref.WeakSet[Generator[list[Batch], None, None]] = weakref.WeakSet()


@atexit.register
def _end_reading() -> None:
    for walk in list(_reading):
        walk.close()


class Loader:
    """This process's share of every step.

    A bad sample is replaced by another of the same source and bucket, drawn by (seed, step, slot, attempt),
    and listed in ``bad``.

    Args:
        data: sources, sensors, augmentation, buckets.
        batch: samples of a step over all processes and micro-batches.
        accumulate: micro-batches per step on each process.
        seed: of the run, not negative.
        size: side of the squares without buckets, in pixels.
        stage: see ``config.STAGES``.
        rank, world: this process and how many there are.
        multiple: pixels per token; sizes must be multiples of it.
        named: batches say where the things are that captions name.

    Attributes:
        bad: samples that could not be read, each once; what a cut shard has lost is there from the start.

    Raises:
        UserError: at once: no source, a missing, empty or damaged folder, an unknown sensor, sizes that do
            not fit, a bucket without samples, or a batch that does not divide.
    """

    def __init__(
        self, data: DataConfig, *, batch: int, accumulate: int = 1, seed: int, size: int, stage: str,
        rank: int = 0, world: int = 1, multiple: int = 16, named: bool = False,
    ) -> None:  # fmt: skip
        if stage not in STAGES:
            raise UserError(f"stage is {stage!r}; known: {', '.join(STAGES)}")
        if seed < 0:
            raise UserError(f"seed is {seed}; right is 0 or more")
        if batch < 1 or batch % (world * accumulate):
            raise UserError(f"batch={batch} is no multiple of {world} processes x {accumulate} micro-batches")
        if not data.sources:
            raise UserError("data names no folder of shards; make one with mf data make and give data=FOLDER")
        if stage in WITH_DEPTH and all(source.depth == "none" for source in data.sources):
            raise UserError(f'every source has depth "none"; stage {stage} needs at least one with depth')
        self.data = data
        self.buckets = parse_buckets(data.buckets, size, multiple)
        self.sources = [Source(source) for source in data.sources]
        members = [source.by_bucket(self.buckets) for source in self.sources]
        empty = [
            f"{width}x{height}"
            for number, (width, height) in enumerate(self.buckets)
            if not any(len(shard) for source in members for shard in source[number])
        ]
        if empty:
            raise UserError(f"no sample is nearest in shape to bucket {', '.join(empty)}; leave it out")
        mixture = Mixture([source.config.weight for source in self.sources], members, batch, seed)
        share = batch // world
        slots = range(rank * share, (rank + 1) * share)
        self._members = members
        self._steps = _Steps(
            data,
            mixture,
            self.sources,
            self.buckets,
            stage,
            seed,
            slots,
            accumulate,
            multiple if named else 0,
        )
        self._bad: dict[str, Bad] = {}
        self._tell: Callable[[Bad], None] | None = None
        known = [Bad(*item) for source in self.sources for item in source.bad]
        if len({item.id for item in known}) > data.max_bad:
            first = f"the first is {known[0].id}: {known[0].reason}"
            raise UserError(f"{len(known)} samples are lost, more than data.max_bad={data.max_bad}; {first}")
        self._note(known)

    @property
    def bad(self) -> list[Bad]:
        """See the class."""
        return list(self._bad.values())

    def listen(self, tell: Callable[[Bad], None]) -> None:
        """Call ``tell`` once for each bad sample, also for those that are known already."""
        self._tell = tell
        for item in self.bad:
            tell(item)

    def load(self, step: int) -> list[Batch]:
        """The micro-batches of one step, read here and now.

        Raises:
            TrainingError: more than ``data.max_bad`` bad samples so far.
        """
        return self._finish(self._steps[step])

    def steps(self, first: int = 0) -> Generator[list[Batch], None, None]:
        """The micro-batches of step ``first``, ``first + 1``, ... without end.

        With ``data.workers`` processes read ahead; what comes out is the same. They end with the generator.

        Raises:
            TrainingError: more than ``data.max_bad`` bad samples so far.
            RuntimeError: a reading process died.
        """
        if not self.data.workers:
            return (self.load(step) for step in itertools.count(first))
        walk = self._read_ahead(first)
        _reading.add(walk)
        return walk

    def _read_ahead(self, first: int) -> Generator[list[Batch], None, None]:
        readers = torch.utils.data.DataLoader(
            self._steps,
            batch_size=None,
            sampler=itertools.count(first),
            num_workers=self.data.workers,
            prefetch_factor=AHEAD,
            collate_fn=_as_it_is,
            worker_init_fn=_quiet,
            generator=torch.Generator(),  # the global one is training's
        )
        yield from map(self._finish, readers)

    def describe(self) -> dict[str, Any]:
        """What is there, in plain values: samples, sources, buckets, sensors."""
        counts = [
            [sum(map(len, source[bucket])) for source in self._members] for bucket in range(len(self.buckets))
        ]
        weights = sum(source.config.weight for source in self.sources)
        return {
            "samples": sum(map(sum, counts)),
            "sources": [
                {
                    "path": source.config.path, "samples": len(source), "depth": source.config.depth,
                    "share": source.config.weight / weights,
                }
                for source in self.sources
            ],
            "buckets": {f"{w}x{h}": sum(n) for (w, h), n in zip(self.buckets, counts, strict=True)},
            "sensors": [sensor.kind for sensor in self.data.sensors if self._steps.sensors is not None],
            "workers": self.data.workers,
            "bad": len(self._bad),
        }  # fmt: skip

    def _note(self, bad: list[Bad]) -> None:
        for item in bad:
            if self._bad.setdefault(item.id, item) is item and self._tell is not None:
                self._tell(item)
        if len(self._bad) > self.data.max_bad:
            raise TrainingError(f"{self._bad_text()}; more than data.max_bad={self.data.max_bad}")

    def _bad_text(self) -> str:
        lines = "; ".join(f"{item.id}: {item.reason}" for item in self._bad.values())
        return f"{len(self._bad)} samples cannot be read ({lines})"

    def _finish(self, step: _Step) -> list[Batch]:
        self._note(step.bad)
        if step.failure:
            raise TrainingError(f"{step.failure}; {self._bad_text()}")
        for batch in step.batches:
            assert batch.images is not None
            batch.images = batch.images.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        return step.batches
