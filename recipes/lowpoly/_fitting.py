"""What the training of the judges (``classifier.py``, ``colours.py``) has in common."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from modality_forcing.training.muon import Muon

WARMUP = 50  # steps


def options(text: str | None, *, out: Path, epochs: int, wanted: float) -> argparse.ArgumentParser:
    """Two folders of shards, and how to train; the values are the defaults."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wanted", type=float, default=wanted)
    return parser


def fit(
    model: nn.Module,
    count: int,
    loss_of: Callable[[Tensor, torch.Generator], Tensor],
    measure: Callable[[], float],
    *,
    epochs: int,
    batch: int,
    seed: int,
    every: int = 1,
    muon: float = 0.0,
) -> float:
    """AdamW with warm-up and a cosine; the accuracy after the last epoch.

    Args:
        count: training pictures.
        loss_of: (numbers of a batch's pictures, generator of its augmentation) -> loss.
        measure: accuracy on pictures that training never sees.
        every: epochs between measurements.
        muon: learning rate of Muon on matrices and convolutions; 0: AdamW on everything.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * max(1, count // batch)
    matrices = [p for p in model.parameters() if muon and p.dim() >= 2]
    rest = [p for p in model.parameters() if not muon or p.dim() < 2]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=2e-3, weight_decay=0.05)]
    if muon:
        optimizers.append(Muon(matrices, lr=muon, weight_decay=0.05))

    def rate_at(step: int) -> float:
        return min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))

    rates = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate_at) for optimizer in optimizers]
    found = 0.0
    for epoch in range(epochs):
        model.train()
        order, losses = torch.randperm(count, generator=generator), []
        for first in range(0, max(1, count - batch + 1), batch):
            loss = loss_of(order[first : first + batch], generator)
            model.zero_grad()
            loss.backward()
            for optimizer, rate in zip(optimizers, rates, strict=True):
                optimizer.step()
                rate.step()
            losses.append(float(loss.detach()))
        if (epoch + 1) % every == 0 or epoch + 1 == epochs:
            found = measure()
            mean = math.fsum(losses) / len(losses)
            print(f"epoch {epoch + 1}: loss {mean:.3f}, accuracy on unseen renders {found:.4f}", flush=True)
    return found
