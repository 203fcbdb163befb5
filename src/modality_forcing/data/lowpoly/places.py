"""The list of places and seed to scene."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from modality_forcing.data.lowpoly import indoor, outdoor_places
from modality_forcing.data.lowpoly.scene import Builder, Scene

GRAMMAR: dict[str, Callable[[Builder], None]] = {
    "kitchen": indoor.kitchen, "living room": indoor.living_room, "bedroom": indoor.bedroom,
    "bathroom": indoor.bathroom, "office": indoor.office, "library": indoor.library,
    "street": outdoor_places.street, "park": outdoor_places.park, "forest": outdoor_places.forest,
    "desert": outdoor_places.desert, "mountains": outdoor_places.mountains, "village": outdoor_places.village,
    "castle": outdoor_places.castle, "beach": outdoor_places.beach, "harbour": outdoor_places.harbour,
}  # fmt: skip


def make_scene(seed: int, place: str | None = None) -> Scene:
    """The scene of a seed (place drawn from it unless given)."""
    rng = np.random.default_rng([20, seed])
    drawn = list(GRAMMAR)[int(rng.integers(len(GRAMMAR)))]
    builder = Builder(rng, place or drawn)
    GRAMMAR[builder.place](builder)
    return builder.scene()
