"""``python recipes/lowpoly/contact_sheet.py MODEL FOLDER [PHOTO ...]``: the pictures in README and docs.

Sixteen prompts over fifteen places (image | depth | cloud from the side), seed 0 each: nothing was picked.
With photographs: image to depth on them (photograph | depth | cloud).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from modality_forcing import RGBD, Pipeline
from modality_forcing.io.images import read_image
from modality_forcing.viz import colorize, contact_sheet, render_cloud

PROMPTS = [
    "a cozy sunlit kitchen with wooden cabinets",
    "a bedroom with a red bed and a blue rug",
    "a living room with a green sofa",
    "a sunny bathroom with a white bathtub",
    "an office with a desk and a computer",
    "a library with many bookshelves and a red rug",
    "a street at dusk with a yellow car",
    "a park with green trees and a wooden bench",
    "a forest in the mist with pine trees",
    "a desert with a pyramid and green cacti",
    "snowy mountains with a lake and pine trees",
    "a village with colourful houses and a church",
    "a castle with towers at night",
    "a beach with palm trees and a red umbrella",
    "a harbour with colourful houses and a sailboat",
    "a street with orange buildings on a sunny day",
]


def panel(result: RGBD) -> list[np.ndarray]:
    """Image, depth and the cloud seen from the side."""
    return [result.rgb, colorize(result.depth, result.mask), render_cloud(result)]


def main(model: str, folder: str, photos: list[str]) -> None:
    """Write ``contact_sheet.png`` and, with photographs, ``photos.png``."""
    pipeline = Pipeline.from_pretrained(model)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    results = [pipeline.joint(prompt, seed=0)[0] for prompt in PROMPTS]
    rows, texts = [], []
    for left, right, a, b in zip(results[::2], results[1::2], PROMPTS[::2], PROMPTS[1::2], strict=True):
        rows.append([*panel(left), *panel(right)])
        texts.append([a, "", "", b, "", ""])
    sheet = contact_sheet(rows, texts, tile=192)
    Image.fromarray(sheet).save(target / "contact_sheet.png", optimize=True)
    if photos:
        pictures = [read_image(path).pixels for path in photos]
        found = pipeline.image_to_depth(pictures, seed=0)
        Image.fromarray(contact_sheet([panel(r) for r in found], tile=256)).save(
            target / "photos.png", optimize=True
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="embedded model, folder or hub id")
    parser.add_argument("folder", help="where the pictures go")
    parser.add_argument("photos", nargs="*", metavar="PHOTO")
    options = parser.parse_args()
    main(options.model, options.folder, options.photos)
