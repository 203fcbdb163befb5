"""Settings of a training run (ours where the paper is silent: optimizer, averaging, loss weights)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from modality_forcing.config.model import ModelConfig
from modality_forcing.errors import UserError

STAGES = ("autoencoder", "t2i", "forcing", "refiner")
"""What a run can train, in the order of a whole recipe."""


def _require(condition: bool, name: str, value: object, right: str) -> None:
    if not condition:
        raise UserError(f"{name} is {value!r}; {right}")


@dataclass(frozen=True)
class SensorConfig:
    """One kind of simulated depth sensor (``data.sensors``) and how often it is used."""

    kind: str = "random"
    weight: float = 1.0
    """How often it is drawn, relative to the other sensors of the list."""
    low: float = 0.002
    high: float = 0.05
    """Share of the pixels it measures, drawn log-uniformly per sample from [low, high]."""
    noise: float = 0.0
    """Strength of the sensor's own noise model: 0 none, 1 as documented for the kind."""
    max_range: float = 0.0
    """Metres of z-depth beyond which nothing is measured; 0: the kind's own reach (docs/sensors.md)."""

    def __post_init__(self) -> None:
        _require(self.weight >= 0, "sensor.weight", self.weight, "it may not be negative")
        _require(0 < self.low <= self.high <= 1, "sensor.low, sensor.high", (self.low, self.high),
                 "right is 0 < low <= high <= 1")  # fmt: skip
        _require(self.noise >= 0, "sensor.noise", self.noise, "it may not be negative")
        _require(self.max_range >= 0, "sensor.max_range", self.max_range, "it may not be negative")


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of a training sample, geometry and depth kept consistent (``data.augment``)."""

    mirror: float = 0.5
    """Probability of swapping left and right (words of the caption too)."""
    crop: float = 0.0
    """Probability of a random crop, resized back: at least half of each side, same aspect."""
    colour: float = 0.0
    """Strength 0..1 of brightness, contrast, saturation, hue, white-balance and gamma changes."""
    degrade: float = 0.0
    """Probability of blur, sensor noise or JPEG artefacts."""
    texture: float = 0.0
    """Probability of procedural patterns on the surfaces (needs the sample's object ids)."""
    light: float = 0.0
    """Probability of deep shadow and glare: parts of the picture and single objects black or burnt out."""

    def __post_init__(self) -> None:
        for name in ("mirror", "crop", "colour", "degrade", "texture", "light"):
            _require(0 <= getattr(self, name) <= 1, f"augment.{name}", getattr(self, name), "right is 0..1")


@dataclass(frozen=True)
class SourceConfig:
    """One folder of shards (``mf data make``, ``mf data convert``) in a mixture."""

    path: str = ""
    weight: float = 1.0
    """Share of the samples, relative to the other sources."""
    depth: str = "sensors"
    """"sensors": thin the depth by ``data.sensors``; "measured": every depth value of the shard;
    "none": images only."""

    def __post_init__(self) -> None:
        _require(self.depth in ("sensors", "measured", "none"), "source.depth", self.depth,
                 "known: sensors, measured, none")  # fmt: skip
        _require(self.weight > 0, "source.weight", self.weight, "it must be positive")

    @classmethod
    def from_text(cls, text: str) -> SourceConfig:
        """A folder by its path alone."""
        return cls(path=text)


@dataclass(frozen=True)
class DataConfig:
    """What a run learns from. A plain text in its place is one source with the defaults."""

    sources: tuple[SourceConfig, ...] = ()
    sensors: tuple[SensorConfig, ...] = (
        SensorConfig("random", 2.0), SensorConfig("lidar", 1.0), SensorConfig("keypoints", 1.0),
    )  # fmt: skip
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    buckets: tuple[str, ...] = ()
    """Sizes "WIDTHxHEIGHT" of an aspect-ratio mixture; samples go to the nearest. Empty: squares."""
    workers: int = 0
    """Processes that read ahead; 0: the training process reads."""
    cache: str = ""
    """Folder for latents and text embeddings of frozen encoders, kept between runs; "": none."""
    max_bad: int = 100
    """Unreadable samples after which a run stops."""

    def __post_init__(self) -> None:
        _require(self.workers >= 0, "data.workers", self.workers, "it may not be negative")

    @classmethod
    def from_text(cls, text: str) -> DataConfig:
        """One folder with the defaults."""
        return cls(sources=(SourceConfig(path=text),) if text else ())


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer, schedule and averaging of a training run (ours: the paper does not give them)."""

    optimizer: str = "muon"
    """"muon": Muon for the matrices inside the blocks, AdamW for the rest; "adamw": AdamW for all."""
    lr: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, ...] = (0.9, 0.95)
    warmup: int = 100
    """Steps of linear warm-up."""
    decay: float = 0.3
    """Share of the run, at its end, in which the learning rate falls linearly to zero."""
    clip: float = 1.0
    """Largest gradient norm."""
    ema: float = 0.999
    """Decay of the averaged weights; ramps up as (1 + step) / (10 + step)."""
    max_bad_steps: int = 10
    """Non-finite steps in a row after which a run stops."""

    def __post_init__(self) -> None:
        _require(self.optimizer in ("muon", "adamw"), "optim.optimizer", self.optimizer, "known: muon, adamw")
        _require(math.isfinite(self.lr) and self.lr > 0, "optim.lr", self.lr, "it must be positive")
        _require(0 <= self.ema < 1, "optim.ema", self.ema, "right is 0 <= ema < 1")
        _require(0 <= self.decay <= 1, "optim.decay", self.decay, "right is 0..1")
        _require(self.max_bad_steps >= 1, "optim.max_bad_steps", self.max_bad_steps, "it must be at least 1")


@dataclass(frozen=True)
class ForcingConfig:
    """The modality-forcing stage (spec section 2)."""

    p_i2d: float = 0.2
    p_d2i: float = 0.2
    text_dropout: float = 0.1
    i2d_text_dropout: float | None = None
    """``text_dropout`` of samples whose image is given (ours): depth of a picture is mostly asked for without
    words. None: the same."""
    rgb_weight: float = 1.0
    named_weight: float = 0.0
    """What each thing that the caption names counts more in the image loss, in tokens, spread over those that
    show it (ours; also in the stages t2i and autoencoder): beside walls and sky a small thing's colour is
    nothing. It needs object ids and claims in the shards; samples without them count as ever."""
    depth_weight: float = 1.0
    depth_average: str = "pixels"
    """What the depth loss is a mean over: all measured "pixels" of a batch, or its "samples", each the mean
    of its own (ours): of 64 samples four dense ones hold most of the pixels."""
    distill_high: float = 0.0
    distill_low: float = 0.0
    """Weights of self-distillation at t_depth = 1 and 0; both 0: off."""
    distill_every: int = 1
    """The teacher is asked at every n-th step only, and weighs n times as much there (ours: it costs a
    forward pass)."""
    teacher: str = ""
    """Folder of the model whose text-to-image part teaches. "": ``init``, which must then be a text-to-image
    model; a run that goes on from a model with depth names its teacher here."""
    reader: str = ""
    """Folder of a model with depth that reads it from the training pictures where depth is given (ours;
    ``training.reading``). "": nobody reads, and ``d2i_read`` and ``cycle_weight`` are 0."""
    d2i_read: float = 0.0
    """Probability that given depth is the whole map that the reader makes of the picture, not the
    measurements: what users give has no holes."""
    cycle_weight: float = 0.0
    """Weight of the difference between what the reader reads in the clean image as the model predicts it and
    in the real one, where depth is given."""
    cycle_below: float = 0.8
    """Highest noise level of an image that ``cycle_weight`` looks at: beyond it the prediction is a blur."""
    painted: float = 0.0
    """Probability that, where ``d2i_read`` gives depth, the noisy image is the model's own: painted from
    noise by the sampler as the model's defaults say, as far as a random step (``training.cycle``). Only the
    cycle counts of it, in pixels and with the reader's refiner."""
    painted_steps: int = 8
    """Steps of the whole schedule along which it paints."""
    keep_rgb: float = 0.0
    keep_depth: float = 0.0
    keep_painted: float = 0.0
    """Weights of how far the velocities of image and depth are off the reader's to the same question, of the
    data's noisy images and depth, and of painted images (ours): what was learned before is kept, while the
    cycle pulls."""
    judge: str = ""
    """Folder of a colour classifier of the procedural world (``recipes/lowpoly/colours.py``), which says
    whether the model's own pictures show what their captions name (ours; ``training.words``)."""
    worded: float = 0.0
    """Probability that of a sample with neither image nor depth given, whose caption gives things colours,
    both are the model's own, painted as far as a random step of ``painted_steps``."""
    word_weight: float = 0.0
    """Weight of how unlikely the ``judge`` finds what the caption names in them, and in painted pictures."""
    smooth_head: bool = False
    """Start a new depth head with smooth patches instead of zeros (ours; ``model.warm_start``)."""
    depth_density: str = "plateau"
    """Density of t_depth: "plateau", or "logit_normal" as of t_rgb (for comparison)."""
    d2i_density: str = "logit_normal"
    """Density of t_rgb where depth is given: "logit_normal", or "plateau" (ours): depth says most about
    an image of which little else is known."""
    i2d_pure: float = 0.0
    """Probability that depth starts as pure noise (t_depth = 1) where the image is given (ours): all that a
    prediction in one step ever sees. The rest is drawn as ever."""
    i2d_relative: float = 0.0
    """Weight, in units of ``depth_weight``, of the error relative to the depth where the image is given
    (``training.relative``, ours), in place of the square. 0: the square."""
    shared_level: bool = False
    """One noise level for both modalities, drawn as t_depth is; no task gives a modality clean (for
    comparison: earlier joint models)."""
    fill: str = "noise"
    """What stands where depth was not measured: "noise", or "zero" at every level (for comparison)."""
    d2i_fill: str = "noise"
    """The same where depth is given (level 0): "noise", or "nearest", the nearest measurement (ours: maps
    that users give have no holes). At other levels the neighbours would give away what is to be predicted."""
    depth_coding: str = "pixels"
    """What depth tokens are: "pixels", or "latent": the autoencoder's code of depth as a grey image, holes
    filled from the nearest measurement (for comparison; ``codecs.depth_latent``)."""

    def __post_init__(self) -> None:
        for name in (
            "p_i2d", "p_d2i", "text_dropout", "i2d_pure", "d2i_read", "cycle_below", "painted", "worded",
        ):  # fmt: skip
            _require(0 <= getattr(self, name) <= 1, f"forcing.{name}", getattr(self, name), "right is 0..1")
        _require(0 <= (self.i2d_text_dropout or 0) <= 1, "forcing.i2d_text_dropout", self.i2d_text_dropout,
                 "right is 0..1, or null")  # fmt: skip
        _require(self.i2d_relative >= 0, "forcing.i2d_relative", self.i2d_relative, "it may not be negative")
        _require(self.named_weight >= 0, "forcing.named_weight", self.named_weight, "it may not be negative")
        _require(self.cycle_weight >= 0, "forcing.cycle_weight", self.cycle_weight, "it may not be negative")
        _require(bool(self.reader) or not (self.d2i_read or self.cycle_weight), "forcing.reader", self.reader,
                 "forcing.d2i_read and forcing.cycle_weight need the folder of a model")  # fmt: skip
        for name in ("keep_rgb", "keep_depth", "keep_painted"):
            value = getattr(self, name)
            _require(value >= 0, f"forcing.{name}", value, "it may not be negative")
            _require(bool(self.reader) or not value, f"forcing.{name}", value, "it needs forcing.reader")
        _require(bool(self.painted) or not self.keep_painted, "forcing.keep_painted", self.keep_painted,
                 "it needs forcing.painted above 0")  # fmt: skip
        _require(not self.painted or min(self.cycle_weight, self.d2i_read) > 0,
                 "forcing.painted", self.painted,
                 "it needs forcing.d2i_read and forcing.cycle_weight above 0")  # fmt: skip
        _require(self.word_weight >= 0, "forcing.word_weight", self.word_weight, "it may not be negative")
        _require(bool(self.judge and (self.worded or self.painted)) or not self.word_weight,
                 "forcing.word_weight", self.word_weight,
                 "it needs forcing.judge, and forcing.worded or forcing.painted above 0")  # fmt: skip
        for name in ("judge", "worded"):
            value = getattr(self, name)
            _require(bool(self.word_weight) or not value, f"forcing.{name}", value,
                     "it needs forcing.word_weight above 0")  # fmt: skip
        _require(self.painted_steps >= 2, "forcing.painted_steps", self.painted_steps, "right is 2 or more")
        _require(self.distill_every >= 1, "forcing.distill_every", self.distill_every, "right is 1 or more")
        _require(self.p_i2d + self.p_d2i <= 1, "forcing.p_i2d + forcing.p_d2i", self.p_i2d + self.p_d2i,
                 "together they may be 1 at most")  # fmt: skip
        for name, known in (
            ("depth_density", ("plateau", "logit_normal")),
            ("d2i_density", ("plateau", "logit_normal")),
            ("depth_average", ("pixels", "samples")),
            ("fill", ("noise", "zero")),
            ("d2i_fill", ("noise", "nearest")),
            ("depth_coding", ("pixels", "latent")),
        ):
            _require(getattr(self, name) in known, f"forcing.{name}", getattr(self, name),
                     f"known: {', '.join(known)}")  # fmt: skip
        if self.shared_level:
            _require(self.p_i2d + self.p_d2i == 0, "forcing.p_i2d + forcing.p_d2i", self.p_i2d + self.p_d2i,
                     "with forcing.shared_level no modality is clean: both must be 0")  # fmt: skip
        if self.depth_coding == "latent":
            _require(self.i2d_relative == 0, "forcing.i2d_relative", self.i2d_relative,
                     "it needs depth in pixels: right is 0 with forcing.depth_coding=latent")  # fmt: skip
            _require(not self.reader, "forcing.reader", self.reader,
                     "it reads depth in pixels: right is \"\" with forcing.depth_coding=latent")  # fmt: skip
            _require(not self.smooth_head, "forcing.smooth_head", self.smooth_head,
                     "it shapes pixels, which forcing.depth_coding=latent does not predict")  # fmt: skip
            _require(self.fill == "noise", "forcing.fill", self.fill,
                     "forcing.depth_coding=latent leaves nothing to fill")  # fmt: skip


@dataclass(frozen=True)
class RefineConfig:
    """The stage that trains ``model.refiner`` beside a finished transformer (ours)."""

    start: str = ""
    """Run or model folder whose refiner to start from, as wide as ``model.refiner`` and no deeper; "": one
    that changes nothing."""
    wordless: float = 0.5
    """Probability that the transformer estimates depth without the caption."""
    decoded: float = 0.3
    """Probability that the refiner sees the image as the autoencoder returns it: generated ones come so."""
    unclean: float = 0.3
    noisiest: float = 0.7
    """Probability that the transformer sees a noisy image, as it does while both are sampled, and the highest
    level of that noise."""

    def __post_init__(self) -> None:
        for name in ("wordless", "decoded", "unclean", "noisiest"):
            _require(0 <= getattr(self, name) <= 1, f"refine.{name}", getattr(self, name), "right is 0..1")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters instead of full training (through peft); rank 0: off."""

    rank: int = 0
    alpha: float = 0.0
    """Scale of the adapters; 0: equal to the rank."""
    dropout: float = 0.0
    targets: tuple[str, ...] = ("qkv", "proj", "linear1", "linear2", "mlp", "modulation_depth")
    """Parts of the names of the linear layers that get adapters."""

    def __post_init__(self) -> None:
        _require(self.rank >= 0, "lora.rank", self.rank, "it may not be negative")


@dataclass(frozen=True)
class ParallelConfig:
    """How a run is spread over processes (torchrun) and saves memory."""

    shard: int = 0
    """Processes that share one copy of the weights (FSDP2); 0: all; 1: plain data parallelism."""
    replicate: int = 1
    """Copies of the sharded weights (HSDP); replicate x shard is the number of processes."""
    accumulate: int = 1
    """Micro-batches per step on each process."""
    checkpointing: bool = False
    """Recompute each block's activations in the backward pass."""
    compile: bool = False
    """torch.compile each block."""

    def __post_init__(self) -> None:
        for name, least in (("shard", 0), ("replicate", 1), ("accumulate", 1)):
            _require(getattr(self, name) >= least, f"parallel.{name}", getattr(self, name),
                     f"it must be at least {least}")  # fmt: skip


@dataclass(frozen=True)
class CheckpointConfig:
    """When the training state is written and what is kept."""

    every: int = 200
    """Steps between checkpoints."""
    keep: int = 2
    """The newest ones that are kept."""
    keep_every: int = 0
    """Checkpoints of every such step are kept for good; 0: none."""
    background: bool = False
    """Write while training goes on (DCP's asynchronous save)."""

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("keep", 1), ("keep_every", 0)):
            _require(getattr(self, name) >= least, f"checkpoint.{name}", getattr(self, name),
                     f"it must be at least {least}")  # fmt: skip


@dataclass(frozen=True)
class LogConfig:
    """What a run shows while it goes on; ``log.jsonl`` is always written."""

    every: int = 10
    """Steps between rows."""
    tensorboard: bool = False
    wandb: bool = False
    """Also to TensorBoard or Weights & Biases (their packages are needed)."""
    sample_every: int = 0
    """Steps between sample grids; 0: none."""
    prompts: tuple[str, ...] = ()
    """Prompts of the sample grid; empty: captions of the validation data."""
    sample_steps: int = 0
    """Euler steps of samples and validation; 0: the model's own number."""
    validate_every: int = 0
    """Steps between validations (AbsRel, delta 1); 0: none."""
    validation: str = ""
    """Folder of shards to validate on."""
    validation_count: int = 32

    def __post_init__(self) -> None:
        for name, least in (
            ("every", 1),
            ("sample_every", 0),
            ("sample_steps", 0),
            ("validate_every", 0),
            ("validation_count", 1),
        ):
            _require(getattr(self, name) >= least, f"log.{name}", getattr(self, name),
                     f"it must be at least {least}")  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """One training run of one stage."""

    stage: str = "forcing"
    """"autoencoder", "t2i", "forcing" or "refiner"."""
    steps: int = 1000
    batch: int = 32
    """Samples per step over all processes and micro-batches."""
    seed: int = 0
    image_size: int = 128
    data: DataConfig = field(default_factory=DataConfig)
    autoencoder: str = ""
    """Run or model folder the autoencoder comes from (all stages but its own)."""
    init: str = ""
    """Run, model folder or checkpoint to warm-start the transformer from (stage forcing: the T2I run); stage
    refiner: the finished transformer, which stays as it is; stage autoencoder: the one to go on from."""
    freeze: tuple[str, ...] = ()
    """Weights that do not train: the starts of their names, "rgb_double_blocks" for the image's and the
    text's part of the double blocks (FLUX.2 post-training), or "trunk" for all but depth's own last blocks
    and head, so that images stay what they are. Stage autoencoder: with "encoder" the latents
    stay what they are, statistics included, and models that know them go on with the new decoder."""
    precision: str = "bf16"
    """"bf16": bf16 in the body, float32 weights; "fp32"."""
    text_device: str = ""
    """Where the frozen text encoder runs, for example "cpu" when the accelerator has no room for it beside
    the training state (``data.cache`` keeps its answers); "": with the model."""
    threads: int = 0
    """CPU threads; 0: all."""
    remember: bool = False
    """Keep the frozen encoders' outputs in memory, rounded to float16 from their first use on."""
    crop: int = 0
    """Autoencoder stage: side of one random crop per image; 0: whole images."""
    latent_noise: float = 0.1
    """Autoencoder stage: standard deviation of the noise on the code, so that close codes look alike."""
    latent_penalty: float = 1e-3
    """Autoencoder stage: weight of the mean square of the code, which sets its scale against that noise."""
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    forcing: ForcingConfig = field(default_factory=ForcingConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        _require(self.stage in STAGES, "stage", self.stage, f"known: {', '.join(STAGES)}")
        _require(self.precision in ("bf16", "fp32"), "precision", self.precision, "known: bf16, fp32")
        _require(re.fullmatch(r"(cpu|mps|cuda(:\d{1,3})?)?", self.text_device) is not None, "text_device",
                 self.text_device, "right is cpu, cuda, cuda:N, mps, or empty")  # fmt: skip
        for name in ("steps", "batch", "image_size"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "it must be at least 1")
        _require(self.batch % self.parallel.accumulate == 0, "batch", self.batch,
                 f"it must be a multiple of parallel.accumulate={self.parallel.accumulate}")  # fmt: skip
