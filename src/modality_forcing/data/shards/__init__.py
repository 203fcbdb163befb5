"""Shards: folders of WebDataset tars with pictures, 16-bit depth, cameras and captions (docs/data.md)."""

from __future__ import annotations

from modality_forcing.data.shards.building import Job, build_shards
from modality_forcing.data.shards.manifest import Manifest, ShardInfo, read_manifest
from modality_forcing.data.shards.reader import LostSample, ShardSet
from modality_forcing.data.shards.samples import FIELDS, CorruptSample, encode_sample
from modality_forcing.data.shards.writer import write_shard

__all__ = [
    "FIELDS", "CorruptSample", "Job", "LostSample", "Manifest", "ShardInfo", "ShardSet", "build_shards",
    "encode_sample", "read_manifest", "write_shard",
]  # fmt: skip
