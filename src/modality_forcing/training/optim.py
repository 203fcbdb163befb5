"""Optimizers, the learning-rate schedule and averaged weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modality_forcing.config import OptimConfig
from modality_forcing.errors import UserError


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon applies: a matrix inside a transformer block."""
    return parameter.dim() == 2 and "blocks." in name


def make_optimizers(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """Optimizers over the trainable parameters.

    Muon orthogonalises the updates of the blocks' matrices; its update is scaled to AdamW's RMS so that one
    learning rate serves both.

    Raises:
        UserError: unknown optimizer name.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    betas = (config.betas[0], config.betas[1])
    if config.optimizer == "adamw":
        params = [p for _, p in named]
        return [torch.optim.AdamW(params, lr=config.lr, betas=betas, weight_decay=config.weight_decay)]
    if config.optimizer == "muon":
        matrices = [p for n, p in named if is_block_matrix(n, p)]
        rest = [p for n, p in named if not is_block_matrix(n, p)]
        optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=config.lr, betas=betas, weight_decay=config.weight_decay)
        ]
        if matrices:
            optimizers.append(
                torch.optim.Muon(
                    matrices,
                    lr=config.lr,
                    weight_decay=config.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        return optimizers
    raise UserError(f"optim.optimizer is {config.optimizer!r}; known: muon, adamw")


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Linear warm-up, constant, linear decay to zero over the last ``decay`` share of the run."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    decay_steps = max(1, round(config.decay * steps))
    cool = min(1.0, max(0.0, (steps - step) / decay_steps))
    return config.lr * warm * cool


class EMA:
    """Exponential moving average of a model's parameters, float32."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {n: p.detach().clone().float() for n, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model's weights; early on the average is short."""
        decay = min(self.decay, (1 + step) / (10 + step))
        names = list(self.shadow)
        current = dict(model.named_parameters())
        torch._foreach_lerp_(
            [self.shadow[n] for n in names], [current[n].detach().float() for n in names], 1 - decay
        )
