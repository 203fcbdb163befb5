"""Settings of a recipe beyond those of its stages."""

from __future__ import annotations

from dataclasses import dataclass

from modality_forcing.errors import UserError


@dataclass(frozen=True)
class MakeConfig:
    """Procedural data that a recipe asks for; rendered when it is not there yet (as by ``mf data make``)."""

    count: int = 1000
    size: int = 128
    """Side of the square pictures in pixels."""
    split: str = "train"
    start: int = 0
    """First sample of the split."""
    folder: str = ""
    """Where the shards go; "": ``data/NAME`` in the run's folder."""
    shard_size: int = 500
    supersample: int = 2
    """Rays per pixel side."""

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("size", 16), ("start", 0), ("shard_size", 1), ("supersample", 1)):
            if getattr(self, name) < least:
                raise UserError(f"make.{name} is {getattr(self, name)}; it must be at least {least}")
