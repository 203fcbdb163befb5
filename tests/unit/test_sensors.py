"""Sparse sensors: where they measure and that chance comes from the generator alone."""

from __future__ import annotations

import numpy as np
import pytest

from modality_forcing.data.sensors import KINDS, sparsify
from modality_forcing.errors import UserError


def _scene() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    depth = np.full((64, 80), 4.0, np.float32)
    depth[:, 40:] = 2.0
    depth[:16] = np.inf
    return depth, rng.integers(60, 255, (64, 80, 3)).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_never_sky_and_seeded(kind: str) -> None:
    depth, rgb = _scene()
    a = sparsify(depth, rgb, kind, np.random.default_rng(1))
    b = sparsify(depth, rgb, kind, np.random.default_rng(1))
    assert a.dtype == bool and a.shape == depth.shape and a.any()
    assert not a[np.isinf(depth)].any()
    np.testing.assert_array_equal(a, b)


def test_densities() -> None:
    depth, rgb = _scene()
    shares = [sparsify(depth[16:], rgb[16:], "random", np.random.default_rng(i)).mean() for i in range(40)]
    assert min(shares) < 0.01 < max(shares) < 0.07
    half = sparsify(depth, rgb, "structured_light", np.random.default_rng(0), fraction=0.5)[20:, :30].mean()
    assert 0.4 < half < 0.6


def test_structured_light_leaves_edges_open() -> None:
    depth, rgb = _scene()
    assert not sparsify(depth, rgb, "structured_light", np.random.default_rng(0))[:, 39:41].any()


def test_bad_input() -> None:
    depth, rgb = _scene()
    with pytest.raises(UserError, match="unknown sensor"):
        sparsify(depth, rgb, "radar", np.random.default_rng(0))
    with pytest.raises(UserError, match="fraction"):
        sparsify(depth, rgb, "random", np.random.default_rng(0), fraction=0.0)
