"""Jobs from submission to their files: the one door for HTTP, for the page and for tests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import queue
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from modality_forcing.errors import UserError
from modality_forcing.io.atomic import write_errors
from modality_forcing.server.claim import Claim
from modality_forcing.server.dispatch import Dispatcher
from modality_forcing.server.errors import Refused, not_found
from modality_forcing.server.events import Event, Hub
from modality_forcing.server.metrics import Metrics
from modality_forcing.server.plan import plan_job
from modality_forcing.server.requests import check_request
from modality_forcing.server.settings import ServerSettings
from modality_forcing.server.store import CANCELLED, FAILED, QUEUED, RUNNING, Job, Store
from modality_forcing.server.tasks import TASKS
from modality_forcing.server.uploads import Decoder
from modality_forcing.server.views import JobView, LimitsView, ModelView, ServerView, job_view

log = logging.getLogger("modality_forcing.server")
CLEAN_EVERY = 30.0  # seconds
MAX_ATTEMPTS = 3  # a job in whose company the server ended so often is not tried again


class JobService:
    """Accepts jobs, has them computed, keeps their files. Thread-safe.

    Use it as a context manager, or call :meth:`start` and :meth:`close`.
    """

    def __init__(self, settings: ServerSettings) -> None:
        """Open the job store; computing begins with :meth:`start`.

        Raises:
            UserError: the data folder cannot be written or belongs to another version.
        """
        self.settings = settings
        self.metrics = Metrics()
        self.hub = Hub()
        self.folder = settings.data / "jobs"
        with write_errors(settings.data):
            settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.mkdir(exist_ok=True, mode=0o700)
        self._claim = Claim(settings.data / "lock")
        self.store = Store(settings.data / "jobs.sqlite")
        self._decoder = Decoder(settings)
        self.dispatchers = [Dispatcher(self, device) for device in settings.devices]
        self._closing, self._closed = threading.Event(), False
        self._cleaner = threading.Thread(target=self._clean_often, name="cleaner", daemon=True)
        self.on_broken: Callable[[str], None] | None = None
        """Called when a worker cannot load the default model."""

    def __enter__(self) -> JobService:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Take up what an earlier server left, and begin to compute."""
        for job in self.store.running():
            if job.attempts >= MAX_ATTEMPTS:
                self.end(job.id, FAILED, error="the server ended each time it computed this job")
            else:
                shutil.rmtree(self.results(job.id), ignore_errors=True)
                self.store.requeue(job.id, alone=job.attempts > 1)
        self.clean()
        for dispatcher in self.dispatchers:
            dispatcher.start()
        self._cleaner.start()

    def close(self) -> None:
        """Stop: what is computed may finish within ``settings.grace`` seconds, the rest stays queued."""
        if self._closed:
            return
        self._closed = True
        self.announce_end()
        for dispatcher in self.dispatchers:
            dispatcher.stop()
        for dispatcher in self.dispatchers:
            dispatcher.join()
        if self._cleaner.is_alive():
            self._cleaner.join()
        self._decoder.close()
        self.store.close()
        self._claim.release()

    def announce_end(self) -> None:
        """Take no more jobs and let streams of events end; :meth:`close` is about to be called."""
        self._closing.set()

    @property
    def closing(self) -> bool:
        """Whether the server is about to end."""
        return self._closing.is_set()

    @property
    def ready(self) -> bool:
        """Whether a worker with a loaded model waits for jobs."""
        return not self.closing and any(dispatcher.ready for dispatcher in self.dispatchers)

    # -- what users ask ------------------------------------------------------------------------------------

    def submit(
        self,
        task: str,
        fields: Mapping[str, Any],
        uploads: Mapping[str, list[bytes]] | None = None,
        *,
        owner: str = "",
        repeat_key: str | None = None,
    ) -> tuple[JobView, bool]:
        """Check a request, decode its uploads and queue it.

        Args:
            task: a name of ``tasks.TASKS``.
            fields: values by name, as in the JSON body.
            uploads: bytes of files by field: one for all items or one for each.
            owner: whose job it is; only the same owner sees it.
            repeat_key: the same key and request again give the same job.

        Returns:
            The job, and whether it is new.

        Raises:
            Refused: 404, unknown task; 413 and 422, a request that cannot be served; 429, the queue is full;
                503, the server is about to end.
        """
        if task not in TASKS:
            raise Refused(404, f"there is no such task; right is one of {', '.join(TASKS)}")
        uploads = dict(uploads or {})
        for name in uploads:
            if name not in {upload.name for upload in TASKS[task].uploads}:
                raise Refused(422, f"{task} takes no such file; right is {_names(task)}")
        digest = _digest(task, fields, uploads)
        found = self.store.repeated(owner, repeat_key, digest)
        if found is not None:
            return self.view(found), False
        request = check_request(TASKS[task], fields, uploads, self.settings)
        self.check_room()
        job_id = secrets.token_hex(16)
        inputs = self.folder / job_id / "inputs"
        try:
            with write_errors(self.folder):
                inputs.mkdir(parents=True, mode=0o700)
                files = self._decoder.decode(request, inputs)
            values = plan_job(job_id, request, files, self.results(job_id))
            job, new = self.store.add(
                {**values, "owner": owner, "repeat_key": repeat_key, "repeat_digest": digest},
                self.settings.max_queue,
            )
        except BaseException as error:
            shutil.rmtree(inputs.parent, ignore_errors=True)
            if isinstance(error, UserError) and not isinstance(error, Refused):
                log.error("a job could not be stored: %s", error)
                raise Refused(
                    503, "the job cannot be stored now; its folder is full or read-only", 60
                ) from None
            raise
        if not new:
            shutil.rmtree(inputs.parent, ignore_errors=True)
        self.wake()
        return self.view(job), new

    def check_room(self) -> None:
        """Refuse a job that there is no room for, before its body is looked at.

        Raises:
            Refused: 429 with the time after which some of the queue is likely done; 503, about to end.
        """
        if self.closing:
            raise Refused(503, "the server is about to end; try again soon", 10)
        waiting = self.store.count(QUEUED)
        if waiting >= self.settings.max_queue:
            seconds = self.store.mean_seconds() / len(self.dispatchers)
            raise Refused(429, f"{waiting} jobs wait already; try again later", max(1.0, seconds))

    def get(self, job_id: str, owner: str | None = None) -> JobView:
        """A job. ``owner`` None sees every one.

        Raises:
            Refused: 404.
        """
        return self.view(self._job(job_id, owner))

    def jobs_of(self, owner: str, limit: int = 50) -> list[JobView]:
        """The newest jobs of one owner, newest first."""
        return [self.view(job) for job in self.store.of_owner(owner, limit)]

    def cancel(self, job_id: str, owner: str | None = None) -> JobView:
        """End a job that is not over; one that is over stays as it is.

        Raises:
            Refused: 404.
        """
        self._job(job_id, owner)
        if self.end(job_id, CANCELLED):
            for dispatcher in self.dispatchers:
                dispatcher.cancel(job_id)
        return self.get(job_id, owner)

    def delete(self, job_id: str, owner: str | None = None) -> None:
        """Cancel a job if need be, and remove it with its files.

        Raises:
            Refused: 404.
        """
        self.cancel(job_id, owner)
        self._remove(job_id)

    def file(self, job_id: str, index: int, name: str, owner: str | None = None) -> Path:
        """Where a file of a done job is. Only names that the job lists are ever looked for.

        Raises:
            Refused: 404.
        """
        results = self._job(job_id, owner).json("results")
        if 0 <= index < len(results):
            for listed, _ in results[index]:
                path = self.results(job_id) / str(index) / listed
                if listed == name and path.is_file():
                    return path
        raise Refused(404, "there is no such file; the job lists its files")

    def listen(
        self, job_id: str, listener: Callable[[Event], None], owner: str | None = None
    ) -> Callable[[], None]:
        """Call ``listener`` with what happens to a job, beginning with its state; returns how to stop that.

        The listener is called from other threads and must return at once.

        Raises:
            Refused: 404.
        """
        self._job(job_id, owner)
        stop = self.hub.listen(job_id, listener)
        try:
            # After listening began: an end in between is told twice rather than never.
            listener(self._state_event(self.get(job_id, owner)))
        except BaseException:
            stop()
            raise
        return stop

    def stream(self, job_id: str, owner: str | None = None, timeout: float | None = None) -> Iterator[Event]:
        """What happens to a job until it is over, or until nothing happened for ``timeout`` seconds.

        Raises:
            Refused: 404.
        """
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        stop = self.listen(job_id, events.put, owner)
        try:
            with contextlib.suppress(queue.Empty):
                while True:
                    event = events.get(timeout=timeout)
                    yield event
                    if event.kind == "state" and is_over(event):
                        return
        finally:
            stop()

    def describe(self) -> ServerView:
        """Models, tasks and limits."""
        s = self.settings
        known: dict[str, dict[str, Any]] = {}
        for dispatcher in self.dispatchers:
            known |= dispatcher.defaults
        models = [ModelView(name=name, loaded=name in known, defaults=known.get(name)) for name in s.models]
        limits = LimitsView(
            max_body_bytes=s.max_body,
            max_upload_pixels=s.max_upload_pixels,
            max_side=s.max_side,
            max_area=s.max_area,
            max_steps=s.max_steps,
            max_items=s.max_items,
            max_queue=s.max_queue,
            submissions_per_minute=s.rate,
            kept_seconds=s.ttl,
        )
        return ServerView(
            models=models, tasks={task.name: task.title for task in TASKS.values()}, limits=limits
        )

    # -- what the workers' threads use -----------------------------------------------------------------------

    def results(self, job_id: str) -> Path:
        """The folder of a job's run folders, named by their index."""
        return self.folder / job_id / "results"

    def end(self, job_id: str, state: str, **values: Any) -> bool:
        """Bring a job to its end and tell who watches; False when it had ended before."""
        size = sum(path.stat().st_size for path in self.results(job_id).rglob("*") if path.is_file())
        if not self.store.finish(job_id, state, size=size, **values):
            return False
        job = self.store.get(job_id)
        if job is not None:
            self.metrics.jobs.labels(job.task, state).inc()
            shutil.rmtree(self.folder / job_id / "inputs", ignore_errors=True)
            self.hub.tell(job_id, self._state_event(self.view(job)))
        return True

    def tell_state(self, job_id: str) -> None:
        """Send a job's state to who watches it."""
        job = self.store.get(job_id) if self.hub.watched(job_id) else None
        if job is not None:
            self.hub.tell(job_id, self._state_event(self.view(job)))

    def wake(self) -> None:
        """There may be something to compute."""
        for dispatcher in self.dispatchers:
            dispatcher.wake()

    # -- inside ------------------------------------------------------------------------------------------

    def _job(self, job_id: str, owner: str | None) -> Job:
        job = self.store.get(job_id)
        if job is None or (owner is not None and job.owner != owner):
            raise not_found()
        return job

    def view(self, job: Job) -> JobView:
        """A row as users see it."""
        ahead = self.store.ahead(job) if job.state == QUEUED else None
        progress = next((d.progress[job.id] for d in self.dispatchers if job.id in d.progress), (0, 0))
        return job_view(job, self.settings.ttl, ahead, progress)

    @staticmethod
    def _state_event(view: JobView) -> Event:
        return Event("state", view.model_dump(mode="json"))

    def _clean_often(self) -> None:
        while not self._closing.wait(CLEAN_EVERY):
            try:
                self.clean()
            except Exception:  # the next round tries again
                log.exception("cleaning up failed")

    def clean(self) -> None:
        """Remove jobs past their time or beyond the room on disk, and folders that belong to no job."""
        for job_id in self.store.surplus(self.settings.ttl, self.settings.disk_cap):
            self._remove(job_id)
            self.metrics.removed.inc()
        folders = [path for path in self.folder.iterdir() if path.stat().st_mtime < time.time() - 600]
        known = self.store.ids()
        for path in folders:
            if path.name not in known:
                shutil.rmtree(path, ignore_errors=True)

    def _remove(self, job_id: str) -> None:
        # The row first: without it no file is served any more.
        self.store.remove(job_id)
        shutil.rmtree(self.folder / job_id, ignore_errors=True)

    def gauges(self) -> None:
        """Bring the gauges of the metrics up to date."""
        self.metrics.queued.set(self.store.count(QUEUED))
        self.metrics.running.set(self.store.count(RUNNING))
        self.metrics.ready.set(sum(dispatcher.ready for dispatcher in self.dispatchers))


def is_over(event: Event) -> bool:
    """Whether a "state" event says that the job is over."""
    return event.data["state"] not in (QUEUED, RUNNING)


def _names(task: str) -> str:
    return ", ".join(upload.name for upload in TASKS[task].uploads) or "no file at all"


def _digest(task: str, fields: Mapping[str, Any], uploads: Mapping[str, list[bytes]]) -> str:
    hashed = hashlib.sha256(json.dumps([task, fields], sort_keys=True, default=str).encode())
    for name in sorted(uploads):
        for data in uploads[name]:
            hashed.update(f"{name}:{len(data)}:".encode() + hashlib.sha256(data).digest())
    return hashed.hexdigest()
