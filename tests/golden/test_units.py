"""Position and noise-level tables and the rotation by themselves, against the released code."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from modality_forcing.model import layers
from modality_forcing.model.layers import apply_rope, rope_table, timestep_embedding

GOLDEN = load_file(Path(__file__).parent / "data" / "units.safetensors")
TABLE = 1e-6
ROPE_FAR = 1e-5  # position 511


def as_table(matrices: Tensor) -> Tensor:
    """(..., K/2, 2, 2) rotation matrices to our (..., K/2, 2) cosine and sine."""
    assert torch.equal(matrices[..., 0, 0], matrices[..., 1, 1])
    assert torch.equal(matrices[..., 0, 1], -matrices[..., 1, 0])
    return torch.stack([matrices[..., 0, 0], matrices[..., 1, 0]], dim=-1)


def test_timestep_embedding():
    out = timestep_embedding(GOLDEN["temb.t"])
    assert out.dtype == torch.float32
    assert (out - GOLDEN["temb.out"]).abs().max().item() < TABLE


def test_frequencies_are_the_references_up_to_the_last_bit(monkeypatch):
    reference = layers.timestep_frequencies(128, torch.device("cpu"))
    monkeypatch.undo()
    ours = layers.timestep_frequencies(128, torch.device("cpu"))
    assert (ours.view(torch.int32) - reference.view(torch.int32)).abs().max().item() <= 1
    exact = 10000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
    assert ((ours - exact).abs() / exact).max().item() < 1e-6


def test_timestep_embedding_does_not_round_to_the_input_type():
    """The original embeds in the body's type; ours only inherits the rounding of t itself."""
    t = torch.tensor([0.73], dtype=torch.bfloat16)
    assert torch.equal(timestep_embedding(t), timestep_embedding(t.float()))


def test_rope_table():
    positions = GOLDEN["rope.pos"][0]
    table = rope_table(positions[:, None], (32,), 2000)
    expected = as_table(GOLDEN["rope.dim32_theta2000"][0])
    assert table.shape == expected.shape
    near = positions < 64
    assert near.any()
    assert not near.all()
    assert (table - expected)[near].abs().max().item() < TABLE
    assert (table - expected)[~near].abs().max().item() < ROPE_FAR


def test_rotation():
    table = as_table(GOLDEN["apply_rope.pe"][0, 0])
    for name in ("q", "k"):
        out = apply_rope(GOLDEN[f"apply_rope.{name}"], table)
        assert (out - GOLDEN[f"apply_rope.{name}_out"]).abs().max().item() < TABLE
        # A table per item is the same rotation.
        batched = apply_rope(GOLDEN[f"apply_rope.{name}"], table[None])
        assert torch.equal(batched, out)
