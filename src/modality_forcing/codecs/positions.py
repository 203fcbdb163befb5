"""Position ids of tokens on the four axes (t, row, col, l); spec section 5."""

from __future__ import annotations

import torch
from torch import Tensor


def text_ids(num_tokens: int, device: torch.device | str = "cpu") -> Tensor:
    """(num_tokens, 4): (0, 0, 0, i)."""
    ids = torch.zeros(num_tokens, 4, device=device)
    ids[:, 3] = torch.arange(num_tokens, device=device)
    return ids


def grid_ids(rows: int, cols: int, t: int, device: torch.device | str = "cpu") -> Tensor:
    """(rows*cols, 4), row-major: (t, row, col, 0). ``t`` is 0 for image tokens and 1 for depth tokens."""
    ids = torch.zeros(rows, cols, 4, device=device)
    ids[..., 0] = t
    ids[..., 1] = torch.arange(rows, device=device)[:, None]
    ids[..., 2] = torch.arange(cols, device=device)[None, :]
    return ids.flatten(0, 1)


def image_ids(rows: int, cols: int, device: torch.device | str = "cpu") -> Tensor:
    """Ids of image tokens, (rows*cols, 4)."""
    return grid_ids(rows, cols, 0, device)


def depth_ids(rows: int, cols: int, device: torch.device | str = "cpu") -> Tensor:
    """Ids of depth tokens, (rows*cols, 4)."""
    return grid_ids(rows, cols, 1, device)
