"""Doing a job of a study: data, encodings, text to image, or a cell. Everything finished stays finished."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from modality_forcing.config import MakeConfig, TrainConfig, from_dict, to_dict
from modality_forcing.data.lowpoly import WORLD_VERSION
from modality_forcing.data.lowpoly.shards import make_shards
from modality_forcing.data.sensors import SensorMix, mean_density
from modality_forcing.data.shards import ShardSet
from modality_forcing.errors import UserError
from modality_forcing.evaluation.report import versions
from modality_forcing.io.atomic import atomic_file
from modality_forcing.io.plain_json import plain
from modality_forcing.pipeline import EMBEDDED
from modality_forcing.studies import plan
from modality_forcing.studies.cells import Cell
from modality_forcing.studies.measure import measure
from modality_forcing.studies.plan import Job
from modality_forcing.studies.settings import SHARED, StudySettings
from modality_forcing.training import state
from modality_forcing.training.data import Loader
from modality_forcing.training.distributed import World
from modality_forcing.training.encoding import Encoders
from modality_forcing.training.export import export_run
from modality_forcing.training.preflight import is_made
from modality_forcing.training.sinks import open_sinks, read_log
from modality_forcing.training.trainer import Trainer

CONFIG_FILE = "config.json"
"""Written last into a model's folder: with it, the model is whole."""
RESULT, MODEL, RUN, DONE = "result.json", "model", "run", "finished.json"
CAPTIONS_AT_ONCE = 64
SHARE_SCENES = 16
Progress = Callable[[float], None]
"""Called with the share of the job that is done."""


@dataclass(frozen=True)
class Place:
    """Where a study is and what all of its jobs need.

    Attributes:
        folder: of the study.
        settings: of the study.
        processes: that may render at once.
    """

    folder: Path
    settings: StudySettings
    processes: int = 1

    @property
    def shared(self) -> Path:
        """Data, encodings and text-to-image runs."""
        return Path(self.settings.shared).expanduser() if self.settings.shared else self.folder / "shared"

    def cell(self, cell: Cell) -> Path:
        """Everything of a cell."""
        return self.folder / "cells" / cell.name

    def path(self, text: str) -> Path:
        """A path of the settings."""
        return Path(text.replace(SHARED, str(self.shared)))

    def filled(self, config: TrainConfig) -> TrainConfig:
        """Settings with every path as it is here."""

        def fill(value: Any) -> Any:
            if isinstance(value, str):
                return value.replace(SHARED, str(self.shared))
            if isinstance(value, dict):
                return {key: fill(part) for key, part in value.items()}
            return [fill(part) for part in value] if isinstance(value, list | tuple) else value

        config = from_dict(TrainConfig, fill(to_dict(config)))
        return replace(config, autoencoder=str(EMBEDDED.get(config.autoencoder, config.autoencoder)))


def is_done(job: Job, place: Place) -> bool:
    """Whether nothing is left to do.

    Raises:
        UserError: a cell of this name was computed with other settings.
    """
    if job.kind == plan.DATA:
        return is_made(_make(job, place))
    if job.kind == plan.ENCODE:
        assert job.cell is not None
        return (_encoded(job.cell, place)).is_file()
    if job.kind == plan.START:
        assert job.start is not None
        return all((place.path(job.start.folder(n)) / CONFIG_FILE).is_file() for n in job.steps)
    assert job.cell is not None
    return read_result(job.cell, place) is not None


def do(job: Job, place: Place, progress: Progress) -> None:
    """Do a job, or what is left of it.

    Raises:
        UserError, TrainingError: as of what it is made of.
        KeyboardInterrupt: SIGTERM or Ctrl-C came while training, which was saved.
    """
    if is_done(job, place):
        return
    {plan.DATA: _render, plan.ENCODE: _encode, plan.START: _text_to_image, plan.CELL: _cell}[job.kind](
        job, place, progress
    )


# -- what cells share ------------------------------------------------------------------------------------


def _make(job: Job, place: Place) -> MakeConfig:
    size = place.settings.image_size
    return MakeConfig(
        count=job.count, size=size, split=job.split, folder=str(place.path(job.folder)), shard_size=250
    )


def _render(job: Job, place: Place, progress: Progress) -> None:
    make = _make(job, place)
    make_shards(
        make.folder, split=make.split, start=make.start, count=make.count, size=make.size,
        supersample=make.supersample, shard_size=make.shard_size,
        workers=place.processes if make.count > make.shard_size else 1,
        progress=lambda done, total: progress(done / make.count),
    )  # fmt: skip


def _encoded(cell: Cell, place: Place) -> Path:
    """The file that says that every image and caption has been encoded."""
    assert cell.config is not None
    config = cell.config
    parts = [config.autoencoder, to_dict(config.model.text), to_dict(config.model.autoencoder)]
    parts.append([source.path for source in config.data.sources])
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return place.path(config.data.cache) / f"{digest}-{DONE}"


def _encode(job: Job, place: Place, progress: Progress) -> None:
    """All images and captions once, so that no two cells encode the same."""
    assert job.cell is not None and job.cell.config is not None
    config = place.filled(replace(job.cell.config, stage="t2i"))
    encoders = Encoders(config, place.settings.device)
    loader = Loader(
        config.data, batch=config.batch, seed=0, size=config.image_size, stage="t2i",
        multiple=config.model.autoencoder.downscale,
    )  # fmt: skip
    shards = ShardSet(config.data.sources[0].path)
    steps = -(-len(shards) // config.batch)  # a pass over the data: every image once
    total = steps * config.batch + len(shards)
    for step in range(steps):
        for batch in loader.load(step):
            encoders.latents(batch)
        progress((step + 1) * config.batch / total)
    waiting: list[str] = []
    for index in range(len(shards)):
        waiting += shards.record(index)["captions"]
        if len(waiting) >= CAPTIONS_AT_ONCE or index + 1 == len(shards):
            encoders.text(waiting)
            waiting = []
            progress((steps * config.batch + index + 1) / total)
    encoders.flush()
    _write(_encoded(job.cell, place), {"images": len(shards)})


def _text_to_image(job: Job, place: Place, progress: Progress) -> None:
    """One run, left and exported at every budget."""
    assert job.start is not None
    run = place.path(job.start.folder(0)).parent / RUN
    for steps in job.steps:
        target = place.path(job.start.folder(steps))
        if (target / CONFIG_FILE).is_file():
            continue
        before = state.list_steps(run)
        if before and before[-1] > steps:
            raise UserError(f"{run} is past step {steps}; choose another folder for what is shared")
        config = replace(place.filled(job.start.config), steps=steps)
        train(config, run, place, lambda done: progress(done / job.steps[-1]))
        export_run(run, target)
        _write(target / DONE, {"seconds": seconds_of(run, config.batch)})


def train(config: TrainConfig, run: Path, place: Place, on_step: Callable[[int], None]) -> None:
    """Train to ``config.steps``, going on from the newest checkpoint.

    Raises:
        KeyboardInterrupt: it was told to stop; the steps so far are saved.
    """
    world = World(0, 1, torch.device(place.settings.device))
    trainer = Trainer(config, run, resume=True, world=world)
    if trainer.step >= config.steps:
        return
    sinks = open_sinks(run, config, trainer.step)
    try:
        trainer.run(
            lambda row: sinks.row(int(row["step"]), row),
            [lambda _, step: on_step(step)],
            notice=lambda text: None,
        )
    finally:
        sinks.close()
    assert trainer.encoders is not None
    trainer.encoders.flush()
    if trainer.step < config.steps:
        raise KeyboardInterrupt


def seconds_of(run: Path, batch: int) -> float:
    """Time a run has trained, from its log; what was lost to a kill does not count."""
    total, before = 0.0, 0
    for row in read_log(run / "log.jsonl"):
        if row.get("samples_per_s"):
            total += (row["step"] - before) * batch / row["samples_per_s"]
            before = row["step"]
    return total


# -- cells -----------------------------------------------------------------------------------------------


def read_result(cell: Cell, place: Place) -> dict[str, Any] | None:
    """What a finished cell found; None before.

    Raises:
        UserError: it was computed with other settings, or the file is damaged.
    """
    path = place.cell(cell) / RESULT
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        same = found["settings"] == plain(cell.settings())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no result of a cell; delete it to compute the cell again") from None
    if not same:
        raise UserError(f"{path} holds results of other settings; choose another --out")
    return found


def _cell(job: Job, place: Place, progress: Progress) -> None:
    """Train, export, measure; the result comes last, so that a folder with one is whole."""
    cell = job.cell
    assert cell is not None
    folder, model, start, seconds = place.cell(cell), cell.model, "", 0.0
    training = 0.0  # share of the cell that is training
    if cell.config is not None:
        training = plan.training_seconds(cell, plan.speed_of(place.settings)) / job.seconds
        config = place.filled(cell.config)
        model = str(folder / MODEL)
        if not (folder / MODEL / CONFIG_FILE).is_file():
            train(config, folder / RUN, place, lambda done: progress(training * done / config.steps))
            export_run(folder / RUN, folder / MODEL)
        seconds = seconds_of(folder / RUN, config.batch)
        shutil.rmtree(folder / RUN / "checkpoints", ignore_errors=True)  # the model has its averages
        if cell.start is not None:
            start = str(place.path(cell.start.folder(cell.start_steps)))
    found = measure(
        cell.measure, folder, seed=cell.seed, model=model, start=start, device=place.settings.device,
        autoencoder=str(EMBEDDED.get(place.settings.autoencoder, place.settings.autoencoder)),
        test=place.path(place.settings.test_folder), train=place.path(place.settings.train_folder),
        progress=lambda share: progress(training + (1.0 - training) * share),
    )  # fmt: skip
    facts = {**plan.facts(cell), **found.facts, "forcing_seconds": seconds}
    if cell.config is not None:
        facts["measured_share"] = _measured_share(cell, place)
    if start:
        facts["text_to_image_seconds"] = json.loads((Path(start) / DONE).read_text())["seconds"]
    _write(
        folder / RESULT,
        {
            "name": cell.name, "where": cell.where, "seed": cell.seed, "settings": cell.settings(),
            "versions": {**versions(), "world": WORLD_VERSION},
            "facts": facts, "metrics": found.metrics, "pictures": found.pictures,
        },
    )  # fmt: skip


def _measured_share(cell: Cell, place: Place) -> float:
    """Share of the pixels that the training sensors of a cell report, on some test scenes."""
    assert cell.config is not None
    shards = ShardSet(place.path(place.settings.test_folder))
    samples = [shards.read(i) for i in range(min(SHARE_SCENES, len(shards)))]
    return mean_density(SensorMix(cell.config.data.sensors), samples, seed=cell.seed)


def _write(path: Path, values: dict[str, Any]) -> None:
    with atomic_file(path) as aside:
        aside.write_text(json.dumps(plain(values), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
