"""When a checkpoint is written, by whom, and what happens when the disk is full."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from modality_forcing.config import CheckpointConfig
from modality_forcing.errors import TrainingError, UserError
from modality_forcing.training import state
from modality_forcing.training.distributed import World
from modality_forcing.training.signals import Signals

RETRY_SECONDS = 30.0
"""Pause between attempts while the disk is full."""
DONE, FULL, FAILED = 0, 1, 2

Tensors = Callable[[], state.Tensors]


class Saver:
    """Writes a run's checkpoints, in the training thread or beside it, and drops old ones.

    While the disk is full the training waits: it says so, tries again every ``RETRY_SECONDS`` and at once on
    SIGUSR1. On SIGTERM or Ctrl-C it tries once more and ends. Older checkpoints are never touched before a
    newer one is complete.

    Args:
        run: the run's folder.
        notice: called on the first process with a message for the user.
    """

    def __init__(
        self, run: Path, config: CheckpointConfig, world: World, notice: Callable[[str], None]
    ) -> None:
        self.run, self.config, self.world, self.notice = run, config, world, notice
        self._thread: threading.Thread | None = None
        self._code, self._error = DONE, ""

    @property
    def running(self) -> bool:
        """Whether this process still writes in the background."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def pending(self) -> bool:
        """Whether a background checkpoint was begun and not yet settled."""
        return self._thread is not None

    def begin(self, step: int, tensors: Tensors, note: Mapping[str, Any]) -> None:
        """Copy the state and write it beside the training; :meth:`settle` must follow."""
        if self._is_there(step):
            return
        copy = state.staged(tensors())
        self._thread = threading.Thread(
            target=self._write, args=(step, copy, note, self.world.saving), name="checkpoint", daemon=False
        )
        self._thread.start()

    def settle(self) -> bool:
        """Wait for the background checkpoint; False when the disk was full on some process.

        Raises:
            TrainingError: it could not be written for another reason.
        """
        if self._thread is None:
            return True
        self._thread.join()
        self._thread = None
        return self._agree()

    def finish(self) -> None:
        """Let a background thread end, without asking the others: for the way out after an error."""
        if self._thread is not None:
            self._thread.join()

    def _is_there(self, step: int) -> bool:
        """A checkpoint of this step that is already there is whole and says the same: it stays as it is."""
        there = self.world.first and state.step_folder(self.run, step).is_dir()
        return bool(self.world.largest([there])[0])

    def save(self, step: int, tensors: Tensors, note: Mapping[str, Any], signals: Signals) -> Path:
        """Write a checkpoint now and return when it is complete, however long the disk is full.

        Raises:
            UserError: the disk was full and the run was asked to end.
            TrainingError: it could not be written for another reason.
        """
        self.settle()
        signals.retry = False
        if self._is_there(step):
            return state.step_folder(self.run, step)
        while True:
            self._write(step, tensors(), note, self.world.control)
            stopping = bool(self.world.largest([signals.stopped])[0])
            if self._agree():
                return state.step_folder(self.run, step)
            steps = state.list_steps(self.run)
            newest = f"the newest checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint"
            if stopping:
                raise UserError(f"the disk is full: step {step} could not be saved in {self.run}; {newest}")
            if self.world.first:
                self.notice(
                    f"the disk is full: training waits at step {step}, {newest}; free some space. "
                    f"It tries again every {RETRY_SECONDS:.0f} s, at once on SIGUSR1"
                )
                _wait(RETRY_SECONDS, lambda: signals.stopped or signals.retry)
                signals.retry = False

    def _write(self, step: int, tensors: state.Tensors, note: Mapping[str, Any], group: Any) -> None:
        self._code, self._error = DONE, ""
        try:
            state.write(state.step_folder(self.run, step), tensors, note, self.world, group)
            if self.world.first:
                state.prune(self.run, self.config.keep, self.config.keep_every)
        except OSError as error:
            self._code = FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else FAILED
            self._error = f"{error.strerror or error} ({error.filename or self.run})"
        except Exception as error:
            self._code, self._error = FAILED, f"{type(error).__name__}: {error}"

    def _agree(self) -> bool:
        """Whether all processes succeeded; raises where one failed for good."""
        code = int(self.world.largest([self._code])[0])
        if code == FAILED:
            reasons = [text for text in self.world.gather([self._error]) if text]
            raise TrainingError(f"the checkpoint in {self.run} could not be written: {'; '.join(reasons)}")
        return code == DONE


def _wait(seconds: float, enough: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not enough():
        time.sleep(min(0.2, seconds))
