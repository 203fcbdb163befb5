"""``mf data``: the procedural world as training data, and a look at what a folder holds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modality_forcing.cli import data_convert
from modality_forcing.data.lowpoly.seeds import SPLITS

if TYPE_CHECKING:
    import numpy as np

    from modality_forcing.data.shards import ShardSet
    from modality_forcing.data.shards.summary import Summary

app = typer.Typer(help="Make and look at training data.", no_args_is_help=False)

MAX_SIDE, MAX_SUPERSAMPLE, MAX_WORKERS, MAX_SHEET = 1024, 8, 256, 400
MAX_KINDS = 40  # different values of one fact that are listed
TILE = 160  # pixels: height of a picture on the sheet


@app.command("make")
def make(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Finished shards in it are kept.")],
    count: Annotated[int, typer.Option("--count", "-n", metavar="N", help="Samples in all.")] = 1000,
    size: Annotated[int, typer.Option(metavar="PIXELS", help="Side of the square pictures.")] = 128,
    split: Annotated[
        str,
        typer.Option(metavar="|".join(SPLITS), help="Splits never share a seed."),
    ] = "train",
    start: Annotated[int, typer.Option(metavar="N", help="First sample of the split.")] = 0,
    shard_size: Annotated[int, typer.Option(metavar="N", help="Samples per shard.")] = 500,
    supersample: Annotated[int, typer.Option(metavar="N", help="NxN rays make the colour of one pixel.")] = 2,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Processes.", show_default="every core")
    ] = None,
) -> None:
    """Render the procedural world into shards: pictures, exact depth, normals, ids, cameras and captions.

    A run that was stopped goes on where it was; a larger --count adds to a folder.
    """
    import os
    import time

    from modality_forcing.cli.inputs import whole_number, writable_folder
    from modality_forcing.cli.output import progress
    from modality_forcing.data.lowpoly.shards import make_shards

    whole_number("--count", count, 1, 10**9)
    whole_number("--size", size, 16, MAX_SIDE)
    whole_number("--shard-size", shard_size, 1, 10**6)
    whole_number("--supersample", supersample, 1, MAX_SUPERSAMPLE)
    if workers is not None:
        whole_number("--workers", workers, 1, MAX_WORKERS)
    path = writable_folder(folder, "FOLDER")
    begin, kept, last = time.monotonic(), -1, 0
    with progress() as bars:
        bar = bars.add_task("rendering", total=count)

        def show(done: int, total: int | None) -> None:
            nonlocal kept, last
            kept, last = done if kept < 0 else kept, done
            bars.update(bar, completed=done, total=total)

        manifest = make_shards(
            path, split=split, start=start, count=count, size=size, supersample=supersample,
            shard_size=shard_size, workers=workers or os.cpu_count() or 1, progress=show,
        )  # fmt: skip
    seconds = time.monotonic() - begin
    megabytes = sum(shard.bytes for shard in manifest.shards.values()) / 1e6
    made = f"{last - kept} made, {kept} kept, {(last - kept) / max(seconds, 1e-9):.1f} per second"
    print(f"{path}: {manifest.samples} samples in {len(manifest.shards)} shards, {megabytes:.1f} MB ({made})")


@app.command("inspect")
def inspect(
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Made by `mf data make` or `mf data convert`.")
    ],
    count: Annotated[int, typer.Option("--count", "-n", metavar="N", help="Samples on the sheet.")] = 24,
    seed: Annotated[int, typer.Option(metavar="N", help="Which samples are drawn.")] = 0,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="FILE.png", help="Write a contact sheet of samples here."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare all shards with their checksums.")
    ] = False,
) -> None:
    """Count what a folder of shards holds, draw some of it, and check it."""
    from modality_forcing.cli.inputs import whole_number, writable_folder
    from modality_forcing.cli.output import notices, progress
    from modality_forcing.data.shards import ShardSet
    from modality_forcing.data.shards.summary import summarise
    from modality_forcing.errors import UserError

    whole_number("--count", count, 1, MAX_SHEET)
    whole_number("--seed", seed, 0, 2**63 - 1)
    target = None if out is None else Path(out).expanduser()
    if target is not None:
        if target.suffix.lower() != ".png":
            raise UserError(f"--out is {target}; right is the name of a .png file")
        writable_folder(str(target.parent), "--out")
    shards = ShardSet(Path(folder).expanduser())
    faults: list[str] = []
    with progress() as bars:
        if verify:
            bar = bars.add_task("checking", total=None)
            faults = shards.verify(lambda done, total: bars.update(bar, completed=done, total=total))
        bar = bars.add_task("reading", total=None)
        summary = summarise(shards, seed, lambda done, total: bars.update(bar, completed=done, total=total))
    for line in _report(shards, summary):
        print(line)
    lost = Counter((item.shard, item.reason) for item in shards.lost)
    notices(f"{number} samples of {shard} are lost: {why}" for (shard, why), number in lost.items())
    notices(summary.corrupt[:20])
    if target is not None and len(shards):
        _sheet(shards, count, seed, target)
        print(target)
    if faults:
        for fault in faults:
            print(f"fault: {fault}")
        raise UserError(f"{shards.folder} has {len(faults)} faults: {faults[0]}")
    if verify:
        print(f"checksums: all {len(shards.names)} shards are as they were written")


def _report(shards: ShardSet, summary: Summary) -> list[str]:
    """The lines of ``mf data inspect``."""
    manifest = shards.manifest
    megabytes = sum(shard.bytes for shard in manifest.shards.values()) / 1e6
    sizes = f" of {next(iter(summary.sizes))}" if len(summary.sizes) == 1 else ""
    lines = [f"{summary.samples} samples{sizes} in {len(shards.names)} shards, {megabytes:.1f} MB"]
    made = {**manifest.generator, **manifest.settings}
    lines.append("made by: " + ", ".join(f"{name} {value}" for name, value in made.items()))
    if summary.looked_at < summary.samples:
        lines.append(f"looked at: {summary.looked_at} samples")
    counters = {"size": summary.sizes, "source": summary.sources, **summary.facts}
    for name, counter in counters.items():
        if name != "size" or len(counter) > 1:
            lines.append(f"{name}: {_counts(counter)}")
    for number, words in enumerate(summary.words):
        mean = sum(words) / len(words)
        lines.append(f"caption {number + 1}: {min(words)} to {max(words)} words, mean {mean:.1f}")
    if summary.without_caption:
        lines.append(f"without caption: {summary.without_caption}")
    if summary.fields_of_view:
        angles = sorted(summary.fields_of_view)
        lines.append(
            f"field of view: {angles[0]:.1f} to {angles[-1]:.1f} degrees,"
            f" median {angles[len(angles) // 2]:.1f} (horizontal)"
        )
    if summary.depth_looked_at:
        lines.append(
            f"depth of {summary.depth_looked_at} samples: {100 * summary.measured:.1f} % of the pixels"
            f" measured, {100 * summary.sky:.1f} % sky, {100 * summary.unknown:.1f} % unknown"
        )
    from modality_forcing.data.shards.summary import PERCENTILES

    for unit, values in summary.depths.items():
        text = ", ".join(f"{p} % {value:.3g}" for p, value in zip(PERCENTILES, values, strict=True))
        lines.append(f"depth in {'metres' if unit == 'm' else 'relative units'}: {text}")
    if shards.lost or summary.corrupt:
        lines.append(f"lost: {len(shards.lost)} samples; damaged: {len(summary.corrupt)}")
    return lines


def _counts(counter: Counter[str]) -> str:
    common = counter.most_common(MAX_KINDS)
    rest = f", {len(counter) - len(common)} more" if len(counter) > len(common) else ""
    return ", ".join(f"{value} {number}" for value, number in common) + rest


def _sheet(shards: ShardSet, count: int, seed: int, target: Path) -> None:
    """Picture, depth, normals and longest caption of samples drawn by seed, two samples in a row."""
    import numpy as np
    from PIL import Image

    from modality_forcing.data.shards import CorruptSample
    from modality_forcing.io.atomic import atomic_file
    from modality_forcing.viz import colorize, contact_sheet, normals_picture, text_picture

    chosen: list[list[np.ndarray]] = []
    for index in np.random.default_rng(seed).permutation(len(shards)).tolist():
        if len(chosen) == count:
            break
        try:
            sample = shards.read(index, ("rgb", "depth", "normals"))
        except CorruptSample:
            continue
        pictures = [sample.rgb, colorize(sample.depth)]
        if sample.normals is not None:
            pictures.append(normals_picture(sample.normals))
        text = max(sample.captions, key=len, default="")
        chosen.append([*pictures, text_picture(text, width=round(1.6 * TILE), height=TILE)])
    if chosen:
        pairs = (chosen[first : first + 2] for first in range(0, len(chosen), 2))
        rows = [[picture for sample in pair for picture in sample] for pair in pairs]
        with atomic_file(target) as aside:
            Image.fromarray(contact_sheet(rows, tile=TILE)).save(aside)


app.command("convert")(data_convert.convert)
