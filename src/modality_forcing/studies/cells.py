"""What a study is made of: cells, how each is trained and measured. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any

from modality_forcing.config import TrainConfig, to_dict
from modality_forcing.errors import UserError
from modality_forcing.studies.settings import SHARED, StudySettings, model_config, train_config

PREDICTORS = ("model", "mean", "coding")
SCRATCH = "none"
"""Stands for no text-to-image training in names."""


@dataclass(frozen=True)
class Measure:
    """What is measured of a cell.

    Attributes:
        test_folder: shards of the test scenes.
        predictor: "model"; "mean" (the mean depth map of training scenes); "coding" (the true depth through
            the autoencoder and back: what depth in its code can reach at best).
        depth, joint, control: pictures for image to depth, for text to both, for depth to image; 0: none.
        depth_steps: numbers of steps that image to depth is measured with, one after the other; of which one
            counts, the report decides. Empty: ``steps``.
        steps, guidance, log2_alpha, solver: of sampling; image to depth is not guided.
        judge_steps: of the embedded model, which estimates depth of generated pictures.
        shared_level: the model knows one noise level (``studies.replacement``).
        latent_depth: the model's depth tokens are latents (``codecs.depth_latent``).
        backbone: also pictures of the text-to-image model the cell starts from.
    """

    test_folder: str = ""
    predictor: str = "model"
    depth: int = 0
    joint: int = 0
    control: int = 0
    depth_steps: tuple[int, ...] = ()
    steps: int = 8
    guidance: float = 2.0
    log2_alpha: float = 0.0
    solver: str = "euler"
    judge_steps: int = 4
    shared_level: bool = False
    latent_depth: bool = False
    backbone: bool = False


@dataclass(frozen=True)
class Start:
    """A text-to-image run that cells start from: its settings but for the number of steps."""

    config: TrainConfig

    @property
    def name(self) -> str:
        """Unique for these settings, readable."""
        values = {key: value for key, value in to_dict(self.config).items() if key != "steps"}
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.config.model.name}-seed{self.config.seed}-{digest}"

    def folder(self, steps: int) -> str:
        """Where the model after so many steps is."""
        return f"{SHARED}/t2i/{self.name}/after-{steps:06d}"


@dataclass(frozen=True)
class Cell:
    """One training run (or none) and its measurement.

    Attributes:
        name: unique in its study, a folder's name.
        where: what tells it from the other cells, as plain values; the seed is not part of it.
        seed: of training; sampling noise of the measurement follows from it.
        config: the forcing stage; None where nothing is trained.
        start: the text-to-image run before it, and after how many steps it was left; None: from scratch.
        model: the model to measure where nothing is trained.
    """

    name: str
    where: dict[str, Any]
    seed: int
    measure: Measure
    config: TrainConfig | None = None
    start: Start | None = None
    start_steps: int = 0
    model: str = ""

    def settings(self) -> dict[str, Any]:
        """Plain values that decide the cell's numbers."""
        return {
            "where": self.where,
            "seed": self.seed,
            "model": self.model,
            "training": None if self.config is None else to_dict(self.config),
            "text_to_image": None
            if self.start is None
            else {**to_dict(self.start.config), "steps": self.start_steps},
            "measure": vars(self.measure),
        }


@dataclass(frozen=True)
class Arm:
    """A kind of cell: what its forcing stage, its model and its measurement have of their own.

    Attributes:
        name: part of the cells' names.
        where: coordinates beside the seed.
        forcing, transformer: changed settings.
        sensors: of the training data; None: those of the scale.
        freeze: see ``TrainConfig``.
        measure: changed settings.
        start_steps: of text to image; None: those of the scale.
        seeds: how many; None: those of the scale.
    """

    name: str
    where: dict[str, Any]
    forcing: dict[str, Any] = field(default_factory=dict)
    transformer: dict[str, Any] = field(default_factory=dict)
    sensors: tuple[Any, ...] | None = None
    freeze: tuple[str, ...] = ()
    measure: dict[str, Any] = field(default_factory=dict)
    start_steps: int | None = None
    seeds: int | None = None


def measure_of(settings: StudySettings, **changes: Any) -> Measure:
    """The measurement of a scale."""
    base = Measure(
        test_folder=settings.test_folder, depth=settings.pictures, depth_steps=settings.depth_steps,
        steps=settings.sample_steps, guidance=settings.guidance, judge_steps=settings.judge_steps,
    )  # fmt: skip
    return replace(base, **changes)


def cells_of(
    settings: StudySettings, arm: Arm, *, width: int | None = None, family: str = "flux2"
) -> list[Cell]:
    """The cells of an arm, one per seed."""
    model = model_config(settings, settings.width if width is None else width, family)
    steps = settings.t2i_steps if arm.start_steps is None else arm.start_steps
    grown = replace(model, transformer=replace(model.transformer, **arm.transformer))
    found = []
    for seed in range(settings.seeds if arm.seeds is None else arm.seeds):
        config = train_config(settings, "forcing", grown, seed, settings.forcing_steps)
        if arm.sensors is not None:
            config = replace(config, data=replace(config.data, sensors=arm.sensors))
        start = Start(train_config(settings, "t2i", model, seed, 1)) if steps else None
        config = replace(
            config,
            forcing=replace(config.forcing, **arm.forcing),
            freeze=arm.freeze,
            init="" if start is None else start.folder(steps),
        )
        found.append(
            Cell(
                name=f"{arm.name}-seed{seed}", where=arm.where, seed=seed,
                measure=measure_of(settings, **arm.measure), config=config, start=start, start_steps=steps,
            )
        )  # fmt: skip
    return found


def baseline(settings: StudySettings, predictor: str = "mean") -> Cell:
    """A cell that trains nothing: what a number is worth."""
    if predictor not in PREDICTORS:
        raise UserError(f"predictor is {predictor!r}; right is {', '.join(PREDICTORS)}")
    measure = measure_of(settings, predictor=predictor, depth_steps=())
    return Cell(name=f"baseline-{predictor}", where={"arm": f"baseline {predictor}"}, seed=0, measure=measure)
