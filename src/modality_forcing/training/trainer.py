"""One single-process training loop for every stage: resumable, keyed randomness, JSON-lines log."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modality_forcing.codecs.text import MiniLMTextEncoder
from modality_forcing.config import TrainConfig, from_dict, to_dict
from modality_forcing.errors import UserError
from modality_forcing.model.autoencoder import Autoencoder
from modality_forcing.model.transformer import Transformer
from modality_forcing.model.warm_start import initialise, initialise_autoencoder, warm_start
from modality_forcing.presets import model_preset
from modality_forcing.training import state
from modality_forcing.training.data import Batch, CacheLoader
from modality_forcing.training.memory import Remembered
from modality_forcing.training.optim import EMA, learning_rate, make_optimizers
from modality_forcing.training.stages import (
    Losses,
    TextSource,
    autoencoder_loss,
    forcing_loss,
    t2i_loss,
)

MAX_BAD_STEPS = 10
"""Non-finite steps in a row after which a run stops."""


def step_generator(seed: int, step: int) -> torch.Generator:
    """The torch generator of one training step: equal for a resumed and an uninterrupted run."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % (2**63))


class Trainer:
    """Builds a stage from its configuration and runs it inside a run folder."""

    def __init__(self, config: TrainConfig, run: Path, *, resume: bool = False) -> None:
        self.config = config
        self.run_folder = run
        if not resume and (state.list_steps(run) or (run / "config.json").exists()):
            raise UserError(f"{run} already holds a run; resume it or name another folder")
        if config.threads:
            torch.set_num_threads(config.threads)
        self.loader = CacheLoader(config.data, config.batch, config.seed, config.image_size)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.autoencoder: Autoencoder | None = None
        self.teacher: Transformer | None = None
        self.text: TextSource | None = None
        self.model = self._build()
        distills = config.forcing.distill_high > 0 or config.forcing.distill_low > 0
        if config.stage == "forcing" and distills and self.teacher is None:
            raise UserError("forcing.distill_* needs a teacher: init=FOLDER of a text-to-image run")
        self.optimizers = make_optimizers(self.model, config.optim)
        self.ema = EMA(self.model, config.optim.ema)
        self.step = 0
        self.bad_steps = 0
        if resume and state.list_steps(run):
            self.step = state.load_state(state.latest(run), self.model, self.ema, self.optimizers)

    def _build(self) -> nn.Module:
        """The module this stage trains, with what it needs beside it (frozen autoencoder, text, teacher)."""
        config = self.config
        if config.stage == "autoencoder":
            with torch.random.fork_rng():
                torch.manual_seed(config.seed)
                model = Autoencoder(config.model.autoencoder)
            initialise_autoencoder(model)
            return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.autoencoder = load_autoencoder(Path(config.autoencoder), config)
        self.autoencoder.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore
        encoder = MiniLMTextEncoder(max_tokens=config.model.text.max_tokens)
        self.latent_memory = Remembered() if config.remember else None
        text_memory = Remembered() if config.remember else None
        self.text = TextSource(encoder.encode, config.forcing.text_dropout, text_memory)
        if config.stage == "t2i":
            transformer = Transformer(config.model.transformer.backbone())
            initialise(transformer, self.generator)
            return transformer
        transformer = Transformer(config.model.transformer)
        if not config.init:
            initialise(transformer, self.generator)
            return transformer
        weights = load_weights(Path(config.init))
        if any(name.startswith("depth_in") for name in weights):
            transformer.load_state_dict(weights, strict=True)
        else:
            warm_start(transformer, weights, self.generator)
            if config.forcing.distill_high > 0 or config.forcing.distill_low > 0:
                self.teacher = Transformer(config.model.transformer.backbone())
                self.teacher.load_state_dict(weights, strict=True)
                self.teacher.eval().requires_grad_(False)
        return transformer

    def losses(self, step: int) -> Losses:
        """This step's losses; everything random comes from (seed, step)."""
        config = self.config
        generator = step_generator(config.seed, step)
        if isinstance(self.model, Autoencoder):
            batch = self.loader.load(step)
            batch.images = batch.images.contiguous(memory_format=torch.channels_last)
            # Float32: bf16 convolutions are four times slower on CPUs without matrix units for them.
            return autoencoder_loss(self.model, batch, config, generator)
        assert isinstance(self.model, Transformer)
        assert self.autoencoder is not None
        assert self.text is not None
        kinds = config.forcing.sparse_kinds if config.stage == "forcing" else ()
        batch = self.loader.load(step, kinds)
        latents = self._latents(batch)
        text = self.text(batch.captions, generator)
        with self._autocast():
            if config.stage == "t2i":
                return t2i_loss(self.model, latents, text, config.model.flow, generator)
            teach = self._teach if self.teacher is not None else None
            return forcing_loss(self.model, latents, batch, text, config, generator, teach)

    @torch.no_grad()
    def _latents(self, batch: Batch) -> Tensor:
        """Latents (B, C, h, w) of a batch's images, by the frozen autoencoder."""
        autoencoder = self.autoencoder
        assert autoencoder is not None
        images = batch.images.contiguous(memory_format=torch.channels_last)
        if self.latent_memory is None:
            return autoencoder.encode(images)
        keys = list(zip(batch.indices, batch.mirrored, strict=True))
        return self.latent_memory(keys, lambda positions: autoencoder.encode(images[positions]))

    @torch.no_grad()
    def _teach(self, rgb_t: Tensor, text: Tensor, t_rgb: Tensor) -> Tensor:
        """The frozen text-to-image model on the same noisy image (square grids)."""
        from modality_forcing.codecs.positions import image_ids, text_ids

        assert self.teacher is not None
        side = self.config.image_size // self.config.model.autoencoder.downscale
        rope = self.teacher.rope(text_ids(text.shape[1]), image_ids(side, side))
        return self.teacher(rgb_t, None, text, rope, t_rgb)[0]

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.config.precision == "bf16":
            return torch.autocast("cpu", torch.bfloat16)
        return contextlib.nullcontext()

    def train_step(self) -> dict[str, float]:
        """One optimizer step; returns the logged numbers. A non-finite step changes nothing."""
        config = self.config.optim
        lr = learning_rate(self.step, self.config.steps, config)
        losses = self.losses(self.step)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = lr
        losses["loss"].backward()
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        finite = bool(torch.isfinite(losses["loss"]) and torch.isfinite(norm))
        if finite:
            for optimizer in self.optimizers:
                optimizer.step()
            self.ema.update(self.model, self.step)
            self.bad_steps = 0
        else:
            self.bad_steps += 1
            if self.bad_steps >= MAX_BAD_STEPS:
                samples = self.loader.indices(self.step).tolist()
                raise RuntimeError(
                    f"{self.bad_steps} non-finite steps in a row, "
                    f"the last at step {self.step}, samples {samples}"
                )
        self.step += 1
        if not finite:
            return {"skipped": 1.0, "lr": lr}
        numbers = {name: float(value.detach()) for name, value in losses.items()}
        return numbers | {"grad_norm": float(norm), "lr": lr, "skipped": 0.0}

    def save(self) -> Path:
        """Write a checkpoint of the finished steps."""
        info = {"config": to_dict(self.config)}
        return state.save_state(
            self.run_folder, self.step, self.model, self.ema, self.optimizers, info, self.config.keep
        )

    def run(self, report: Callable[[dict[str, float]], None] | None = None) -> Path:
        """Train to ``config.steps``; SIGTERM and Ctrl-C finish the step and save. Returns the checkpoint."""
        self.run_folder.mkdir(parents=True, exist_ok=True)
        (self.run_folder / "config.json").write_text(json.dumps(to_dict(self.config), indent=1))
        self.model.train()
        with stop_flag() as stopping, (self.run_folder / "log.jsonl").open("a") as log:
            started, first = time.perf_counter(), self.step
            window: list[dict[str, float]] = []
            while self.step < self.config.steps and not stopping():
                window.append(self.train_step())
                due = self.step % self.config.log_every == 0 or self.step == self.config.steps
                if due and not all(numbers["skipped"] for numbers in window):
                    row = summarise(window)
                    row["step"] = self.step
                    elapsed = time.perf_counter() - started
                    row["samples_per_s"] = (self.step - first) * self.config.batch / elapsed
                    row["seconds"] = elapsed
                    window.clear()
                    log.write(json.dumps(row) + "\n")
                    log.flush()
                    if report is not None:
                        report(row)
                if self.step % self.config.save_every == 0:
                    self.save()
            return self.save()


def summarise(window: list[dict[str, float]]) -> dict[str, float]:
    """Means over the steps that counted, and how many were skipped because they were not finite."""
    good = [numbers for numbers in window if not numbers["skipped"]]
    row = {key: sum(numbers[key] for numbers in good) / len(good) for key in good[-1]}
    return row | {"skipped": sum(numbers["skipped"] for numbers in window)}


@contextlib.contextmanager
def stop_flag() -> Iterator[Callable[[], bool]]:
    """A function that tells whether SIGTERM or Ctrl-C arrived; the old handlers come back afterwards."""
    stopped = False

    def stop(signum: int, frame: object) -> None:
        nonlocal stopped
        stopped = True

    before = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: stopped
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def load_weights(run: Path) -> dict[str, Tensor]:
    """Averaged weights of a run's newest checkpoint, or the transformer of a model folder."""
    from safetensors.torch import load_file

    if (run / "transformer.safetensors").is_file():
        return load_file(run / "transformer.safetensors")
    return load_file(state.latest(run) / "ema.safetensors")


def load_autoencoder(source: Path, config: TrainConfig) -> Autoencoder:
    """The autoencoder from a model folder or from the training run that made it (statistics included).

    Raises:
        UserError: no path given, or a run whose latent statistics were not measured yet.
    """
    from safetensors.torch import load_file

    if not str(source) or str(source) == ".":
        raise UserError("this stage needs autoencoder=FOLDER: an autoencoder run or a model folder")
    model = Autoencoder(config.model.autoencoder)
    path = source / "autoencoder.safetensors"
    if not path.is_file():
        raise UserError(f"{path} does not exist; finish the autoencoder run first")
    model.load_state_dict(load_file(path), strict=True)
    return model


@torch.no_grad()
def finish_autoencoder(config: TrainConfig, run: Path, num_batches: int = 40) -> Path:
    """Measure the latent statistics of the averaged weights and write ``run/autoencoder.safetensors``."""
    from safetensors.torch import load_file, save_file

    model = Autoencoder(config.model.autoencoder)
    weights = dict(model.state_dict()) | load_file(state.latest(run) / "ema.safetensors")
    model.load_state_dict(weights, strict=True)
    loader = CacheLoader(config.data, config.batch, config.seed, config.image_size)
    total, square, count = 0.0, 0.0, 0
    for step in range(num_batches):
        mu = model.encode_moments(loader.load(step).images).chunk(2, dim=1)[0]
        latents = torch.nn.functional.pixel_unshuffle(mu, config.model.autoencoder.PATCH).double()
        total = total + latents.sum(dim=(0, 2, 3))
        square = square + latents.square().sum(dim=(0, 2, 3))
        count += latents.shape[0] * latents.shape[2] * latents.shape[3]
    average = torch.as_tensor(total) / count
    model.set_latent_statistics(average.float(), (torch.as_tensor(square) / count - average**2).float())
    target = run / "autoencoder.safetensors"
    aside = target.with_suffix(".tmp")
    save_file(model.state_dict(), aside)
    aside.rename(target)
    return target


def read_config(path: Path) -> TrainConfig:
    """A training configuration from JSON; ``"model"`` may be the name of a preset.

    Raises:
        UserError: unreadable, not JSON, or an unknown key or preset.
    """
    try:
        values = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read as a JSON configuration: {error}") from None
    if isinstance(values, dict) and isinstance(values.get("model"), str):
        values["model"] = to_dict(model_preset(values["model"]))
    return from_dict(TrainConfig, values, path.name)
