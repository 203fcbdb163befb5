"""What a run shows: notices, progress, the folders it made and how long each stage took."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

    from modality_forcing.flow.sampler import Step
    from modality_forcing.pipeline import Pipeline
    from modality_forcing.types import RGBD

_IMPORTED = time.perf_counter()


def since_start() -> float:
    """Seconds since this process started; where the system does not tell, since the command line began."""
    try:
        with open("/proc/self/stat", encoding="ascii") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        with open("/proc/uptime", encoding="ascii") as file:
            up = float(file.read().split()[0])
        return up - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return time.perf_counter() - _IMPORTED


def notice(text: str) -> None:
    """One line that the user should know and need not act on."""
    print(f"note: {' '.join(text.split())}", file=sys.stderr)


def notices(texts: Iterable[str]) -> None:
    """Several of them."""
    for text in texts:
        notice(text)


def folder_name(text: str, seed: int) -> str:
    """ "A cozy kitchen", 3 -> "a-cozy-kitchen-seed3"."""
    from modality_forcing.io.atomic import slug

    return f"{slug(text)}-seed{seed}"


def progress() -> Progress:
    """Bars on stderr; nothing is drawn when that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Remaining

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), Remaining(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip


class Session:
    """One run of a mode from the loaded inputs to the summary.

    It loads the pipeline, shows progress, saves each result as soon as it is there, keeps the times.
    """

    def __init__(self, out: Path, cloud: Mapping[str, Any]) -> None:
        self.out = out
        self.cloud = dict(cloud)
        self.folders: list[Path] = []
        self.times: dict[str, float] = {}
        self._bars = progress()
        self._bar: Any = None

    @contextlib.contextmanager
    def pipeline(self, options: Mapping[str, Any]) -> Iterator[Pipeline]:
        """The loaded pipeline inside a progress display; the summary is printed when the block ends well."""
        from modality_forcing.pipeline import Pipeline

        self.times["start"] = since_start()
        with self._bars:
            self._bar = self._bars.add_task("loading the model", total=None)
            loaded = Pipeline.from_pretrained(**options)
            self._bars.update(self._bar, description="reading the prompt")
            yield loaded
        self.times |= {name: loaded.timings[name] for name in loaded.timings}
        self._summary()

    def on_step(self, step: Step) -> None:
        """Step callback of the pipeline's methods."""
        self._bars.update(
            self._bar, description="sampling", total=step.num_steps, completed=step.index + 1, refresh=False
        )

    def save(self, result: RGBD, name: str) -> None:
        """Write one run folder and say where it is."""
        begin = time.perf_counter()
        self._bars.update(self._bar, description="saving")
        folder = result.save(self.out / name, **self.cloud)
        self.folders.append(folder)
        print(folder, flush=True)
        self.times["save"] = self.times.get("save", 0.0) + time.perf_counter() - begin

    def _summary(self) -> None:
        save = self.times.pop("save", 0.0)
        stages = {**self.times, "save": save}
        text = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in stages.items())
        print(f"{text}; {since_start():.1f} s in all", file=sys.stderr)
