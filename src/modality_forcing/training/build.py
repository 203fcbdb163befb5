"""The model a run trains, with its first weights; and the frozen ones beside it: teacher, estimator."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from modality_forcing.checkpoint.layouts import AUTOENCODER_FILE, open_checkpoint
from modality_forcing.checkpoint.weights import save_weights
from modality_forcing.config import RefinerConfig, TrainConfig, TransformerConfig, from_dict
from modality_forcing.data.lowpoly.colours import FILE as COLOURS_FILE
from modality_forcing.data.lowpoly.colours import ColourClassifier, load_colours
from modality_forcing.errors import UserError
from modality_forcing.model.autoencoder import Autoencoder
from modality_forcing.model.build import build_transformer
from modality_forcing.model.refiner import DepthRefiner
from modality_forcing.model.warm_start import (
    deepen_refiner,
    freeze,
    initialise,
    initialise_autoencoder,
    smooth_depth_head,
    warm_start,
)
from modality_forcing.training import lora, state
from modality_forcing.training.data import Loader
from modality_forcing.training.distributed import World
from modality_forcing.training.encoding import load_autoencoder
from modality_forcing.training.noisy import Noisy, Teach
from modality_forcing.training.parallelize import (
    FLOAT32_PARTS,
    autocasts,
    compute_dtype,
    place,
    prepare_blocks,
)
from modality_forcing.training.randomness import WEIGHTS, generator_for, seed_for
from modality_forcing.training.reading import Reader

ENCODER = "encoder"
"""What ``freeze`` calls the half of the autoencoder that makes latents."""
REFINER_PRECISION = "fp32"
"""Of the refiner, whatever the run's is: bf16 in what writes depth causes banding, and it is small."""


@dataclass
class Built:
    """A model where it trains.

    Attributes:
        model: its weights and which of them train.
        teach: the text-to-image model of self-distillation; None without.
        reader: the model that reads depth from pictures; None without.
        judge: says what the model's own pictures show; None without.
        estimator: the frozen transformer whose depth is refined; None in all stages but that.
        grown: whether it was just grown from a text-to-image model.
    """

    model: nn.Module
    teach: Teach | None = None
    reader: Reader | None = None
    judge: ColourClassifier | None = None
    estimator: nn.Module | None = None
    grown: bool = False


def build(config: TrainConfig, world: World, *, resuming: bool) -> Built:
    """Build, initialise or warm-start, freeze, spread.

    Args:
        resuming: a checkpoint will be loaded over the weights; first values are not worth reading then.

    Raises:
        UserError: ``init`` or ``freeze`` does not fit, or self-distillation has no teacher.
    """
    if config.stage == "autoencoder":
        return Built(_build_autoencoder(config, world, resuming=resuming))
    if config.stage == "refiner":
        return _build_refiner(config, world, resuming=resuming)
    names = weight_names(config.init) if config.init and not (resuming and not _distills(config)) else set()
    has_depth = any(name.startswith("depth_in") for name in names)
    grown = config.stage == "forcing" and bool(names) and not has_depth
    if _distills(config) and not grown and not config.forcing.teacher:
        raise UserError(
            "forcing.distill_* needs a teacher: init=FOLDER of a text-to-image model, "
            "or forcing.teacher=FOLDER"
        )
    transformer = config.model.transformer
    if config.stage == "t2i":
        transformer = transformer.backbone()
    weights = load_weights(config.init) if names and world.first else {}
    with _where_built(world):
        model = build_transformer(transformer)
    if world.first and not resuming:
        generator = generator_for(config.seed, WEIGHTS)
        if not weights:
            initialise(model, generator)
        elif grown:
            _fitting(lambda: warm_start(model, weights, generator), config.init)
        else:
            _fitting(lambda: model.load_state_dict(weights, strict=True), config.init)
        if config.stage == "forcing" and config.forcing.smooth_head and (grown or not weights):
            smooth_depth_head(model)
    _choose_trainable(model, config, world)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    teach: Teach | None = None
    if _distills(config):
        source = config.forcing.teacher or config.init
        shared = source == config.init and grown and (config.lora.rank > 0 or not trainable & names)
        known = weights if source == config.init or not world.first else load_weights(source)
        backbone = config.model.transformer.backbone()
        teach = _student_itself if shared else _Teacher(_build_frozen(config, backbone, known, source, world))
    reader = _build_reader(config, world) if config.stage == "forcing" and config.forcing.reader else None
    has_dropout = config.lora.rank > 0 and config.lora.dropout > 0
    prepare_blocks(model, config.parallel, has_dropout=has_dropout)
    place(model, config.parallel, config.batch, config.precision, world)
    judge = _build_judge(config, world) if config.stage == "forcing" and config.forcing.judge else None
    return Built(model, teach, reader, judge, grown=grown and not resuming)


def _distills(config: TrainConfig) -> bool:
    forcing = config.forcing
    return config.stage == "forcing" and (forcing.distill_high > 0 or forcing.distill_low > 0)


def _where_built(world: World) -> contextlib.AbstractContextManager[Any]:
    """Only the first process needs values; the others get their shards from it."""
    return contextlib.nullcontext() if world.first else torch.device("meta")


def _fitting(fill: Any, source: str, setting: str = "init") -> None:
    try:
        fill()
    except (ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"{setting}={source} does not fit the model: {text[:400]}") from None


def channels_last(config: TrainConfig, world: World) -> bool:
    """Whether the convolutions of autoencoder and refiner lie channels-last, which is faster on CPUs.

    Not when sharded, which takes contiguous weights only, nor with frozen parts: PyTorch 2.13 crashes in the
    backward pass of a channels-last GroupNorm whose input needs no gradient. The whole encoder has no
    backward pass when it is frozen.
    """
    return not world.grouped and set(config.freeze) <= {ENCODER}


def _build_autoencoder(config: TrainConfig, world: World, *, resuming: bool) -> nn.Module:
    with torch.random.fork_rng(), _where_built(world):
        torch.manual_seed(config.seed)
        model = Autoencoder(config.model.autoencoder)
    if world.first:
        if config.init and not resuming:
            model.load_state_dict(load_autoencoder(config.init, config).state_dict())
        else:
            initialise_autoencoder(model)
    freeze(model, config.freeze)
    if channels_last(config, world):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    place(model, config.parallel, config.batch, config.precision, world)
    return model


def _build_refiner(config: TrainConfig, world: World, *, resuming: bool) -> Built:
    """The refiner, new or begun with another one's weights, and the transformer that it works behind."""
    if config.model.refiner is None or not config.init:
        raise UserError("stage refiner needs the sizes model.refiner and init=FOLDER of a finished model")
    with torch.random.fork_rng(), _where_built(world):
        torch.manual_seed(config.seed)
        model = DepthRefiner(config.model.refiner)
    if config.refine.start and world.first and not resuming:
        sizes, weights = _refiner_of(config.refine.start)
        _fitting(lambda: deepen_refiner(model, sizes, weights), config.refine.start, "refine.start")
    freeze(model, config.freeze)
    if channels_last(config, world):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    place(model, config.parallel, config.batch, REFINER_PRECISION, world)
    known = load_weights(config.init) if world.first else {}
    estimator = _build_frozen(config, config.model.transformer, known, config.init, world)
    return Built(model, estimator=estimator)


def _choose_trainable(model: nn.Module, config: TrainConfig, world: World) -> None:
    """Freeze, or add adapters; what does not train needs no float32 where the body computes in bf16."""
    small = compute_dtype(config.precision, world.device)
    if config.lora.rank > 0:
        with torch.random.fork_rng():
            torch.manual_seed(seed_for(config.seed, WEIGHTS, 1))
            lora.add_lora(model, config.lora, freeze=config.freeze, base_dtype=small)
        return
    freeze(model, config.freeze)
    for name, p in model.named_parameters():
        if small is not None and not p.requires_grad and not name.startswith(FLOAT32_PARTS):
            p.data = p.data.to(small)


class _Teacher:
    """A frozen text-to-image model beside the student. No module attribute of anything that trains."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @torch.no_grad()
    def __call__(self, student: nn.Module, work: Noisy) -> Tensor:
        return self.model(work.rgb_t, None, work.text, work.image_rope, work.t_rgb)[0]


@torch.no_grad()
def _student_itself(student: nn.Module, work: Noisy) -> Tensor:
    """The text-to-image model inside the student, where none of its weights train."""
    with lora.adapters_off(student):
        return student(work.rgb_t, None, work.text, work.image_rope, work.t_rgb)[0]


def _build_reader(config: TrainConfig, world: World) -> Reader:
    """The transformer is spread as the one that trains; the refiner, which is small, is whole everywhere."""
    source = config.forcing.reader
    weights = load_weights(source) if world.first else {}
    transformer = _build_frozen(
        config, config.model.transformer, weights, source, world, setting="forcing.reader"
    )
    refiner = None if _is_run(source) else open_checkpoint(source).load_refiner(world.device)
    half = autocasts(config.precision, world.device)
    return Reader(transformer, refiner and refiner.requires_grad_(False), config.model, half=half)


def _build_judge(config: TrainConfig, world: World) -> ColourClassifier:
    """Small, so whole everywhere."""
    judge = load_colours(Path(config.forcing.judge).expanduser())
    if judge is None:
        raise UserError(
            f"forcing.judge is {config.forcing.judge}, which has no {COLOURS_FILE};"
            " recipes/lowpoly/colours.py trains one"
        )
    return judge.to(world.device)


def _build_frozen(
    config: TrainConfig,
    sizes: TransformerConfig,
    weights: dict[str, Tensor],
    source: str,
    world: World,
    setting: str = "init",
) -> nn.Module:
    """A transformer of ``sizes`` that does not train, with ``weights`` from ``source``; one without depth
    takes its part of them."""
    with _where_built(world):
        model = build_transformer(sizes)
    if world.first:
        names = model.state_dict().keys()
        if sizes.depth_channels is None:
            weights = {name: value for name, value in weights.items() if name in names}
        _fitting(lambda: model.load_state_dict(weights, strict=True), source, setting)
    model.eval().requires_grad_(False)
    small = compute_dtype(config.precision, world.device)
    for name, p in model.named_parameters():
        if small is not None and not name.startswith(FLOAT32_PARTS):
            p.data = p.data.to(small)
    return place(model, config.parallel, config.batch, config.precision, world)


# -- weights of earlier stages --------------------------------------------------------------------------


def _is_run(source: str | Path) -> bool:
    path = Path(source).expanduser()
    return (path / "checkpoints").is_dir() or (not path.exists() and str(source).startswith((".", "/", "~")))


def config_of(run: str | Path) -> TrainConfig:
    """What the newest checkpoint of a run was made with."""
    newest = _averages(run).parent
    return from_dict(TrainConfig, state.read_note(newest)["config"], str(newest / state.NOTE))


def _transformer_of(source: str | Path) -> str | Path:
    """A refiner's run stands for the model whose depth it refines."""
    if not _is_run(source):
        return source
    config = config_of(source)
    return config.init if config.stage == "refiner" else source


def _refiner_of(source: str) -> tuple[RefinerConfig, dict[str, Tensor]]:
    """Sizes and float32 weights of the refiner in a run of that stage or in a model.

    Raises:
        UserError: there is none.
    """
    if _is_run(source):
        config = config_of(source)
        if config.stage == "refiner" and config.model.refiner is not None:
            return config.model.refiner, load_file(_averages(source))
    else:
        refiner = open_checkpoint(source).load_refiner()
        if refiner is not None:
            return refiner.config, dict(refiner.state_dict())
    raise UserError(f"refine.start={source} has no refiner; right is a refiner's run or a model with one")


def weight_names(source: str | Path) -> set[str]:
    """Names of the transformer weights in a run or a model of any layout; only headers are read.

    Raises:
        UserError: nothing there, or no transformer in it.
    """
    source = _transformer_of(source)
    if _is_run(source):
        with safe_open(_averages(source), framework="pt") as file:
            names = {name.replace(".base_layer.", ".") for name in file.keys()}  # noqa: SIM118
        return {name for name in names if ".lora_" not in name}
    checkpoint = open_checkpoint(source)
    if checkpoint.transformer is None:
        raise UserError(f"init={source} holds no transformer")
    with torch.device("meta"):
        return set(build_transformer(checkpoint.config.transformer).state_dict())


def load_weights(source: str | Path) -> dict[str, Tensor]:
    """Transformer weights, float32 on the CPU: a run's newest averages (adapters merged), or those of a model
    of any layout.

    Raises:
        UserError: nothing there, or no transformer in it.
    """
    source = _transformer_of(source)
    if not _is_run(source):
        return dict(open_checkpoint(source).load_transformer(torch.float32).state_dict())
    weights = load_file(_averages(source))
    adapters = config_of(source).lora
    return lora.merge_state(weights, adapters) if adapters.rank > 0 else weights


def _averages(run: str | Path) -> Path:
    path = state.latest(Path(run).expanduser()) / state.EMA_FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a run made by this version")
    return path


@torch.no_grad()
def finish_autoencoder(config: TrainConfig, run: Path, num_batches: int = 40) -> Path:
    """Measure the latent statistics of the averaged weights and write ``run/autoencoder.safetensors``.

    A frozen encoder that came from elsewhere keeps its statistics: its latents must not change. One process
    does it alone.

    Raises:
        UserError: the run has no checkpoint.
    """
    model = Autoencoder(config.model.autoencoder)
    weights = dict(model.state_dict()) | load_file(_averages(run))
    model.load_state_dict(weights, strict=True)
    if config.init and ENCODER in config.freeze:
        begun = load_autoencoder(config.init, config).encoder.bn
        model.set_latent_statistics(begun.running_mean, begun.running_var)
    else:
        model.set_latent_statistics(*_latent_statistics(model, config, num_batches))
    return save_weights(run / AUTOENCODER_FILE, model.state_dict())


def _latent_statistics(model: Autoencoder, config: TrainConfig, num_batches: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel (4z,) over the first batches of the training data."""
    loader = Loader(
        config.data, batch=config.batch, seed=config.seed, size=config.image_size, stage="autoencoder",
        multiple=config.model.autoencoder.downscale,
    )  # fmt: skip
    total, square, count = torch.zeros(1), torch.zeros(1), 0
    for step in range(num_batches):
        for batch in loader.load(step):
            assert batch.images is not None
            mu = model.encode_moments(batch.images).chunk(2, dim=1)[0]
            latents = torch.nn.functional.pixel_unshuffle(mu, config.model.autoencoder.PATCH).double()
            total = total + latents.sum(dim=(0, 2, 3))
            square = square + latents.square().sum(dim=(0, 2, 3))
            count += latents.shape[0] * latents.shape[2] * latents.shape[3]
    average = total / count
    return average.float(), (square / count - average**2).float()
