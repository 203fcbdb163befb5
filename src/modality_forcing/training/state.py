"""Resumable training state: safetensors and JSON in one folder, written aside and then renamed."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modality_forcing.errors import UserError
from modality_forcing.training.optim import EMA

STEP_FOLDER = re.compile(r"^step_(\d{8})$")


def save_state(
    run: Path,
    step: int,
    model: nn.Module,
    ema: EMA,
    optimizers: list[torch.optim.Optimizer],
    info: dict[str, Any],
    keep: int,
) -> Path:
    """Write ``run/checkpoints/step_N`` whole or not at all and drop older ones beyond ``keep``.

    A checkpoint of this step that is already there is whole and says the same: it stays as it is.
    """
    root = run / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)
    target = root / f"step_{step:08d}"
    if target.is_dir():
        return target
    aside = root / f".step_{step:08d}.{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    save_file(_plain(model.state_dict()), aside / "model.safetensors")
    save_file(_plain(ema.shadow), aside / "ema.safetensors")
    for index, optimizer in enumerate(optimizers):
        save_file(_flatten(optimizer), aside / f"optimizer_{index}.safetensors")
    (aside / "state.json").write_text(json.dumps({"step": step, **info}, indent=1))
    aside.rename(target)
    for old in list_steps(run)[:-keep]:
        # Out of sight in one move, so that no half-deleted folder looks like a checkpoint.
        doomed = (root / f"step_{old:08d}").rename(root / f".old_{old:08d}.{os.getpid()}")
        shutil.rmtree(doomed, ignore_errors=True)
    return target


def list_steps(run: Path) -> list[int]:
    """Steps of the complete checkpoints of a run, oldest first."""
    root = run / "checkpoints"
    if not root.is_dir():
        return []
    return sorted(int(m.group(1)) for p in root.iterdir() if (m := STEP_FOLDER.match(p.name)))


def latest(run: Path) -> Path:
    """Folder of a run's newest checkpoint.

    Raises:
        UserError: there is none.
    """
    steps = list_steps(run)
    if not steps:
        raise UserError(f"{run} has no checkpoint; a folder made by training is needed")
    return run / "checkpoints" / f"step_{steps[-1]:08d}"


def load_state(folder: Path, model: nn.Module, ema: EMA, optimizers: list[torch.optim.Optimizer]) -> int:
    """Restore everything in place, strictly; returns the number of finished steps."""
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    shadow = load_file(folder / "ema.safetensors")
    if shadow.keys() != ema.shadow.keys():
        raise UserError(f"{folder}/ema.safetensors does not belong to this model")
    for name, tensor in shadow.items():
        ema.shadow[name].copy_(tensor)
    for index, optimizer in enumerate(optimizers):
        _unflatten(optimizer, load_file(folder / f"optimizer_{index}.safetensors"))
    return int(json.loads((folder / "state.json").read_text())["step"])


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Per-parameter state as "index.name" tensors; hyper-parameters come from the config, not from here."""
    flat = {}
    for index, entry in optimizer.state_dict()["state"].items():
        for name, value in entry.items():
            flat[f"{index}.{name}"] = torch.as_tensor(value).detach().contiguous()
    return flat


def _unflatten(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    state = optimizer.state_dict()
    entries: dict[int, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        index, name = key.split(".", 1)
        entries.setdefault(int(index), {})[name] = tensor
    state["state"] = entries
    optimizer.load_state_dict(state)
