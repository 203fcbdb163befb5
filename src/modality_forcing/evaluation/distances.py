"""Distances between two sets of pictures, from their features: FID and KID."""

from __future__ import annotations

import numpy as np

LEAST = 2


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """FID: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of Gaussians fitted to both sets (arXiv 1706.08500).

    The trace of the root is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is
    symmetric. It depends on the number of pictures: compare equal numbers only.

    Args:
        first, second: float (N, D), N >= 2 each.

    Raises:
        ValueError: fewer than two pictures, or widths that differ.
    """
    a, b = _checked(first, second)
    shift = a.mean(axis=0) - b.mean(axis=0)
    c1, c2 = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(c1)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ c2 @ root)
    cross = float(np.sqrt(np.maximum(inner, 0.0)).sum())
    return float(shift @ shift) + float(np.trace(c1) + np.trace(c2)) - 2.0 * cross


def kernel_distance(first: np.ndarray, second: np.ndarray) -> float:
    """KID: the unbiased squared maximum mean discrepancy of the kernel (x.y / D + 1)^3 (arXiv 1801.01401).

    All pictures at once, no subsets. Unbiased at any number of pictures, so it may be slightly negative.

    Args:
        first, second: float (N, D), N >= 2 each; the numbers may differ.

    Raises:
        ValueError: as of :func:`frechet_distance`.
    """
    a, b = _checked(first, second)
    kernels = [(x @ y.T / a.shape[1] + 1.0) ** 3 for x, y in ((a, a), (b, b), (a, b))]
    within = [
        (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in kernels[:2]
    ]  # a picture is not compared with itself
    return float(within[0] + within[1] - 2.0 * kernels[2].mean())


def _checked(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < LEAST:
        raise ValueError(f"features of shape {a.shape} and {b.shape}; right is (N, D) with N >= {LEAST}")
    return a, b
