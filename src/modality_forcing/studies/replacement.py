"""Conditioning a model that knows one noise level for both modalities: the given one is put in at each step.

Such a model never saw a clean modality beside a noisy one. So the given modality is noised to the level that
the other one is at, at every step, from its true value (replacement, as earlier joint models do it).
"""

from __future__ import annotations

import torch
from torch import Tensor

from modality_forcing.engine import Engine, Item, OnStep
from modality_forcing.flow.guidance import Guidance
from modality_forcing.flow.held import Held
from modality_forcing.flow.schedule import Schedule
from modality_forcing.pipeline import Pipeline
from modality_forcing.types import PerModality

HELD_NOISE = 2**40
"""Added to an item's seed for the noise of what is held, which no other item draws."""


class SharedLevelEngine(Engine):
    """An engine whose every schedule has one level: a schedule that gives a modality holds it instead."""

    @classmethod
    def instead_of(cls, engine: Engine) -> SharedLevelEngine:
        """With the model and the text encoder of another engine."""
        found = cls(engine.transformer, engine.text, engine.flow, release_text=engine.release_text)
        found.solver = engine.solver
        return found

    def run(
        self,
        items: list[Item],
        schedule: Schedule,
        guidance: Guidance,
        on_step: OnStep | None,
        batch_size: int,
    ) -> list[PerModality[Tensor]]:
        """See :class:`Engine`. Given depth must be dense: pixels that hold noise would count as depth.

        Raises:
            ValueError: a schedule whose levels differ and none of which is 0 throughout; guidance on depth,
                which needs a level of its own for it.
        """
        if guidance.depth != 1.0:
            raise ValueError("a model with one noise level cannot be asked without its depth")
        given_rgb, given_depth = not schedule.rgb.any(), not schedule.depth.any()
        if given_rgb == given_depth:
            if not torch.allclose(schedule.rgb, schedule.depth):
                raise ValueError("a model with one noise level can only sample along the diagonal")
            return super().run(items, schedule, guidance, on_step, batch_size)
        levels = schedule.depth if given_rgb else schedule.rgb
        diagonal = Schedule(levels, levels)
        return super().run(
            [self._holding(item, rgb=given_rgb) for item in items], diagonal, guidance, on_step, batch_size
        )

    def _holding(self, item: Item, *, rgb: bool) -> Item:
        """The item with its given modality held, and noise where that stood."""
        noise = self.noise(item.seed + HELD_NOISE, item.frame)
        if rgb:
            held = PerModality(rgb=_hold(item.start.rgb, noise.rgb), depth=Held.nothing(item.start.depth))
            start = PerModality(rgb=noise.rgb, depth=item.start.depth)
        else:
            held = PerModality(rgb=Held.nothing(item.start.rgb), depth=_hold(item.start.depth, noise.depth))
            start = PerModality(rgb=item.start.rgb, depth=noise.depth)
        return Item(item.frame, start, item.prompt, item.seed, held)


def _hold(clean: Tensor, noise: Tensor) -> Held:
    return Held(clean, torch.ones_like(clean, dtype=torch.bool), noise)


def share_level(pipeline: Pipeline) -> Pipeline:
    """The same pipeline, conditioned by replacement."""
    pipeline.engine = SharedLevelEngine.instead_of(pipeline.engine)
    return pipeline
