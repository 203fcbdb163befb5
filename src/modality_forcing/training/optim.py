"""Optimizers, the learning-rate schedule and averaged weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from modality_forcing.config import OptimConfig
from modality_forcing.errors import UserError
from modality_forcing.training.distributed import local
from modality_forcing.training.muon import Muon


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon applies: a matrix inside a transformer block."""
    return parameter.dim() == 2 and "blocks." in name


def make_optimizers(
    model: nn.Module, config: OptimConfig, precision: str = "fp32"
) -> list[torch.optim.Optimizer]:
    """Optimizers over the trainable parameters; ``precision`` is the run's ("bf16" or "fp32").

    Muon takes the blocks' matrices and convolutions, AdamW the rest.

    Raises:
        UserError: unknown optimizer name, or nothing to train.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise UserError("freeze leaves nothing to train; shorten the list")
    if config.optimizer not in ("adamw", "muon"):
        raise UserError(f"optim.optimizer is {config.optimizer!r}; known: muon, adamw")
    matrices: list[nn.Parameter] = []
    if config.optimizer == "muon":
        matrices = [p for n, p in named if p.dim() == 4 or is_block_matrix(n, p)]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = []
    if rest:
        optimizers.append(
            torch.optim.AdamW(
                rest, lr=config.lr, betas=(config.betas[0], config.betas[1]),
                weight_decay=config.weight_decay, fused=rest[0].device.type == "cuda",
            )
        )  # fmt: skip
    if matrices:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        optimizers.append(Muon(matrices, lr=config.lr, weight_decay=config.weight_decay, dtype=dtype))
    return optimizers


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Linear warm-up, constant, linear decay to zero over the last ``decay`` share of the run."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    decay_steps = max(1, round(config.decay * steps))
    cool = min(1.0, max(0.0, (steps - step) / decay_steps))
    return config.lr * warm * cool


class EMA:
    """Exponential moving average of a model's trainable parameters, float32, sharded as they are.

    Attributes:
        shadow: the averages by parameter name.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {n: p.detach().clone().float() for n, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model's weights; early on the average is short."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = dict(model.named_parameters())
        torch._foreach_lerp_(
            [local(shadow) for shadow in self.shadow.values()],
            [local(current[name].detach()).float() for name in self.shadow],
            1 - decay,
        )

    @contextlib.contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """The averages as the model's weights while the block runs; the two change places, nothing is copied
        twice."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # a pass without gradients leaves weights gathered, and they would be stale
        current = dict(model.named_parameters())
        for name, shadow in self.shadow.items():
            weight, average = local(current[name].detach()), local(shadow)
            kept = weight.to(average.dtype, copy=True)
            weight.copy_(average)
            average.copy_(kept)
