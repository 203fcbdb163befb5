"""Items through the sampler in batches: what the tasks of the pipeline have in common. And text to image."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from modality_forcing.codecs.frame import Frame
from modality_forcing.codecs.positions import depth_ids, image_ids, text_ids
from modality_forcing.codecs.text import TextEncoder
from modality_forcing.config import FlowConfig, SamplerConfig
from modality_forcing.devices import memory_advice
from modality_forcing.flow.guidance import Guidance, guided
from modality_forcing.flow.held import Held, hold
from modality_forcing.flow.sampler import Step, sample
from modality_forcing.flow.schedule import Schedule, depth_to_image_schedule
from modality_forcing.inputs import (
    MAX_ALPHA,
    MAX_EDGE_RADIUS,
    MAX_GUIDANCE,
    MAX_STEPS,
    check_number,
    check_whole,
    chunks,
)
from modality_forcing.model.base import DiffusionTransformer
from modality_forcing.types import PerModality

OnStep = Callable[[Step], None]


@dataclass(frozen=True)
class Settings:
    """Resolved settings of one call; they go into ``metadata.json`` as they are."""

    task: str
    steps: int
    guidance: float
    log2_alpha: float | None
    refine_depth: bool
    guidance_depth: float = 1.0
    guide_image_only: bool = False
    edge_radius: int = 0
    guidance_parallel: float = 1.0

    @property
    def pull(self) -> Guidance:
        """What the sampler needs of them."""
        return Guidance(self.guidance, self.guidance_depth, self.guide_image_only, self.guidance_parallel)

    @classmethod
    def checked(
        cls,
        defaults: SamplerConfig,
        task: str,
        steps: int | None,
        guidance: float,
        log2_alpha: float | None,
        refine_depth: bool,
        *,
        guidance_depth: float = 1.0,
        guide_image_only: bool = False,
        edge_radius: int | None = None,
        guidance_parallel: float | None = None,
    ) -> Settings:
        """Settings within their bounds, with a model's ``defaults`` for what is None.

        Raises:
            UserError: a number out of its bounds.
        """
        steps = check_whole("steps", defaults.steps_of(task) if steps is None else steps, 1, MAX_STEPS)
        check_number("guidance", guidance, 0.0, MAX_GUIDANCE)
        check_number("guidance_depth", guidance_depth, 0.0, MAX_GUIDANCE)
        if log2_alpha is not None:
            check_number("log2_alpha", log2_alpha, -MAX_ALPHA, MAX_ALPHA)
        radius = defaults.edge_radius if edge_radius is None else edge_radius
        radius = check_whole("edge_radius", radius, 0, MAX_EDGE_RADIUS)
        parallel = defaults.guidance_parallel if guidance_parallel is None else guidance_parallel
        check_number("guidance_parallel", parallel, 0.0, 1.0)
        return cls(
            task, steps, float(guidance), log2_alpha, refine_depth, float(guidance_depth), guide_image_only,
            radius, float(parallel),
        )  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One result to be: where it starts from and how it sits on the model's grid. Tokens are (1, N, C).

    ``held`` are values that stay as they are in every step; of the items of one run all have it or none.
    """

    frame: Frame
    start: PerModality[Tensor]
    prompt: str
    seed: int
    held: PerModality[Held] | None = None


class Engine:
    """A transformer with its text encoder.

    Attributes:
        timings: seconds per stage, summed over calls.
        solver: how the sampler integrates, one of ``flow.sampler.SOLVERS``.
    """

    def __init__(
        self,
        transformer: DiffusionTransformer,
        text: TextEncoder,
        flow: FlowConfig,
        *,
        compile: bool = False,
        release_text: bool = False,
    ) -> None:
        self.transformer = transformer
        self.text = text
        self.flow = flow
        self.release_text = release_text
        self.timings: dict[str, float] = {}
        self.solver = "euler"
        self._forward = torch.compile(transformer) if compile else transformer

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        return self.transformer.img_in.weight.device

    def noise(self, seed: int, frame: Frame, rgb: bool = True) -> PerModality[Tensor]:
        """One item's noise, image first, drawn on the CPU: equal on every device and in every batch."""
        generator = torch.Generator().manual_seed(seed)
        num = frame.rows * frame.cols
        config = self.transformer.config
        assert config.depth_channels is not None
        image = torch.randn(1, num, config.latent_channels, generator=generator) if rgb else torch.empty(0)
        depth = torch.randn(1, num, config.depth_channels, generator=generator)
        return PerModality(rgb=image.to(self.device), depth=depth.to(self.device))

    def run(
        self,
        items: list[Item],
        schedule: Schedule,
        guidance: Guidance,
        on_step: OnStep | None,
        batch_size: int,
    ) -> list[PerModality[Tensor]]:
        """Sample every item, neighbours on equal grids together; tokens (1, N, C) in their order.

        Guidance on depth compares it with the noise of the item's seed.
        """
        texts, null = self._encode_text([item.prompt for item in items])
        found: list[PerModality[Tensor]] = []
        for part in chunks([(item.frame.rows, item.frame.cols) for item in items], batch_size):
            starts = [item.start for item in items[part]]
            start = PerModality(torch.cat([s.rgb for s in starts]), torch.cat([s.depth for s in starts]))
            held = _held_together(items[part])
            frame = items[part][0].frame
            without = None
            if guidance.depth != 1.0:
                without = torch.cat([self.noise(item.seed, item.frame).depth for item in items[part]])
            x = self._sample(start, schedule, texts[part], null, guidance, frame, on_step, held, without)
            pairs = zip(x.rgb.split(1), x.depth.split(1), strict=True)
            found += [PerModality(rgb=rgb, depth=depth) for rgb, depth in pairs]
        return found

    def _encode_text(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, C) of the prompts and (1, T, C) of the empty prompt."""
        distinct = list(dict.fromkeys([*prompts, ""]))
        with self.timed("text"), memory_advice():
            tokens = self.text.encode(distinct).to(self.device, self.transformer.dtype)
            if self.release_text:
                self.text.release()
        null = distinct.index("")
        return tokens[[distinct.index(prompt) for prompt in prompts]], tokens[null : null + 1]

    @torch.no_grad()
    def _sample(
        self,
        start: PerModality[Tensor],
        schedule: Schedule,
        text: Tensor,
        null: Tensor,
        guidance: Guidance,
        frame: Frame,
        on_step: OnStep | None,
        held: PerModality[Held] | None,
        depth_noise: Tensor | None,
    ) -> PerModality[Tensor]:
        """Integrate a batch on one grid along a schedule, guided."""
        rope = self.transformer.rope(
            text_ids(text.shape[1], self.device),
            image_ids(frame.rows, frame.cols, self.device),
            depth_ids(frame.rows, frame.cols, self.device),
        )
        embedded = self.transformer.config.guidance_embedding

        def forward(x: PerModality[Tensor], tokens: Tensor, t: PerModality[Tensor]) -> PerModality[Tensor]:
            level = torch.full_like(t.rgb, guidance.text) if embedded else None
            rgb, depth = self._forward(x.rgb, x.depth, tokens, rope, t.rgb, t.depth, level)
            return PerModality(rgb=rgb, depth=depth)

        nodes = schedule.pairs()

        def put_in(index: int, x: PerModality[Tensor]) -> PerModality[Tensor]:
            return x if held is None else hold(held, nodes[index], x)

        with self.timed("sample"), memory_advice():
            # A model that embeds its guidance is not guided a second time from outside.
            outside = replace(guidance, text=1.0) if embedded else guidance
            predict = guided(forward, text, null, outside, depth_noise, self.flow.rgb_prediction)
            return sample(predict, start, schedule, self.flow, on_step, put_in, self.solver)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time the block takes to a stage."""
        started = time.perf_counter()
        yield
        self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - started


@torch.no_grad()
def sample_images(
    transformer: Any, noise: Tensor, text: Tensor, null: Tensor, frame: Frame, flow: FlowConfig, *,
    steps: int, guidance: float, embedded: bool = False,
) -> Tensor:  # fmt: skip
    """Image tokens (B, N, C) of a text-to-image model: a transformer without a depth stream.

    Args:
        noise: (B, N, C).
        text, null: (B, T, C), and (1, T, C) of the empty prompt.
        frame: N = rows * cols.
        embedded: the model takes its guidance as an input and is not guided from outside.
    """
    device = noise.device
    rope = transformer.rope(text_ids(text.shape[1], device), image_ids(frame.rows, frame.cols, device))

    def forward(x: PerModality[Tensor], tokens: Tensor, t: PerModality[Tensor]) -> PerModality[Tensor]:
        level = (torch.full_like(t.rgb, guidance),) if embedded else ()
        # The sampler walks both modalities; the depth of this model has no tokens.
        return PerModality(rgb=transformer(x.rgb, None, tokens, rope, t.rgb, None, *level)[0], depth=x.depth)

    start = PerModality(rgb=noise, depth=noise.new_zeros(len(noise), 0, 1))
    predict = guided(forward, text, null, Guidance(1.0 if embedded else guidance))
    return sample(predict, start, depth_to_image_schedule(steps, flow), flow).rgb


def _held_together(items: list[Item]) -> PerModality[Held] | None:
    """What the items of one batch hold; None when they hold nothing."""
    held = [item.held for item in items if item.held is not None]
    if not held:
        return None
    return PerModality(rgb=Held.batch([h.rgb for h in held]), depth=Held.batch([h.depth for h in held]))
