"""``mf data``: the procedural world as training data, and a look at what a folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from modality_forcing.data.lowpoly.cache import Cache

app = typer.Typer(help="Make and look at training data.", no_args_is_help=False)

MAX_SIDE, MAX_WORKERS, MAX_SHEET = 1024, 256, 400


@app.command("make")
def make(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Finished chunks in it are kept.")],
    count: Annotated[int, typer.Option("--count", "-n", metavar="N", help="Samples in all.")] = 1000,
    size: Annotated[int, typer.Option(metavar="PIXELS", help="Side of the square pictures.")] = 128,
    split: Annotated[
        str, typer.Option(metavar="train|val|test", help="Splits never share a seed.")
    ] = "train",
    start: Annotated[int, typer.Option(metavar="N", help="First sample of the split.")] = 0,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Processes.", show_default="every core")
    ] = None,
) -> None:
    """Render the procedural world: pictures, exact depth, cameras and captions."""
    import importlib.util
    import os

    from modality_forcing.cli.inputs import whole_number, writable_folder
    from modality_forcing.cli.output import progress
    from modality_forcing.data.lowpoly import split_seed
    from modality_forcing.errors import UserError

    whole_number("--count", count, 1, 10**9)
    whole_number("--size", size, 16, MAX_SIDE)
    if workers is not None:
        whole_number("--workers", workers, 1, MAX_WORKERS)
    split_seed(split, start)
    path = writable_folder(folder, "FOLDER")
    if importlib.util.find_spec("embreex") is None:
        raise UserError('the renderer embreex is missing: pip install "modality-forcing[train]"')
    from modality_forcing.data.lowpoly.cache import build_cache

    with progress() as bars:
        bar = bars.add_task("rendering", total=count)
        build_cache(
            path, split, start, count, size, workers or os.cpu_count() or 1,
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )  # fmt: skip
    print(path)


@app.command("inspect")
def inspect(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Made by `mf data make`.")],
    count: Annotated[int, typer.Option("--count", "-n", metavar="N", help="Samples on the sheet.")] = 24,
    seed: Annotated[int, typer.Option(metavar="N", help="Which samples are drawn.")] = 0,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="FILE.png", help="Write a contact sheet of samples here."),
    ] = None,
) -> None:
    """Count what a data folder holds, and draw some of it."""
    from collections import Counter

    import numpy as np

    from modality_forcing.cli.inputs import whole_number, writable_folder
    from modality_forcing.data.lowpoly.cache import open_cache
    from modality_forcing.errors import UserError

    whole_number("--count", count, 1, MAX_SHEET)
    whole_number("--seed", seed, 0, 2**63 - 1)
    target = None if out is None else Path(out).expanduser()
    if target is not None:
        if target.suffix.lower() != ".png":
            raise UserError(f"--out is {target}; right is the name of a .png file")
        writable_folder(str(target.parent), "--out")
    if not Path(folder).is_dir():
        raise UserError(f"{folder} is no folder; make one with `mf data make`")
    cache = open_cache(folder)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(cache))[:count])
    depths = np.concatenate([cache[int(i)][1].ravel() for i in chosen])
    finite = depths[np.isfinite(depths)]
    height, width = cache[0][0].shape[:2]
    print(f"{len(cache)} samples of {width}x{height} in {len(cache.chunks)} chunks")
    for name in ("place", "light"):
        numbers = Counter(record[name] for record in cache.records).most_common()
        print(f"{name}: " + ", ".join(f"{value} {number}" for value, number in numbers))
    if len(finite):
        low, middle, high = np.percentile(finite, [2, 50, 98])
        print(
            f"depth of {len(chosen)} samples: 2 % {low:.2f} m, median {middle:.2f} m, 98 % {high:.2f} m, "
            f"sky {100 * (1 - len(finite) / len(depths)):.1f} % of the pixels"
        )
    if target is not None:
        _sheet(cache, chosen.tolist(), target)
        print(target)


def _sheet(cache: Cache, chosen: list[int], target: Path) -> None:
    """Picture and depth of each chosen sample, four samples in a row."""
    from PIL import Image

    from modality_forcing.io.atomic import atomic_file
    from modality_forcing.viz import colorize, contact_sheet

    pictures, captions = [], []
    for first in range(0, len(chosen), 4):
        row, words = [], []
        for index in chosen[first : first + 4]:
            rgb, depth, _, texts = cache[index]
            row += [rgb, colorize(depth)]
            words += [texts[0] if texts else "", ""]
        pictures.append(row)
        captions.append(words)
    with atomic_file(target) as aside:
        Image.fromarray(contact_sheet(pictures, captions, tile=192)).save(aside)
