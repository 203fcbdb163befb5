"""Files of a Hugging Face Space with the page.

``python -m modality_forcing.server.space FOLDER [--model SOURCE]`` writes them.
"""

from __future__ import annotations

import argparse
import re
import sys
from importlib.metadata import version
from pathlib import Path

from modality_forcing import __version__
from modality_forcing.errors import UserError
from modality_forcing.io.atomic import atomic_file

SOURCE = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
README = """\
---
title: Modality Forcing
emoji: 🏔️
colorFrom: indigo
colorTo: gray
sdk: gradio
sdk_version: {gradio}
python_version: "3.12"
app_file: app.py
license: apache-2.0
short_description: One model of pictures and depth
---

Text to picture, depth and point cloud; picture to depth; depth to picture; sparse depth completed; parts made
anew.

These files were written by `python -m modality_forcing.server.space`. The Space runs on ZeroGPU, on a card of
its own or on the CPU alone. On ZeroGPU each job is one call of at most {seconds} seconds, and the transformer
is compiled once while the Space starts; with persistent storage the compiled programs outlive a restart.
"""
APP = """\
import spaces  # first: it must come before everything that uses a graphics card

from modality_forcing.server.zero import launch

launch("{model}", spaces.GPU)
"""
REQUIREMENTS = """\
modality-forcing[serve]=={version}
spaces>=0.51
"""


def space_files(model: str = "lowpoly") -> dict[str, str]:
    """Name and text of each file of the Space.

    Args:
        model: "lowpoly" or a Hub id with a small text encoder.

    Raises:
        UserError: a model that is neither.
    """
    from modality_forcing.server.zero import SECONDS

    if not SOURCE.fullmatch(model):
        raise UserError(f"the model is {model[:60]!r}; right is lowpoly or a Hub id such as name/model")
    return {
        "README.md": README.format(gradio=version("gradio"), seconds=SECONDS),
        "app.py": APP.format(model=model),
        "requirements.txt": REQUIREMENTS.format(version=__version__),
    }


def write_space(folder: str | Path, model: str = "lowpoly") -> list[Path]:
    """Write the files of a Space; those that are there are replaced, others stay.

    Raises:
        UserError: a model that cannot be, or a folder that cannot be written.
    """
    written = []
    for name, text in space_files(model).items():
        with atomic_file(Path(folder) / name) as aside:
            aside.write_text(text, encoding="utf-8")
        written.append(Path(folder) / name)
    return written


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m modality_forcing.server.space", description=__doc__)
    parser.add_argument("folder", help="where the files go")
    parser.add_argument("--model", default="lowpoly", help="lowpoly or a Hub id")
    given = parser.parse_args(arguments)
    try:
        for path in write_space(given.folder, given.model):
            print(path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
