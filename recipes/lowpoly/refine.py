"""Train the network that sharpens depth by the picture (``model.refiner``) beside a finished model.

python recipes/lowpoly/refine.py MODEL --recipe lowpoly/forcing --out FOLDER

The transformer and the autoencoder stay as they are: the transformer estimates depth in one step from the
given image, the refiner learns what it left out, from the same sparse measurements and by the same loss as
the transformer's last stage (``training.relative``). A share of the pictures went through the autoencoder
first, because generated ones do. FOLDER/model is MODEL with the refiner's averaged weights.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from itertools import islice
from math import fsum
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from modality_forcing.checkpoint.layouts import open_checkpoint
from modality_forcing.checkpoint.weights import open_weights, save_weights
from modality_forcing.checkpoint.writing import save_model
from modality_forcing.codecs.depth import encode_depth, patchify, unpatchify
from modality_forcing.codecs.positions import depth_ids, image_ids, text_ids
from modality_forcing.config import OptimConfig, SensorConfig, TrainConfig
from modality_forcing.errors import UserError
from modality_forcing.flow.path import interpolate
from modality_forcing.model.base import DiffusionTransformer
from modality_forcing.model.refiner import DepthRefiner
from modality_forcing.presets import LOWPOLY_REFINER
from modality_forcing.training.data import Batch, Loader
from modality_forcing.training.encoding import Encoders
from modality_forcing.training.optim import EMA, learning_rate, make_optimizers
from modality_forcing.training.randomness import DEPTH_NOISE, RGB_NOISE, TEXT, generator_for, noise_for
from modality_forcing.training.recipes import find_recipe, read_recipe
from modality_forcing.training.relative import relative_depth_loss
from modality_forcing.training.state import state_tensors

DECODED = 0.3
"""Share of the pictures that went through the autoencoder."""
WORDLESS = 0.5
"""Share of the samples without their caption."""
UNCLEAN, NOISIEST = 0.3, 0.7
"""Share of the samples whose depth is estimated from a noisy image, as it is while both are sampled, and the
highest level of that noise."""
LOG_EVERY = 20
"""Steps."""


class Task:
    """A batch to what the refiner is given and what it is judged by."""

    def __init__(self, config: TrainConfig, transformer: DiffusionTransformer) -> None:
        self.config, self.transformer = config, transformer
        self.encoders = Encoders(config)
        self.patch = config.model.transformer.patch_size

    @torch.no_grad()
    def given(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """(b, 1, H, W) contracted depth as the transformer estimates it in one step, and (b, 3, H, W)."""
        latents = self.encoders.latents(batch)
        draws = torch.rand(4, len(batch), generator=generator_for(self.config.seed, step, TEXT))
        captions = [
            "" if x < WORDLESS else text for x, text in zip(draws[0].tolist(), batch.captions, strict=True)
        ]
        text = self.encoders.text(captions)
        rows, cols = latents.shape[-2:]
        rgb = latents.flatten(2).transpose(1, 2)
        like = rgb.new_empty(len(batch), rows * cols, self.patch**2)
        noise = noise_for(self.config.seed, step, DEPTH_NOISE, batch.slots, like)
        rope = self.transformer.rope(text_ids(text.shape[1]), image_ids(rows, cols), depth_ids(rows, cols))
        t_rgb = torch.where(draws[2] < UNCLEAN, NOISIEST * draws[3], torch.zeros(()))
        rgb_noise = noise_for(self.config.seed, step, RGB_NOISE, batch.slots, rgb)
        _, tokens = self.transformer(
            interpolate(rgb, rgb_noise, t_rgb), noise, text, rope, t_rgb, torch.ones(len(batch))
        )
        assert batch.images is not None
        images = batch.images.clone()
        decoded = draws[1] < DECODED
        if bool(decoded.any()):
            images[decoded] = self.encoders.autoencoder.decode(latents[decoded]).clamp(-1, 1)
        return unpatchify(tokens.float(), rows, cols, self.patch)[:, None], images

    def loss(self, found: Tensor, batch: Batch, mirrored: bool = False) -> Tensor:
        """Mean over the samples of ``relative_depth_loss`` on what was measured; found (b, 1, H, W)."""
        depth = self.config.model.depth
        if mirrored:
            found = found.flip(-1)
        target, valid, _ = encode_depth(batch.depth, batch.measured, self.patch, depth.sky)
        tokens = patchify(found[:, 0], self.patch)
        ones = torch.ones(len(batch))
        off, count = relative_depth_loss(tokens, target, ones, 1.0, depth.far_threshold, valid.float())
        return (off / count.clamp_min(1)).mean()


def save(path: Path, step: int, refiner: DepthRefiner, ema: EMA, optimizers: list[Optimizer]) -> None:
    """Everything that the next step depends on."""
    save_weights(path, state_tensors(refiner, ema, optimizers), {"step": str(step)})


def restore(path: Path, refiner: DepthRefiner, ema: EMA, optimizers: list[Optimizer]) -> int:
    """The step after which ``path`` was written; everything else in place."""
    saved = open_weights(path)
    tensors = dict(saved.read())
    parameters = dict(refiner.named_parameters())
    owners = {id(p): o for o in optimizers for group in o.param_groups for p in group["params"]}
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(tensors[f"model.{name}"])
            ema.shadow[name].copy_(tensors[f"ema.{name}"])
    for name, tensor in tensors.items():
        if name.startswith("optim."):
            owner, key = name.removeprefix("optim.").rsplit(".", 1)
            owners[id(parameters[owner])].state[parameters[owner]][key] = tensor.clone()
    return int(saved.metadata["step"])


def begin_with(refiner: DepthRefiner, smaller: DepthRefiner | None) -> None:
    """The weights of a refiner as wide and no deeper; blocks that it lacks stay the identity.

    Raises:
        UserError: none, or sizes that do not fit.
    """
    if smaller is None:
        raise UserError("--init names a model without a refiner; name one that has one, or leave it out")
    ours, theirs = refiner.config, smaller.config
    fits = replace(theirs, blocks=ours.blocks) == ours
    if not fits or any(a < b for a, b in zip(ours.blocks, theirs.blocks, strict=True)):
        raise UserError(f"--init names a refiner of {theirs}, which does not fit into {ours}")
    refiner.load_state_dict(refiner.state_dict() | smaller.state_dict())


def learn(
    refiner: DepthRefiner, task: Task, batch: Batch, step: int, rate: float, optimizers: list[Optimizer],
    ema: EMA, clip: float,
) -> tuple[float, float]:  # fmt: skip
    """Two updates on one batch; the loss of the transformer's depth, and of the refiner's."""
    contracted, images = task.given(batch, step)
    found = []
    # The transformer costs more than the refiner, so its estimate serves twice.
    for mirrored in (False, True):
        given = (x.flip(-1) if mirrored else x for x in (contracted, images))
        loss = task.loss(refiner(*given), batch, mirrored)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss.backward()
        torch.nn.utils.clip_grad_norm_(refiner.parameters(), clip)
        for optimizer in optimizers:
            optimizer.step()
        ema.update(refiner, step)
        found.append(float(loss.detach()))
    return float(task.loss(contracted, batch)), fsum(found) / len(found)


def main() -> None:
    """Parse, train, save; bad input ends with code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="a model folder in our own layout")
    parser.add_argument("--recipe", default="lowpoly/forcing", help="whose data to learn from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--init", help="a model folder whose refiner to start from, as wide and no deeper")
    parser.add_argument("--steps", type=int, default=3000, help="batches, each twice; 3 s on 2 cores")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--density", type=float, default=0.05, help="share of the pixels that is measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=200)
    options = parser.parse_args()
    try:
        print(train(options))
    except UserError as error:
        parser.error(str(error))


def train(options: argparse.Namespace) -> Path:
    """The run that ``options`` describes; where the model lies.

    Raises:
        UserError: a run that is there already, a model or a recipe that cannot be read or does not fit.
    """
    state = options.out / "state.safetensors"
    if state.exists() and not options.resume:
        raise UserError(f"{options.out} already holds a run; --resume goes on, or name another folder")
    checkpoint = open_checkpoint(options.model)
    assignments = [f"autoencoder={options.model}", f"batch={options.batch}", f"seed={options.seed}"]
    config = read_recipe(find_recipe(options.recipe), options.out, assignments).stages[-1].config
    sensor = SensorConfig(kind="random", low=options.density, high=options.density)
    # The recipe says what to learn from, the model what it is.
    config = replace(
        config, model=replace(checkpoint.config, refiner=None), data=replace(config.data, sensors=(sensor,))
    )
    if config.model.flow.depth_prediction != "x0":
        raise UserError(f"{options.model} predicts depth as a velocity; a model that predicts x0 is needed")
    transformer = checkpoint.load_transformer(torch.float32).requires_grad_(False)
    task = Task(config, transformer)
    torch.manual_seed(options.seed)
    refiner = DepthRefiner(LOWPOLY_REFINER)
    if options.init:
        begin_with(refiner, open_checkpoint(options.init).load_refiner())
    refiner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optim = OptimConfig(lr=options.lr, warmup=50, decay=0.9, ema=0.99)
    optimizers, ema = make_optimizers(refiner, optim), EMA(refiner, optim.ema)
    loader = Loader(
        config.data, batch=config.batch, seed=config.seed, size=config.image_size, stage="forcing",
        multiple=config.model.autoencoder.downscale,
    )  # fmt: skip
    first = restore(state, refiner, ema, optimizers) if state.is_file() else 0
    options.out.mkdir(parents=True, exist_ok=True)
    rows, begin = [], time.perf_counter()
    for step, batches in islice(enumerate(loader.steps(first), first), max(0, options.steps - first)):
        rate = learning_rate(step, options.steps, optim)
        rows.append(learn(refiner, task, batches[0], step, rate, optimizers, ema, optim.clip))
        if (step + 1) % LOG_EVERY == 0:
            means = [fsum(column) / len(rows) for column in zip(*rows, strict=True)]
            speed = (step + 1 - first) * options.batch / (time.perf_counter() - begin)
            numbers = {"before": means[0], "after": means[1], "samples_per_s": speed}
            row = json.dumps({"step": step + 1, **numbers})
            print(row, flush=True)
            with (options.out / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(row + "\n")
            rows = []
        if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
            save(state, step + 1, refiner, ema, optimizers)
            task.encoders.flush()
    return save_model(
        options.out / "model", replace(checkpoint.config, refiner=LOWPOLY_REFINER),
        transformer=transformer.state_dict(), autoencoder=checkpoint.load_autoencoder().state_dict(),
        refiner=ema.shadow,
    )  # fmt: skip


if __name__ == "__main__":
    main()
