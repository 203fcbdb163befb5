"""Where in a picture the things are that its caption names: what the image loss may weigh more."""

from __future__ import annotations

import numpy as np

from modality_forcing.types import Sample

LEAST_PIXELS = 20
"""Of a thing in the sample as it is trained on; what is left of a smaller one after a crop says nothing."""


def named_shares(sample: Sample, caption: int, cell: int) -> np.ndarray:
    """The pixels of every named thing, spread over the tokens that show it: the sum is the number of things.

    Several things of one name ("two chairs") are one. A sample without object ids or claims has zeros.

    Args:
        sample: H x W, both multiples of ``cell``; ``meta["claims"]`` says for each caption what it names.
        caption: number of the caption.
        cell: pixels per token, per side.

    Returns:
        float32 (H / cell, W / cell).
    """
    height, width = sample.rgb.shape[:2]
    shares = np.zeros((height // cell, width // cell), np.float32)
    claims = sample.meta.get("claims", ())
    if sample.object_ids is None or caption >= len(claims):
        return shares
    for thing in claims[caption]["objects"]:
        shown = np.isin(sample.object_ids, thing["ids"])
        pixels = int(shown.sum())
        if pixels >= LEAST_PIXELS:
            shares += shown.reshape(height // cell, cell, width // cell, cell).sum(axis=(1, 3)) / pixels
    return shares
