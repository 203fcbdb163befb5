"""Uploads from bytes to arrays on disk, by way of the guard process."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modality_forcing.server.child import Child, Gone
from modality_forcing.server.errors import Refused
from modality_forcing.server.requests import Request
from modality_forcing.server.settings import ServerSettings

_FILE = "the-upload"
# The address space of the guard is bounded; with many cores, pools of threads would reserve much of it.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_START = 60.0  # seconds: a fresh process imports its readers


@dataclass(frozen=True)
class Decoded:
    """One file of one item.

    Attributes:
        path: ``.npy``: image uint8 (H, W, 3); depth float32 (H, W), +inf sky, NaN unknown; mask bool (H, W).
        shape: (H, W).
        unit: of a depth map.
        fov_x: degrees, of a photograph that knows its focal length.
        notices: what was changed on the way in.
    """

    path: Path
    shape: tuple[int, int]
    unit: str
    fov_x: float | None
    notices: tuple[str, ...]


class Decoder:
    """One guard process, started when it is first needed and again after it had to be ended."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self._child: Child | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            if self._child is not None:
                self._child.close(1.0)
                self._child = None

    def decode(self, request: Request, folder: Path) -> list[dict[str, Decoded]]:
        """Write every upload into ``folder`` and decode it there; the bytes as they came are not kept.

        Returns:
            For each item, its files by field.

        Raises:
            Refused: 413 or 422, a file that is not what it should be; 503, too many wait to be decoded.
        """
        items: list[dict[str, Decoded]] = [{} for _ in request.seeds]
        done: dict[tuple[str, int, Any], Decoded] = {}
        # Masks last: their size is compared with that of the other file.
        for upload in sorted(request.task.uploads, key=lambda upload: upload.kind == "mask"):
            for index, data in enumerate(request.uploads.get(upload.name, [])):
                shape = next((d.shape for d in items[index].values()), None)
                key = (upload.name, id(data), shape)
                if key not in done:
                    done[key] = self._one(upload.kind, upload.name, data, folder, len(done), shape, request)
                items[index][upload.name] = done[key]
        for item in items:
            if len({found.shape for found in item.values()}) > 1:
                sizes = ", ".join(f"{name} {f.shape[1]}x{f.shape[0]}" for name, f in item.items())
                raise Refused(422, f"the files of an item differ in size: {sizes}")
        return items

    def _one(
        self,
        kind: str,
        name: str,
        data: bytes,
        folder: Path,
        number: int,
        shape: tuple[int, int] | None,
        request: Request,
    ) -> Decoded:
        out = folder / f"{number:03d}.npy"
        (folder / _FILE).write_bytes(data)
        question = {
            "kind": kind,
            "folder": str(folder),
            "file": _FILE,
            "out": out.name,
            "max_pixels": self.settings.max_upload_pixels,
            "depth_kind": request.options.get("depth_kind"),
            "depth_scale": request.options.get("depth_scale"),
            "shape": shape,
        }
        try:
            answer = self._ask(question)
        finally:
            for left in folder.glob(_FILE + "*"):
                left.unlink(missing_ok=True)
        if "error" in answer:
            raise Refused(answer["status"], _named(answer["error"], name))
        found = answer["ok"]
        notices = tuple(_named(text, name) for text in found["notices"])
        return Decoded(out, (found["shape"][0], found["shape"][1]), found["unit"], found["fov_x"], notices)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        patience = self.settings.decode_timeout
        if not self._lock.acquire(timeout=patience):
            raise Refused(503, "too many files wait to be decoded; try again", patience)
        try:
            if self._child is None or not self._child.alive:
                self._child = Child("modality_forcing.server.guard", _ONE_THREAD)
                if self._child.receive(_START) is None:
                    raise Gone
            end = time.monotonic() + patience
            self._child.send(question)
            answer = self._child.receive(max(0.0, end - time.monotonic()))
            if answer is None:
                self._child.kill()
                self._child = None
                return {
                    "error": f"{question['kind']} took too long to decode; make it smaller",
                    "status": 413,
                }
            return answer
        except Gone:
            if self._child is not None:
                self._child.kill()
                self._child = None
            return {
                "error": f"{question['kind']} cannot be decoded; it may be damaged or too large",
                "status": 422,
            }
        finally:
            self._lock.release()


def _named(text: str, name: str) -> str:
    """A reader's message with the field's name in place of the file's."""
    text = re.sub(rf"(image|mask|depth map|depth) {_FILE}(\.\w+)?", name, text)
    return re.sub(rf"{_FILE}(\.\w+)?", name, text)
