"""Pictures that show the depth they were given: cycle consistency, judged by a reader that stays as it is.

Two ways. What the model sees in the noisy picture of a data set, mostly the picture shines through: it learns
to keep what is there. So some pictures it makes itself, from noise, by the sampler with its defaults, as far
as a random step; from there on it is to paint what was given and is missing (in the spirit of reward feedback
learning, arXiv 2304.05977, with the reader for a reward). Those are read as a user's picture would be:
decoded, and with the reader's refiner.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from modality_forcing.config import TrainConfig
from modality_forcing.flow.guidance import Guidance
from modality_forcing.flow.schedule import depth_to_image_schedule
from modality_forcing.training import randomness
from modality_forcing.training.encoding import Encoders
from modality_forcing.training.noisy import Noisy
from modality_forcing.training.painting import at_least_one, expected_latents, painted_until, set_apart
from modality_forcing.training.randomness import generator_for
from modality_forcing.training.reading import Reader

Encode = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Depth maps and what of them is known, (b, H, W), to clean tokens (b, N, P) and what of them counts."""


class Cycle:
    """Where depth is given: whole maps from the reader, pictures of the model's own, and the loss on both.

    Args:
        encode: depth maps to tokens as the stage does it.
    """

    def __init__(self, config: TrainConfig, reader: Reader, encoders: Encoders, encode: Encode) -> None:
        self.config, self.reader, self.encoders, self.encode = config, reader, encoders, encode
        self.schedule = depth_to_image_schedule(config.forcing.painted_steps, config.model.flow)

    @torch.no_grad()
    def prepare(self, work: Noisy, step: int) -> None:
        """What the reader reads in the pictures whose depth is given: some of it in place of measurements.

        Needs all of ``work`` but ``depth_t``; changes ``depth0``, ``valid``, and of painted samples the level
        and the weight of the image.
        """
        forcing, batch, total = self.config.forcing, work.batch, self.config.batch
        stream = generator_for(self.config.seed, step, randomness.READ)
        whole_draws, painted_draws = (torch.rand(total, generator=stream)[batch.slots] for _ in range(2))
        given = work.t_depth.cpu() == 0
        whole = given & (whole_draws < forcing.d2i_read)
        painted = whole & (painted_draws < forcing.painted)
        if forcing.painted:
            work.node = int(torch.randint(1, self.schedule.steps, (), generator=stream))
            work.painted = painted.nonzero()[:, 0]
            set_apart(work, painted, self.schedule.rgb[work.node])
        cycled = given & ~painted & (work.t_rgb.cpu() <= forcing.cycle_below) & (forcing.cycle_weight > 0)
        work.counts["cycle"] = (cycled | painted).float()
        # Sharded weights are gathered by all processes together: each asks once, for one sample at least.
        asked = at_least_one((whole | cycled).nonzero()[:, 0])
        read = self._ask(work.rgb0[asked], work, asked)
        work.cycled = asked[cycled[asked]]
        work.read = read[cycled[asked]]
        chosen = asked[whole[asked]]
        if len(chosen):
            assert batch.images is not None
            maps = self.reader.maps(read[whole[asked]], batch.images[chosen].to(work.rgb0.device))
            work.depth0[chosen], work.valid[chosen] = self.encode(maps, torch.ones_like(maps).bool())

    def paint(self, model: nn.Module, work: Noisy) -> None:
        """Put the model's own noisy pictures of the given depth in place of the painted samples'."""
        if not work.node:
            return
        items = at_least_one(work.painted)
        d = self.config.model.sampler
        guidance = Guidance(d.guidance_of("d2i"), d.guidance_depth, parallel=d.guidance_parallel)
        found = painted_until(
            model, work, items, self.schedule, work.node, guidance, self.encoders.empty_text,
            self.config.model.flow,
        ).rgb  # fmt: skip
        if len(work.painted):
            work.rgb_t[items] = found

    def loss(self, velocity: Tensor, pictures: Tensor, work: Noisy) -> Tensor:
        """(b,): what is read in the predicted clean image against what is read in the real one.

        Args:
            velocity: (b, N, C), the image head's answer.
            pictures: ``expected_pictures`` of it.
        """
        out = torch.zeros(len(velocity), device=velocity.device)
        if not self.config.forcing.cycle_weight:
            return out
        items = at_least_one(torch.cat([work.cycled, work.painted]))
        read = self._ask(expected_latents(velocity, work, items), work, items)
        count = len(work.cycled)
        off = []
        if count:
            off.append(self.reader.difference(read[:count], work.read))
        if len(work.painted):
            sharp = self.reader.refined(read[count:], pictures[: len(work.painted)])
            off.append(self.reader.difference(sharp, work.depth0[work.painted]))
        off = off or [0 * read.flatten(1).sum(dim=1)]  # asked for its gathering only
        return out.index_put((items.to(out.device),), torch.cat(off))

    def _ask(self, rgb: Tensor, work: Noisy, items: Tensor) -> Tensor:
        text = self.encoders.empty_text.expand(len(items), -1, -1)
        return self.reader(rgb, work.depth_noise[items], text, work.rope)
