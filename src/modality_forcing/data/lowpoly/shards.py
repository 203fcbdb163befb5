"""The procedural world as a folder of shards (``mf data make``)."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from modality_forcing.data.lowpoly import WORLD_VERSION, make_sample, split_seed
from modality_forcing.errors import UserError

if TYPE_CHECKING:
    from modality_forcing.data.shards import Manifest

SOURCE = "lowpoly"
SHARD_SIZE = 500


def encoded_samples(
    split: str, start: int, count: int, size: int, supersample: int
) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """(key, members) of samples ``start .. start + count`` of a split; the key is the index in 12 digits."""
    from modality_forcing.data.shards import encode_sample

    for index in range(start, start + count):
        sample = make_sample(split_seed(split, index), size, size, supersample=supersample)
        key = f"{index:012d}"
        yield key, encode_sample(sample, key, source=SOURCE)


def make_shards(
    folder: str | Path,
    *,
    split: str = "train",
    start: int = 0,
    count: int = 1000,
    size: int = 128,
    supersample: int = 2,
    shard_size: int = SHARD_SIZE,
    workers: int = 1,
    progress: Callable[[int, int | None], None] | None = None,
) -> Manifest:
    """Render samples ``start .. start + count`` of a split into a folder of shards.

    Finished shards are kept and skipped; a larger ``count`` adds to a folder. The same settings give the same
    bytes, whatever the number of workers.

    Args:
        folder: new, empty, or made with the same settings.
        size: side of the square pictures in pixels.
        supersample: rays per pixel side, of which a colour is the mean.
        shard_size: samples per shard.
        workers: processes.
        progress: called with (samples finished, samples in all).

    Raises:
        UserError: the renderer is missing, an unknown split, numbers out of range, or as of
            :func:`modality_forcing.data.shards.build_shards`.
        OutOfMemoryError: a worker was killed.
    """
    for name, value in (("count", count), ("size", size), ("supersample", supersample),
                        ("shard_size", shard_size), ("workers", workers)):  # fmt: skip
        if value < 1:
            raise UserError(f"{name} is {value}; right is 1 or more")
    split_seed(split, start)
    split_seed(split, start + count - 1)
    if importlib.util.find_spec("embreex") is None:
        raise UserError('the renderer embreex is missing: pip install "modality-forcing[train]"')
    from modality_forcing import __version__
    from modality_forcing.data.shards import Job, build_shards

    settings = {
        "split": split, "start": start, "count": count, "size": size, "supersample": supersample,
        "shard_size": shard_size,
    }  # fmt: skip
    versions = {name: importlib.metadata.version(name) for name in ("embreex", "pillow")}
    generator = {"name": SOURCE, "world": WORLD_VERSION, "package": __version__, **versions}
    jobs = []
    for number, first in enumerate(range(0, count, shard_size)):
        n = min(shard_size, count - first)
        jobs.append(
            Job(f"{split}-{number:06d}.tar", n, encoded_samples, (split, start + first, n, size, supersample))
        )
    return build_shards(
        folder, generator, settings, jobs, workers=workers, same=("name", "world"), progress=progress
    )
