"""A value as another process gets it."""

from __future__ import annotations

import multiprocessing
import threading
from typing import TypeVar

T = TypeVar("T")


def sent(value: T) -> T:
    """Through a pipe between processes and back out."""
    source, target = multiprocessing.Pipe()
    sender = threading.Thread(target=source.send, args=(value,))  # large values wait for the reader
    sender.start()
    copy: T = target.recv()
    sender.join()
    return copy
