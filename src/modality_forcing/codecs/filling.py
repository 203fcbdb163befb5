"""Holes of depth maps, filled from what was measured around them (ours; training only)."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor


def fill_nearest(maps: Tensor, known: Tensor) -> Tensor:
    """(B, H, W) with every unknown pixel as its nearest known one; a map without any known pixel is 1, the
    mean depth."""
    filled = []
    for values, there in zip(maps.cpu().numpy(), known.cpu().numpy(), strict=True):
        if not there.any():
            filled.append(np.ones_like(values))
            continue
        nearest = distance_transform_edt(~there, return_distances=False, return_indices=True)
        filled.append(values[tuple(nearest)])
    return torch.from_numpy(np.stack(filled)).to(maps)
