"""Processes of ours that are spoken to in lines of JSON: what crashes or hangs there harms nobody here."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import IO, Any

Message = dict[str, Any]


class Gone(Exception):
    """The process ended, or did not answer in time and was ended."""


class Child:
    """One such process and its two pipes. A message is a JSON object in one line.

    Args:
        module: is run.
        environment: variables besides those of this process.
    """

    def __init__(self, module: str, environment: Mapping[str, str] | None = None) -> None:
        # A session of its own: Ctrl-C is for the server, which lets its processes finish.
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, name=f"listen-{module}", daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in self.process.stdout:
                self._messages.put(json.loads(line))
        self._messages.put(None)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def send(self, message: Message) -> None:
        """Write one message.

        Raises:
            Gone: nobody reads it any more.
        """
        assert self.process.stdin is not None
        data = json.dumps(message).encode() + b"\n"
        try:
            with self._lock:
                self.process.stdin.write(data)
                self.process.stdin.flush()
        except (OSError, ValueError):
            raise Gone("the process ended") from None

    def receive(self, timeout: float) -> Message | None:
        """The next message, None when there is none in ``timeout`` seconds.

        Raises:
            Gone: the process ended.
        """
        try:
            message = self._messages.get(timeout=timeout)
        except queue.Empty:
            return None
        if message is None:
            self._messages.put(None)  # for whoever asks again
            raise Gone("the process ended")
        return message

    def close(self, patience: float = 5.0) -> None:
        """End it: politely by closing its input, else at once."""
        with contextlib.suppress(OSError, ValueError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it now."""
        self.process.kill()
        self.process.wait()


def own_output() -> IO[str]:
    """In the child: the pipe to the parent. What libraries print goes to stderr from now on."""
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return pipe


def messages() -> Iterator[Message]:
    """In the child: what the parent sends, until it closes the pipe or ends."""
    for line in sys.stdin.buffer:
        yield json.loads(line)
