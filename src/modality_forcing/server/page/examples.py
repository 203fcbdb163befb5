"""Examples of each tab: prompts, and two small scenes of the procedural world that lie beside this file.

``python recipes/lowpoly/page_scenes.py`` draws the scenes again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "scenes"
EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "joint": [
        {"prompt": "two cars on a street between houses"},
        {"prompt": "a castle on a green hill under a blue sky"},
        {"prompt": "a kitchen with a table and yellow chairs"},
    ],
    "i2d": [{"image": "street.png"}, {"image": "kitchen.png"}],
    "d2i": [
        {"depth": "street_depth.png", "prompt": "a street with cars at night"},
        {"depth": "kitchen_depth.png", "prompt": "a kitchen with a wooden table"},
    ],
    "complete": [
        {"image": "street.png", "depth": "street_sparse.png"},
        {"image": "kitchen.png", "depth": "kitchen_sparse.png"},
    ],
    "inpaint": [
        {"image": "street.png", "prompt": "a street with a red car"},
        {"image": "kitchen.png", "prompt": "a kitchen with a green table"},
    ],
}
"""By task: values of the form, every row with the same fields; names of files are those in ``FOLDER``."""
