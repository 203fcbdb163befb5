"""Training steps: time, tokens per second, MFU and peak memory. Prints a table, optionally writes JSON.

python benchmarks/training.py [RECIPE ...] [--set KEY=VALUE ...] [--steps 10] [--peak TFLOPS] [--json F]
torchrun --nproc-per-node N benchmarks/training.py ...

Data and encoders are replaced by random numbers of the right shapes that lie ready, weights are random: what
is timed is the training step itself (losses, backward pass, clipping, optimizer, average). MFU is the model's
operations (docs/models.md; recomputation does not count) over the device's dense bf16 peak: from its data
sheet where it is known here, else given with --peak. "matmul" is the same over what a large bf16 matrix
product reaches on this device.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import _report
import torch

from modality_forcing.config import ForcingConfig, TrainConfig
from modality_forcing.training.data import Batch
from modality_forcing.training.distributed import World, current_world
from modality_forcing.training.estimate import estimate, sample_tokens
from modality_forcing.training.recipes import find_recipe, read_recipe
from modality_forcing.training.trainer import Trainer

PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}
"""Dense bf16 operations per second by data sheet (SXM versions)."""


HEAD = f"{'recipe':28} {'step':>9} {'tokens/s':>10} {'TFLOP/s':>8} {'MFU':>6} {'matmul':>7} {'GiB':>7}"


class ReadyLoader:
    """Batches of random pixels and depth that lie ready."""

    bad: tuple[()] = ()

    def __init__(self, config: TrainConfig, world: World) -> None:
        share = config.batch // (world.size * config.parallel.accumulate)
        side = config.image_size
        depth = torch.rand(share, side, side) + 0.5
        self.batches = []
        for number in range(config.parallel.accumulate):
            first = (world.rank * config.parallel.accumulate + number) * share
            slots = list(range(first, first + share))
            ids = [str(slot) for slot in slots]
            self.batches.append(
                Batch(None, depth, torch.rand_like(depth) < 0.1, [""] * share, ids, slots, (side, side))
            )

    def load(self, step: int) -> list[Batch]:
        """The same at every step."""
        return self.batches

    def steps(self, first: int = 0) -> Iterator[list[Batch]]:
        """Without end."""
        while True:
            yield self.batches


class ReadyEncoders:
    """Random latents and text states, made once."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        transformer, side = config.model.transformer, config.image_size // config.model.autoencoder.downscale
        self.one_image = torch.randn(1, transformer.latent_channels, side, side, device=device)
        self.one_text = torch.randn(1, config.model.text.max_tokens, transformer.text_width, device=device)

    def latents(self, batch: Batch) -> torch.Tensor:
        """(b, C, h, w)."""
        return self.one_image.expand(len(batch), -1, -1, -1)

    def text(self, captions: list[str]) -> torch.Tensor:
        """(b, T, width)."""
        return self.one_text.expand(len(captions), -1, -1)

    def flush(self) -> None:
        """Nothing to keep."""


def matmul_rate(device: torch.device) -> float:
    """Operations per second of a large bf16 matrix product."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    best = 0.0
    for _ in range(5):
        wait(device)
        started = time.perf_counter()
        for _ in range(4):
            a @ a
        wait(device)
        best = max(best, 8 * side**3 / (time.perf_counter() - started))
    return best


def wait(device: torch.device) -> None:
    """Until the device has done what was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(config: TrainConfig, warmup: int, steps: int, peak: float | None, world: World) -> dict[str, Any]:
    """One row of the table."""
    device = world.device
    # Without init the weights are random; a teacher has no weights to come from.
    config = replace(config, init="", remember=False)
    if config.forcing.distill_high or config.forcing.distill_low:
        forcing = {**vars(config.forcing), "distill_high": 0.0, "distill_low": 0.0}
        config = replace(config, forcing=ForcingConfig(**forcing))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            config, Path(folder), loader=ReadyLoader(config, world), encoders=ReadyEncoders(config, device)
        )  # type: ignore[arg-type]
        times = []
        for _ in range(warmup + steps):
            wait(device)
            started = time.perf_counter()
            trainer.train_step()
            wait(device)
            times.append(time.perf_counter() - started)
    seconds = sorted(times[warmup:])[steps // 2]
    plan = estimate(config, world.size)
    rate = config.batch * plan.flops.model / seconds / world.size
    fast = matmul_rate(device)
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return {
        "step_s": seconds, "samples_per_s": config.batch / seconds,
        "tokens_per_s": config.batch * sample_tokens(config).all / seconds,
        "tflops": rate / 1e12, "mfu": rate / peak if peak else None, "of_matmul": rate / fast,
        "peak_memory_gib": memory, "estimated_memory_gib": plan.memory.total / 2**30,
        "batch": config.batch, "processes": world.size, "precision": config.precision,
        "checkpointing": config.parallel.checkpointing, "compile": config.parallel.compile,
    }  # fmt: skip


def main() -> None:
    """Measure every recipe's last stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", default=["lowpoly/forcing"])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings for all recipes")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--peak", type=float, help="dense bf16 TFLOP/s of one device")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    world = current_world()
    on_gpu = world.device.type == "cuda"
    name = torch.cuda.get_device_name(world.device) if on_gpu else platform.machine()
    known = next((value for key, value in PEAKS.items() if key in name), None)
    peak = options.peak * 1e12 if options.peak else known
    rows: dict[str, Any] = {}
    for recipe in options.recipes:
        config = read_recipe(find_recipe(recipe), "bench", options.set).stages[-1].config
        if config.stage == "autoencoder":
            raise SystemExit(f"{recipe}: the last stage is an autoencoder; transformers are measured here")
        rows[recipe] = measure(config, options.warmup, options.steps, peak, world)
        if world.first:
            if len(rows) == 1:
                print(HEAD)
            row = rows[recipe]
            mfu = f"{row['mfu']:.1%}" if row["mfu"] is not None else "-"
            gib = f"{row['peak_memory_gib']:.1f}" if row["peak_memory_gib"] is not None else "-"
            print(
                f"{recipe:28} {row['step_s']:8.3f}s {row['tokens_per_s']:10.0f} {row['tflops']:8.2f} "
                f"{mfu:>6} {row['of_matmul']:7.1%} {gib:>7}", flush=True,
            )  # fmt: skip
    if world.first:
        about = {
            "device": name, "threads": torch.get_num_threads(), "steps": options.steps, "set": options.set,
        }  # fmt: skip
        _report.write(options.json, {**about, "recipes": rows})


if __name__ == "__main__":
    main()
