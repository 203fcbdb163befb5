"""Settings of a model and of sampling from it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar

from modality_forcing.errors import UserError


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a transformer (spec sections 5 and 8); ``depth_channels=None`` is the T2I backbone."""

    family: str = "flux2"
    """"flux2": double blocks, then single blocks, as FLUX.2; "flat": one token stream throughout
    (``num_double_blocks`` is 0 and ``num_single_blocks`` counts its blocks)."""
    latent_channels: int = 128
    """Channels of one image token."""
    depth_channels: int | None = 256
    """Channels of one depth token (patch size squared); None: no depth stream."""
    text_width: int = 12288
    """Width of one text token as the encoder gives it."""
    hidden: int = 4096
    num_heads: int = 32
    num_kv_heads: int = 0
    """Heads of keys and values in the flat family (grouped-query attention); 0: as many as ``num_heads``."""
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
        if self.family not in ("flux2", "flat"):
            raise UserError(f"transformer.family is {self.family!r}; known: flux2, flat")
        if self.hidden % self.num_heads:
            raise UserError(f"hidden={self.hidden} is not a multiple of num_heads={self.num_heads}")
        if sum(self.rope_axes) != self.head_size:
            raise UserError(
                f"rope_axes={self.rope_axes} sum to {sum(self.rope_axes)}; "
                f"they must sum to the head size {self.head_size}"
            )
        if self.num_heads % self.kv_heads:
            raise UserError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.family == "flat" and self.num_double_blocks:
            raise UserError(
                f"num_double_blocks is {self.num_double_blocks}; the flat family has no double blocks: 0"
            )
        if self.family == "flux2" and self.kv_heads != self.num_heads:
            raise UserError(
                f"num_kv_heads={self.num_kv_heads} needs family=flat; FLUX.2 has no grouped queries"
            )

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.hidden // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values, never 0."""
        return self.num_kv_heads or self.num_heads

    @property
    def mlp_width(self) -> int:
        """Width of the gated MLP after gating."""
        return int(self.hidden * self.mlp_ratio)

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
    steps_i2d: int = 0
    """Steps of image to depth and of completion; 0: ``steps``. One step gives the mean of what the image
    allows, which is nearer to the truth than one draw of it while a model is small or little trained."""
    guidance: float = 4.0
    """Classifier-free guidance in joint, and in depth-to-image where ``guidance_d2i`` is None."""
    guidance_d2i: float | None = None
    """Classifier-free guidance in depth-to-image, for models whose best is another there."""
    guidance_i2d: float = 1.0
    guidance_depth: float = 1.0
    """How strongly the image follows given depth in depth-to-image; 1: as the model learned it."""
    guide_image_only: bool = False
    """Joint: ``guidance`` pulls the image alone; else the depth too (the paper's guidance)."""
    guidance_parallel: float = 1.0
    """What is kept, 0..1, of the image's guidance along the clean image itself (arXiv 2410.02416); 1: all of
    it, plain guidance. With less, strong guidance saturates less."""
    log2_alpha: float | None = 5.0
    """Tilt of the joint path: > 0 image first, 0 diagonal, < 0 depth first."""
    refine_depth: bool = False
    """A second image-to-depth pass on the generated image."""
    edge_radius: int = 0
    """Decoded depth follows the image's edges, by windows of this radius in pixels inside the model; 0: it
    stays as the model wrote it (the released behaviour). For models whose patches show: ``codecs.edges``."""
    width: int = 512
    height: int = 512

    def guidance_of(self, task: str) -> float:
        """Default guidance on text of "joint", "i2d" or "d2i"."""
        if task == "d2i" and self.guidance_d2i is not None:
            return self.guidance_d2i
        return self.guidance_i2d if task == "i2d" else self.guidance

    def steps_of(self, task: str) -> int:
        """Default steps of "joint", "i2d", "d2i", "complete" or "inpaint"."""
        return (self.steps_i2d if task in ("i2d", "complete") else 0) or self.steps


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
class RefinerConfig:
    """Sizes of the network that sharpens depth by the picture (``model.refiner``).

    Attributes:
        widths: channels at each resolution, half the picture's first; each after it halves H and W.
        blocks: residual blocks of each resolution on the way down; on the way up each has one.
        norm_groups: groups of every GroupNorm; must divide every width.
    """

    FOLD: ClassVar[int] = 2

    widths: tuple[int, ...] = (32, 64, 96, 128)
    blocks: tuple[int, ...] = (1, 1, 1, 1)
    norm_groups: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if not self.widths or min(self.widths) < 1:
            raise UserError("refiner.widths needs at least one number, each at least 1")
        for width in self.widths:
            if self.norm_groups < 1 or width % self.norm_groups:
                raise UserError(f"refiner width {width} is no multiple of norm_groups {self.norm_groups}")
        if len(self.blocks) != len(self.widths) or min(self.blocks) < 1:
            raise UserError(
                f"refiner.blocks needs {len(self.widths)} numbers, each at least 1, one per width"
            )

    @property
    def multiple(self) -> int:
        """Sides of a picture must be multiples of this (16)."""
        return self.FOLD * 2 ** (len(self.widths) - 1)


@dataclass(frozen=True)
class TextConfig:
    """Which text encoder a model was trained with."""

    encoder: str = "qwen3-8b"
    """"qwen3-4b", "qwen3-8b", "umt5-xxl" or "minilm"."""
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

    @property
    def sky_limit(self) -> float | None:
        """Contracted values from here on are sky; None: the model calls every pixel a surface."""
        return self.far_threshold if self.sky == "far" else None


@dataclass(frozen=True)
class ModelConfig:
    """Everything that ``config.json`` of our own layout says about a model."""

    name: str = "unnamed"
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    refiner: RefinerConfig | None = None
    """None: depth stays as the transformer writes it (the paper's)."""
    text: TextConfig = field(default_factory=TextConfig)
    depth: DepthConfig = field(default_factory=DepthConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    licence: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        patch = self.transformer.patch_size
        if self.refiner is not None and patch % self.refiner.multiple:
            raise UserError(
                f"refiner.widths {self.refiner.widths} need sides that are multiples of "
                f"{self.refiner.multiple}; depth tokens cover {patch} pixels: take fewer widths"
            )
