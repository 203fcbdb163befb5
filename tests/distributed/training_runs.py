"""What the processes of these tests do. Module-level functions of plain values, so that they can be sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from modality_forcing.config import TrainConfig
from modality_forcing.training.distributed import whole
from modality_forcing.training.trainer import Trainer
from smooth_loss import smooth_refining


def train(
    config: TrainConfig, run: Path, steps: int, resume: bool = False, save: bool = False
) -> dict[str, Any]:
    """Losses and gradient norms of some steps, and a digest of the weights after them."""
    trainer = Trainer(config, run, resume=resume)
    first = trainer.step
    numbers = [trainer.train_step() for _ in range(steps)]
    if save:
        trainer.save()
    with torch.no_grad():
        weights = {
            name: float(whole(p).double().square().sum()) for name, p in trainer.model.named_parameters()
        }
    return {
        "first": first,
        "loss": [n.loss for n in numbers],
        "means": [n.means for n in numbers],
        "norm": [n.grad_norm for n in numbers],
        "skipped": [n.skipped for n in numbers],
        "weights": weights,
    }


def refine_smoothly(config: TrainConfig, run: Path, steps: int) -> dict[str, Any]:
    """:func:`train` of a refiner by a loss without a kink."""
    with smooth_refining():
        return train(config, run, steps)


def muon_steps() -> list[list[float]]:
    """Two updates of matrices and a convolution with given gradients; all weights afterwards, flat."""
    from torch import nn
    from torch.distributed.fsdp import fully_shard

    from modality_forcing.training.distributed import current_world, make_mesh
    from modality_forcing.training.muon import Muon

    shapes = [(5, 3), (5, 3), (5, 3), (5, 3), (3, 7), (4, 2, 3, 3)]
    generator = torch.Generator().manual_seed(0)
    model = nn.ParameterList([nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes])
    gradients = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2)]
    world = current_world()
    if world.grouped:
        from torch.distributed.tensor import distribute_tensor

        fully_shard(model, mesh=make_mesh(1, world.size, world.device))
    optimizer = Muon(model.parameters(), lr=0.1)
    for step in gradients:
        for p, gradient in zip(model.parameters(), step, strict=True):
            p.grad = distribute_tensor(gradient, p.device_mesh, p.placements) if world.grouped else gradient
        optimizer.step()
    return [whole(p.detach()).flatten().tolist() for p in model.parameters()]


def run(config: TrainConfig, folder: Path, resume: bool = False) -> dict[str, Any]:
    """A whole run; the files ``started`` and ``steps`` in its folder tell how far it is."""
    trainer = Trainer(config, folder, resume=resume)

    def tell(trainer: Trainer, step: int) -> None:
        with (folder / "steps").open("a") as file:
            file.write(f"{trainer.world.rank} {step}\n")

    last = trainer.run(callbacks=[tell])
    return {"step": trainer.step, "last": last.name}


def run_on_a_full_disk(config: TrainConfig, folder: Path, failures: int, where: str) -> dict[str, Any]:
    """A run whose first writes of a kind fail on the last process; what it said, and when it went on."""
    import errno
    from unittest import mock

    from torch.distributed.checkpoint.filesystem import FileSystem

    from modality_forcing.training import saver, state

    trainer = Trainer(config, folder)
    left, said = failures, []
    place: Any = FileSystem if where == "create_stream" else state
    real = getattr(place, where)

    def full(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        if trainer.world.rank == trainer.world.size - 1 and left > 0:
            left -= 1
            raise OSError(errno.ENOSPC, "No space left on device", "disk")
        return real(*args, **kwargs)

    with mock.patch.object(place, where, full), mock.patch.object(saver, "RETRY_SECONDS", 0.05):
        trainer.run(notice=said.append)
    return {"said": said, "left": left, "steps": state.list_steps(folder)}


def poisoned(config: TrainConfig, folder: Path, sample: str, steps: int) -> dict[str, Any]:
    """Steps in which one sample's images are not finite, on whichever process it lands."""
    trainer = Trainer(config, folder)
    prepare = trainer.stage.prepare

    def spoiled(batch: Any, step: int) -> Any:
        work = prepare(batch, step)
        for item, name in enumerate(batch.ids):
            if name.endswith(sample):
                work.rgb_t[item] = float("nan")
        return work

    trainer.stage.prepare = spoiled  # type: ignore[method-assign]
    numbers = []
    try:
        for _ in range(steps):
            numbers.append(trainer.train_step())
        error = ""
    except RuntimeError as caught:
        error = str(caught)
    with torch.no_grad():
        finite = all(bool(whole(p).isfinite().all()) for p in trainer.model.parameters())
    return {
        "skipped": [n.skipped for n in numbers], "suspects": [n.suspects for n in numbers],
        "error": error, "finite": finite, "count": trainer.skipped,
    }  # fmt: skip
