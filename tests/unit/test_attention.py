"""The two ways to compute attention are one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from modality_forcing.model import layers

SHAPE = (2, 4, 37, 16)


def inputs(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(SHAPE, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def test_products_are_the_fused_kernel_with_its_gradients():
    q, k, v = inputs(torch.float32)
    ours = layers._attend_by_products(q, k, v)
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(4))
    found = torch.autograd.grad((ours * weight).sum(), (q, k, v))
    fused = F.scaled_dot_product_attention(q, k, v)
    right = torch.autograd.grad((fused * weight).sum(), (q, k, v))
    assert torch.allclose(ours, fused, atol=1e-6)
    for one, two in zip(found, right, strict=True):
        assert torch.allclose(one, two, atol=2e-6)


@pytest.mark.parametrize(
    ("dtype", "gradients", "products"),
    [(torch.bfloat16, True, True), (torch.bfloat16, False, False), (torch.float32, True, False)],
)
def test_products_serve_training_in_bfloat16_on_cpus_alone(monkeypatch, dtype, gradients, products):
    calls = []
    ours = layers._attend_by_products
    monkeypatch.setattr(layers, "_attend_by_products", lambda *x: calls.append(1) or ours(*x))
    q, k, v = (x if gradients else x.detach() for x in inputs(dtype))
    rope = layers.rope_table(torch.arange(SHAPE[2])[:, None], (SHAPE[3],), 100)
    out = layers.attend(q, k, v, rope)
    assert out.shape == (2, 37, 64)
    assert bool(calls) == products
