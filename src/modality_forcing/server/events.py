"""Who watches a job hears of it: a small hub between the threads of the workers and the listeners."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """One piece of news.

    Attributes:
        kind: "state" (the whole job; the last one when its state is final), "step" or "preview".
        data: JSON values.
    """

    kind: str
    data: dict[str, Any] = field(default_factory=dict)


Listener = Callable[[Event], None]


class Hub:
    """Listeners by job. Nothing is stored: whoever comes later asks for the job itself first."""

    def __init__(self) -> None:
        self._listeners: dict[str, list[Listener]] = defaultdict(list)
        self._lock = threading.Lock()

    def listen(self, job_id: str, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` from the worker's thread with each event; returns how to stop that."""
        with self._lock:
            self._listeners[job_id].append(listener)

        def stop() -> None:
            with self._lock:
                listeners = self._listeners.get(job_id, [])
                if listener in listeners:
                    listeners.remove(listener)
                if not listeners:
                    self._listeners.pop(job_id, None)

        return stop

    def tell(self, job_id: str, event: Event) -> None:
        """To all who watch this job."""
        with self._lock:
            listeners = list(self._listeners.get(job_id, ()))
        for listener in listeners:
            listener(event)

    def watched(self, job_id: str) -> bool:
        """Whether anybody listens."""
        with self._lock:
            return job_id in self._listeners
