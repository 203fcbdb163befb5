"""Writing one shard: a tar and its index, byte for byte the same whenever its samples are the same."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from modality_forcing.data.shards.manifest import ShardInfo
from modality_forcing.data.shards.samples import check_key, json_bytes
from modality_forcing.data.shards.tar import END, header, padding
from modality_forcing.io.atomic import atomic_file

INDEX_VERSION = 1


def index_path(folder: Path, name: str) -> Path:
    """``train-000000.index.json`` of ``train-000000.tar``."""
    return folder / f"{name.removesuffix('.tar')}.index.json"


def write_shard(
    folder: str | Path, name: str, samples: Iterable[tuple[str, list[tuple[str, bytes]]]]
) -> ShardInfo:
    """Write ``name`` and its index into ``folder``; neither is seen before it is whole, the tar comes last.

    Args:
        folder: where to.
        name: file name that ends in ".tar".
        samples: (key, members as of :func:`samples.encode_sample`) one after the other; never all in memory.

    Raises:
        UserError: it cannot be written.
        ValueError: a bad key, or one that came before.
    """
    folder = Path(folder)
    index: list[dict[str, Any]] = []
    seen: set[str] = set()
    digest = hashlib.sha256()
    position = 0
    with atomic_file(folder / name) as aside:
        with aside.open("wb") as stream:

            def put(content: bytes) -> None:
                nonlocal position
                stream.write(content)
                digest.update(content)
                position += len(content)

            for key, members in samples:
                if check_key(key) in seen:
                    raise ValueError(f"key {key} comes twice in shard {name}")
                seen.add(key)
                places = {}
                for ending, content in members:
                    put(header(f"{key}.{ending}", len(content)))
                    places[ending] = [position, len(content), zlib.crc32(content)]
                    put(content + padding(len(content)))
                record = json.loads(dict(members)["json"])
                index.append({"key": key, "size": [record["width"], record["height"]], "members": places})
            put(END)
            stream.flush()
            os.fsync(stream.fileno())  # the manifest must not outlive the data when the power goes
        value = {"version": INDEX_VERSION, "bytes": position, "samples": index}
        with atomic_file(index_path(folder, name)) as beside:
            beside.write_bytes(json_bytes(value))
    return ShardInfo(name, len(index), position, digest.hexdigest())
