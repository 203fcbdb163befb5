"""Readers of evaluation data; ``open_data`` finds the right one."""

from __future__ import annotations

from pathlib import Path

from modality_forcing.errors import UserError
from modality_forcing.evaluation.datasets.common import EvalItem, EvalSet, Files
from modality_forcing.evaluation.datasets.folder import INDEX as FOLDER_INDEX
from modality_forcing.evaluation.datasets.folder import FolderSet
from modality_forcing.evaluation.datasets.lowpoly import COUNT, SIZE, ShardedSet, WorldSet
from modality_forcing.evaluation.datasets.moge import INDEX as MOGE_INDEX
from modality_forcing.evaluation.datasets.moge import MogeSet
from modality_forcing.evaluation.datasets.published import LAYOUTS, PublishedSet

KINDS = tuple(LAYOUTS)


def open_data(
    text: str, *, limit: int | None = None, size: int | None = None, split: Path | None = None
) -> EvalSet:
    """The set a user named.

    Args:
        text: ``lowpoly:SPLIT``; ``NAME:FOLDER`` (or an uncompressed tar) with NAME one of ``KINDS``, in
            MoGe's or Marigold's layout; or a folder of shards, of MoGe's layout, or with an ``index.json``.
        limit: how many scenes of a rendered split; other sets are as long as they are.
        size: side of rendered scenes in pixels.
        split: list of the pictures of a published set.

    Raises:
        UserError: nothing readable is there, or an option that does not fit.
    """
    name, colon, rest = text.partition(":")
    if name == "lowpoly" and colon:
        if split is not None:
            raise UserError(f"--split-list does not fit {text}")
        return WorldSet(rest, COUNT if limit is None else limit, SIZE if size is None else size)
    if size is not None:
        raise UserError(f"a size of rendered scenes does not fit {text[:200]}; right is --data lowpoly:SPLIT")
    known = name in KINDS and colon
    root = Path(rest if known else text).expanduser()
    try:
        there, folder = root.exists(), root.is_dir()
    except (OSError, ValueError):
        there = folder = False
    if not there:
        raise UserError(
            f"data {text[:200]!r} is not there; right is lowpoly:test, a folder, or NAME:FOLDER with NAME"
            f" one of {', '.join(KINDS)}"
        )
    if (folder or known) and MOGE_INDEX in Files(root):
        return MogeSet(name if known else "folder", root, split)
    if known:
        return PublishedSet(name, root, split)
    if split is not None:
        raise UserError(f"--split-list needs the name of the set; right is --data nyuv2:{text[:200]}")
    if folder and (root / FOLDER_INDEX).is_file():
        return FolderSet(root)
    if folder and (root / "manifest.json").is_file():
        return ShardedSet(root)
    raise UserError(
        f"data {root} holds no {FOLDER_INDEX}, no {MOGE_INDEX} and no shards; for a published set say which:"
        f" {', '.join(f'{kind}:{root.name}' for kind in KINDS[:2])}, ..."
    )


__all__ = ["KINDS", "EvalItem", "EvalSet", "open_data"]
