"""One loop for every stage and any number of processes: resumable, keyed randomness, nothing lost."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modality_forcing.config import TrainConfig, to_dict
from modality_forcing.errors import TrainingError, UserError
from modality_forcing.io.atomic import atomic_file
from modality_forcing.training import state
from modality_forcing.training.build import Built, build, channels_last, finish_autoencoder, load_weights
from modality_forcing.training.data import Bad, Batch, Loader
from modality_forcing.training.distributed import World, current_world, lost_processes, plan_mesh, whole
from modality_forcing.training.encoding import Encoders
from modality_forcing.training.noisy import Noisy
from modality_forcing.training.optim import EMA, learning_rate, make_optimizers
from modality_forcing.training.parallelize import compute_dtype, sync_gradients
from modality_forcing.training.randomness import DROPOUT, seed_for
from modality_forcing.training.refining import RefinerStage
from modality_forcing.training.saver import Saver
from modality_forcing.training.signals import Signals, heed_signals
from modality_forcing.training.stages import AutoencoderStage, ForcingStage, ImageStage, Stage

__all__ = ["Row", "StepNumbers", "Trainer", "finish_autoencoder", "load_weights"]

Row = dict[str, float]
"""Numbers of the log by name."""
BAD_FILE = "bad_samples.txt"
"""In the run's folder: a line with id and reason for every sample that could not be read."""
NAMED_SAMPLES = 20
"""Sample ids that an error message lists at most."""


@dataclass
class StepNumbers:
    """What one step measured over all processes.

    Attributes:
        loss: the minimised number.
        sums, counts: per term, and per term and task ("rgb_joint"), the sum and how much of it counted.
        grad_norm: before clipping.
        skipped: the step changed nothing, because its loss or gradient was not finite.
        tokens: that the model saw.
        suspects: ids of the samples whose own loss was not finite.
    """

    loss: float
    sums: dict[str, float]
    counts: dict[str, float]
    grad_norm: float
    lr: float
    tokens: float
    skipped: bool = False
    suspects: list[str] = field(default_factory=list)

    @property
    def means(self) -> Row:
        """Loss, and every term and task that occurred."""
        terms = {name: self.sums[name] / n for name, n in self.counts.items() if n > 0}
        return {"loss": self.loss, **terms}


class Trainer:
    """Builds a stage from its configuration and runs it inside a run folder.

    All processes of a run make one and call the same methods in the same order.

    Args:
        run: folder of the run; checkpoints go to ``run/checkpoints``.
        resume: go on after the newest checkpoint, if there is one.
        world: this process among the others; from the environment (torchrun) by default.
        loader, encoders: in place of those that ``config`` asks for.

    Attributes:
        step: finished steps.
        model: what trains (sharded under torchrun).
        encoders: frozen autoencoder and text encoder; None in the autoencoder stage.
        estimator: the frozen transformer that the refiner works behind; None in the other stages.
        skipped: steps that were skipped so far because they were not finite.

    Raises:
        UserError: before any model is built: the folder holds another run, an impossible mesh, missing data,
            a checkpoint of other settings; then what the encoders, ``init`` and ``freeze`` lack.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: Path,
        *,
        resume: bool = False,
        world: World | None = None,
        loader: Loader | None = None,
        encoders: Encoders | None = None,
    ) -> None:
        self.config, self.run_folder = config, Path(run)
        self.world = world or current_world()
        if not resume and (state.list_steps(run) or (self.run_folder / "config.json").exists()):
            raise UserError(f"{run} already holds a run; resume it or name another folder")
        plan_mesh(config.parallel, config.batch, self.world)
        if config.threads:
            torch.set_num_threads(config.threads)
        checkpoint = state.latest(self.run_folder) if resume and state.list_steps(self.run_folder) else None
        note = state.read_note(checkpoint) if checkpoint is not None else {}
        if checkpoint is not None:
            state.check_same(note, config, checkpoint)
        self.loader = loader or Loader(
            config.data, batch=config.batch, accumulate=config.parallel.accumulate, seed=config.seed,
            size=config.image_size, stage=config.stage, rank=self.world.rank, world=self.world.size,
            multiple=config.model.autoencoder.downscale, named=config.forcing.named_weight > 0,
        )  # fmt: skip
        self.encoders = encoders
        if encoders is None and config.stage != "autoencoder":
            self.encoders = Encoders(config, self.world.device)
        built = build(config, self.world, resuming=checkpoint is not None)
        self.model, self.estimator = built.model, built.estimator
        self.stage = self._make_stage(built)
        self.optimizers = make_optimizers(self.model, config.optim, config.precision)
        self.ema = EMA(self.model, config.optim.ema)
        self.step, self.skipped, self.bad_in_a_row = 0, 0, 0
        self._suspects: list[str] = []
        self._grown = built.grown
        self._batches: Iterator[list[Batch]] | None = None
        self._batches_at = -1
        self._batch: list[Batch] = []
        if checkpoint is not None:
            state.read(checkpoint, self.model, self.ema, self.optimizers, self.world)
            self.step, self.skipped = int(note["step"]), int(note.get("skipped", 0))

    def _make_stage(self, built: Built) -> Stage:
        device = self.world.device
        if self.encoders is None:
            return AutoencoderStage(self.config, device, channels_last=channels_last(self.config, self.world))
        if self.config.stage == "t2i":
            return ImageStage(self.config, device, self.encoders)
        if built.estimator is not None:
            return RefinerStage(self.config, device, self.encoders, built.estimator)
        return ForcingStage(self.config, device, self.encoders, built.teach, built.reader, built.judge)

    # -- one step --------------------------------------------------------------------------------------

    def _next_batches(self) -> list[Batch]:
        number, again = divmod(self.step, self.stage.passes)
        if self._batches is not None and again and self._batches_at == number + 1:
            return self._batch
        if self._batches is None or self._batches_at != number:
            self._batches, self._batches_at = self.loader.steps(number), number
        self._batches_at += 1
        self._batch = next(self._batches)
        return self._batch

    def _autocast(self) -> AbstractContextManager[Any]:
        """bf16 in the body: by autocast, except where sharded weights are gathered in bf16 already.

        The autoencoder stays in float32 on CPUs: bf16 convolutions are four times slower there without
        matrix units for them. The refiner always does: bf16 in what writes depth causes banding.
        """
        device = self.world.device.type
        plain = self.config.precision != "bf16" or (device == "cpu" and self.encoders is None)
        plain = plain or self.estimator is not None
        if plain or (self.world.grouped and compute_dtype(self.config.precision, self.world.device)):
            return contextlib.nullcontext()
        return torch.autocast(device, torch.bfloat16)

    def losses(self, batches: list[Batch], step: int, *, backward: bool = False) -> StepNumbers:
        """The losses of this process' micro-batches of a step, with those of all others in one mean.

        Args:
            backward: add up gradients of that mean.
        """
        works = [self.stage.prepare(batch, step) for batch in batches]
        weights = self.stage.weights
        counts = [float(sum(work.counts[name].sum() for work in works)) for name in weights]
        total = dict(zip(weights, self.world.total(counts), strict=True))
        found: list[Tensor] = []
        for number, work in enumerate(works):
            if backward:
                sync_gradients(self.model, number == len(works) - 1)
            with self._autocast(), torch.set_grad_enabled(backward):
                terms = self.stage.terms(self.model, work)
                parts = [
                    weights[name] * terms[name].sum() / max(total[name], 1)
                    for name in weights
                    if weights[name]
                ]
                loss = torch.stack(parts).sum()
            if backward:
                # Sharding averages gradients over the processes; the sum is wanted.
                (loss * self.world.size).backward()
            found.append(torch.stack([terms[name].detach().float() for name in weights]))
        return self._numbers(works, torch.cat(found, dim=1).cpu().double(), total)

    def _numbers(self, works: list[Noisy], sums: Tensor, total: Row) -> StepNumbers:
        """Add up the terms (T, b) of this process' samples over all processes, whole and by task."""
        names = list(self.stage.weights)
        tasks = {task: torch.cat([work.tasks[task] for work in works]) for task in works[0].tasks}
        counts = torch.stack([torch.cat([work.counts[name] for work in works]) for name in names]).double()
        rows = [sums.sum(dim=1)]
        for chosen in tasks.values():
            # A number that is not finite may not reach the tasks it is no part of.
            rows += [torch.where(chosen, sums, 0.0).sum(dim=1), torch.where(chosen, counts, 0.0).sum(dim=1)]
        tokens = sum(work.tokens * len(work.batch) for work in works)
        flat = self.world.total([*torch.cat(rows).tolist(), float(tokens)])
        values = iter(flat)
        all_sums: Row = {name: next(values) for name in names}
        all_counts = dict(total)
        for task in tasks:
            task_sums = {name: next(values) for name in names}
            task_counts = {name: next(values) for name in names}
            for name in names:
                if self.stage.weights[name]:
                    all_sums[f"{name}_{task}"] = task_sums[name]
                    all_counts[f"{name}_{task}"] = task_counts[name]
        weights = self.stage.weights
        loss = sum(weights[name] * all_sums[name] / max(total[name], 1) for name in names if weights[name])
        ids = [sample for work in works for sample in work.batch.ids]
        bad = [sample for sample, column in zip(ids, sums.T, strict=True) if not column.isfinite().all()]
        return StepNumbers(
            float(loss), all_sums, all_counts, 0.0, 0.0, next(values),
            suspects=[] if math.isfinite(loss) else self.world.gather(bad),
        )  # fmt: skip

    def train_step(self) -> StepNumbers:
        """One optimizer step on all processes. A step that is not finite changes nothing but is counted.

        Raises:
            TrainingError: ``optim.max_bad_steps`` such steps in a row; the message names the samples.
        """
        config = self.config.optim
        lr = learning_rate(self.step, self.config.steps, config)
        if self.config.lora.rank and self.config.lora.dropout:
            torch.manual_seed(seed_for(self.config.seed, self.step, DROPOUT, self.world.rank))
        batches = self._next_batches()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = lr
        numbers = self.losses(batches, self.step, backward=True)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        norm = float(whole(nn.utils.clip_grad_norm_(parameters, config.clip)))
        numbers.lr, numbers.grad_norm = lr, norm
        numbers.skipped = not (math.isfinite(numbers.loss) and math.isfinite(norm))
        if numbers.skipped:
            self._count_bad(numbers, batches)
        else:
            for optimizer in self.optimizers:
                optimizer.step()
            self.ema.update(self.model, self.step)
            self.bad_in_a_row = 0
            self._suspects.clear()
        self.step += 1
        return numbers

    def _count_bad(self, numbers: StepNumbers, batches: list[Batch]) -> None:
        self.skipped += 1
        self.bad_in_a_row += 1
        self._suspects += [sample for sample in numbers.suspects if sample not in self._suspects]
        if self.bad_in_a_row < self.config.optim.max_bad_steps:
            return
        which, samples = "samples whose own loss is not finite", self._suspects
        if not samples:
            which = "every sample's loss is finite, the gradient is not; samples of the last step"
            samples = self.world.gather([sample for batch in batches for sample in batch.ids])
        more = f" and {len(samples) - NAMED_SAMPLES} more" if len(samples) > NAMED_SAMPLES else ""
        raise TrainingError(
            f"{self.bad_in_a_row} non-finite steps in a row, the last at step {self.step}; "
            f"{which}: {', '.join(samples[:NAMED_SAMPLES])}{more}"
        )

    # -- a run -------------------------------------------------------------------------------------------

    def note(self) -> dict[str, Any]:
        """What a checkpoint's ``state.json`` says."""
        return {
            "step": self.step, "samples": self.step * self.config.batch, "skipped": self.skipped,
            "processes": self.world.size, "config": to_dict(self.config),
        }  # fmt: skip

    def save(self, signals: Signals | None = None, notice: Callable[[str], None] | None = None) -> Path:
        """Write a checkpoint of the finished steps and wait until it is complete."""
        saver = Saver(self.run_folder, self.config.checkpoint, self.world, notice or _say)
        return saver.save(self.step, self._tensors, self.note(), signals or Signals())

    def _tensors(self) -> state.Tensors:
        return state.state_tensors(self.model, self.ema, self.optimizers)

    def averaged(self) -> AbstractContextManager[None]:
        """The averaged weights in the model's place while the block runs."""
        return self.ema.in_place(self.model)

    def run(
        self,
        report: Callable[[Row], None] | None = None,
        callbacks: Sequence[Callable[[Trainer, int], None]] = (),
        notice: Callable[[str], None] | None = None,
    ) -> Path:
        """Train to ``config.steps``; SIGTERM and Ctrl-C finish the step and save. Returns the checkpoint.

        Args:
            report: gets the rows of the log, every ``log.every`` steps, on the first process.
            callbacks: called with the trainer and the number of finished steps after every step, on all
                processes (sharded weights need all of them).
            notice: gets messages for the user, on the first process; they go to stderr by default.

        Raises:
            UserError: another process trains here; the disk stayed full until the end was asked for.
            TrainingError: too many bad steps or samples, or a checkpoint that cannot be written.
            LostProcess: another process of the run died.
        """
        with lost_processes(), state.hold(self.run_folder, self.world), heed_signals() as signals:
            if self.world.first:
                state.clean(self.run_folder)
                with atomic_file(self.run_folder / "config.json") as aside:
                    aside.write_text(json.dumps(to_dict(self.config), indent=1), encoding="utf-8")
            self.world.wait()
            saver = Saver(self.run_folder, self.config.checkpoint, self.world, notice or _say)
            self._listed = self._listed_before()
            self.loader.listen(lambda bad: self._list_bad(bad, notice or _say))
            self.model.train()
            window = _Window(self)
            if self.step == 0 and self._grown and self.step < self.config.steps:
                window.extra["rgb_shift"] = self.rgb_shift()
            stopping = bool(self.world.largest([signals.stopped])[0])
            try:
                while self.step < self.config.steps and not stopping:
                    window.add(self.train_step())
                    if self.step % self.config.log.every == 0 or self.step == self.config.steps:
                        row = window.row()
                        if report is not None and row is not None and self.world.first:
                            report(row)
                    for callback in callbacks:
                        callback(self, self.step)
                    stopping = self._keep_safe(saver, signals)
            finally:
                saver.finish()
            return saver.save(self.step, self._tensors, self.note(), signals)

    def _listed_before(self) -> set[str]:
        """Bad samples that need no line: those of earlier days, and on other processes than the first those
        that all of them know from the start."""
        known = set() if self.world.first else {bad.id for bad in self.loader.bad}
        path = self.run_folder / BAD_FILE
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return known | {line.partition("\t")[0] for line in lines}

    def _list_bad(self, bad: Bad, notice: Callable[[str], None]) -> None:
        if bad.id in self._listed:
            return
        self._listed.add(bad.id)
        notice(f"sample {bad.id} cannot be read ({bad.reason}); another one takes its place")
        with (self.run_folder / BAD_FILE).open("a", encoding="utf-8") as stream:
            stream.write(f"{bad.id}\t{bad.reason}\n")

    def _keep_safe(self, saver: Saver, signals: Signals) -> bool:
        """After a step: checkpoints that are due or done. Whether any process was asked to stop."""
        stopped, writing = self.world.largest([signals.stopped, saver.running])
        settled = saver.settle() if saver.pending and not writing else True
        due = self.step % self.config.checkpoint.every == 0 and self.step < self.config.steps
        if due or not settled:
            if self.encoders is not None:
                self.encoders.flush()
            if self.config.checkpoint.background and settled and saver.settle():
                saver.begin(self.step, self._tensors, self.note())
            else:
                saver.save(self.step, self._tensors, self.note(), signals)
        return bool(stopped)

    @torch.no_grad()
    def rgb_shift(self) -> float:
        """How far the image head moves because image tokens see depth tokens: root mean square of the change
        over that of the text-to-image model's own answer, on the first micro-batch. At step 0 it comes from
        attention alone; it is what self-distillation pulls back."""
        work = self.stage.prepare(self.loader.load(self.step)[0], self.step)
        with self._autocast():
            alone = self.model(work.rgb_t, None, work.text, work.image_rope, work.t_rgb)[0].float()
            inputs = (work.rgb_t, work.depth_t, work.text, work.rope, work.t_rgb, work.t_depth)
            both = self.model(*inputs)[0].float()
        moved, size = self.world.total([float((both - alone).square().sum()), float(alone.square().sum())])
        return math.sqrt(moved / size) if size > 0 else 0.0


class _Window:
    """Steps since the last row of the log."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.extra: Row = {}
        self.started = self.since = time.perf_counter()
        self.steps: list[StepNumbers] = []

    def add(self, numbers: StepNumbers) -> None:
        """One more step."""
        self.steps.append(numbers)

    def row(self) -> Row | None:
        """Means over the steps that counted; None, and the window stays open, when none did. All processes
        call it."""
        good = [numbers for numbers in self.steps if not numbers.skipped]
        if not good:  # the same on all processes
            return None
        row: Row = {"loss": sum(n.loss for n in good) / len(good)}
        for name in good[-1].counts:
            count = sum(n.counts[name] for n in good)
            if count > 0:
                row[name] = sum(n.sums[name] for n in good) / count
        row = self.trainer.stage.finish(row)
        row |= {"grad_norm": sum(n.grad_norm for n in good) / len(good), "lr": good[-1].lr}
        bad = set(self.trainer.world.gather([item.id for item in self.trainer.loader.bad]))
        now = time.perf_counter()
        elapsed = max(now - self.since, 1e-9)
        config, step = self.trainer.config, self.trainer.step
        row |= {
            "samples_per_s": len(self.steps) * config.batch / elapsed,
            "tokens_per_s": sum(n.tokens for n in self.steps) / elapsed,
            "eta_s": (config.steps - step) * elapsed / len(self.steps),
            "skipped": float(sum(n.skipped for n in self.steps)),
            "bad_samples": float(len(bad)),
            "step": float(step),
            "seconds": now - self.started,
        }
        row |= self.extra
        self.extra, self.steps, self.since = {}, [], now
        return row


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
