"""The toy models of the golden files: the released code's state dicts in our transformer."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from modality_forcing.config import TransformerConfig
from modality_forcing.model.transformer import Transformer

DATA = Path(__file__).parent / "data"

CHANGES: dict[str, dict[str, Any]] = {
    "dit_v2_small": {},
    "dit_v1_small": {"cross_stream_mixing": False},
    "dit_guidance": {"guidance_embedding": True},
    "backbone_t2i_small": {"depth_channels": None},
    "backbone_t2i_guidance_small": {"depth_channels": None, "guidance_embedding": True},
}


@cache
def _small_transformer(name: str) -> Transformer:
    sizes: dict[str, Any] = {
        "latent_channels": 16,
        "depth_channels": 64,
        "text_width": 48,
        "hidden": 64,
        "num_heads": 2,
        "num_double_blocks": 2,
        "num_single_blocks": 3,
        "num_depth_blocks": 2,
        "rope_axes": (8, 8, 8, 8),
    }
    model = Transformer(TransformerConfig(**{**sizes, **CHANGES[name]}))
    weights = load_file(DATA / f"{name}.weights.safetensors")
    model.load_state_dict({key.removeprefix("dit."): value for key, value in weights.items()}, strict=True)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def small_transformer() -> Callable[[str], Transformer]:
    """Builds one of the golden models by the name of its files; do not change what it returns."""
    return _small_transformer
