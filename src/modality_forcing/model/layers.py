"""Building blocks of every stream. Shape letters: B batch, N tokens, D hidden, H heads, K head size."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TIME_CHANNELS = 256
"""Width of the sinusoidal noise-level embedding (FLUX.2)."""
NORM_EPS = 1e-6


def timestep_embedding(t: Tensor, channels: int = TIME_CHANNELS) -> Tensor:
    """Sinusoids of 1000*t: [cos, sin] of 1000*t*10000^(-k/(channels/2)); spec section 5.

    Always float32: in bf16, 1000*t is rounded to steps of 4 above 512.

    Args:
        t: (B,) noise levels in [0, 1].

    Returns:
        (B, channels) float32.
    """
    angle = (1000.0 * t.float())[:, None] * timestep_frequencies(channels // 2, t.device)[None]
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def timestep_frequencies(count: int, device: torch.device) -> Tensor:
    """(count,) float32: 10000^(-k/count), worked out as the released model does.

    PyTorch's exp differs in the last bit from CPU to CPU and on accelerators, and 1000*t multiplies that: the
    embedding of one and the same level differs by up to 6e-5 between machines.
    """
    k = torch.arange(count, dtype=torch.float32, device=device)
    return torch.exp(-math.log(10000.0) * k / count)


def rope_table(ids: Tensor, axes: tuple[int, ...], theta: int) -> Tensor:
    """Rotation table of position ids.

    Args:
        ids: (..., N, A) positions on A axes.
        axes: rotated channels per axis.

    Returns:
        (..., N, K/2, 2) float32: cosine and sine of each pair's angle.
    """
    angles = []
    for axis, channels in enumerate(axes):
        exponent = torch.arange(0, channels, 2, dtype=torch.float32, device=ids.device) / channels
        omega = 1.0 / (theta**exponent)
        angles.append(ids[..., axis, None].float() * omega)
    angle = torch.cat(angles, dim=-1)
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def apply_rope(x_BHNK: Tensor, table: Tensor) -> Tensor:
    """Rotate interleaved pairs (2i, 2i+1) in float32; ``table`` is (N, K/2, 2) or (B, N, K/2, 2)."""
    if table.dim() == 4:
        table = table[:, None]
    pairs = x_BHNK.float().unflatten(-1, (-1, 2))
    if pairs.device.type == "cpu" and not torch.compiler.is_compiling():
        # A pair is a complex number: one product forward and one backward, a quarter of the time of the
        # passes below, bit for bit the same. Compilers and other devices do better without complex numbers.
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(table))
    else:
        cos, sin = table.unbind(-1)
        even, odd = pairs.unbind(-1)
        rotated = torch.stack([cos * even - sin * odd, sin * even + cos * odd], dim=-1)
    return rotated.flatten(-2).to(x_BHNK.dtype)


def modulate(x_BND: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(1 + scale) * LN(x) + shift with a LayerNorm that has no weights of its own."""
    return torch.addcmul(shift, 1 + scale, F.layer_norm(x_BND, x_BND.shape[-1:], eps=NORM_EPS))


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32 (FLUX.2 q/k norm)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        normed = x32 * torch.rsqrt(x32.square().mean(dim=-1, keepdim=True) + NORM_EPS)
        return (normed * self.scale.float()).to(x.dtype)


class QKNorm(nn.Module):
    """RMSNorm per head on queries and keys."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_norm = RMSNorm(channels)
        self.key_norm = RMSNorm(channels)


class EmbeddingMLP(nn.Module):
    """256 -> D -> D with SiLU and no biases: noise level or guidance to a vector."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(TIME_CHANNELS, hidden, bias=False)
        self.out_layer = nn.Linear(hidden, hidden, bias=False)

    def forward(self, embedding: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(embedding.to(self.in_layer.weight.dtype))))


class GatedSiLU(nn.Module):
    """silu(a) * b with [a, b] packed along the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return F.silu(a) * b


class Modulation(nn.Module):
    """Linear(SiLU(vec)) to ``num`` vectors (B, 1, D); shared by all blocks of a kind."""

    def __init__(self, hidden: int, num: int) -> None:
        super().__init__()
        self.num = num
        self.lin = nn.Linear(hidden, num * hidden, bias=False)

    def forward(self, vec_BD: Tensor) -> tuple[Tensor, ...]:
        return self.lin(F.silu(vec_BD))[:, None].chunk(self.num, dim=-1)


class Head(nn.Module):
    """AdaLN (shift before scale) and a Linear to the modality's channels."""

    def __init__(self, hidden: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, channels, bias=False)
        # Index 1 keeps the checkpoint's key; index 0 is the activation.
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden, bias=False))

    def forward(self, x_BND: Tensor, vec_BD: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vec_BD)[:, None].chunk(2, dim=-1)
        return self.linear(modulate(x_BND, shift, scale))


def split_heads(x_BNC: Tensor, num_heads: int) -> Tensor:
    """(B, N, H*K) -> (B, H, N, K)."""
    return x_BNC.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def queries_keys_values(
    qkv_BNC: Tensor, num_heads: int, norm: QKNorm, kv_heads: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Split a fused projection (order q, k, v) into heads and norm queries and keys.

    ``kv_heads``: heads of keys and values where they are fewer (grouped-query attention); 0: ``num_heads``.
    """
    heads = (num_heads, kv_heads or num_heads, kv_heads or num_heads)
    size = qkv_BNC.shape[-1] // sum(heads)
    parts = qkv_BNC.split([n * size for n in heads], dim=-1)
    q, k, v = (split_heads(part, n) for part, n in zip(parts, heads, strict=True))
    return norm.query_norm(q), norm.key_norm(k), v


def attend(q: Tensor, k: Tensor, v: Tensor, rope: Tensor) -> Tensor:
    """Full attention after rotation; (B, H, N, K) -> (B, N, H*K). No mask: padding takes part (FLUX.2).

    Keys and values may have fewer heads: each serves ``H / their number`` neighbouring query heads.
    """
    grouped = q.shape[1] != k.shape[1]
    q, k = apply_rope(q, rope).to(v.dtype), apply_rope(k, rope).to(v.dtype)
    if q.requires_grad and not grouped and q.device.type == "cpu" and q.dtype == torch.bfloat16:
        out = _attend_by_products(q, k, v)
    else:
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)
    return out.transpose(1, 2).flatten(-2)


def _attend_by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by two matrix products, softmax in float32.

    The fused kernel's backward pass is slow on CPUs in bfloat16: at the embedded model's size (32 x 176
    tokens, 4 heads of 64) forward and backward take 81 ms with it and 33 ms like this.
    """
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    return torch.matmul(scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype), v)
