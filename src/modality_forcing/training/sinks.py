"""Where a run's numbers and pictures go: ``log.jsonl`` always, TensorBoard and Weights & Biases if wanted."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from modality_forcing.config import LogConfig, TrainConfig, to_dict
from modality_forcing.errors import UserError
from modality_forcing.io.atomic import atomic_file, slug, write_errors

Row = Mapping[str, float]
LOG = "log.jsonl"


class Sink(Protocol):
    """One place that takes rows of numbers and pictures."""

    def row(self, step: int, row: Row) -> None:
        """Numbers by name at a step."""
        ...

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """uint8 (H, W, 3)."""
        ...

    def close(self) -> None:
        """Nothing comes after this."""
        ...


def check_sinks(log: LogConfig) -> None:
    """Refuse a run whose log packages are missing, before anything slow.

    Raises:
        UserError: names the package and how to get it.
    """
    for wanted, package in ((log.tensorboard, "tensorboard"), (log.wandb, "wandb")):
        if wanted and importlib.util.find_spec(package) is None:
            raise UserError(
                f"log.{package} is on, but the package {package} is missing: "
                f'pip install "modality-forcing[log]", or set log.{package}=false'
            )


def open_sinks(run: Path, config: TrainConfig, step: int) -> Sinks:
    """The sinks of a run that starts or goes on after ``step`` finished steps; rows beyond it are dropped.

    For the first process only.

    Raises:
        UserError: a package is missing, or the folder cannot be written.
    """
    check_sinks(config.log)
    sinks: list[Sink] = [JsonLines(run / LOG, step)]
    if config.log.tensorboard:
        sinks.append(TensorBoard(run / "tensorboard", step))
    if config.log.wandb:
        sinks.append(WeightsAndBiases(run, config))
    return Sinks(sinks)


class JsonLines:
    """One JSON object per line, on disk before the next step begins."""

    def __init__(self, path: Path, step: int = 0) -> None:
        self.path = path
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._drop_after(step)
            self._file = path.open("a", encoding="utf-8")

    def _drop_after(self, step: int) -> None:
        """Rows of steps that a killed run made after its last checkpoint will be made again."""
        kept = [json.dumps(row) for row in read_log(self.path) if row.get("step", 0) <= step]
        with atomic_file(self.path) as aside:
            aside.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def row(self, step: int, row: Row) -> None:
        """Append one line."""
        # JSON knows no NaN and no infinity; null is what readers expect for "no number".
        values = {key: value if math.isfinite(value) else None for key, value in row.items()}
        self._file.write(json.dumps({**values, "step": step}) + "\n")
        self._file.flush()

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Pictures are files of their own."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``log.jsonl``; a last line that was cut off by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


class TensorBoard:
    """Event files; curves of a resumed run hide what a killed one wrote beyond its checkpoint."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with write_errors(folder):
            self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def row(self, step: int, row: Row) -> None:
        """One scalar per name."""
        for key, value in row.items():
            self._writer.add_scalar(key, value, step)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Under the given name."""
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Write what waits."""
        self._writer.close()


class WeightsAndBiases:
    """A run at Weights & Biases, with the same identity after a resume.

    Who and where (WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline, ...) is said by that package's own
    environment variables.
    """

    def __init__(self, run: Path, config: TrainConfig) -> None:
        import wandb

        note = run / "wandb.json"
        identity = json.loads(note.read_text(encoding="utf-8"))["id"] if note.is_file() else None
        name = f"{run.resolve().parent.name}/{run.name}"
        identity = identity or f"{slug(name)[:40]}-{os.urandom(4).hex()}"
        with atomic_file(note) as aside:
            aside.write_text(json.dumps({"id": identity}), encoding="utf-8")
        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "modality-forcing"),
            id=identity, name=name, dir=str(run), resume="allow", config=to_dict(config),
        )  # fmt: skip

    def row(self, step: int, row: Row) -> None:
        """All numbers of a step."""
        self._run.log(dict(row), step=step)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Under the given name."""
        self._run.log({name: self._wandb.Image(pixels)}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Sinks:
    """Several sinks as one; nothing at all on the other processes of a distributed run."""

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self._sinks = list(sinks)

    def row(self, step: int, row: Row) -> None:
        """To every sink."""
        for sink in self._sinks:
            sink.row(step, row)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """To every sink."""
        for sink in self._sinks:
            sink.picture(step, name, pixels)

    def close(self) -> None:
        """Every sink."""
        for sink in self._sinks:
            sink.close()
