"""Optimizers, the learning-rate schedule and averaged weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from modality_forcing.config import OptimConfig
from modality_forcing.errors import UserError


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon applies: a matrix inside a transformer block."""
    return parameter.dim() == 2 and "blocks." in name


class ConvMuon(torch.optim.Muon):
    """Muon on convolutions, each seen as a matrix (out, in * kernel).

    torch's Muon takes matrices only; it is handed flat views that share the convolutions' memory. Equal
    updates in all directions are what teaches an autoencoder colour: its variance is a tenth of the
    luminance's, and AdamW had not touched it after 200 steps.
    """

    def __init__(self, convolutions: list[nn.Parameter], **options: Any) -> None:
        self.convolutions = convolutions
        self.flat = [nn.Parameter(_as_matrix(p.detach())) for p in convolutions]
        for matrix, convolution in zip(self.flat, convolutions, strict=True):
            assert matrix.data_ptr() == convolution.data_ptr()
        super().__init__(self.flat, **options)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the convolutions' gradients."""
        for convolution in self.convolutions:
            convolution.grad = None

    def step(self, closure: Any = None) -> Any:
        """One update of every convolution that has a gradient."""
        for matrix, convolution in zip(self.flat, self.convolutions, strict=True):
            if convolution.grad is not None:
                channels_last = convolution.is_contiguous(memory_format=torch.channels_last)
                matrix.grad = _as_matrix(convolution.grad, channels_last)
        return super().step(closure)


def _as_matrix(weight: Tensor, channels_last: bool | None = None) -> Tensor:
    """(O, I, k, k) -> (O, I*k*k) in the order of its memory, so that the result is a view."""
    if channels_last is None:
        channels_last = weight.is_contiguous(memory_format=torch.channels_last)
    return (weight.permute(0, 2, 3, 1) if channels_last else weight).reshape(weight.shape[0], -1)


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
        convolutions = [p for _, p in named if p.dim() == 4]
        rest = [p for n, p in named if p.dim() != 4 and not is_block_matrix(n, p)]
        options: dict[str, Any] = {
            "lr": config.lr,
            "weight_decay": config.weight_decay,
            "adjust_lr_fn": "match_rms_adamw",
        }
        optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=config.lr, betas=betas, weight_decay=config.weight_decay)
        ]
        if matrices:
            optimizers.append(torch.optim.Muon(matrices, **options))
        if convolutions:
            optimizers.append(ConvMuon(convolutions, **options))
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
