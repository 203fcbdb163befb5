"""What a training run shows: a bar per stage on a terminal, a line per row elsewhere, nothing on the other
processes of a distributed run. All of it on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

FIRST = ("loss", "rgb", "depth", "distill")
"""Numbers that come first in a line; then those of the tasks; then these:"""
LAST = ("grad_norm", "lr", "samples_per_s", "tokens_per_s", "eta_s", "skipped", "bad_samples")
HIDDEN = ("step", "seconds")
RATES = {"samples_per_s": "samples/s", "tokens_per_s": "tokens/s"}
SHORT = {"grad_norm": "grad", "eta_s": "left"}


class View:
    """The progress of one ``mf train``."""

    def __init__(self, *, quiet: bool = False) -> None:
        from modality_forcing.cli.output import progress

        self.quiet = quiet
        self.bars: Progress = progress()
        if quiet:
            self.bars.disable = True
        self.plain = self.bars.disable and not quiet
        self._bar: Any = None
        self._name, self._steps = "", 0

    def __enter__(self) -> View:
        self.bars.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bars.__exit__(*error)

    def stage(self, name: str, steps: int, done: int = 0) -> None:
        """A stage begins."""
        self._name, self._steps = name, steps
        self.say(f"{name}: {steps - done} steps" + (f" after {done}" if done else ""))
        self._bar = self.bars.add_task(name, total=steps, completed=done)

    def stage_done(self) -> None:
        """A stage is over: its bar goes."""
        if self._bar is not None:
            self.bars.remove_task(self._bar)
            self._bar = None

    def row(self, row: Mapping[str, float]) -> None:
        """The numbers of a step."""
        text = line(row)
        if self.plain:
            print(f"{self._name} {int(row['step'])}/{self._steps}  {text}", file=sys.stderr, flush=True)
        elif self._bar is not None:
            self.bars.update(self._bar, completed=int(row["step"]), description=f"{self._name}  {text}")

    def numbers(self, step: int, row: Mapping[str, float]) -> None:
        """Numbers of a validation."""
        self.say(f"{self._name} {step}/{self._steps}  " + "  ".join(f"{k} {v:.4g}" for k, v in row.items()))

    @contextlib.contextmanager
    def counting(self, text: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar of its own while the block runs; it gets how much is done."""
        self.say(f"{text}: {total:,}")
        bar = self.bars.add_task(text, total=total)
        try:
            yield lambda done: self.bars.update(bar, completed=done)
        finally:
            self.bars.remove_task(bar)

    def say(self, text: str) -> None:
        """One line that stays."""
        if self.plain:
            print(text, file=sys.stderr, flush=True)
        elif not self.quiet:
            self.bars.console.print(text, highlight=False, markup=False)


def line(row: Mapping[str, float]) -> str:
    """A row as text: loss first, tasks, then how fast and how long."""
    names = [name for name in FIRST if name in row]
    names += [name for name in row if name not in (*FIRST, *LAST, *HIDDEN)]
    names += [name for name in LAST if name in row and (row[name] or name not in ("skipped", "bad_samples"))]
    texts = []
    for name in names:
        value = number(name, row[name])
        label = SHORT.get(name, name.replace("_", " "))
        texts.append(f"{value} {RATES[name]}" if name in RATES else f"{label} {value}")
    return "  ".join(texts)


def number(name: str, value: float) -> str:
    """A value as it reads best."""
    if name == "eta_s":
        return duration(value)
    if name in ("skipped", "bad_samples"):
        return str(int(value))
    if name == "tokens_per_s" and value >= 1000:
        return f"{value / 1000:.1f}k"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """75 -> "1:15"; 90000 -> "25:00:00"."""
    if seconds != seconds or seconds == float("inf"):
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
