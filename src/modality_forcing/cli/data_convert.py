"""``mf data convert``: other people's data, and your own, as shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np

MAX_WORKERS, SHEET_SAMPLES, TILE = 256, 12, 240
FORMAT_NAMES = (
    "folder|csv|index|colmap|arkitscenes|argoverse2|blendedmvs|hypersim|megadepth|scannet|tartanair"
)
EDGE_COLOR, POINT_RADIUS = (255, 40, 200), 2
SPARSE = 0.05  # share of measured pixels below which depth is points
HOLE = 0.015  # of the longer side: how far edges are followed into holes


def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder or file in the format's layout.")],
    format: Annotated[str, typer.Option("--format", "-f", metavar=FORMAT_NAMES, help="Layout of SOURCE.")],
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FOLDER", help="Finished shards in it are kept.")
    ],
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", metavar="N", help="Samples at most, spread over SOURCE.")
    ] = None,
    max_side: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Reduce larger pictures to this longer side.")
    ] = None,
    depth_scale: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="Value * X is metres, 0.001 for millimetres (1/metres for disparity)."
        ),
    ] = None,
    depth_kind: Annotated[
        str, typer.Option(metavar="depth|disparity", help="Disparity is 1 / depth.")
    ] = "depth",
    unit: Annotated[
        str | None, typer.Option(metavar="m|relative", help="relative: known up to one factor per picture.")
    ] = None,
    fov_x: Annotated[
        float | None, typer.Option(metavar="DEGREES", help="Horizontal, of pictures without a camera.")
    ] = None,
    sky_beyond: Annotated[
        float | None, typer.Option(metavar="METRES", help="From this depth on a pixel is sky.")
    ] = None,
    rgb_only: Annotated[bool, typer.Option("--rgb-only", help="Also take pictures without depth.")] = False,
    shard_size: Annotated[int, typer.Option(metavar="N", help="Samples per shard.")] = 500,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Processes.", show_default="every core")
    ] = None,
) -> None:
    """Turn a data set or your own pictures with depth into shards, and say what looks wrong in them.

    Files that cannot be used are left out and listed in report.json; alignment.png shows whether depth and
    pictures match. A run that was stopped goes on where it was.
    """
    import os
    from typing import cast

    from modality_forcing.cli.inputs import in_range, whole_number, writable_folder
    from modality_forcing.cli.output import notices, progress
    from modality_forcing.data.readers.base import Options
    from modality_forcing.data.readers.convert import REPORT
    from modality_forcing.data.readers.convert import convert as run
    from modality_forcing.data.readers.formats import format_named
    from modality_forcing.errors import UserError
    from modality_forcing.io.depth_files import DepthKind

    format_named(format)
    if not source or "\0" in source:
        raise UserError(f"SOURCE is {source!r}; right is the name of a folder or file")
    for name, number, low, high in (
        ("--limit", limit, 1, 10**9), ("--max-side", max_side, 16, 10**5),
        ("--shard-size", shard_size, 1, 10**6), ("--workers", workers, 1, MAX_WORKERS),
    ):  # fmt: skip
        if number is not None:
            whole_number(name, number, low, high)
    if depth_kind not in ("depth", "disparity"):
        raise UserError(f"--depth-kind is {depth_kind!r}; right is 'depth' or 'disparity'")
    if unit not in (None, "m", "relative"):
        raise UserError(f"--unit is {unit!r}; right is 'm' or 'relative'")
    for name, value in (("--depth-scale", depth_scale), ("--sky-beyond", sky_beyond)):
        in_range(name, value, 1e-9, 1e9)
    in_range("--fov-x", fov_x, 1.0, 179.0)
    path = writable_folder(out)
    options = Options(
        depth_scale=depth_scale, depth_kind=cast("DepthKind", depth_kind), unit=unit, fov_x=fov_x,
        sky_beyond=sky_beyond, rgb_only=rgb_only,
    )  # fmt: skip
    with progress() as bars:
        bar = bars.add_task("looking through the files", total=None)

        def show(done: int, total: int | None) -> None:
            bars.update(bar, description="converting", completed=done, total=total)

        made = run(
            Path(source).expanduser(), format, path, options, limit=limit, max_side=max_side,
            shard_size=shard_size, workers=workers or os.cpu_count() or 1, progress=show,
        )  # fmt: skip
    draw_alignment(path, path / "alignment.png")
    manifest, report = made.manifest, made.report
    megabytes = sum(shard.bytes for shard in manifest.shards.values()) / 1e6
    print(
        f"{path}: {manifest.samples} samples in {len(manifest.shards)} shards, {megabytes:.1f} MB"
        f" ({made.kept} kept, {len(report.skipped)} left out)"
    )
    for line in report.lines():
        print(line)
    notices(report.warnings)
    print(path / REPORT)
    print(path / "alignment.png")


def draw_alignment(folder: Path, target: Path) -> None:
    """Picture, depth, and the edges of depth over the picture, of samples spread over a folder of shards.

    Sparse depth has no edges: there its points are drawn over the picture, in the colours of depth.
    """
    from itertools import chain

    from PIL import Image

    from modality_forcing.data.readers.convert import spread
    from modality_forcing.data.shards import CorruptSample, ShardSet
    from modality_forcing.io.atomic import atomic_file
    from modality_forcing.viz import colorize, contact_sheet

    shards = ShardSet(folder)
    rows, captions = [], []
    for number in spread(range(len(shards)), SHEET_SAMPLES):
        try:
            sample = shards.read(number, ("rgb", "depth"))
        except CorruptSample:
            continue
        over = overlay(sample.rgb, sample.depth)
        rows.append([sample.rgb, over if _is_sparse(sample.depth) else colorize(sample.depth), over])
        near = f"{sample.depth[sample.valid].min():.3g}" if sample.valid.any() else "-"
        far = f"{sample.depth[sample.valid].max():.3g}" if sample.valid.any() else "-"
        captions.append(
            [str(sample.meta["name"]), f"{near} to {far} {sample.meta['depth_unit']}", "edges of depth"]
        )
        if _is_sparse(sample.depth):
            rows[-1], captions[-1] = rows[-1][::2], captions[-1][:2]
    if rows:
        pairs = range(0, len(rows), 2)
        with atomic_file(target) as aside:
            Image.fromarray(
                contact_sheet(
                    [list(chain(*rows[first : first + 2])) for first in pairs],
                    [list(chain(*captions[first : first + 2])) for first in pairs],
                    tile=TILE,
                )
            ).save(aside)


def _is_sparse(depth: np.ndarray) -> bool:
    return bool((depth > 0).mean() < SPARSE)


def overlay(rgb: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """The picture in paler colours with the edges of depth, or its points where it is sparse.

    Args:
        rgb: uint8 (H, W, 3).
        depth: float32 (H, W), 0 unknown, +inf sky.

    Returns:
        uint8 (H, W, 3).
    """
    import numpy as np
    from scipy import ndimage

    from modality_forcing.geometry.cloud import default_edge_rtol, edge_mask
    from modality_forcing.viz import colorize

    thick = max(1, round(max(depth.shape) / 400))
    if _is_sparse(depth):
        picture = (rgb // 2).astype(np.uint8)
        valid = np.isfinite(depth) & (depth > 0)
        if valid.any():
            # Each point grows to a square of the nearest depth under it.
            side = 2 * max(POINT_RADIUS, 2 * thick) + 1
            grown = ndimage.minimum_filter(np.where(valid, depth, np.inf), side)
            picture = np.where(np.isfinite(grown)[..., None], colorize(grown), picture)
        return picture
    finite = depth[np.isfinite(depth) & (depth > 0)]
    z = np.where(np.isposinf(depth), 10 * float(finite.max(initial=1.0)), depth)
    if (z > 0).any():
        # Sensors measure nothing just where objects end: small holes take the nearest value.
        distance, at = ndimage.distance_transform_edt(z <= 0, return_indices=True)
        z = np.where(distance <= HOLE * max(z.shape), z[tuple(at)], 0)
    edges = edge_mask(z, default_edge_rtol(z.shape), valid=z > 0)
    if thick > 1:
        edges = ndimage.binary_dilation(edges, iterations=thick - 1)
    picture = (0.6 * rgb + 50).astype(np.uint8)
    picture[edges] = EDGE_COLOR
    return picture
