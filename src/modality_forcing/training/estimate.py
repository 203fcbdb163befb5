"""What a run will take, before it starts: weights, operations and memory (derived in docs/models.md).

Nothing is allocated: modules are built on the meta device. The text encoder is not counted; memory is that of
an accelerator with precision=bf16, without what its runtime takes for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from modality_forcing.config import TrainConfig
from modality_forcing.errors import UserError
from modality_forcing.model.adapted import choose_trainable
from modality_forcing.model.autoencoder import Autoencoder
from modality_forcing.model.build import build_transformer
from modality_forcing.model.flops import Flops, Tokens, forward_flops, of_depth, training_flops
from modality_forcing.model.refiner import DepthRefiner
from modality_forcing.model.warm_start import freeze
from modality_forcing.training.data import WITH_DEPTH
from modality_forcing.training.optim import is_block_matrix
from modality_forcing.training.refining import RefinerStage

ACTIVATION_BYTES = 68
"""Bytes that one block keeps for the backward pass per token and hidden channel, in bf16 without compilation
(measured over both families with the fused attention of accelerators: 63 to 70; tests/unit/test_estimate.py).
In bf16 on a CPU the scores are kept, too."""
EDGE_BYTES = 16
"""The same for everything outside the blocks (measured: 8 to 16)."""
GIB = 2**30


@dataclass(frozen=True)
class Count:
    """Weights of one part, in numbers."""

    part: str
    total: int
    trainable: int

    @property
    def frozen(self) -> int:
        """Those that do not train."""
        return self.total - self.trainable


@dataclass(frozen=True)
class Memory:
    """Bytes on one process.

    Attributes:
        weights: float32 where they train, else bfloat16; this process's share.
        gradients, optimizer, averages: of what trains, float32; this process's share.
        copies: bfloat16 copies that the computation works on.
        activations: kept for the backward pass of one micro-batch.
        teacher: a frozen transformer beside what trains: the text-to-image model of self-distillation (where
            it needs a second copy), the one that reads depth, or the one whose depth is refined.
        encoders: the frozen autoencoder.
    """

    weights: float
    gradients: float
    optimizer: float
    averages: float
    copies: float
    activations: float
    teacher: float
    encoders: float

    @property
    def total(self) -> float:
        """Sum of all."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Estimate:
    """What :func:`estimate` found. ``flops`` and ``encoder_flops`` are for one sample; ``per_process`` is the
    number of samples of one micro-batch on one process."""

    counts: tuple[Count, ...]
    adapters: int
    tokens: Tokens
    batch: int
    per_process: int
    flops: Flops
    teacher_flops: float
    encoder_flops: float
    memory: Memory

    @property
    def total(self) -> Count:
        """All parts together, adapters included."""
        parts = (*self.counts, Count("adapters", self.adapters, self.adapters))
        return Count("all", sum(c.total for c in parts), sum(c.trainable for c in parts))

    @property
    def step_flops(self) -> float:
        """Model operations of one step over all processes: the numerator of MFU."""
        return self.batch * (self.flops.model + self.teacher_flops)

    def rows(self) -> list[tuple[str, str]]:
        """Lines of a table: what, and how much."""
        lines = [("parameters", _count(self.total))]
        lines += [(f"  {part.part}", _count(part)) for part in self.counts]
        if self.adapters:
            lines.append(("  adapters", _count(Count("", self.adapters, self.adapters))))
        t = self.tokens
        lines.append(
            ("tokens per sample", f"{t.all:,} (text {t.text:,}, image {t.image:,}, depth {t.depth:,})")
        )
        lines.append(("tokens per step", f"{self.batch * t.all:,} ({self.batch:,} samples)"))
        lines.append(("operations per token", f"{self.flops.model / max(1, t.all) / 1e9:,.3f} GFLOP"))
        lines.append(("operations per step", f"{self.step_flops / 1e12:,.2f} TFLOP"))
        if self.flops.recomputed:
            more = self.batch * self.flops.recomputed
            lines.append(("  recomputed on top", f"{more / 1e12:,.2f} TFLOP"))
        if self.encoder_flops:
            lines.append(("  encoding images on top", f"{self.batch * self.encoder_flops / 1e12:,.2f} TFLOP"))
        lines.append(("memory per process", f"{self.memory.total / GIB:,.2f} GiB"))
        lines += [
            (f"  {name}", f"{value / GIB:,.2f} GiB") for name, value in vars(self.memory).items() if value
        ]
        return lines


def _count(count: Count) -> str:
    return f"{count.total:,} (trainable {count.trainable:,}, frozen {count.frozen:,})"


def sample_tokens(config: TrainConfig) -> Tokens:
    """Tokens of one sample; of the largest bucket where there are several.

    Raises:
        UserError: a bucket that is no WIDTHxHEIGHT.
    """
    sizes = [(config.image_size, config.image_size)]
    if config.data.buckets:
        try:
            sizes = [(int(w), int(h)) for w, h in (text.lower().split("x") for text in config.data.buckets)]
        except ValueError:
            raise UserError(f"data.buckets is {config.data.buckets}; right is WIDTHxHEIGHT each") from None
    side = config.model.autoencoder.downscale
    image = max((w // side) * (h // side) for w, h in sizes)
    return Tokens(config.model.text.max_tokens, image, image if config.stage in WITH_DEPTH else 0)


def estimate(config: TrainConfig, world: int = 1) -> Estimate:
    """Sizes, operations and memory of a run on ``world`` processes.

    Raises:
        UserError: a freeze list or LoRA targets that name nothing, or a wrong bucket.
    """
    parallel = config.parallel
    share = world // parallel.replicate if parallel.shard == 0 else parallel.shard
    share = max(1, share)
    per_process = max(1, config.batch // (world * parallel.accumulate))
    with torch.device("meta"):
        autoencoder = Autoencoder(config.model.autoencoder)
    if config.stage == "autoencoder":
        return _autoencoder(config, autoencoder, share, per_process)
    if config.stage == "refiner":
        return _refiner(config, autoencoder, share, per_process)
    sizes = config.model.transformer
    sizes = sizes if config.stage == "forcing" else sizes.backbone()
    with torch.device("meta"):
        model = build_transformer(sizes)
    layers = choose_trainable(model, config.freeze, config.lora)
    rank = config.lora.rank
    tokens = sample_tokens(config)
    adapters = sum(
        rank * (layer.in_features + layer.out_features)
        for name, layer in model.named_modules()
        if name in set(layers) and isinstance(layer, nn.Linear)
    )
    flops = training_flops(
        model, sizes, tokens, adapted=set(layers), rank=rank, checkpointing=parallel.checkpointing
    )
    distills = config.stage == "forcing" and max(config.forcing.distill_high, config.forcing.distill_low) > 0
    backbone = Tokens(tokens.text, tokens.image)
    teacher_flops = forward_flops(model, sizes, backbone) / config.forcing.distill_every if distills else 0.0
    half = config.precision == "bf16"
    frozen_bytes = 2 if half else 4
    teacher = 0
    if distills and any(p.requires_grad and not of_depth(name) for name, p in model.named_parameters()):
        # Where only the depth stream or adapters train, the student is its own teacher; else there are two.
        with torch.device("meta"):
            teacher = frozen_bytes * _numbers(build_transformer(sizes.backbone()))
    if config.stage == "forcing" and config.forcing.reader:
        # The real picture is read once; the predicted one too, and its gradient costs as much again.
        times: float = 3 if config.forcing.cycle_weight else 1
        if config.forcing.painted:
            # Half the sampler's steps on average, each with its guidance.
            pulls = (config.model.sampler.guidance_of("d2i"), config.model.sampler.guidance_depth)
            passes = 1 + sum(pull != 1 for pull in pulls)
            painted = config.forcing.painted * config.forcing.d2i_read
            times += painted * passes * config.forcing.painted_steps / 2
        keeps = max(config.forcing.keep_rgb, config.forcing.keep_depth, config.forcing.keep_painted) > 0
        teacher_flops += (times * config.forcing.p_d2i + keeps) * forward_flops(model, sizes, tokens)
        teacher += frozen_bytes * _numbers(model)
    if config.stage == "forcing" and config.forcing.worded:
        # At most: captions without colours are left as they are.
        passes = 1 + (config.model.sampler.guidance != 1)
        worded = config.forcing.worded * (1 - config.forcing.p_i2d - config.forcing.p_d2i)
        times = worded * passes * config.forcing.painted_steps / 2
        teacher_flops += times * forward_flops(model, sizes, tokens)
    blocks = model.wrap_units()
    per_unit = tokens.all * sizes.hidden * per_process
    kept = ACTIVATION_BYTES * len(blocks)
    if parallel.checkpointing:
        # Of every block its input, the vectors of the modulation once, and one block while it is recomputed.
        kept = 2 * len(blocks) + 6 + ACTIVATION_BYTES
    total, trained = _numbers(model), _numbers(model, trainable=True)
    # Whole weights are cast where they train; sharded ones are gathered block by block, one ahead of its use.
    working = trained + adapters if share == 1 else 2 * max(_numbers(block) for block in blocks)
    memory = Memory(
        weights=(4 * (trained + adapters) + frozen_bytes * (total - trained)) / share,
        gradients=4 * (trained + adapters) / share,
        optimizer=_optimizer_bytes(model, config, adapters) / share,
        averages=4 * (trained + adapters) / share,
        copies=2 * working if half else (4 * working if share > 1 else 0),
        activations=(kept + EDGE_BYTES) * per_unit * (1 if half else 2),
        teacher=teacher / share,
        encoders=4 * _numbers(autoencoder.encoder),
    )
    return Estimate(
        counts=tuple(_parts(model)),
        adapters=adapters,
        tokens=tokens,
        batch=config.batch,
        per_process=per_process,
        flops=flops,
        teacher_flops=teacher_flops,
        encoder_flops=_encoder_flops(autoencoder, tokens.image * config.model.autoencoder.downscale**2),
        memory=memory,
    )


def _autoencoder(config: TrainConfig, model: Autoencoder, share: int, per_process: int) -> Estimate:
    """The stage that trains the autoencoder; its activations are counted as they run, on the meta device."""
    side = config.crop or config.image_size
    freeze(model, config.freeze)

    def forward() -> None:
        code = model.encode_moments(torch.empty(1, config.model.autoencoder.in_channels, side, side))
        model.decoder(code.chunk(2, dim=1)[0])

    operations, memory = _convolutions(config, model, forward, share, per_process)
    # What is frozen as a whole and comes first has no backward pass.
    passed = 0.0 if _numbers(model.encoder, trainable=True) else _encoder_flops(model, side**2)
    side_tokens = (side // config.model.autoencoder.downscale) ** 2
    return Estimate(
        counts=tuple(_parts(model)),
        adapters=0,
        tokens=Tokens(0, side_tokens),
        batch=config.batch,
        per_process=per_process,
        flops=Flops(operations, 2 * (operations - passed)),
        teacher_flops=0.0,
        encoder_flops=0.0,
        memory=memory,
    )


def _refiner(config: TrainConfig, autoencoder: Autoencoder, share: int, per_process: int) -> Estimate:
    """The stage that trains the refiner; image and estimated depth of a sample serve several steps."""
    if config.model.refiner is None:
        raise UserError("stage refiner needs the sizes model.refiner")
    with torch.device("meta"):
        model = DepthRefiner(config.model.refiner)
        transformer = build_transformer(config.model.transformer)
    freeze(model, config.freeze)
    tokens = sample_tokens(config)
    pixels = tokens.image * config.model.autoencoder.downscale**2
    # As one strip of the same area: convolutions count pixels.
    height = config.model.autoencoder.downscale
    sides = (height, pixels // height)

    def forward() -> None:
        model(torch.empty(1, 1, *sides), torch.empty(1, 3, *sides))

    operations, memory = _convolutions(config, model, forward, share, per_process)
    half = config.precision == "bf16"
    memory = replace(
        memory,
        teacher=(2 if half else 4) * _numbers(transformer) / share,
        encoders=4 * _numbers(autoencoder),
    )
    return Estimate(
        counts=tuple(_parts(model)),
        adapters=0,
        tokens=tokens,
        batch=config.batch,
        per_process=per_process,
        flops=Flops(operations, 2 * operations),
        teacher_flops=forward_flops(transformer, config.model.transformer, tokens) / RefinerStage.passes,
        encoder_flops=_encoder_flops(autoencoder, pixels) / RefinerStage.passes,
        memory=memory,
    )


def _convolutions(
    config: TrainConfig, model: nn.Module, forward: Callable[[], None], share: int, per_process: int
) -> tuple[float, Memory]:
    """Operations of ``forward``, one sample through ``model`` on the meta device, and the memory of training
    it; activations are counted as they run."""
    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        if not isinstance(tensor, nn.Parameter):  # convolutions keep their weights too
            kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            forward()
        operations = float(counter.get_total_flops())
    trained = _numbers(model, trainable=True)
    memory = Memory(
        weights=4 * _numbers(model) / share,
        gradients=4 * trained / share,
        optimizer=_optimizer_bytes(model, config, 0) / share,
        averages=4 * trained / share,
        copies=0,
        activations=float(kept) * per_process,
        teacher=0,
        encoders=0,
    )
    return operations, memory


def _encoder_flops(autoencoder: Autoencoder, pixels: int) -> float:
    """Operations of encoding one image of so many pixels (as a square)."""
    step = autoencoder.config.downscale
    side = max(step, round(pixels**0.5 / step) * step)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        autoencoder.encode_moments(torch.empty(1, autoencoder.config.in_channels, side, side))
    return float(counter.get_total_flops())


def _numbers(module: nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def _parts(model: nn.Module) -> list[Count]:
    """Weights by the first part of their name, in order."""
    totals: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        entry = totals.setdefault(name.split(".")[0], [0, 0])
        entry[0] += parameter.numel()
        entry[1] += parameter.numel() if parameter.requires_grad else 0
    return [Count(name, total, trainable) for name, (total, trainable) in totals.items()]


def _optimizer_bytes(model: nn.Module, config: TrainConfig, adapters: int) -> int:
    """AdamW keeps two float32 numbers per weight, Muon one."""
    muon = config.optim.optimizer == "muon"
    low = adapters * (4 if muon else 8)
    return low + sum(
        p.numel() * (4 if muon and (is_block_matrix(name, p) or p.dim() == 4) else 8)
        for name, p in model.named_parameters()
        if p.requires_grad
    )
