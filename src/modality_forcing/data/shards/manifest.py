"""``manifest.json``: what a folder of shards holds and how it was made."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modality_forcing.data.shards.samples import json_bytes
from modality_forcing.errors import UserError
from modality_forcing.io.atomic import atomic_file

FORMAT, VERSION = "modality-forcing-shards", 1
MANIFEST = "manifest.json"
HINT = "make one with `mf data make` or `mf data convert`"
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,190}\.tar")


@dataclass(frozen=True)
class ShardInfo:
    """One finished shard: file name, number of samples, bytes and SHA-256 of the tar."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass
class Manifest:
    """What a folder holds.

    Attributes:
        generator: what made it, with versions: "name" and more.
        settings: what it was asked for.
        shards: the finished shards by name, in the order of their names.
    """

    generator: dict[str, Any]
    settings: dict[str, Any]
    shards: dict[str, ShardInfo] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Samples in all finished shards."""
        return sum(shard.samples for shard in self.shards.values())

    def write(self, folder: Path) -> None:
        """Replace the folder's manifest in one step."""
        value = {
            "format": FORMAT, "version": VERSION, "generator": self.generator, "settings": self.settings,
            "samples": self.samples,
            "shards": [vars(self.shards[name]) for name in sorted(self.shards)],
        }  # fmt: skip
        with atomic_file(folder / MANIFEST) as aside:
            aside.write_bytes(json_bytes(value, indent=1))


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check the manifest of a folder of shards.

    Raises:
        UserError: no such folder, no manifest in it, or one that is damaged or of another format.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of shards; {HINT}")
    path = folder / MANIFEST
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{folder} holds no {MANIFEST}, so it is no folder of shards; {HINT}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UserError(f"{path} is no manifest of shards; {HINT}")
    if value.get("version") != VERSION:
        raise UserError(f"{path} has format version {value.get('version')!r}; this program knows {VERSION}")
    try:
        shards = {}
        for entry in value["shards"]:
            shard = ShardInfo(
                str(entry["name"]), int(entry["samples"]), int(entry["bytes"]), str(entry["sha256"])
            )
            # A name is never a path: a manifest from elsewhere must not lead out of its folder.
            if not _NAME.fullmatch(shard.name) or min(shard.samples, shard.bytes) < 0:
                raise ValueError(f"shard {shard.name[:80]!r}")
            shards[shard.name] = shard
        return Manifest(dict(value["generator"]), dict(value["settings"]), dict(sorted(shards.items())))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())[:120]}") from None
