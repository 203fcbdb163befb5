"""``mf train --dry-run``: what a recipe would do, without allocating a weight and without its data."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from modality_forcing.config import TrainConfig
from modality_forcing.errors import UserError
from modality_forcing.training.distributed import World, plan_mesh
from modality_forcing.training.estimate import estimate
from modality_forcing.training.preflight import is_remote, missing, samples_in
from modality_forcing.training.recipes import Recipe, Stage


def show_plan(recipe: Recipe) -> None:
    """The resolved recipe as JSON on stdout; everything else on stderr.

    Raises:
        UserError: an impossible mesh, a freeze list or LoRA target that fits nothing.
    """
    lines: list[str] = []
    for stage in recipe.stages:
        try:
            lines += stage_lines(stage, recipe)
        except UserError as error:
            raise UserError(str(error) if recipe.single else f"stage {stage.name}: {error}") from None
    lacking = missing(recipe)
    lines += [
        "",
        "missing here:" if lacking else "nothing is missing here",
        *(f"  {line}" for line in lacking),
    ]
    print(json.dumps(recipe.to_dict(), indent=2), flush=True)
    print("\n".join(lines).lstrip(), file=sys.stderr)


def stage_lines(stage: Stage, recipe: Recipe) -> list[str]:
    """One stage in words and numbers.

    Raises:
        UserError: see :func:`show_plan`.
    """
    config = stage.config
    processes, mesh = processes_of(config)
    rows = [("run", str(stage.folder))]
    for source in config.data.sources:
        rows.append(("data", f"{source.path}: {_where(source.path, recipe)}, depth: {source.depth}"))
    if config.log.validation:
        rows.append(("validation", f"{config.log.validation}: {_where(config.log.validation, recipe)}"))
    if config.stage != "autoencoder":
        rows.append(("autoencoder", _weights(config.autoencoder, recipe)))
        rows.append(("text encoder", f"{config.model.text.encoder} (not counted below)"))
    if config.init:
        rows.append(("starts from", _weights(config.init, recipe)))
    if config.refine.start:
        rows.append(("refiner from", _weights(config.refine.start, recipe)))
    rows.append(("processes", mesh))
    rows += estimate(config, processes).rows()
    width = max(len(name) for name, _ in rows)
    title = f"{stage.name}: stage {config.stage}, {config.steps:,} steps of {config.batch:,} samples"
    return ["", title, *(f"  {name.ljust(width)}  {text}" for name, text in rows)]


def _where(path: str, recipe: Recipe) -> str:
    count = samples_in(path, recipe)
    made = any(make.folder == path for make in recipe.make.values())
    return "not here" if count is None else f"{count:,} samples" + (", rendered if missing" if made else "")


def _weights(path: str, recipe: Recipe) -> str:
    for stage in recipe.stages:
        if str(stage.folder) == path:
            return f"{path}: made by stage {stage.name}"
    if Path(path).expanduser().exists():
        return path
    return f"{path}: {'not here; it would come from the Hub' if is_remote(path) else 'not here'}"


def processes_of(config: TrainConfig) -> tuple[int, str]:
    """How many processes the settings ask for (where they leave it open: what is here), and that in words.

    Raises:
        UserError: the batch does not split over them.
    """
    here = int(os.environ.get("WORLD_SIZE", "1"))
    parallel = config.parallel
    needed = parallel.replicate * parallel.shard if parallel.shard else max(here, parallel.replicate)
    world = World(0, needed, torch.device("cpu"), control=True)
    replicate, shard = plan_mesh(parallel, config.batch, world)
    text = str(needed) if needed == 1 else f"{needed} ({replicate} x {shard}: copies x processes per copy)"
    text += f", micro-batches of {config.batch // (needed * parallel.accumulate)}"
    text += f", {parallel.accumulate} per step" if parallel.accumulate > 1 else ""
    return needed, text if needed == here else f"{text}; here {here}: start with torchrun"
