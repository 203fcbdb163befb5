"""What an operator decides: models, limits, where results stay and for how long."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from modality_forcing.errors import UserError
from modality_forcing.inputs import MAX_SIDE, MAX_STEPS, MIN_SIDE

LOOPBACK = ("127.0.0.1", "::1", "localhost")
MIN_KEY = 16  # characters: what guessing over a network cannot find
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")


def default_data() -> Path:
    """This user's place for results: below ``$XDG_DATA_HOME``, else below ``~/.local/share``."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "modality-forcing" / "server"


@dataclass(frozen=True)
class ServerSettings:
    """Settings of one server. Sizes are in pixels, times in seconds, room on disk in bytes.

    Raises:
        UserError: a value out of range, no model, or a host beyond loopback without keys.
    """

    models: dict[str, str] = field(default_factory=lambda: {"lowpoly": "lowpoly"})
    """Name that users give -> source of ``Pipeline.from_pretrained``. Nothing else is ever loaded."""
    data: Path = field(default_factory=default_data)
    """Jobs, uploads and results."""
    host: str = "127.0.0.1"
    port: int = 7860
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    insecure: bool = False
    """Serve beyond loopback without a key."""
    allowed_hosts: tuple[str, ...] = ()
    """Names under which the server is reached, besides loopback and ``host``; "*" is any."""
    devices: tuple[str, ...] = ("auto",)
    """One worker process for each."""
    dtype: str | None = None
    text_encoder: str | None = None
    compile: bool = False
    batch_size: int = 8
    """Items computed together; 1: each alone, equal to a run of the command line to the bit."""
    linger: float = 0.02
    """How long a job waits for others to share its batch."""
    max_body: int = 32 * 2**20
    """Bytes of one request."""
    max_upload_pixels: int = 16 * 10**6
    max_side: int = 2048
    max_area: int = 1024 * 1024
    """Pixels of one generated picture."""
    max_steps: int = 100
    max_items: int = 16
    """Results of one job."""
    max_queue: int = 100
    """Jobs that wait; further ones are told to come back later."""
    rate: int = 120
    """Submissions per minute and key (per address without keys)."""
    ttl: float = 24 * 3600.0
    """How long finished jobs are kept."""
    disk_cap: int = 10 * 10**9
    """Room for finished jobs; the oldest go first."""
    job_timeout: float = 3600.0
    """How long a batch may compute."""
    body_timeout: float = 30.0
    """How long a request may take to arrive."""
    decode_timeout: float = 20.0
    """How long an upload may take to decode."""
    grace: float = 20.0
    """How long a stopping server waits for the batch that is computed."""
    preview_every: float = 0.5
    """At most one preview in so many seconds."""

    def __post_init__(self) -> None:
        if not self.models:
            raise UserError("no model to serve; name at least one with --model")
        for name in self.models:
            if not _NAME.fullmatch(name) or ".." in name:
                raise UserError(
                    f"a model is named {name[:40]!r}; right is NAME=SOURCE with letters, digits, '.-_/'"
                )
        limits: dict[str, tuple[float, float]] = {
            "port": (0, 65535), "batch_size": (1, 1024), "linger": (0, 10), "max_body": (1024, 2**33),
            "max_upload_pixels": (MIN_SIDE**2, 128 * 2**20), "max_side": (MIN_SIDE, MAX_SIDE),
            "max_area": (MIN_SIDE**2, MAX_SIDE**2), "max_steps": (1, MAX_STEPS), "max_items": (1, 10_000),
            "max_queue": (1, 10**6), "rate": (1, 10**6), "ttl": (1, 10**9), "disk_cap": (10**6, 10**18),
            "job_timeout": (1, 10**7), "body_timeout": (0.1, 3600), "decode_timeout": (0.5, 3600),
            "grace": (0, 3600), "preview_every": (0, 3600),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                option = name.replace("_", "-")
                raise UserError(f"--{option} is {value}; right is {low:g} to {high:g}")
        if not self.devices:
            raise UserError("no device to compute on; name at least one with --device")
        for key in self.api_keys:
            if not MIN_KEY <= len(key) <= 200 or not (key.isascii() and key.isprintable()) or " " in key:
                # The key itself must not appear in a message.
                raise UserError(
                    f"an API key has {len(key)} characters; right is {MIN_KEY} to 200 printable ASCII ones"
                )
        if self.host not in LOOPBACK and not self.api_keys and not self.insecure:
            raise UserError(
                f"--host {self.host[:80]} can be reached by other computers; give --api-key (or MF_API_KEY),"
                " or --insecure to let everybody in"
            )

    @property
    def default_model(self) -> str:
        """The model of a job that names none."""
        return next(iter(self.models))

    @property
    def hosts(self) -> tuple[str, ...]:
        """Values of the Host header that are answered. Others come from a page that plays a name trick."""
        if "*" in self.allowed_hosts or (self.host not in LOOPBACK and not self.allowed_hosts):
            return ("*",)
        return (*LOOPBACK, "[::1]", self.host, *self.allowed_hosts)
