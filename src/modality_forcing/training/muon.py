"""Muon: updates of matrices with all their singular values made about equal (Jordan et al. 2024), for plain
and for sharded weights.

The update of a matrix needs the whole matrix. Sharded ones (rows over processes) are exchanged so that every
process orthogonalises whole matrices of its own and hands the rows back: each matrix is worked on once.
Convolutions (out, in, k, k) count as matrices (out, in * k * k). Equal updates in all directions are what
teaches an autoencoder colour: its variance is a tenth of the luminance's, and AdamW had not touched it after
200 steps.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from modality_forcing.training.distributed import local

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration (Jordan et al. 2024): steep at 0, singular values end near 1."""
ITERATIONS = 5
MESSAGE_BYTES = 2**28
"""What a process gathers of sharded matrices at a time."""


def orthogonalise(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(R, C) -> (R, C) float32: nearly U V^T of its singular value decomposition, computed in ``dtype``."""
    a, b, c = COEFFICIENTS
    x = matrix.to(dtype)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / x.norm().clamp_min(1e-7)  # the iteration needs singular values of at most 1
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, scaled to the usual size of an AdamW update (0.2 sqrt(max(R, C)),
    Liu et al. 2025) so that one learning rate serves both; weight decay as in AdamW.

    Args:
        params: of two or more dimensions, plain or sharded by rows.
        dtype: of the orthogonalisation; bfloat16 is usual and halves its time.

    Raises:
        ValueError: a parameter has fewer than two dimensions.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            if any(p.dim() < 2 for p in group["params"]):
                raise ValueError("Muon takes parameters of two or more dimensions")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            updates = [self._momentum(p, group["momentum"]) for p in params]
            sharded = [i for i, p in enumerate(params) if isinstance(p, DTensor)]
            for i in set(range(len(params))).difference(sharded):
                updates[i] = _like(orthogonalise(_as_matrix(updates[i]), self.dtype), params[i])
            parts = _exchange([params[i] for i in sharded], [updates[i] for i in sharded], self.dtype)
            for i, part in zip(sharded, parts, strict=True):
                updates[i] = part
            for p, update in zip(params, updates, strict=True):
                scale = 0.2 * math.sqrt(max(p.shape[0], p.numel() // p.shape[0]))
                local(p).mul_(1 - group["lr"] * group["weight_decay"])
                local(p).add_(update, alpha=-group["lr"] * scale)

    def _momentum(self, p: nn.Parameter, momentum: float) -> Tensor:
        """This process' part of the gradient with Nesterov momentum."""
        assert p.grad is not None
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer, gradient = local(state["momentum_buffer"]), local(p.grad)
        buffer.lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum)


def _as_matrix(weight: Tensor) -> Tensor:
    """(O, ...) -> (O, product of the rest). Which order the columns take does not change the result."""
    return weight.flatten(1)


def _like(matrix: Tensor, p: Tensor) -> Tensor:
    return matrix.reshape(p.shape)


def _exchange(params: list[Any], updates: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Orthogonalised updates of sharded parameters, each process' rows.

    Matrices of one shape go together: everyone sends its rows of matrix i to the process that works on i,
    which then has it whole, and gets its rows back.
    """
    out = list(updates)
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, p in enumerate(params):
        by_shape[tuple(p.shape)].append(i)
    for shape, members in by_shape.items():
        mesh = params[members[0]].device_mesh
        group = mesh.get_group(mesh_dim=mesh.ndim - 1)
        size = dist.get_world_size(group)
        # Few large messages, but never much memory at a time.
        turns = max(1, MESSAGE_BYTES // (4 * math.prod(shape)))
        for start in range(0, len(members), size * turns):
            turn = members[start : start + size * turns]
            parts = _round([updates[i] for i in turn], shape, group, size, dtype)
            for i, part in zip(turn, parts, strict=True):
                out[i] = part
    return out


def _round(
    parts: list[Tensor], shape: tuple[int, ...], group: Any, size: int, dtype: torch.dtype
) -> list[Tensor]:
    """One exchange: rows of some matrices of one shape in, the same rows orthogonalised out. Matrix i belongs
    to process i mod ``size``."""
    rows, columns = shape[0], math.prod(shape[1:])
    chunk = -(-rows // size)  # the last processes may hold fewer rows, or none: padded to equal pieces
    each = -(-len(parts) // size)
    send = parts[0].new_zeros(size, each, chunk, columns)
    for i, part in enumerate(parts):
        send[i % size, i // size, : part.shape[0]] = _as_matrix(part)
    received = torch.empty_like(send)
    dist.all_to_all_single(received, send, group=group)
    rank = dist.get_rank(group)
    for turn in range(len(range(rank, len(parts), size))):
        matrix = orthogonalise(received[:, turn].reshape(size * chunk, columns)[:rows], dtype)
        padded = torch.nn.functional.pad(matrix, (0, 0, 0, size * chunk - rows))
        received[:, turn] = padded.reshape(size, chunk, columns)
    dist.all_to_all_single(send, received, group=group)
    return [send[i % size, i // size, : part.shape[0]].reshape(part.shape) for i, part in enumerate(parts)]
