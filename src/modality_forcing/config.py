"""Every configuration dataclass. Imports nothing of the project's; importing it does not import torch.

A configuration is made as preset <- file <- ``key=value`` overrides; an unknown key or a value of the
wrong kind is an error that names it.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from modality_forcing.errors import UserError

C = TypeVar("C")


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of the three-stream transformer (spec section 5); ``depth_channels=None`` is the T2I backbone."""

    latent_channels: int = 128
    """Channels of one image token."""
    depth_channels: int | None = 256
    """Channels of one depth token (patch size squared); None: no depth stream."""
    text_width: int = 12288
    """Width of one text token as the encoder gives it."""
    hidden: int = 4096
    num_heads: int = 32
    num_double_blocks: int = 8
    num_single_blocks: int = 24
    num_depth_blocks: int = 4
    """Depth-only single-stream blocks after the shared ones."""
    rope_axes: tuple[int, ...] = (32, 32, 32, 32)
    """Rotated channels per position axis (t, row, col, l); their sum is the head size."""
    rope_theta: int = 2000
    mlp_ratio: float = 3.0
    guidance_embedding: bool = False
    cross_stream_mixing: bool = True
    """Variant v2: each stream's modulation also hears the other stream's noise level."""

    def __post_init__(self) -> None:
        if self.hidden % self.num_heads:
            raise UserError(f"hidden={self.hidden} is not a multiple of num_heads={self.num_heads}")
        if sum(self.rope_axes) != self.hidden // self.num_heads:
            raise UserError(
                f"rope_axes={self.rope_axes} sum to {sum(self.rope_axes)}; "
                f"they must sum to the head size {self.hidden // self.num_heads}"
            )

    @property
    def patch_size(self) -> int:
        """Side of the square of pixels that one depth token covers."""
        if self.depth_channels is None:
            return 16
        return round(self.depth_channels**0.5)

    def backbone(self) -> TransformerConfig:
        """The text-to-image backbone: the same transformer without the depth stream."""
        return dataclasses.replace(self, depth_channels=None, num_depth_blocks=0, cross_stream_mixing=False)


@dataclass(frozen=True)
class FlowConfig:
    """Noise-level densities and the time shift (spec section 2); one set for training and sampling."""

    shift_mu: float = 1.1
    shift_sigma: float = 1.0
    t_min: float = 0.05
    """Clamp on the divisor of an x-prediction in the *training* loss."""
    rgb_prediction: str = "velocity"
    """"velocity" or "x0": what the image head predicts."""
    depth_prediction: str = "x0"

    def __post_init__(self) -> None:
        for name in ("rgb_prediction", "depth_prediction"):
            if getattr(self, name) not in ("velocity", "x0"):
                raise UserError(f"flow.{name} is {getattr(self, name)!r}; known: velocity, x0")


@dataclass(frozen=True)
class SamplerConfig:
    """Defaults of a run: they stand here once, for the command line, Python, the server and the docs."""

    steps: int = 50
    guidance: float = 4.0
    """Classifier-free guidance in joint and depth-to-image."""
    guidance_i2d: float = 1.0
    log2_alpha: float | None = 5.0
    """Tilt of the joint path: > 0 image first, 0 diagonal, < 0 depth first."""
    refine_depth: bool = False
    """A second image-to-depth pass on the generated image."""
    width: int = 512
    height: int = 512


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the autoencoder; the defaults are FLUX.2's.

    Attributes:
        in_channels: channels of the image.
        channels: width at full resolution.
        channel_multipliers: width of each resolution over ``channels``; each after the first halves H, W.
        num_res_blocks: residual blocks per resolution in the encoder; the decoder has one more.
        z_channels: channels of the code before the 2x2 unshuffle.
        norm_groups: groups of every GroupNorm; must divide every width (32 in FLUX.2; fewer if narrow).
    """

    PATCH: ClassVar[int] = 2

    in_channels: int = 3
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 32
    norm_groups: int = 32

    def __post_init__(self) -> None:
        # A list from a JSON file is as good as a tuple, but only a tuple can be compared and hashed.
        object.__setattr__(self, "channel_multipliers", tuple(self.channel_multipliers))
        for name in ("in_channels", "channels", "num_res_blocks", "z_channels", "norm_groups"):
            if getattr(self, name) < 1:
                raise UserError(f"autoencoder.{name} is {getattr(self, name)}; it must be at least 1")
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise UserError("autoencoder.channel_multipliers needs at least one number, each at least 1")
        for width in self.widths:
            if width % self.norm_groups:
                raise UserError(
                    f"autoencoder width {width} is no multiple of norm_groups {self.norm_groups}; "
                    "lower norm_groups or change channels"
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each resolution, finest first."""
        return tuple(self.channels * m for m in self.channel_multipliers)

    @property
    def latent_channels(self) -> int:
        """Channels of the model latents: 4 * z_channels (128)."""
        return self.z_channels * self.PATCH**2

    @property
    def downscale(self) -> int:
        """Image pixels per latent pixel along each side (16)."""
        return self.PATCH * 2 ** (len(self.channel_multipliers) - 1)


@dataclass(frozen=True)
class TextConfig:
    """Which text encoder a model was trained with."""

    encoder: str = "qwen3-8b"
    """"qwen3-4b", "qwen3-8b" or "minilm"."""
    source: str | None = None
    """Folder or Hub id of the encoder's weights; None: the encoder's usual one."""
    max_tokens: int = 512


@dataclass(frozen=True)
class DepthConfig:
    """How the depth codec treats what lies at infinity (spec section 3, and ours)."""

    sky: str = "missing"
    """"missing": +inf is an invalid pixel, as in the release; "far": +inf is the contraction's
    limit 2, so the model can learn where the sky is (ours)."""
    far_threshold: float = 1.93
    """With sky="far": contracted values above this decode as "at infinity" (1.93: 14 times the mean)."""

    def __post_init__(self) -> None:
        if self.sky not in ("missing", "far"):
            raise UserError(f"depth.sky is {self.sky!r}; known: missing, far")


@dataclass(frozen=True)
class ModelConfig:
    """Everything that ``config.json`` of our own layout says about a model."""

    name: str = "unnamed"
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    text: TextConfig = field(default_factory=TextConfig)
    depth: DepthConfig = field(default_factory=DepthConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    licence: str = ""
    note: str = ""


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


@dataclass(frozen=True)
class ForcingConfig:
    """The modality-forcing stage (spec section 2)."""

    p_i2d: float = 0.2
    p_d2i: float = 0.2
    text_dropout: float = 0.1
    rgb_weight: float = 1.0
    depth_weight: float = 1.0
    sparse_kinds: tuple[str, ...] = ("random", "lidar", "keypoints")
    """What kind of sparse measurements the depth comes from, drawn per sample (a name given twice comes
    twice as often); see ``data.sensors``."""
    distill_high: float = 0.0
    distill_low: float = 0.0
    """Weights of self-distillation at t_depth = 1 and 0; both 0: off."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run of one stage."""

    stage: str = "forcing"
    """"autoencoder", "t2i" or "forcing"."""
    steps: int = 1000
    batch: int = 32
    seed: int = 0
    image_size: int = 128
    data: str = ""
    """Folder of a rendered cache (``mf data make``)."""
    autoencoder: str = ""
    """Run or model folder the autoencoder comes from (stages t2i, forcing)."""
    init: str = ""
    """Run or model folder to warm-start the transformer from (stage forcing: the T2I run)."""
    precision: str = "bf16"
    """"bf16": autocast over float32 weights; "fp32"."""
    threads: int = 0
    """CPU threads; 0: all."""
    remember: bool = False
    """Keep the frozen encoders' outputs in memory (float16) after their first use. A resumed run then follows
    the uninterrupted one up to rounding instead of to the bit."""
    log_every: int = 10
    save_every: int = 200
    keep: int = 2
    """Checkpoints to keep."""
    crop: int = 0
    """Autoencoder stage: side of one random crop per image; 0: whole images."""
    latent_noise: float = 0.1
    """Autoencoder stage: standard deviation of the noise on the code, so that close codes look alike."""
    latent_penalty: float = 1e-3
    """Autoencoder stage: weight of the mean square of the code, which sets its scale against that noise."""
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    forcing: ForcingConfig = field(default_factory=ForcingConfig)

    def __post_init__(self) -> None:
        if self.stage not in ("autoencoder", "t2i", "forcing"):
            raise UserError(f"stage is {self.stage!r}; known: autoencoder, t2i, forcing")
        if self.precision not in ("bf16", "fp32"):
            raise UserError(f"precision is {self.precision!r}; known: bf16, fp32")
        for name in ("steps", "batch", "image_size", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values of a (nested) configuration, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(cls: type[C], values: dict[str, Any], where: str = "config") -> C:
    """Build ``cls`` from plain values, strictly.

    Raises:
        UserError: an unknown key, or a value of the wrong kind; the message names ``where.key``.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where} is {values!r}; a table of keys and values is needed")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise UserError(f"unknown key {where}.{key}; known: {', '.join(sorted(known))}")
    kwargs = {key: _coerce(hints[key], value, f"{where}.{key}") for key, value in values.items()}
    return cls(**kwargs)


def override(config: C, assignments: list[str]) -> C:
    """Apply ``key=value`` texts (dots reach into nested tables) to a configuration.

    Raises:
        UserError: no "=", an unknown key, or a value that does not fit.
    """
    values = to_dict(config)
    for text in assignments:
        key, equals, raw = text.partition("=")
        if not equals:
            raise UserError(f"{text!r} is not of the form key=value")
        table = values
        *parents, last = key.split(".")
        for parent in parents:
            if not isinstance(table.get(parent), dict):
                raise UserError(f"unknown key {key}; there is no table {parent!r}")
            table = table[parent]
        if last not in table:
            raise UserError(f"unknown key {key}; known here: {', '.join(sorted(table))}")
        table[last] = raw
    return from_dict(type(config), values, "config")


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the annotated type ``hint``; texts (from the command line) are parsed."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            if type(None) in args:
                return None
            raise UserError(f"{where} may not be none")
        return _coerce(next(a for a in args if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        if isinstance(value, str):
            value = [part for part in value.strip("()[] ").split(",") if part.strip()]
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}={value!r} is not a list")
        return tuple(_coerce(args[0], part, where) for part in value)
    if origin is dict or hint is dict:
        return dict(value)
    try:
        if hint is bool:
            if isinstance(value, bool):
                return value
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                str(value).lower()
            ]
        if hint in (int, float) and isinstance(value, bool):
            raise TypeError
        if hint is int:
            if isinstance(value, float) and value != int(value):
                raise ValueError
            return int(value)
        if hint is float:
            return float(value)
        if hint is str:
            if not isinstance(value, str):
                raise TypeError
            return value
    except (ValueError, KeyError, TypeError, OverflowError):
        raise UserError(f"{where}={value!r} is not a valid {hint.__name__}") from None
    return value
