"""The page where graphics cards are lent by the call, as on ZeroGPU Spaces: one call for each job.

There is no worker process: the model is loaded when the server starts; who watches a job asks for a card and
computes it. Everything else, the store and the guard of uploads included, is that of ``mf serve``.
"""

from __future__ import annotations

import contextvars
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modality_forcing.server.child import Gone, Message
from modality_forcing.server.dispatch import Dispatcher
from modality_forcing.server.errors import Refused
from modality_forcing.server.events import Event
from modality_forcing.server.service import JobService
from modality_forcing.server.settings import ServerSettings
from modality_forcing.server.worker import Worker

if TYPE_CHECKING:
    from modality_forcing.pipeline import Pipeline
    from modality_forcing.server.store import Job

Compute = Callable[[Message], Iterator[Message]]
SECONDS = 60  # what one call asks for; a card is taken back after it


class _Lines:
    """Where a worker writes its lines when it runs in this process."""

    def __init__(self) -> None:
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def write(self, text: str) -> None:
        """One line of JSON."""
        self.messages.put(json.loads(text))

    def flush(self) -> None:
        """Nothing waits here."""


class _Call:
    """One lent card, with the face of a worker process: it is sent a batch and answers in messages."""

    alive = True

    def __init__(self, compute: Compute) -> None:
        self._compute, self._left = compute, False
        self._answers: Iterator[Message] = iter(())

    def send(self, message: Message) -> None:
        """A batch to compute, or the news that nobody waits for it."""
        if message["op"] == "run":
            self._answers = self._compute(message)
        else:
            self._left = True

    def receive(self, timeout: float) -> Message | None:
        """The next message; the wait is as long as it takes.

        Raises:
            Gone: it is over, or nobody waits for it.
        """
        del timeout
        message = None if self._left else next(self._answers, None)
        if message is None:
            raise Gone("the call ended")
        return message

    def kill(self) -> None:
        """Give the card back."""
        close = getattr(self._answers, "close", None)
        if close is not None:
            close()

    def close(self, patience: float = 0.0) -> None:
        """The same."""
        del patience
        self.kill()


class _Runner(Dispatcher):
    """Computes one job by one call."""

    def compute(self, job: Job, compute: Compute, turn: Any) -> None:
        """To its end, whatever that is."""
        with turn:
            self._child = _Call(compute)  # type: ignore[assignment]
            self._run([job])
            self._drop_worker()


class ZeroService(JobService):
    """Jobs that are computed by whoever watches them.

    Args:
        settings: of the server; ``settings.devices`` is not used.
        gpu: makes a function run where a card is: ``spaces.GPU``, or anything with its face.
        zero: whether cards are lent by the call. If not, one job runs at a time.
    """

    def __init__(self, settings: ServerSettings, gpu: Callable[..., Any], *, zero: bool) -> None:
        super().__init__(settings)
        self.pipeline = load(settings.models[settings.default_model], zero=zero, dtype=settings.dtype)
        self._setup = {"preview_every": settings.preview_every, "models": settings.models, "options": {}}
        self._turn: Any = nullcontext() if zero else threading.Lock()
        # Decorated once: on a Space the functions that need a card must be known at the start.
        self._compute: Compute = gpu(duration=SECONDS)(self._answers)

    @property
    def ready(self) -> bool:
        """The model is loaded."""
        return not self.closing

    def start(self) -> None:
        """Nothing computes by itself; old results are still removed in time."""
        self.clean()
        self._cleaner.start()

    def stream(self, job_id: str, owner: str | None = None, timeout: float | None = None) -> Iterator[Event]:
        """As of :class:`JobService`; a job that waits is computed now."""
        self._job(job_id, owner)
        job = self.store.begin(job_id)
        if job is not None:
            runner = _Runner(self, "lent")
            self.dispatchers.append(runner)
            # The visitor's context goes along: cards are lent to visitors, not to servers.
            call = contextvars.copy_context()
            threading.Thread(target=call.run, args=(self._finish, runner, job), daemon=True).start()
        yield from super().stream(job_id, owner, timeout)

    def _finish(self, runner: _Runner, job: Job) -> None:
        try:
            runner.compute(job, self._compute, self._turn)
        finally:
            self.dispatchers.remove(runner)

    def _answers(self, batch: Message) -> Iterator[Message]:
        """Where the card is: compute a batch and pass on what the worker says."""
        lines = _Lines()
        worker = Worker(self._setup, lines)  # type: ignore[arg-type]
        worker.adopt(batch["model"], self.pipeline)
        thread = threading.Thread(target=worker.run, args=(batch,), daemon=True)
        thread.start()
        try:
            while True:
                message = lines.messages.get()
                yield message
                if message["event"] in ("done", "failed"):
                    return
        finally:  # left early: the next step ends it
            worker.cancelled.update(item["job"] for item in batch["items"])


def load(source: str, *, zero: bool, dtype: str | None = None) -> Pipeline:
    """The model on the card, or where there is none for this process yet, ready for one.

    With ``zero`` it is read on the CPU and moved: files cannot be read straight to a card that is not there.

    Raises:
        UserError: as ``Pipeline.from_pretrained``.
    """
    import torch

    from modality_forcing.pipeline import Pipeline

    if not zero:
        return Pipeline.from_pretrained(source, dtype=dtype)
    pipeline = Pipeline.from_pretrained(source, device="cpu", dtype=dtype or "bfloat16")
    for module in (pipeline.engine.transformer, pipeline.autoencoder):
        module.to("cuda")
    pipeline.device = torch.device("cuda")
    return pipeline


def routes(service: JobService) -> list[Any]:
    """The one address of ``mf serve`` that the page needs: files of results."""
    from starlette.requests import Request
    from starlette.responses import FileResponse, PlainTextResponse, Response
    from starlette.routing import Route

    def file(request: Request) -> Response:
        found = request.path_params
        try:
            path = service.file(found["job"], found["index"], found["name"], "")
        except Refused as error:
            return PlainTextResponse(str(error), 404)
        policy = "default-src 'none'; sandbox"
        policy = "default-src 'none'; sandbox"
        headers = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": policy}
        return FileResponse(path, headers=headers)

    return [Route("/v1/jobs/{job}/results/{index:int}/{name}", file)]


def launch(model: str, gpu: Callable[..., Any], *, wait: bool = True, **options: Any) -> Any:
    """Serve the page alone, as a Space does: what ``app.py`` of ``server.space`` calls.

    Args:
        model: source of ``Pipeline.from_pretrained``.
        gpu: ``spaces.GPU``.
        wait: stay until the server ends.
        options: of :class:`ServerSettings`.

    Returns:
        The page and its service, when ``wait`` is False.
    """
    from modality_forcing.server.ahead import compile_ahead
    from modality_forcing.server.page.build import build, page_options

    zero = bool(os.environ.get("SPACES_ZERO_GPU"))
    name = model.rstrip("/").rpartition("/")[2]
    given: dict[str, Any] = {"host": "0.0.0.0", "insecure": True, "data": Path("results").resolve()}
    settings = ServerSettings(models={name: model}, **given | options)
    uploads = settings.data / "page"
    uploads.mkdir(parents=True, exist_ok=True)
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    service = ZeroService(settings, gpu, zero=zero)
    if zero:
        compile_ahead(service.pipeline, settings.data / "compiled", gpu)
    page = build(service, programs=False)
    service.start()
    page.launch(
        server_name=settings.host, server_port=settings.port, max_file_size=settings.max_body, quiet=True,
        app_kwargs={"routes": routes(service)}, prevent_thread_lock=not wait, **page_options(),
    )  # fmt: skip
    return page, service
