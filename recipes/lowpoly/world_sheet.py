"""``python recipes/lowpoly/world_sheet.py [FOLDER]``: the pictures of the world in docs/images.

``world.png``: 48 samples of the test split (RGB | depth | normals | long caption), the first three or four of
every place in the order of their seeds. ``places.png``: the first of every place, RGB | depth. ``close.png``:
the first 20 of the split "close", RGB | depth. Nothing is picked.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from modality_forcing.data.lowpoly import PLACES, make_sample, split_seed
from modality_forcing.data.lowpoly.places import make_scene
from modality_forcing.types import Sample
from modality_forcing.viz import colorize, normals_picture

TILE, GAP, COLUMNS, COUNT = 128, 8, 3, 48


def seeds(count: int = COUNT) -> list[int]:
    """The first test seeds, at most ceil(count / places) of a place, sorted by place."""
    taken: Counter[str] = Counter()
    chosen: list[tuple[int, int]] = []
    index, extra = 0, count % len(PLACES)
    while len(chosen) < count:
        seed = split_seed("test", index)
        place = make_scene(seed).place
        limit = count // len(PLACES) + (PLACES.index(place) < extra)
        if taken[place] < limit:
            taken[place] += 1
            chosen.append((PLACES.index(place), seed))
        index += 1
    return [seed for _, seed in sorted(chosen)]


def wrap(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of at most ``width`` pixels, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def panels(sample: Sample, *, normals: bool = True) -> np.ndarray:
    """RGB, depth and normals side by side, uint8 (H, 3 W, 3)."""
    assert sample.normals is not None
    depth = np.where(np.isfinite(sample.depth), sample.depth, 0.0)
    parts = [sample.rgb, colorize(depth)]
    return np.concatenate([*parts, normals_picture(sample.normals)] if normals else parts, 1)


def draw_world(samples: list[Sample]) -> Image.Image:
    """Every sample with its caption, in three columns."""
    font = ImageFont.load_default(size=12)
    assert isinstance(font, ImageFont.FreeTypeFont)
    line, width = 15, 3 * TILE
    scratch = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    texts = [wrap(scratch, sample.captions[2], font, width) for sample in samples]
    starts = range(0, len(samples), COLUMNS)
    heights = [TILE + line * max(map(len, texts[i : i + COLUMNS])) + GAP for i in starts]
    sheet = Image.new("RGB", (COLUMNS * (width + GAP) + GAP, sum(heights) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, sample in enumerate(samples):
        row, column = divmod(i, COLUMNS)
        x, y = GAP + column * (width + GAP), GAP + sum(heights[:row])
        sheet.paste(Image.fromarray(panels(sample)), (x, y))
        for k, text in enumerate(texts[i]):
            draw.text((x, y + TILE + 1 + k * line), text, fill="black", font=font)
    return sheet


def draw_pairs(samples: list[Sample]) -> Image.Image:
    """RGB and depth of samples, five in a row."""
    pictures = [panels(sample, normals=False) for sample in samples]
    width, height = 2 * TILE + GAP, TILE + GAP
    sheet = Image.new("RGB", (5 * width + GAP, -(-len(pictures) // 5) * height + GAP), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(Image.fromarray(picture), (GAP + i % 5 * width, GAP + i // 5 * height))
    return sheet


def main(folder: Path) -> None:
    """Render and write the pictures."""
    samples = [make_sample(seed, TILE, TILE, supersample=3) for seed in seeds()]
    first = {sample.meta["place"]: sample for sample in reversed(samples)}
    close = [make_sample(split_seed("close", i), TILE, TILE, supersample=3) for i in range(20)]
    sheets = {
        "world.png": draw_world(samples),
        "places.png": draw_pairs([first[place] for place in PLACES]),
        "close.png": draw_pairs(close),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, sheet in sheets.items():
        sheet.save(folder / name, optimize=True)
        size = (folder / name).stat().st_size
        print(f"{folder / name}: {sheet.width} x {sheet.height}, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs/images"))
    main(parser.parse_args().folder)
