"""Running a recipe: data, then stage after stage, then the model folder.

Every process of a distributed run comes through here; the first one writes files and shows progress.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import typer

from modality_forcing.checkpoint.layouts import AUTOENCODER_FILE
from modality_forcing.cli.monitor import Monitor, Parts, read_validation, save_picture
from modality_forcing.cli.train_view import View
from modality_forcing.config import MakeConfig
from modality_forcing.data.lowpoly.shards import make_shards
from modality_forcing.devices import emulates_bfloat16
from modality_forcing.errors import OutOfMemoryError, UserError
from modality_forcing.training import state
from modality_forcing.training.distributed import World, current_world, plan_mesh
from modality_forcing.training.export import export_run
from modality_forcing.training.parallelize import autocasts
from modality_forcing.training.preflight import is_made
from modality_forcing.training.recipes import Recipe, Stage
from modality_forcing.training.sinks import Sinks, open_sinks
from modality_forcing.training.trainer import Row, Trainer, finish_autoencoder

T = TypeVar("T")
STOPPED = 130
MODEL = "model"
"""Folder of the finished model inside a run."""


def agreed(prepare: Callable[[], T]) -> T:
    """What ``prepare`` gives, if it goes well on every process; else the first one says why, and all end.

    Raises:
        typer.Exit: with code 2, after the message.
    """
    world = current_world()
    if not world.grouped:
        return prepare()
    reason, result = "", None
    try:
        result = prepare()
    except UserError as error:
        reason = str(error)
    reasons = world.gather([reason])
    if any(reasons):
        if world.first:
            rank = next(number for number, text in enumerate(reasons) if text)
            where = f"process {rank}: " if rank else ""
            print(f"error: {where}{' '.join(reasons[rank].split())}", file=sys.stderr, flush=True)
        world.wait()  # torchrun ends everyone as soon as one leaves
        raise typer.Exit(2)
    assert result is not None
    return result


def check_mesh(recipe: Recipe) -> Recipe:
    """The recipe itself, if the present number of processes can run all of its stages.

    Raises:
        UserError: an impossible mesh or a batch that does not split.
    """
    for stage in recipe.stages:
        plan_mesh(stage.config.parallel, stage.config.batch, current_world())
    return recipe


def run_recipe(recipe: Recipe, *, resume: bool) -> int:
    """Go through a recipe; returns the exit code.

    Raises:
        UserError: a stage refuses its settings or its data.
        OutOfMemoryError: with advice.
    """
    world = current_world()
    with View(quiet=not world.first) as view:
        if world.first:
            for make in recipe.make.values():
                _render(view, make)
        world.wait()
        for stage in recipe.stages:
            if resume and _is_finished(stage, world):
                view.say(f"{stage.name}: finished before")
                continue
            try:
                finished = _run_stage(stage, view, world, resume=resume)
            except torch.OutOfMemoryError:
                raise OutOfMemoryError(
                    "the accelerator's memory is full; raise parallel.accumulate, set "
                    "parallel.checkpointing=true, or lower batch or image_size"
                ) from None
            if not finished:
                view.say(f"{stage.name} stopped and saved; the same command with --resume goes on")
                return STOPPED
        if world.first:
            print(_result(recipe, view), flush=True)
        world.wait()
    return 0


def _render(view: View, make: MakeConfig) -> None:
    """Procedural data that is not there yet; finished shards are kept."""
    if is_made(make):
        return
    with view.counting(f"rendering {make.folder}", make.count) as progress:
        make_shards(
            make.folder, split=make.split, start=make.start, count=make.count, size=make.size,
            supersample=make.supersample, shard_size=make.shard_size, workers=os.cpu_count() or 1,
            progress=lambda done, total: progress(done),
        )  # fmt: skip


def _is_finished(stage: Stage, world: World) -> bool:
    """Whether every step was done and, of an autoencoder, its latents were measured; all processes agree."""
    steps = state.list_steps(stage.folder)
    done = bool(steps) and steps[-1] >= stage.config.steps
    if stage.config.stage == "autoencoder":
        done = done and (stage.folder / AUTOENCODER_FILE).is_file()
    return not world.largest([not done])[0]


def _run_stage(stage: Stage, view: View, world: World, *, resume: bool) -> bool:
    """One stage; whether it came to its end."""
    config = stage.config
    monitor = Monitor(config, read_validation(config.log))
    view.say(f"{stage.name}: reading data and building the model")
    trainer = Trainer(config, stage.folder, resume=resume)
    if config.precision == "bf16" and config.stage in ("t2i", "forcing") and emulates_bfloat16(world.device):
        view.say(f"{stage.name}: this CPU has no bfloat16 instructions; precision=fp32 is faster here")
    sinks = open_sinks(stage.folder, config, trainer.step) if world.first else Sinks()
    view.stage(stage.name, config.steps, trainer.step)

    def report(row: Row) -> None:
        sinks.row(int(row["step"]), row)
        view.row(row)

    try:
        trainer.run(report, [_looker(stage, monitor, sinks, view)], notice=view.say)
    finally:
        sinks.close()
        view.stage_done()
    if trainer.step < config.steps:
        return False
    if trainer.encoders is not None:
        trainer.encoders.flush()
    if config.stage == "autoencoder":
        if world.first:
            view.say(f"{stage.name}: measuring the latents")
            finish_autoencoder(config, stage.folder)
        world.wait()
    return True


def _looker(stage: Stage, monitor: Monitor, sinks: Sinks, view: View) -> Callable[[Trainer, int], None]:
    """The callback that draws and validates, every so many steps and after the last one."""
    config, log = stage.config, stage.config.log

    def due(step: int, every: int) -> bool:
        return every > 0 and (step % every == 0 or step == config.steps)

    def look(trainer: Trainer, step: int) -> None:
        drawing, validating = due(step, log.sample_every), due(step, log.validate_every)
        if not (drawing or validating):
            return
        parts = Parts(trainer.model)
        if trainer.encoders is not None:
            encoders = trainer.encoders
            parts = Parts(trainer.model, encoders.autoencoder, encoders.text, trainer.estimator)
        world = trainer.world
        # As in training; sharded weights are gathered in bf16 by themselves, and CPUs sample in float32.
        half = autocasts(config.precision, world.device) and not world.grouped
        with trainer.averaged(), torch.autocast(world.device.type, torch.bfloat16, enabled=half):
            try:
                picture = monitor.draw(parts) if drawing else None
                numbers = monitor.validate(parts) if validating else {}
            except FloatingPointError as error:
                view.say(f"{stage.name} {step}: no look at the model: {error}")
                return
        if not world.first:
            return
        if picture is not None:
            save_picture(stage.folder / "samples" / f"step_{step:08d}.png", picture)
            sinks.picture(step, "samples", picture)
        if numbers:
            sinks.row(step, numbers)
            view.numbers(step, numbers)

    return look


def _result(recipe: Recipe, view: View) -> Path:
    """The model folder of a run that ends with a model of depth; else the last checkpoint."""
    stage = recipe.stages[-1]
    if stage.config.stage not in ("forcing", "refiner"):
        return state.latest(stage.folder)
    view.say(f"writing {recipe.run / MODEL}")
    return export_run(stage.folder, recipe.run / MODEL, origin=f"the recipe {recipe.name}")
