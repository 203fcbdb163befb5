"""Where every member of every sample of one shard lies: from the file beside it, or from the tar itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modality_forcing.data.shards.samples import RGB_ENDINGS
from modality_forcing.data.shards.tar import Member, scan
from modality_forcing.data.shards.writer import INDEX_VERSION, index_path

NO_CHECKSUM = -1


@dataclass
class ShardIndex:
    """Samples of one shard, in order.

    Attributes:
        keys: one per sample.
        endings: of the members, over all samples.
        sizes: int32 (samples, 2): width and height of the pictures, 0 where only the JSON tells.
        places: int64 (samples, endings, 3): offset, size and CRC-32 of a member; offset -1 where a sample has
            no such member, CRC-32 -1 where it is not known.
        fault: why the tar could not be read to its end; "" when it could, or was not walked through.
        partial: keys of samples that are not whole.
    """

    keys: list[str]
    endings: list[str]
    sizes: np.ndarray
    places: np.ndarray
    fault: str = ""
    partial: tuple[str, ...] = ()

    @classmethod
    def empty(cls, fault: str) -> ShardIndex:
        """Of a shard that cannot be opened."""
        index = _table([])
        index.fault = fault
        return index


def load_index(folder: Path, name: str, size: int) -> ShardIndex | None:
    """The index beside a shard of ``size`` bytes; None when there is none that fits."""
    try:
        value = json.loads(index_path(folder, name).read_bytes())
        if value["version"] != INDEX_VERSION or value["bytes"] != size:
            return None
        index = _table([(sample["key"], sample["members"]) for sample in value["samples"]])
        index.sizes[:] = [sample["size"] for sample in value["samples"]] or index.sizes
        return index
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def scan_index(path: Path) -> ShardIndex:
    """The index of a tar by walking through it. Only whole samples count: with RGB, depth and JSON."""
    with path.open("rb") as stream:
        found = scan(stream)
    samples: list[tuple[str, dict[str, list[int]]]] = []
    for member in found.members:
        key, ending = _split(member)
        if not samples or samples[-1][0] != key:
            samples.append((key, {}))
        samples[-1][1][ending] = [member.offset, member.size, NO_CHECKSUM]
    whole = [sample for sample in samples if _is_whole(sample[1])]
    index = _table(whole)
    index.fault = found.fault
    index.partial = tuple(key for key, members in samples if not _is_whole(members))
    return index


def _split(member: Member) -> tuple[str, str]:
    """WebDataset's rule: the key is the name up to the first dot after the last slash."""
    folder, slash, base = member.name.rpartition("/")
    key, _, ending = base.partition(".")
    return folder + slash + key, ending


def _is_whole(members: dict[str, list[int]]) -> bool:
    return "json" in members and "depth.png" in members and any(name in members for name in RGB_ENDINGS)


def _table(samples: list[tuple[str, dict[str, list[int]]]]) -> ShardIndex:
    endings = sorted({ending for _, members in samples for ending in members})
    places = np.full((len(samples), len(endings), 3), -1, np.int64)
    column = {ending: number for number, ending in enumerate(endings)}
    for row, (_, members) in enumerate(samples):
        for ending, place in members.items():
            places[row, column[ending]] = place
    sizes = np.zeros((len(samples), 2), np.int32)
    return ShardIndex([str(key) for key, _ in samples], endings, sizes, places)
