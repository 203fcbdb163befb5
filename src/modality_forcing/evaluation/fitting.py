"""Which alignments an evaluation knows, by name; the fits themselves are ``geometry.alignment``'s."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modality_forcing.errors import UserError
from modality_forcing.geometry.alignment import Alignment, align_affine, align_roe, align_scale

ALIGNMENTS = {
    "none": "as it is, in metres",
    "scale": "one factor, exact L1 on relative errors (MoGe's ROE)",
    "affine": "factor and shift, exact L1 on relative errors (MoGe's ROE)",
    "scale_lstsq": "one factor, least squares in depth",
    "affine_lstsq": "factor and shift, least squares in depth (Marigold)",
    "disparity": "factor and shift of 1 / depth, least squares, no farther than the reference's farthest",
}
"""Name -> what is fitted."""


def fit_depth(
    prediction: np.ndarray, target: np.ndarray, valid: np.ndarray, alignment: str, *, disparity: bool = False
) -> np.ndarray:
    """The prediction in the target's units, fitted on the valid pixels.

    Args:
        prediction: (H, W) depth, or disparity when ``disparity``.
        target: (H, W) depth, positive and finite where ``valid``.
        valid: bool (H, W).
        alignment: one of ``ALIGNMENTS``.

    Returns:
        float64 (H, W); it may hold values that are not positive.

    Raises:
        ValueError: an unknown alignment, or one that does not fit disparity.
        UserError: nothing to fit.
    """
    if alignment not in ALIGNMENTS:
        raise ValueError(f"alignment {alignment!r} is unknown; known: {', '.join(ALIGNMENTS)}")
    if disparity and alignment != "disparity":
        raise ValueError(f"alignment {alignment!r} does not fit disparity; right is 'disparity'")
    values = np.asarray(prediction, dtype=np.float64)
    if alignment == "none":
        return values
    if alignment == "disparity":
        return _fit_disparity(values, target, valid, disparity)
    if alignment in ("scale", "affine"):
        fit = align_roe(values, target, valid, shift=alignment == "affine")
    elif alignment == "scale_lstsq":
        fit = align_scale(values, target, valid, method="least_squares")
    else:
        fit = align_affine(values, target, valid)
    return fit.scale * values + fit.shift


def _fit_disparity(values: np.ndarray, target: np.ndarray, valid: np.ndarray, disparity: bool) -> np.ndarray:
    """Spec section 11: least squares on 1 / g, then at least 1 / max(g), then the inverse."""
    if disparity:
        usable, inverse = valid, values
    else:  # a depth that is not positive has no disparity; it is as near as the nearest that has one
        usable = valid & (values > 0)
        if not usable.any():
            raise UserError("alignment: the prediction is nowhere positive")
        inverse = 1.0 / np.maximum(values, values[usable].min())
    reference = np.divide(1.0, target, out=np.zeros(target.shape), where=valid, dtype=np.float64)
    fit: Alignment = align_affine(inverse, reference, usable)
    floor = 1.0 / float(target[valid].max())
    return 1.0 / np.maximum(fit.scale * inverse + fit.shift, floor)


def check_alignments(names: Sequence[str]) -> tuple[str, ...]:
    """The names, in order and once each.

    Raises:
        UserError: an unknown name, or none.
    """
    for name in names:
        if name not in ALIGNMENTS:
            raise UserError(f"alignment {name[:40]!r} is unknown; right is {', '.join(ALIGNMENTS)}")
    if not names:
        raise UserError(f"no alignment is given; right is one or more of {', '.join(ALIGNMENTS)}")
    return tuple(dict.fromkeys(names))
