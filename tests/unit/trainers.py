"""Looking into a trainer: its tensors, the losses of a step without training; and a refiner to read with."""

from __future__ import annotations

import torch

from modality_forcing.config import RefinerConfig
from modality_forcing.model.refiner import DepthRefiner
from modality_forcing.training.trainer import Trainer


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Weights, averages and optimizer state."""
    tensors = {f"model.{name}": value for name, value in trainer.model.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in trainer.ema.shadow.items()}
    for number, optimizer in enumerate(trainer.optimizers):
        for index, entry in optimizer.state_dict()["state"].items():
            tensors |= {f"{number}.{index}.{name}": torch.as_tensor(v) for name, v in entry.items()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def measured(trainer: Trainer, step: int = 0):
    """The losses of a step, without training."""
    return trainer.losses(trainer.loader.load(step), step)


def small_refiner() -> DepthRefiner:
    """With something to say from the start."""
    refiner = DepthRefiner(RefinerConfig(widths=(8, 16, 16, 24), blocks=(1, 1, 1, 1), norm_groups=4))
    torch.nn.init.normal_(refiner.conv_out.weight, std=0.05)
    return refiner
