"""Signals as wishes: the training asks for them between steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Signals:
    """What was asked for from outside.

    Attributes:
        stopped: SIGTERM or Ctrl-C came: finish the step, save, end.
        retry: SIGUSR1 came: do not wait any longer for a full disk.
    """

    def __init__(self) -> None:
        self.stopped = False
        self.retry = False

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True

    def _retry(self, number: int, frame: FrameType | None) -> None:
        self.retry = True


@contextlib.contextmanager
def heed_signals() -> Iterator[Signals]:
    """Take note of signals while the block runs; the old handlers come back afterwards.

    Outside the main thread, where Python allows no handlers, nothing is noted.
    """
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    handlers = {signal.SIGTERM: signals._stop, signal.SIGINT: signals._stop}
    if hasattr(signal, "SIGUSR1"):
        handlers[signal.SIGUSR1] = signals._retry
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield signals
    finally:
        for number, old in before.items():
            signal.signal(number, old)
