"""The formats of ``mf data convert`` by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modality_forcing.data.readers import (
    argoverse2,
    arkitscenes,
    blendedmvs,
    colmap,
    folder,
    hypersim,
    megadepth,
    scannet,
    tables,
    tartanair,
)
from modality_forcing.data.readers.base import Found, Item, Loaded, Options
from modality_forcing.errors import UserError


@dataclass(frozen=True)
class Format:
    """A layout that can be read.

    Attributes:
        name: of ``--format``.
        find: lists what a source holds.
        load: reads one item.
        layout: what a source looks like, in one line.
        options: the fields of :class:`base.Options` that it uses.
        needs: packages of the extra "data".
    """

    name: str
    find: Callable[[Path, Options], Found]
    load: Callable[[Item, Options], Loaded]
    layout: str
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def check(self, options: Options) -> None:
        """Refuse options that this format has no use for, and missing packages.

        Raises:
            UserError: one of both.
        """
        for name, value in vars(options).items():
            if name not in self.options and value != getattr(Options(), name):
                option = f"--{name.replace('_', '-')}"
                takes = (
                    ", ".join(f"--{one.replace('_', '-')}" for one in self.options)
                    or "no option of this kind"
                )
                raise UserError(f"{option} means nothing for the format {self.name}, which takes {takes}")
        for package in self.needs:
            if importlib.util.find_spec(package) is None:
                raise UserError(
                    f"the format {self.name} needs the package {package}:"
                    ' pip install "modality-forcing[data]"'
                )


_ALL = (
    Format("folder", folder.find, folder.load, folder.LAYOUT, folder.OPTIONS),
    Format("csv", tables.find_csv, tables.load, tables.CSV_LAYOUT, tables.OPTIONS),
    Format("index", tables.find_index, tables.load, tables.INDEX_LAYOUT, tables.OPTIONS),
    Format("colmap", colmap.find, colmap.load, colmap.LAYOUT, colmap.OPTIONS),
    Format("arkitscenes", arkitscenes.find, arkitscenes.load, arkitscenes.LAYOUT, arkitscenes.OPTIONS),
    Format(
        "argoverse2", argoverse2.find, argoverse2.load, argoverse2.LAYOUT, argoverse2.OPTIONS, ("pyarrow",)
    ),
    Format("blendedmvs", blendedmvs.find, blendedmvs.load, blendedmvs.LAYOUT, blendedmvs.OPTIONS),
    Format("hypersim", hypersim.find, hypersim.load, hypersim.LAYOUT, hypersim.OPTIONS, ("h5py",)),
    Format("megadepth", megadepth.find, megadepth.load, megadepth.LAYOUT, megadepth.OPTIONS, ("h5py",)),
    Format("scannet", scannet.find, scannet.load, scannet.LAYOUT, scannet.OPTIONS),
    Format("tartanair", tartanair.find, tartanair.load, tartanair.LAYOUT, tartanair.OPTIONS),
)
FORMATS = {one.name: one for one in _ALL}


def format_named(name: str) -> Format:
    """A format by its name.

    Raises:
        UserError: there is none of this name.
    """
    if name not in FORMATS:
        raise UserError(f"the format {name[:40]!r} is not known; right is one of {', '.join(FORMATS)}")
    return FORMATS[name]
