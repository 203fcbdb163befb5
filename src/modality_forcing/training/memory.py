"""Frozen encoders answer once per input: their outputs are kept in memory, on disk, or both."""

from __future__ import annotations

import contextlib
import hashlib
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from modality_forcing.checkpoint.weights import save_weights
from modality_forcing.errors import UserError

FILE_ENTRIES = 512
FILE_BYTES = 64 * 1024 * 1024
FILE_SECONDS = 60.0
"""What waits in memory is written when it reaches one of these."""
OPEN_FILES = 64
LEFTOVER_SECONDS = 3600.0
"""Age of a temporary file that no living process can be writing any more."""


def entry_name(key: str) -> str:
    """Name of a key in a file: 32 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Shelf:
    """Tensors by key in a folder of safetensors files, each file written whole and never changed.

    A file is named by what it holds, so several processes may fill one folder. A killed process loses what it
    had not written yet, nothing else. A damaged file counts as absent; its entries are made anew. A folder
    that cannot be written any more (a full disk) is only read from then on, with one warning.

    Args:
        folder: made at the first write if it does not exist.
        about: texts for the header of each file, for who looks at one.
    """

    def __init__(self, folder: str | Path, about: Mapping[str, str] | None = None) -> None:
        self.folder = Path(folder)
        self.about = dict(about or {})
        self.writable = True
        self._waiting: dict[str, Tensor] = {}
        self._bytes = 0
        self._since = time.monotonic()
        self._where: dict[str, Path] = {}
        self._seen: set[str] = set()
        self._stamp = -1
        self._open: OrderedDict[Path, Any] = OrderedDict()
        self._sweep()
        self.refresh()

    def __len__(self) -> int:
        return len(self._where.keys() | self._waiting.keys())

    def refresh(self) -> None:
        """See what other processes have written since."""
        try:
            stamp = self.folder.stat().st_mtime_ns
        except OSError:
            return
        if stamp == self._stamp:
            return
        self._stamp = stamp
        for path in sorted(self.folder.glob("[0-9a-f]*.safetensors")):
            if path.name not in self._seen:
                self._seen.add(path.name)
                try:
                    with safe_open(str(path), framework="pt") as handle:
                        self._where.update(dict.fromkeys(handle.keys(), path))
                except (SafetensorError, OSError):
                    warnings.warn(f"{path} is damaged; its entries are made anew", stacklevel=2)

    def get(self, key: str) -> Tensor | None:
        """The tensor as it was put, or None."""
        name = entry_name(key)
        if name in self._waiting:
            return self._waiting[name]
        if name not in self._where:
            self.refresh()
        path = self._where.get(name)
        if path is None:
            return None
        try:
            return self._handle(path).get_tensor(name).clone()
        except (SafetensorError, OSError):
            del self._where[name]
            return None

    def put(self, key: str, value: Tensor) -> None:
        """Keep a tensor; it reaches the disk with the next file."""
        if not self.writable:
            return
        value = value.detach().to("cpu").clone()
        self._waiting[entry_name(key)] = value
        self._bytes += value.numel() * value.element_size()
        late = time.monotonic() - self._since > FILE_SECONDS
        if len(self._waiting) >= FILE_ENTRIES or self._bytes >= FILE_BYTES or late:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        waiting, self._waiting, self._bytes = self._waiting, {}, 0
        self._since = time.monotonic()
        if not waiting:
            return
        # By the names it holds: two processes with the same entries write the same file.
        name = hashlib.sha256("".join(sorted(waiting)).encode()).hexdigest()[:32]
        path = self.folder / f"{name}.safetensors"
        try:
            save_weights(path, waiting, self.about)
        except UserError as error:
            self.writable = False
            warnings.warn(f"{error}; what the encoders say is no longer kept", stacklevel=2)
            return
        self._seen.add(path.name)
        self._where.update(dict.fromkeys(waiting, path))

    def _sweep(self) -> None:
        """Remove what killed processes left half written."""
        for path in self.folder.glob(".*.tmp.safetensors"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                    path.unlink()

    def _handle(self, path: Path) -> Any:
        if path not in self._open:
            self._open[path] = safe_open(str(path), framework="pt")
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        self._open.move_to_end(path)
        return self._open[path]


class Remembered:
    """Outputs of one frozen function by the key of its input.

    Args:
        dtype: of what is kept. Outputs are rounded to it also when they are fresh, so that a kept one is
            the same to the bit.
        shelf: keeps them on disk; None: not.
        in_memory: keep them in memory too.
    """

    def __init__(
        self, dtype: torch.dtype = torch.float16, shelf: Shelf | None = None, in_memory: bool = True
    ) -> None:
        self.dtype = dtype
        self.shelf = shelf
        self.in_memory = in_memory
        self.store: dict[str, Tensor] = {}

    def __call__(self, keys: Sequence[str | None], compute: Callable[[list[int]], Tensor]) -> Tensor:
        """Outputs for all keys, (len(keys), ...) float32, on the CPU.

        Args:
            keys: equal keys mean equal inputs; None: this input is not kept.
            compute: asked for the outputs at positions that are not known yet; not called when all are.

        Raises:
            FloatingPointError: an output that is not finite, or too large for ``dtype``.
        """
        found: dict[int, Tensor] = {}
        first: dict[str, int] = {}
        new: list[int] = []
        for i, key in enumerate(keys):
            if key is None:
                new.append(i)
            elif key not in first:
                first[key] = i
                value = self._known(key)
                if value is None:
                    new.append(i)
                else:
                    found[i] = value
        if new:
            for i, output in zip(new, compute(new), strict=True):
                value = output.detach().to("cpu", self.dtype)
                if not value.isfinite().all():
                    raise FloatingPointError(f"an encoder's output is not finite in {self.dtype}")
                found[i] = value
                self._keep(keys[i], value)
        return torch.stack([found[i if key is None else first[key]] for i, key in enumerate(keys)]).float()

    def flush(self) -> None:
        """Write to disk what is not there yet."""
        if self.shelf is not None:
            self.shelf.flush()

    def _known(self, key: str) -> Tensor | None:
        value = self.store.get(key)
        if value is None and self.shelf is not None:
            value = self.shelf.get(key)
            if value is not None and value.dtype != self.dtype:
                return None
            if value is not None and self.in_memory:
                self.store[key] = value
        return value

    def _keep(self, key: str | None, value: Tensor) -> None:
        if key is None:
            return
        if self.in_memory:
            self.store[key] = value.clone()
        if self.shelf is not None:
            self.shelf.put(key, value)
