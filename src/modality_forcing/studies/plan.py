"""What a study will take: its work in order of need, parameters, operations, and an estimate of the time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import lru_cache
from typing import Any

from modality_forcing.config import ModelConfig, TrainConfig
from modality_forcing.errors import UserError
from modality_forcing.presets import LOWPOLY
from modality_forcing.studies.cells import Cell, Measure, Start
from modality_forcing.studies.settings import StudySettings

DATA, ENCODE, START, CELL = "data", "encode", "start", "cell"


@dataclass(frozen=True)
class Speed:
    """How fast one process is; measured where the text says so.

    Attributes:
        flops: model operations per second.
        per_step: seconds of a training step or a model call, whatever its size.
        per_sample: seconds to read and prepare a training sample.
        per_picture: seconds to read, decode, align and measure a test picture.
        render: rendered scenes per second.
        caption: encoded captions per second.
        load: seconds to load models before a cell.
    """

    flops: float
    per_step: float
    per_sample: float
    per_picture: float
    render: float
    caption: float
    load: float
    text: str


CORE = Speed(
    3.0e10, 0.014, 0.0016, 0.06, 18.0, 120.0, 4.0,
    "one x86-64 core with AVX-512, steps of five models of 0.2 to 1.7 M parameters at 64x64 in float32",
)  # fmt: skip
ACCELERATOR = Speed(
    2.0e13, 0.03, 0.0016, 0.06, 18.0, 1000.0, 8.0, "not measured: a guess for an H200-class GPU"
)


@dataclass(frozen=True)
class Job:
    """A piece of work that one process does in one go.

    Attributes:
        name: unique, for the progress.
        kind: "data", "encode", "start" (text to image) or "cell".
        needs: names of jobs that must be done before.
        seconds: estimate, in one process.
        cell, start, steps: what is to be done; ``steps`` are the text-to-image budgets.
        folder, count, split: of data.
    """

    name: str
    kind: str
    needs: tuple[str, ...]
    seconds: float
    cell: Cell | None = None
    start: Start | None = None
    steps: tuple[int, ...] = ()
    folder: str = ""
    count: int = 0
    split: str = ""


def choose(cells: Sequence[Cell], only: str | None, limit: int | None) -> list[Cell]:
    """The cells whose name fits a pattern (as of a shell), the first so many of them.

    Raises:
        UserError: none is left.
    """
    found = [cell for cell in cells if only is None or fnmatch(cell.name, only)]
    if not found:
        names = ", ".join(cell.name for cell in cells[:4])
        raise UserError(f"--only {str(only)[:60]!r} fits none of {len(cells)} cells; the first are {names}")
    return found if limit is None else found[:limit]


def speed_of(settings: StudySettings) -> Speed:
    """What the estimate of a device rests on."""
    return CORE if settings.device == "cpu" else ACCELERATOR


def make_jobs(cells: Sequence[Cell], settings: StudySettings) -> list[Job]:
    """The work behind some cells, each piece once, after what it needs."""
    speed = speed_of(settings)
    trained = [cell for cell in cells if cell.config is not None]
    needs_train = bool(trained) or any(c.measure.predictor == "mean" for c in cells)
    jobs: list[Job] = []
    for split, folder, count, wanted in (
        ("train", settings.train_folder, settings.scenes, needs_train),
        ("test", settings.test_folder, settings.test_scenes, True),
    ):
        if wanted:
            # Rays grow with the area; the rate is that of 64x64.
            seconds = 3.0 + count / speed.render * (settings.image_size / 64) ** 2
            jobs.append(Job(f"data {split}", DATA, (), seconds, folder=folder, count=count, split=split))
    data = tuple(job.name for job in jobs)
    before = data
    if trained:
        seconds = speed.load + 3 * settings.scenes / speed.caption
        jobs.append(Job("encodings", ENCODE, data, seconds, cell=trained[0]))
        before = (*data, "encodings")
    starts: dict[str, tuple[Start, set[int]]] = {}
    for cell in trained:
        if cell.start is not None:
            starts.setdefault(cell.start.name, (cell.start, set()))[1].add(cell.start_steps)
    for name, (start, steps) in starts.items():
        seconds = speed.load + max(steps) * step_seconds(start.config, speed)
        jobs.append(Job(f"t2i {name}", START, before, seconds, start=start, steps=tuple(sorted(steps))))
    for cell in cells:
        needs = data if cell.config is None else before
        if cell.start is not None:
            needs = (*before, f"t2i {cell.start.name}")
        jobs.append(Job(cell.name, CELL, needs, cell_seconds(cell, speed), cell=cell))
    return jobs


def cell_seconds(cell: Cell, speed: Speed) -> float:
    """Estimate of one cell, training and measuring, in one process."""
    measured = measure_seconds(cell.measure, _forward(cell), speed)
    return speed.load + training_seconds(cell, speed) + measured


def training_seconds(cell: Cell, speed: Speed) -> float:
    """Estimate of a cell's forcing stage; 0 where nothing is trained."""
    if cell.config is None:
        return 0.0
    training = cell.config.steps * step_seconds(cell.config, speed)
    if cell.config.forcing.depth_coding == "latent":  # every map goes through the encoder
        training += cell.config.steps * cell.config.batch * _numbers(cell.config).encoder / speed.flops
    return training


def step_seconds(config: TrainConfig, speed: Speed) -> float:
    """Estimate of one training step."""
    return speed.per_step + config.batch * speed.per_sample + _numbers(config).step / speed.flops


def measure_seconds(measure: Measure, forward: float, speed: Speed) -> float:
    """Estimate of a measurement; ``forward`` is one picture through the model once."""
    if measure.predictor != "model":
        return measure.depth * speed.per_picture
    calls = 2 * measure.steps - 1 if measure.solver == "heun" else measure.steps
    guided = 1 if measure.guidance == 1 else 2
    generated = measure.joint + measure.control
    pictures = measure.depth + 2 * generated + (measure.joint if measure.backbone else 0)
    depth_calls = sum(measure.depth_steps) if measure.depth_steps else calls
    pictures += measure.depth * max(0, len(measure.depth_steps) - 1)
    operations = forward * (
        depth_calls * measure.depth + calls * guided * (generated + measure.backbone * measure.joint)
    )
    judged = generated * measure.judge_steps * _embedded_forward()
    return pictures * speed.per_picture + (operations + judged) / speed.flops


@dataclass(frozen=True)
class Numbers:
    """Of one run: weights, those that train, operations of a step, of one forward pass, and of encoding one
    image."""

    parameters: int
    trainable: int
    step: float
    forward: float
    encoder: float


def _numbers(config: TrainConfig) -> Numbers:
    # What does not enter the numbers must not make them be counted again.
    model = replace(config.model, name="", note="")
    distills = config.forcing.distill_high > 0 or config.forcing.distill_low > 0
    plain = TrainConfig(
        stage=config.stage, batch=config.batch, image_size=config.image_size, model=model,
        freeze=config.freeze, precision=config.precision,
    )  # fmt: skip
    if distills:
        plain = replace(plain, forcing=replace(plain.forcing, distill_high=1.0))
    return _count(plain)


@lru_cache(maxsize=256)
def _count(config: TrainConfig) -> Numbers:
    from modality_forcing.training.estimate import estimate

    found = estimate(config)
    total = found.total
    return Numbers(total.total, total.trainable, found.step_flops, found.flops.forward, found.encoder_flops)


def _forward(cell: Cell) -> float:
    if cell.config is not None:
        return _numbers(cell.config).forward
    return _embedded_forward() if cell.measure.predictor == "model" else 0.0


def _embedded_forward() -> float:
    """One picture through the embedded model once: what judges, and what the trajectory study measures."""
    return _forward_of(LOWPOLY)


@lru_cache(maxsize=8)
def _forward_of(model: ModelConfig) -> float:
    return _count(TrainConfig(image_size=model.sampler.width, model=model)).forward


def facts(cell: Cell) -> dict[str, Any]:
    """Size and operations of a cell; 0 where nothing is trained.

    Returns:
        "parameters", "trainable", "forcing_flops", "text_to_image_flops" (of the run it starts from, up to
        where it was left) and "samples" (of the forcing stage).
    """
    if cell.config is None:
        names = ("parameters", "trainable", "forcing_flops", "text_to_image_flops", "samples")
        return dict.fromkeys(names, 0)
    numbers = _numbers(cell.config)
    before = _numbers(cell.start.config).step * cell.start_steps if cell.start is not None else 0.0
    return {
        "parameters": numbers.parameters,
        "trainable": numbers.trainable,
        "forcing_flops": numbers.step * cell.config.steps,
        "text_to_image_flops": before,
        "samples": cell.config.steps * cell.config.batch,
    }
