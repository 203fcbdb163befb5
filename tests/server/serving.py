"""What the tests of the server share: small files to send, a running service, waiting."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from modality_forcing.server.service import JobService
from modality_forcing.server.settings import ServerSettings
from modality_forcing.server.views import JobView

PATIENCE = 120.0  # seconds: a worker imports torch first, on a computer that has other work


def settings(model: Path, data: Path, **changes: Any) -> ServerSettings:
    """A server of the tiny model with room in all limits."""
    values: dict[str, Any] = {"preview_every": 0.0, "grace": 5.0, "rate": 100_000, "linger": 0.05}
    return ServerSettings(models={"tiny": str(model)}, data=data, devices=("cpu",), **(values | changes))


def png(pixels: np.ndarray) -> bytes:
    """As a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def npy(values: np.ndarray) -> bytes:
    """As an .npy file."""
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition, at most ``PATIENCE`` seconds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.02)


def finished(service: JobService, job_id: str) -> JobView:
    """The job once it is over."""
    until(lambda: service.get(job_id).over, f"job {job_id} was over")
    return service.get(job_id)
