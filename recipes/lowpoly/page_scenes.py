"""Draw the example scenes of the web page again: ``python recipes/lowpoly/page_scenes.py [FOLDER]``.

For each scene a picture, its depth in metres (16-bit PNG), and the same depth at a few random pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from modality_forcing.data.lowpoly import make_sample, split_seed
from modality_forcing.io.atomic import atomic_file
from modality_forcing.io.depth_files import write_depth_png16
from modality_forcing.server.page.examples import FOLDER

SCENES = {"street": 3, "kitchen": 12}  # name -> index of the test split: none of them was trained on
SIDE = 128  # pixels
SPARSE = 0.03  # part of the pixels that the sparse maps keep


def draw(folder: Path) -> list[Path]:
    """Write the scenes.

    Raises:
        UserError: they cannot be written.
    """
    made = []
    for name, index in SCENES.items():
        sample = make_sample(split_seed("test", index), SIDE, SIDE)
        few = sample.valid & (np.random.default_rng(index).random(sample.depth.shape) < SPARSE)
        paths = [folder / f"{name}{kind}.png" for kind in ("", "_depth", "_sparse")]
        with atomic_file(paths[0]) as aside:
            Image.fromarray(sample.rgb).save(aside, format="PNG", optimize=True)
        write_depth_png16(paths[1], sample.depth, sample.valid, unit="m")
        write_depth_png16(paths[2], sample.depth, few, unit="m")
        made += paths
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    for path in draw(parser.parse_args().folder):
        print(path)
