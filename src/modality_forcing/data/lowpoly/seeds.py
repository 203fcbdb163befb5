"""Which seeds belong to which split; the ranges never meet."""

from __future__ import annotations

from modality_forcing.errors import UserError

SPAN = 1 << 40
SPLITS = {"train": 0, "val": 1, "test": 2, "combination": 3, "visitors": 4, "close": 5}


def split_seed(split: str, index: int) -> int:
    """Seed of sample ``index`` of a split; the ranges of the splits never meet.

    Raises:
        UserError: unknown split, or an index outside [0, 2^40).
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; the low-poly world has {', '.join(SPLITS)}")
    if not 0 <= index < SPAN:
        raise UserError(f"sample index {index} is outside 0..{SPAN - 1}")
    return SPLITS[split] * SPAN + index


def has_visitor(seed: int) -> bool:
    """True for seeds of the training split whose scenes show a guest that is allowed there in clear view."""
    return seed // SPAN == SPLITS["visitors"]


def is_combination(seed: int) -> bool:
    """True for seeds of the split whose scenes hold a pair of place and object never seen in training."""
    return seed // SPAN == SPLITS["combination"]


def is_close(seed: int) -> bool:
    """True for seeds of the training split whose cameras stand close to things (``closeups``)."""
    return seed // SPAN == SPLITS["close"]
