"""Reading shards: any sample at any time, by its number; what is damaged says so and harms nothing else."""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modality_forcing.data.shards.index import NO_CHECKSUM, ShardIndex, load_index, scan_index
from modality_forcing.data.shards.manifest import Manifest, ShardInfo, read_manifest
from modality_forcing.data.shards.samples import (
    FIELDS,
    RGB_ENDINGS,
    CorruptSample,
    decode_record,
    decode_sample,
)
from modality_forcing.types import Sample

MAX_OPEN = 64  # files kept open by one process
_CHUNK = 1 << 20


@dataclass(frozen=True)
class LostSample:
    """A sample the manifest promises and the shard does not give. ``key`` is "" where it is not known."""

    shard: str
    key: str
    reason: str


class _File:
    """An open file that closes when nobody holds it any more, so one thread cannot close it under another."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._lock = threading.Lock()

    def read(self, size: int, offset: int) -> bytes:
        if hasattr(os, "pread"):  # has no position, so threads and forked processes may share the file
            return os.pread(self.descriptor, size, offset)
        with self._lock:
            os.lseek(self.descriptor, offset, os.SEEK_SET)
            return os.read(self.descriptor, size)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class ShardSet:
    """The samples of a folder of shards.

    It may be shared by threads, forked, and sent to other processes. The manifest is read once: open the
    folder again to see shards that were finished since.

    Args:
        folder: made by ``mf data make`` or ``mf data convert``, or by :func:`building.build_shards`.

    Attributes:
        manifest: what the folder says it holds.
        names: of the shards, in order.
        starts: int64 (shards + 1,): number of the first sample of each shard, and the count of all.
        lost: samples of missing and truncated shards; they have no number.

    Raises:
        UserError: no folder of shards, or a damaged manifest.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(self.folder)
        self.names = list(self.manifest.shards)
        self.lost: list[LostSample] = []
        self._indices: dict[int, ShardIndex] = {}
        self._prepare()
        counts = []
        for number, info in enumerate(self.manifest.shards.values()):
            counts.append(self._count(number, info))
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)

    def _prepare(self) -> None:
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_files", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def keys(self) -> list[str]:
        """The key of every sample, in order. Reads the index of every shard."""
        return [key for number in range(len(self.names)) for key in self._index(number).keys]

    def locate(self, index: int) -> tuple[int, int]:
        """Number of the shard, and of the sample inside it.

        Raises:
            IndexError: outside 0..len - 1.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        return shard, index - int(self.starts[shard])

    def read(self, index: int, fields: Collection[str] = ("rgb", "depth")) -> Sample:
        """One sample: depth 0 is unknown, +inf sky.

        Args:
            index: 0..len - 1.
            fields: of "rgb", "depth", "normals", "ids": what is decoded. ``samples.decode_sample`` says what
                stands in place of the rest. Camera, captions, seed and meta are always there.

        Raises:
            CorruptSample: the sample is damaged; it names the shard, the key and the reason.
            IndexError: outside 0..len - 1.
            ValueError: an unknown field.
        """
        unknown = set(fields) - set(FIELDS)
        if unknown:
            raise ValueError(f"unknown fields {sorted(unknown)}; right is some of {', '.join(FIELDS)}")
        wanted = {f"{name}.png" for name in fields} | (set(RGB_ENDINGS) if "rgb" in fields else set())
        shard, row = self.locate(index)
        key, members = self._members(shard, row, wanted | {"json"})
        try:
            return decode_sample(members, decode_record(members["json"], key), fields)
        except ValueError as error:
            raise CorruptSample(self.names[shard], key, str(error)) from None

    def record(self, index: int) -> dict[str, Any]:
        """The JSON of one sample (docs/data.md), without its pictures.

        Raises:
            CorruptSample, IndexError: as of :meth:`read`.
        """
        shard, row = self.locate(index)
        key, members = self._members(shard, row, {"json"})
        try:
            return decode_record(members["json"], key)
        except ValueError as error:
            raise CorruptSample(self.names[shard], key, str(error)) from None

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of one sample: from the index of its shard, without reading the sample.

        Raises:
            CorruptSample, IndexError: as of :meth:`read`, where only the sample's JSON tells.
        """
        shard, row = self.locate(index)
        sizes = self._index(shard).sizes
        width, height = sizes[row].tolist() if row < len(sizes) else (0, 0)
        if min(width, height) < 1:
            record = self.record(index)
            width, height = record["width"], record["height"]
        return width, height

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[str]:
        """Compare every shard with its checksum; one line per fault, none when all is well.

        Args:
            progress: called with (bytes read, bytes in all).
        """
        total = sum(info.bytes for info in self.manifest.shards.values())
        done, faults = 0, []
        seen: dict[str, str] = {}
        for number, info in enumerate(self.manifest.shards.values()):
            digest, size = hashlib.sha256(), 0
            try:
                with (self.folder / info.name).open("rb") as stream:
                    while chunk := stream.read(_CHUNK):
                        digest.update(chunk)
                        size += len(chunk)
                        if progress is not None:
                            progress(done + min(size, info.bytes), total)
            except OSError as error:
                faults.append(f"{info.name}: {error.strerror or error}")
                continue
            finally:
                done += info.bytes
            if size != info.bytes:
                faults.append(f"{info.name}: {size} bytes instead of {info.bytes}")
            elif digest.hexdigest() != info.sha256:
                faults.append(f"{info.name}: the content is not what was written (SHA-256 differs)")
            keys = self._index(number).keys
            if size == info.bytes and len(keys) != info.samples:
                faults.append(f"{info.name}: {len(keys)} whole samples instead of {info.samples}")
            for key in keys:
                if key in seen:
                    faults.append(f"{info.name}: key {key} comes in {seen[key]} too")
                seen[key] = info.name
        return faults

    def _count(self, number: int, info: ShardInfo) -> int:
        """Samples of a shard; a shard that is missing or of another size is looked through at once."""
        path = self.folder / info.name
        try:
            size = path.stat().st_size
            if size == info.bytes:
                return info.samples
            index = scan_index(path)
        except OSError as error:
            index = ShardIndex.empty(error.strerror or str(error))
        self._indices[number] = index
        reason = index.fault or f"the file has {size} bytes instead of {info.bytes}"
        promised = load_index(self.folder, info.name, info.bytes)
        have = set(index.keys)
        if promised is not None:
            missing = [key for key in promised.keys if key not in have]
        else:
            missing = [*index.partial, *[""] * (info.samples - len(have) - len(index.partial))]
        self.lost += [LostSample(info.name, key, reason) for key in missing]
        return len(index.keys)

    def _index(self, number: int) -> ShardIndex:
        index = self._indices.get(number)
        if index is None:
            info = self.manifest.shards[self.names[number]]
            index = load_index(self.folder, info.name, info.bytes)
            if index is None or len(index.keys) != info.samples:
                try:
                    index = scan_index(self.folder / info.name)
                except OSError as error:
                    raise CorruptSample(info.name, "(all)", error.strerror or str(error)) from None
            self._indices[number] = index
        return index

    def _members(self, shard: int, row: int, wanted: Collection[str]) -> tuple[str, dict[str, bytes]]:
        """Key and contents of some members of a sample, in one read."""
        name = self.names[shard]
        index = self._index(shard)
        if row >= len(index.keys):
            reason = f"the shard has only {len(index.keys)} whole samples {index.fault}".rstrip()
            raise CorruptSample(name, f"number {row}", reason)
        key = index.keys[row]
        places = {
            ending: tuple(int(value) for value in index.places[row, column])
            for column, ending in enumerate(index.endings)
            if ending in wanted and index.places[row, column, 0] >= 0
        }
        if "json" not in places:
            raise CorruptSample(name, key, "it has no json")
        first = min(offset for offset, _, _ in places.values())
        last = max(offset + size for offset, size, _ in places.values())
        if last > self.manifest.shards[name].bytes or min(size for _, size, _ in places.values()) < 0:
            raise CorruptSample(name, key, "its index points outside the file")
        try:
            content = self._file(shard).read(last - first, first)
        except OSError as error:
            raise CorruptSample(name, key, error.strerror or str(error)) from None
        if len(content) != last - first:
            raise CorruptSample(name, key, "the file ends before it")
        members = {}
        for ending, (offset, size, checksum) in places.items():
            members[ending] = content[offset - first : offset - first + size]
            if checksum not in (NO_CHECKSUM, zlib.crc32(members[ending])):
                raise CorruptSample(name, key, f"{ending} is not what was written (CRC-32 differs)")
        return key, members

    def _file(self, shard: int) -> _File:
        with self._lock:
            file = self._files.pop(shard, None) or _File(self.folder / self.names[shard])
            self._files[shard] = file
            if len(self._files) > MAX_OPEN:
                self._files.popitem(last=False)
            return file
