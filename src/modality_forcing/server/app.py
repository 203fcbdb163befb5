"""HTTP in front of a :class:`~modality_forcing.server.service.JobService`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import FastAPI, Header, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.sse import format_sse_event
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from modality_forcing import __version__
from modality_forcing.errors import UserError
from modality_forcing.server.bodies import read_body, request_body
from modality_forcing.server.errors import Refused
from modality_forcing.server.events import Event
from modality_forcing.server.gate import Gate, owner_of, problem, refusal
from modality_forcing.server.reference import reference_page
from modality_forcing.server.service import JobService, is_over
from modality_forcing.server.settings import LOOPBACK, ServerSettings
from modality_forcing.server.tasks import TASKS, Task
from modality_forcing.server.views import JobView, Problem, ServerView

log = logging.getLogger("modality_forcing.server")
PING_EVERY = 15.0  # seconds; proxies close what is silent for a minute
BACKLOG = 32  # steps and previews that wait for a slow reader before they are dropped
MEDIA_TYPES = {
    ".png": "image/png", ".npy": "application/octet-stream", ".glb": "model/gltf-binary",
    ".ply": "application/octet-stream", ".json": "application/json", ".exr": "image/x-exr",
}  # fmt: skip
JobId = Annotated[str, Path(description="Of a job, as the submission answered.", max_length=100)]
_ERRORS = (400, 401, 403, 404, 408, 413, 415, 422, 429, 503)
Page = Callable[[FastAPI, JobService], None]


def create_app(
    settings: ServerSettings, page: Page | None = None, service: JobService | None = None
) -> FastAPI:
    """The application.

    Args:
        settings: of the server.
        page: called last with the application and its service, to mount a page at "/".
        service: one that is already open; None: made here. It starts and closes with the application.

    Raises:
        UserError: as :class:`JobService`.
    """
    jobs = JobService(settings) if service is None else service

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        jobs.start()
        try:
            yield
        finally:
            await run_in_threadpool(jobs.close)

    app = FastAPI(
        title="Modality Forcing",
        version=__version__,
        description="Images and depth from one model: submit a job, watch it, fetch its files.",
        lifespan=lifespan,
        docs_url=None,  # the usual pages load scripts from elsewhere
        redoc_url=None,
        responses={code: {"model": Problem, "content": {"application/problem+json": {}}} for code in _ERRORS},
    )
    app.state.service = jobs
    app.add_middleware(Gate, settings=settings, metrics=jobs.metrics)
    _add_errors(app)
    _add_health(app, jobs)
    limiter = _Limiter(settings.rate)
    for task in TASKS.values():
        _add_submit(app, jobs, task, limiter)
    _add_jobs(app, jobs)
    _add_events(app, jobs)
    if page is None:
        app.get("/", include_in_schema=False)(_front)
    else:
        page(app, jobs)
    return app


class _Limiter:
    """Submissions per minute and key, or address where there are no keys."""

    def __init__(self, per_minute: int) -> None:
        self._rate = RateLimitItemPerMinute(per_minute)
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def check(self, request: Request) -> None:
        """Count one submission.

        Raises:
            Refused: 429 with the time after which there is room again.
        """
        who = owner_of(request.scope) or (request.client.host if request.client else "")
        if not self._limiter.hit(self._rate, who):
            wait = self._limiter.get_window_stats(self._rate, who).reset_time - time.time()
            raise Refused(429, f"{self._rate.amount} submissions in a minute are the limit; slow down", wait)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return refusal(error)

    @app.exception_handler(UserError)
    async def user_error(_: Request, error: UserError) -> Response:
        log.error("an unexpected refusal: %s", error)  # its text may name files of ours
        return problem(422, "the request cannot be served")

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        return problem(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        faults = [f"{fault['loc'][-1]}: {fault['msg']}"[:200] for fault in error.errors()[:3]]
        return problem(422, "; ".join(faults))

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return problem(500, "an internal error; the log of the server says more")


def _add_health(app: FastAPI, jobs: JobService) -> None:
    @app.get("/healthz", tags=["server"], summary="Whether the server runs", response_class=PlainTextResponse)
    async def healthz() -> str:
        return "ok\n"

    @app.get(
        "/readyz", tags=["server"], summary="Whether jobs are computed", response_class=PlainTextResponse
    )
    async def readyz() -> Response:
        if jobs.ready:
            return PlainTextResponse("ready\n")
        return problem(503, "no worker has loaded its model yet", {"Retry-After": "5"})

    @app.get("/metrics", tags=["server"], summary="For Prometheus", response_class=PlainTextResponse)
    def metrics() -> Response:
        jobs.gauges()
        return Response(jobs.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", tags=["server"], summary="Models, tasks and limits")
    def models() -> ServerView:
        return jobs.describe()

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(reference_page(app.openapi()))


def _add_submit(app: FastAPI, jobs: JobService, task: Task, limiter: _Limiter) -> None:
    async def submit(
        request: Request,
        response: Response,
        idempotency_key: Annotated[
            str | None,
            Header(
                min_length=1,
                max_length=200,
                pattern=r"^[!-~]+$",
                description="The same key with the same request again gives the same job.",
            ),
        ] = None,
    ) -> JobView:
        try:
            limiter.check(request)
            await run_in_threadpool(jobs.check_room)
            fields, uploads = await read_body(request, task, jobs.settings)
            view, new = await run_in_threadpool(
                jobs.submit, task.name, fields, uploads,
                owner=owner_of(request.scope), repeat_key=idempotency_key,
            )  # fmt: skip
        except Refused as error:
            jobs.metrics.refused.labels(error.status).inc()
            raise
        response.status_code = 202 if new else 200
        response.headers["Location"] = f"/v1/jobs/{view.id}"
        return view

    app.post(
        f"/v1/{task.name}",
        name=f"submit_{task.name}",
        operation_id=f"submit_{task.name}",
        tags=["submit"],
        summary=task.title,
        status_code=202,
        responses={200: {"model": JobView, "description": "Submitted before under the same key"}},
        openapi_extra={"requestBody": request_body(task)},
    )(submit)


def _add_jobs(app: FastAPI, jobs: JobService) -> None:
    @app.get("/v1/jobs", tags=["jobs"], summary="The newest jobs of this key")
    def list_jobs(request: Request, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> list[JobView]:
        owner = owner_of(request.scope)
        if not owner and jobs.settings.host not in LOOPBACK:
            raise Refused(403, "jobs are listed for holders of a key only; this server has none")
        return jobs.jobs_of(owner, limit)

    @app.get("/v1/jobs/{job_id}", tags=["jobs"], summary="State, progress and files of a job")
    def get_job(request: Request, job_id: JobId) -> JobView:
        return jobs.get(job_id, owner_of(request.scope))

    @app.post("/v1/jobs/{job_id}/cancel", tags=["jobs"], summary="End a job; one that is over stays as it is")
    def cancel_job(request: Request, job_id: JobId) -> JobView:
        return jobs.cancel(job_id, owner_of(request.scope))

    @app.delete("/v1/jobs/{job_id}", tags=["jobs"], summary="Remove a job with its files", status_code=204)
    def delete_job(request: Request, job_id: JobId) -> None:
        jobs.delete(job_id, owner_of(request.scope))

    @app.get(
        "/v1/jobs/{job_id}/results/{index}/{name}",
        tags=["jobs"],
        summary="One file of a result",
        response_class=FileResponse,
    )
    def get_file(
        request: Request,
        job_id: JobId,
        index: Annotated[int, Path(ge=0, le=10_000)],
        name: Annotated[str, Path(max_length=100, description="As the job lists it.")],
    ) -> FileResponse:
        path = jobs.file(job_id, index, name, owner_of(request.scope))
        kind = MEDIA_TYPES.get(path.suffix, "application/octet-stream")
        # The name comes from our own list, so nothing a user wrote stands in a header.
        shown = "inline" if kind == "image/png" else "attachment"
        return FileResponse(
            path,
            media_type=kind,
            filename=f"{job_id[:8]}-{index}-{path.name}",
            content_disposition_type=shown,
            headers={"Cache-Control": "private, max-age=3600, immutable"},
        )


def _add_events(app: FastAPI, jobs: JobService) -> None:
    @app.get(
        "/v1/jobs/{job_id}/events",
        tags=["jobs"],
        summary="What happens to a job, as server-sent events: state, step, preview; ends when it is over",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    )
    async def events(request: Request, job_id: JobId) -> StreamingResponse:
        loop, waiting = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def put(event: Event) -> None:
            if event.kind == "state" or waiting.qsize() < BACKLOG:
                waiting.put_nowait(event)

        def listener(event: Event) -> None:  # called by the dispatcher's thread
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
                loop.call_soon_threadsafe(put, event)

        stop = await run_in_threadpool(jobs.listen, job_id, listener, owner_of(request.scope))

        async def stream() -> AsyncIterator[bytes]:
            silent = 0.0
            try:
                while not jobs.closing:
                    try:
                        event = await asyncio.wait_for(waiting.get(), 1.0)
                    except asyncio.TimeoutError:
                        silent += 1.0
                        if silent >= PING_EVERY:
                            silent = 0.0
                            yield format_sse_event(comment="still here")
                        continue
                    silent = 0.0
                    yield format_sse_event(event=event.kind, data_str=_json(event.data))
                    if event.kind == "state" and is_over(event):
                        return
            finally:
                stop()

        return StreamingResponse(
            stream(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
        )


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=True, separators=(",", ":"))


async def _front() -> HTMLResponse:
    return HTMLResponse(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Modality Forcing</title>"
        "<h1>Modality Forcing</h1><p>No page here. <a href=/docs>What is answered</a>.</p></html>"
    )
