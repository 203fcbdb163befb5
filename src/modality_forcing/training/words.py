"""Pictures that show what their captions name: a frozen judge of colours, asked of the model's own pictures.

The image loss only knows the pictures of the data set, through which the right colours shine at all but the
highest noise levels. So some pictures of text alone are the model's own, from noise by the sampler as far as
a random step, and from there on the things that the caption names are to be seen in the colours it gives them
(reward feedback learning, arXiv 2304.05977, with a classifier of the procedural world for a reward).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from modality_forcing.config import TrainConfig
from modality_forcing.data.lowpoly.colours import OBJECTS, SIDE, ColourClassifier, pairs_in
from modality_forcing.data.lowpoly.scene import COLOUR_NAMES
from modality_forcing.flow.guidance import Guidance
from modality_forcing.flow.schedule import joint_schedule
from modality_forcing.training import randomness
from modality_forcing.training.encoding import Encoders
from modality_forcing.training.noisy import Noisy
from modality_forcing.training.painting import at_least_one, painted_until, set_apart
from modality_forcing.training.randomness import generator_for

FEW_CELLS = 12
"""Of a thing, where it shows most: as many make sure that it is found."""
UNLIKELY = 0.02
"""Added to probabilities whose logarithm is taken: what is not there at all does not pull without limit."""


class Words:
    """Where text alone is given: pictures of the model's own, and the loss on them.

    Args:
        judge: frozen; says for cells of a picture what they show and in which colour.
    """

    def __init__(self, config: TrainConfig, judge: ColourClassifier, encoders: Encoders) -> None:
        self.config, self.judge, self.encoders = config, judge, encoders
        d, flow = config.model.sampler, config.model.flow
        self.schedule = joint_schedule(config.forcing.painted_steps, flow, log2_alpha=d.log2_alpha)
        self.guidance = Guidance(d.guidance, 1.0, d.guide_image_only, d.guidance_parallel)

    def prepare(self, work: Noisy, step: int) -> None:
        """Choose the samples; of their image and depth nothing counts but the words.

        Changes levels, weights and ``valid`` of the chosen ones.
        """
        forcing, total = self.config.forcing, self.config.batch
        stream = generator_for(self.config.seed, step, randomness.WORDS)
        draws = torch.rand(total, generator=stream)[work.batch.slots]
        work.word_node = int(torch.randint(1, self.schedule.steps, (), generator=stream))
        work.pairs = [named_once(caption) for caption in work.captions]
        joint = (work.t_rgb > 0).cpu() & (work.t_depth > 0).cpu()
        named = torch.tensor([bool(pairs) for pairs in work.pairs])
        chosen = joint & named & (draws < forcing.worded)
        work.worded = items = chosen.nonzero()[:, 0]
        set_apart(work, chosen, self.schedule.rgb[work.word_node])
        work.t_depth = work.t_depth.clone()
        work.t_depth[items] = float(self.schedule.depth[work.word_node])
        work.valid[items] = False
        judged = chosen.clone()
        judged[work.painted] = named[work.painted]
        work.counts["words"] = judged.float()

    def paint(self, model: nn.Module, work: Noisy) -> None:
        """Put the model's own noisy pictures and depth in place of the chosen samples'."""
        if not self.config.forcing.worded:
            return
        found = painted_until(
            model, work, at_least_one(work.worded), self.schedule, work.word_node, self.guidance,
            self.encoders.empty_text, self.config.model.flow,
        )  # fmt: skip
        if len(work.worded):
            work.rgb_t[work.worded], work.depth_t[work.worded] = found.rgb, found.depth

    def loss(self, pictures: Tensor, work: Noisy) -> Tensor:
        """(b,): how unlikely what the captions name is in the pictures that the model expects, by the judge.
        It sees them as squares.

        Args:
            pictures: ``expected_pictures``.
        """
        judged = work.counts["words"][work.own] > 0
        items = work.own[judged]
        out = torch.zeros(len(work.rgb_t), device=pictures.device)
        if not len(items):
            return out
        pictures = pictures[judged]
        if pictures.shape[-2:] != (SIDE, SIDE):
            pictures = interpolate(pictures, (SIDE, SIDE), mode="area")
        things, hues = self.judge(pictures)
        off = [
            unlikeliness(thing, hue, work.pairs[i])
            for thing, hue, i in zip(things, hues, items.tolist(), strict=True)
        ]
        return out.index_put((items.to(out.device),), torch.stack(off))


def unlikeliness(things: Tensor, hues: Tensor, pairs: list[tuple[str, str]]) -> Tensor:
    """Mean over (thing, colour) pairs: -log of being found, and of the colour where it is.

    Args:
        things: (1 + things, h, w) logits of one picture's cells.
        hues: (colours, h, w) logits.
    """
    shown = things.flatten(1).softmax(dim=0)
    tints = hues.flatten(1).log_softmax(dim=0)
    terms = []
    for thing, colour in pairs:
        here = shown[1 + OBJECTS.index(thing)]
        found = here.topk(min(FEW_CELLS, len(here))).values.mean()
        where = here.detach()
        tint = (where * tints[COLOUR_NAMES.index(colour)]).sum() / (where.sum() + 1)
        terms.append(-(found + UNLIKELY).log() - tint)
    return torch.stack(terms).mean()


def named_once(caption: str) -> list[tuple[str, str]]:
    """(thing, colour) pairs of a caption, without things that it gives several colours."""
    pairs = set(pairs_in(caption))
    return [pair for pair in sorted(pairs) if sum(pair[0] == other[0] for other in pairs) == 1]
