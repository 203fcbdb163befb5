"""The process that owns the models on one device. It knows jobs only as lists of items to compute.

Lines of JSON come in: ``setup``, ``run`` (one batch) and ``cancel``. Out go ``ready``, ``broken``, ``step``,
``preview``, ``done`` and ``failed``. When its input ends, so does the process.
"""

from __future__ import annotations

import base64
import io
import json
import os
import queue
import sys
import threading
import time
import traceback
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from modality_forcing.errors import OutOfMemoryError, UserError
from modality_forcing.server.child import Message, messages, own_output
from modality_forcing.server.tasks import TASKS, Task

if TYPE_CHECKING:
    from modality_forcing.codecs.frame import Frame
    from modality_forcing.flow.sampler import Step
    from modality_forcing.pipeline import Pipeline
    from modality_forcing.types import RGBD

KEPT_MODELS = 2  # in memory at a time
PREVIEW_SIDE = 256  # pixels


class _Cancelled(Exception):
    """Nobody waits for this batch any more."""


class Worker:
    """Loads models when they are first asked for, computes batches, writes run folders."""

    def __init__(self, setup: Message, output: IO[str]) -> None:
        self.setup = setup
        self.cancelled: set[str] = set()
        self._output = output
        self._lock = threading.Lock()
        self._pipelines: OrderedDict[str, Pipeline] = OrderedDict()
        self._last_preview = 0.0

    def say(self, event: str, **values: Any) -> None:
        """Send one line."""
        with self._lock:
            self._output.write(json.dumps({"event": event, **values}) + "\n")
            self._output.flush()

    def pipeline(self, name: str) -> Pipeline:
        """The model of that name, loaded when it is not."""
        if name not in self._pipelines:
            from modality_forcing.pipeline import Pipeline

            while len(self._pipelines) >= KEPT_MODELS:
                self._pipelines.popitem(last=False)
            found = Pipeline.from_pretrained(self.setup["models"][name], **self.setup["options"])
            self._pipelines[name] = found
            sampler = found.sampler_defaults
            self.say(
                "ready",
                model=name,
                device=str(found.device),
                defaults={field: getattr(sampler, field) for field in sampler.__dataclass_fields__},
            )
        self._pipelines.move_to_end(name)
        return self._pipelines[name]

    def adopt(self, name: str, pipeline: Pipeline) -> None:
        """Use a model that somebody else loaded."""
        self._pipelines[name] = pipeline

    def run(self, batch: Message) -> None:
        """Compute one batch: all of one task, of one size, with the same options."""
        say, number, error = self.say, batch["batch"], None
        try:
            pipeline = self._loaded(batch["model"])
            results = self._compute(pipeline, batch)
            self._save(results, batch)
        except _Cancelled:
            pass
        except UserError as found:
            error = str(found)
        except (OutOfMemoryError, MemoryError) as found:
            error = str(found) or "the memory of the device is full; ask for a smaller size"
        except Exception:
            traceback.print_exc()  # the operator's log; users hear that it failed
            error = "an internal error; the log says more"
        if error is None:
            say("done", batch=number)
        else:
            say("failed", batch=number, error=error)

    def _loaded(self, name: str) -> Pipeline:
        """The model, or an error that names no path of this machine."""
        try:
            return self.pipeline(name)
        except UserError as error:
            print(f"model {name} cannot be loaded: {error}", file=sys.stderr)
            raise UserError(f"the model {name} cannot be loaded now; the log says more") from None

    def _compute(self, pipeline: Pipeline, batch: Message) -> list[RGBD]:
        import numpy as np

        task, items, options = TASKS[batch["task"]], batch["items"], dict(batch["options"])
        if options.get("log2_alpha") == "none":
            options["log2_alpha"] = None
        arguments: dict[str, Any] = {task.prompt_argument: [item["prompt"] for item in items]}
        arguments["seed"] = [item["seed"] for item in items]
        for upload in task.uploads:
            if upload.name in items[0]["files"]:
                files = [item["files"][upload.name] for item in items]
                arguments[upload.argument or upload.name] = [
                    np.load(file, allow_pickle=False) for file in files
                ]
        watch = _Watch(self, pipeline, task, batch)
        count = len(items) if batch["together"] else 1
        results = getattr(pipeline, task.method)(**arguments, **options, on_step=watch, batch_size=count)
        return [self._with_camera(result, item) for result, item in zip(results, items, strict=True)]

    @staticmethod
    def _with_camera(result: RGBD, item: Message) -> RGBD:
        """The camera touches no pixel, so items of different cameras share a batch and get theirs here."""
        if not item["camera"]:
            return result
        from modality_forcing.geometry.camera import resolve_camera

        height, width = result.depth.shape
        return replace(result, camera=resolve_camera(width, height, **item["camera"]))

    def _save(self, results: list[RGBD], batch: Message) -> None:
        task = TASKS[batch["task"]]
        for item, result in zip(batch["items"], results, strict=True):
            if item["job"] in self.cancelled:
                continue
            out = Path(item["out"])
            try:
                out.parent.mkdir(parents=True, exist_ok=True)
                result.save(out, hole_edges=task.hole_edges, **item["cloud"])
            except (UserError, OSError) as error:
                print(f"a result cannot be written: {error}", file=sys.stderr)
                raise UserError("the result cannot be written; the log says more") from None

    def preview_due(self) -> bool:
        """Whether the last preview is old enough."""
        now = time.monotonic()
        if now - self._last_preview < self.setup["preview_every"]:
            return False
        self._last_preview = now
        return True


class _Watch:
    """What is called after each step: progress, previews, cancelling."""

    def __init__(self, worker: Worker, pipeline: Pipeline, task: Task, batch: Message) -> None:
        self.worker, self.pipeline, self.task, self.batch = worker, pipeline, task, batch
        self.count = self.before = self.walk = 0
        self._frame: Frame | None = None
        refined = batch["options"].get("refine_depth", pipeline.sampler_defaults.refine_depth)
        passes = task.passes + bool(refined and "refine_depth" in task.options)
        self.walks = passes * (1 if batch["together"] else len(batch["items"]))

    def __call__(self, step: Step) -> None:
        items = self.batch["items"]
        if all(item["job"] in self.worker.cancelled for item in items):
            raise _Cancelled
        if step.index == 0:  # the sampler walks again
            self.before, self.walk = self.count, self.walk + 1
        self.count += 1
        steps = self.before + step.num_steps * (1 + max(0, self.walks - self.walk))
        self.worker.say("step", batch=self.batch["batch"], step=self.count, steps=steps)
        # Either all items walk together, or one after the other.
        now = items if self.batch["together"] else [items[(self.walk - 1) % len(items)]]
        last = step.index + 1 == step.num_steps
        if last or step.clean.depth.shape[0] != len(now) or not any(item["previews"] for item in now):
            return
        if self.worker.preview_due():
            for row, item in enumerate(now):
                if item["previews"] and item["job"] not in self.worker.cancelled:
                    self.preview(step, row, item)

    def preview(self, step: Step, row: int, item: Message) -> None:
        """Send both estimates of one item as small pictures."""
        import numpy as np

        from modality_forcing.codecs.depth import expand, unpatchify
        from modality_forcing.codecs.image import decode_image, tensor_to_pixels
        from modality_forcing.viz import colorize

        frame = self.frame(item)
        grid = (frame.rows, frame.cols)
        with self.pipeline.engine.timed("preview"):
            image = decode_image(self.pipeline.autoencoder, step.clean.rgb[row : row + 1], *grid).cpu()
            cells = step.clean.depth[row : row + 1].float().cpu()
        contracted = unpatchify(cells, *grid, frame.cell)[0]
        depth = expand(contracted.clamp(max=self.pipeline.config.depth.far_threshold)).numpy()
        pixels = {
            "rgb": tensor_to_pixels(image)[0],
            "depth": colorize(depth, np.isfinite(depth) & (depth > 0)),
        }
        cut = {name: value[: frame.scaled_height, : frame.scaled_width] for name, value in pixels.items()}
        self.worker.say(
            "preview",
            job=item["job"],
            item=item["index"],
            **{name: _jpeg(value) for name, value in cut.items()},
        )

    def frame(self, item: Message) -> Frame:
        """How an item sits on the model's grid."""
        if self._frame is None or not self.batch["together"]:
            from modality_forcing.codecs.frame import Frame

            defaults, cell = self.pipeline.sampler_defaults, self.pipeline.config.transformer.patch_size
            width, height = self.batch["options"].get("size") or (defaults.width, defaults.height)
            if self.task.sized_by is None:
                self._frame = Frame.exact(width, height, cell)
            else:
                rows, cols = item["shape"]
                self._frame = Frame.fitted(cols, rows, width * height, cell)
        return self._frame


def _jpeg(pixels: Any) -> str:
    """uint8 (H, W, 3) as base64 of a JPEG of at most ``PREVIEW_SIDE`` pixels a side."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=80)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def main() -> None:
    """Serve one parent."""
    output = own_output()
    work: queue.SimpleQueue[Message] = queue.SimpleQueue()
    incoming = messages()
    worker = Worker(next(incoming), output)

    def listen() -> None:
        for message in incoming:
            if message["op"] == "cancel":
                worker.cancelled.add(message["job"])
            else:
                work.put(message)
        os._exit(0)  # the parent is gone: nobody reads a result, and nothing half written keeps its name

    threading.Thread(target=listen, name="listen", daemon=True).start()
    try:
        worker.pipeline(worker.setup["first"])
    except (UserError, OutOfMemoryError, ModuleNotFoundError) as error:
        worker.say("broken", error=str(error))
        sys.exit(1)
    while True:
        batch = work.get()
        worker.run(batch)
        worker.cancelled.difference_update(item["job"] for item in batch["items"])


if __name__ == "__main__":
    main()
