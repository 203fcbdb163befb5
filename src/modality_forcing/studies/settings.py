"""How large a study is: three scales, and the models they train. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace

from modality_forcing.config import (
    AugmentConfig,
    CheckpointConfig,
    DataConfig,
    FlowConfig,
    ForcingConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    SensorConfig,
    SourceConfig,
    TextConfig,
    TrainConfig,
    TransformerConfig,
    override,
)
from modality_forcing.errors import UserError
from modality_forcing.presets import LOWPOLY

SHARED = "{shared}"
"""Stands in paths for the folder of what cells share, so that settings say the same wherever it lies."""
HEAD = 32  # channels of an attention head where the width allows it
CELL = 16  # pixels of a token's side


@dataclass(frozen=True)
class StudySettings:
    """Everything a study depends on beside its plan; ``key=value`` on the command line changes it."""

    image_size: int = 64
    """Side of the square pictures, a multiple of 16."""
    scenes: int = 2000
    """Training scenes of the procedural world."""
    test_scenes: int = 128
    """Scenes of its test split that everything is measured on."""
    text_tokens: int = 16
    autoencoder: str = "lowpoly"
    """Model (or run with an autoencoder of its sizes) whose frozen autoencoder all cells use."""
    widths: tuple[int, ...] = (32, 64, 96, 128)
    """Hidden sizes of the scaling study, the smallest first."""
    width: int = 64
    """Hidden size in the other studies."""
    blocks: int = 4
    depth_blocks: int = 1
    batch: int = 32
    lr: float = 2e-3
    warmup: int = 50
    decay: float = 0.4
    """Share of a forcing stage in which the learning rate falls to zero; text to image keeps it constant, so
    that one run gives a start for every budget."""
    ema: float = 0.99
    precision: str = "fp32"
    device: str = "cpu"
    """"cpu", "cuda" or "cuda:N"."""
    t2i_budgets: tuple[int, ...] = (0, 200, 1000, 3000)
    """Steps of text to image in the scaling study; 0 is none."""
    t2i_steps: int = 1000
    """The same in the other studies."""
    forcing_steps: int = 800
    checkpoint_every: int = 200
    density_low: float = 0.02
    density_high: float = 0.2
    """Share of the pixels that the depth sensors of training measure, where a study does not set it."""
    seeds: int = 3
    """Training runs of every cell at the smallest size (at the only size in most studies)."""
    more_seeds: int = 1
    """The same at the larger sizes of the scaling study."""
    pictures: int = 128
    """Test scenes for image to depth."""
    generated: int = 32
    """Captions, or depth maps, to generate from."""
    drift: int = 96
    """Pictures for FID in the distillation study."""
    depth_steps: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of steps that image to depth of a trained model is measured with: a model that is still unsure
    is best asked once, and how unsure it is differs from cell to cell."""
    sample_steps: int = 8
    """Steps of generation."""
    guidance: float = 2.0
    judge_steps: int = 4
    """Steps of the embedded model where it estimates depth of generated pictures."""
    alphas: tuple[float, ...] = (-5, -3, -1, 0, 1, 3, 5)
    """log2_alpha in the trajectory study."""
    euler_steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 100)
    heun_steps: tuple[int, ...] = (1, 2, 4, 8, 16)
    alpha_steps: int = 16
    """Steps of the sweep over ``alphas``."""
    bootstrap: int = 2000
    """Resamplings of every interval."""
    shared: str = ""
    """Folder of data, encodings and text-to-image runs; several studies may share one. "": in the study's."""

    def __post_init__(self) -> None:
        for name, least in (
            ("scenes", 2), ("test_scenes", 2), ("text_tokens", 1), ("blocks", 1), ("depth_blocks", 0),
            ("batch", 1), ("warmup", 0), ("t2i_steps", 1), ("forcing_steps", 1), ("checkpoint_every", 1),
            ("seeds", 1), ("more_seeds", 1), ("pictures", 2), ("generated", 2), ("drift", 2),
            ("sample_steps", 1), ("judge_steps", 1), ("alpha_steps", 1), ("bootstrap", 100),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.image_size < CELL or self.image_size % CELL:
            raise UserError(f"image_size is {self.image_size}; right is a multiple of {CELL}")
        for name in ("pictures", "generated", "drift"):
            if getattr(self, name) > self.test_scenes:
                raise UserError(f"{name} is {getattr(self, name)}; there are test_scenes={self.test_scenes}")
        for name in ("widths", "t2i_budgets", "alphas", "depth_steps", "euler_steps", "heun_steps"):
            values = getattr(self, name)
            if not values or sorted(set(values)) != list(values):
                raise UserError(f"{name} is {values}; right is different numbers in rising order")
        for width in (*self.widths, self.width):
            if width < 8 or width % 8 or (width > HEAD and width % HEAD):
                raise UserError(f"width {width}: right is 8, 16, 24, or a multiple of {HEAD}")
        if self.t2i_budgets[0] < 0 or min(self.depth_steps[0], self.euler_steps[0], self.heun_steps[0]) < 1:
            raise UserError("steps may not be negative, nor 0 in depth_steps, euler_steps and heun_steps")
        if not 0 < self.density_low <= self.density_high <= 1:
            raise UserError(
                f"density_low, density_high are {self.density_low}, {self.density_high}; "
                "right is 0 < low <= high <= 1"
            )
        if self.device != "cpu" and self.device.partition(":")[0] != "cuda":
            raise UserError(f"device is {self.device!r}; right is cpu, cuda or cuda:N")

    @property
    def train_folder(self) -> str:
        """Shards of the training scenes."""
        return f"{SHARED}/data/train-{self.image_size}px-{self.scenes}"

    @property
    def test_folder(self) -> str:
        """Shards of the test scenes."""
        return f"{SHARED}/data/test-{self.image_size}px-{self.test_scenes}"


CPU = StudySettings()
TOY = replace(
    CPU, scenes=32, test_scenes=4, widths=(8, 16, 24, 32), width=16, blocks=2, batch=8, warmup=2,
    t2i_budgets=(0, 4, 12, 24), t2i_steps=12, forcing_steps=24, checkpoint_every=100, pictures=4, generated=2,
    drift=4, depth_steps=(1, 2), sample_steps=1, judge_steps=1, alphas=(-5, 0, 5), euler_steps=(1, 2, 4),
    heun_steps=(1, 2), alpha_steps=2, bootstrap=200,
)  # fmt: skip
GPU = replace(
    CPU, image_size=128, scenes=10_000, test_scenes=256, text_tokens=32, widths=(128, 256, 384, 512),
    width=256, blocks=8, depth_blocks=2, batch=128, warmup=100, precision="bf16", device="cuda",
    t2i_budgets=(0, 400, 2000, 6000), t2i_steps=2000, forcing_steps=2000, checkpoint_every=1000,
    more_seeds=3, pictures=256, generated=128, drift=256, depth_steps=(1, 4, 16), sample_steps=16,
    judge_steps=16, euler_steps=(1, 2, 4, 8, 16, 32, 64, 100), heun_steps=(1, 2, 4, 8, 16, 32),
    alpha_steps=32,
)  # fmt: skip
SCALES = {"toy": TOY, "cpu": CPU, "gpu": GPU}
"""Settings by scale: "toy" proves the machinery, "cpu" is for two cores, "gpu" for one large accelerator."""


def read_settings(scale: str, assignments: Sequence[str] = ()) -> StudySettings:
    """The settings of a scale with ``key=value`` changes.

    Raises:
        UserError: an unknown scale or key, or a value that does not fit.
    """
    if scale not in SCALES:
        raise UserError(f"--scale is {scale[:40]!r}; right is {', '.join(SCALES)}")
    return override(SCALES[scale], list(assignments))


def model_config(settings: StudySettings, width: int, family: str = "flux2") -> ModelConfig:
    """An RGB-D model of a width: blocks and everything else are those of the scale.

    "flux2" has one double block in four; "flat" is the from-scratch family, whose image head predicts x0
    (spec section 8), here with as many heads of keys as of queries.
    """
    head = HEAD if width % HEAD == 0 else width
    double = 0 if family == "flat" else max(1, settings.blocks // 4)
    transformer: TransformerConfig = replace(
        LOWPOLY.transformer, family=family, hidden=width, num_heads=width // head, num_double_blocks=double,
        num_single_blocks=max(1, settings.blocks - double), num_depth_blocks=settings.depth_blocks,
        rope_axes=(head // 4,) * 4,
    )  # fmt: skip
    return replace(
        LOWPOLY,
        name=f"study-{family}-{width}",
        transformer=transformer,
        text=TextConfig(encoder="minilm", max_tokens=settings.text_tokens),
        flow=FlowConfig(rgb_prediction="x0" if family == "flat" else "velocity"),
        sampler=replace(
            LOWPOLY.sampler, steps=settings.sample_steps, guidance=settings.guidance, guidance_d2i=None,
            guidance_depth=1.0, guide_image_only=False, guidance_parallel=1.0, edge_radius=0, log2_alpha=0.0,
            width=settings.image_size, height=settings.image_size,
        ),
    )  # fmt: skip


def train_config(
    settings: StudySettings, stage: str, model: ModelConfig, seed: int, steps: int
) -> TrainConfig:
    """A run of stage "t2i" or "forcing" with what all runs of a study have in common."""
    return TrainConfig(
        stage=stage,
        steps=steps,
        batch=settings.batch,
        seed=seed,
        image_size=settings.image_size,
        data=DataConfig(
            sources=(SourceConfig(settings.train_folder),),
            sensors=(SensorConfig("random", 1.0, settings.density_low, settings.density_high),),
            augment=AugmentConfig(mirror=0.0),
            cache=f"{SHARED}/encodings",
        ),
        autoencoder=settings.autoencoder,
        precision=settings.precision,
        threads=1,
        remember=True,
        model=model,
        optim=OptimConfig(
            lr=settings.lr, warmup=settings.warmup, ema=settings.ema,
            decay=0.0 if stage == "t2i" else settings.decay,
        ),
        forcing=ForcingConfig(),
        checkpoint=CheckpointConfig(every=settings.checkpoint_every, keep=1),
        log=LogConfig(every=20),
    )  # fmt: skip


def changed(settings: StudySettings, base: StudySettings) -> dict[str, object]:
    """What differs from the settings of a scale."""
    return {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if getattr(settings, field.name) != getattr(base, field.name)
    }
