"""One thread for each device: takes jobs that fit together and has its worker compute them."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import shutil
import threading
import time
from typing import TYPE_CHECKING, Any

from modality_forcing.server.child import Child, Gone, Message
from modality_forcing.server.events import Event
from modality_forcing.server.store import DONE, FAILED, Job

if TYPE_CHECKING:
    from modality_forcing.server.service import JobService

log = logging.getLogger("modality_forcing.server")
WORKER = "modality_forcing.server.worker"
POLL = 0.25  # seconds between looks at what else may have happened
LONGEST_PAUSE = 60.0  # seconds before a worker that keeps ending is started again


class Dispatcher:
    """Feeds the worker process of one device.

    Attributes:
        ready: the worker has loaded the default model.
        defaults: sampler defaults of each model it has loaded so far.
        progress: (step, steps) of each job that is computed.
        broken: why the default model cannot be loaded, None when it can.
    """

    def __init__(self, service: JobService, device: str) -> None:
        self.service, self.settings, self.device = service, service.settings, device
        self.ready = False
        self.defaults: dict[str, dict[str, Any]] = {}
        self.progress: dict[str, tuple[int, int]] = {}
        self.broken: str | None = None
        self._child: Child | None = None
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._stop_by = float("inf")
        self._failures = 0
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._loop, name=f"dispatch-{device}", daemon=True)

    def start(self) -> None:
        """Start the worker and feed it."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what is computed within the grace period, take nothing more."""
        self._stop_by = time.monotonic() + self.settings.grace
        self._stopping.set()
        self._wake.set()

    def join(self) -> None:
        """Wait until it has stopped."""
        if self._thread.ident is not None:
            self._thread.join()

    def wake(self) -> None:
        """There may be jobs."""
        self._wake.set()

    def cancel(self, job_id: str) -> None:
        """Tell the worker that nobody waits for this job."""
        child = self._child
        if child is not None and job_id in self.progress:
            with contextlib.suppress(Gone):
                child.send({"op": "cancel", "job": job_id})

    # -- the thread ------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            except Exception:  # a fault of ours must not end the service
                log.exception("the dispatcher of %s failed; it goes on", self.device)
                self._drop_worker()
                self._stopping.wait(1.0)
        if self._child is not None:
            self._child.close(2.0)
        self.ready = False

    def _turn(self) -> None:
        if self._child is None and not self._start_worker():
            return
        self._wake.clear()
        jobs = self.service.store.take(self.settings.batch_size)
        if jobs:
            self._run(jobs)
            return
        if self._wake.wait(POLL):
            # Those who arrive together differ by milliseconds.
            self._stopping.wait(self.settings.linger)
        assert self._child is not None
        try:
            self._child.receive(0)
        except Gone:
            log.warning("the worker of %s ended while it was idle; it is started again", self.device)
            self._lost()

    def _start_worker(self) -> bool:
        """Start the process and wait until its model is loaded; False when it is not to be."""
        if self._failures:
            pause = min(LONGEST_PAUSE, 2.0 ** min(self._failures - 1, 10))
            if self._stopping.wait(pause):
                return False
        self._child = child = Child(WORKER)
        s = self.settings
        options: dict[str, Any] = {"device": self.device, "dtype": s.dtype, "compile": s.compile}
        if s.text_encoder is not None:
            options["text_encoder"] = s.text_encoder
        setup = {
            "models": s.models,
            "first": s.default_model,
            "options": options,
            "preview_every": s.preview_every,
        }
        try:
            child.send(setup)
            while not self._stopping.is_set():
                message = child.receive(POLL)
                if message is None:
                    continue
                if message["event"] == "broken":
                    return self._is_broken(message["error"])
                self._hear(message)
                self.ready, self.broken, self._failures = True, None, 0
                log.info("worker on %s is ready", message["device"])
                return True
        except Gone:
            self._is_broken("the worker ended while it loaded the model; see the log above")
        return False

    def _is_broken(self, text: str) -> bool:
        self.broken = text
        self._failures += 1
        log.error("model %s cannot be served on %s: %s", self.settings.default_model, self.device, text)
        self._drop_worker()
        if self.service.on_broken is not None:
            self.service.on_broken(text)
        return False

    def _drop_worker(self) -> None:
        if self._child is not None:
            self._child.kill()
        self._child, self.ready = None, False

    def _lost(self) -> None:
        self._drop_worker()
        self.service.metrics.restarts.inc()

    def _run(self, jobs: list[Job]) -> None:
        """Compute one batch to its end, whatever that is."""
        number = next(self._numbers)
        plan = jobs[0].json("plan")
        items = [item for job in jobs for item in job.json("items")]
        metrics, task = self.service.metrics, jobs[0].task
        for job in jobs:
            self.progress[job.id] = (0, 0)
            metrics.wait.labels(task).observe(max(0.0, time.time() - job.created))
            self.service.tell_state(job.id)
        metrics.batch.observe(len(items))
        started = time.monotonic()
        try:
            assert self._child is not None
            self._child.send(
                {
                    "op": "run", "batch": number, "model": jobs[0].model, "task": task, "items": items,
                    "options": plan["options"], "together": len(plan["shapes"]) <= 1,
                }
            )  # fmt: skip
            for job in jobs:  # cancelled between taking and sending
                stored = self.service.store.get(job.id)
                if stored is None or stored.state != "running":
                    self.cancel(job.id)
            self._follow(jobs, number, started + self.settings.job_timeout)
        except Gone:
            log.error("the worker of %s ended in the middle of a batch of %d jobs", self.device, len(jobs))
            self._lost()
            self._fail(jobs, "the worker ended while it computed this job", crashed=True)
        except BaseException:
            for job in jobs:
                self.service.store.requeue(job.id, alone=True)
            raise
        finally:
            metrics.run.labels(task).observe(time.monotonic() - started)
            for job in jobs:
                self.progress.pop(job.id, None)

    def _follow(self, jobs: list[Job], number: int, deadline: float) -> None:
        """Listen to the worker until the batch is over."""
        assert self._child is not None
        while True:
            message = self._child.receive(POLL)
            now = time.monotonic()
            unfinished = message is None or message["event"] in ("step", "preview")
            if unfinished and now > self._stop_by:
                log.warning("the grace period is over: %d jobs stay queued", len(jobs))
                self._drop_worker()
                for job in jobs:
                    self._forget_results(job.id)
                    self.service.store.requeue(job.id, alone=job.alone, forgive=True)
                return
            if unfinished and now > deadline:
                log.error("a batch of %d jobs took too long", len(jobs))
                self._lost()
                self._fail(jobs, f"it took longer than {self.settings.job_timeout:g} seconds", crashed=True)
                return
            if message is None:
                continue
            self._hear(message)
            if message.get("batch") != number:
                continue
            if message["event"] == "done":
                for job in jobs:
                    self._finish(job)
                return
            if message["event"] == "failed":
                self._fail(jobs, message["error"], crashed=False)
                return
            if message["event"] == "step":
                for job in jobs:
                    self.progress[job.id] = (message["step"], message["steps"])
                    self.service.hub.tell(
                        job.id, Event("step", {"step": message["step"], "steps": message["steps"]})
                    )

    def _hear(self, message: Message) -> None:
        if message["event"] == "ready":
            self.defaults[message["model"]] = message["defaults"]
        elif message["event"] == "preview":
            data = {name: message[name] for name in ("item", "rgb", "depth")}
            self.service.hub.tell(message["job"], Event("preview", data))

    def _finish(self, job: Job) -> None:
        folder = self.service.results(job.id)
        results = []
        for index in range(len(job.json("items"))):
            names = sorted(path for path in (folder / str(index)).glob("*") if path.is_file())
            results.append([[path.name, path.stat().st_size] for path in names])
        if all(results):
            ended = self.service.end(job.id, DONE, results=json.dumps(results))
        else:  # the worker skips jobs that were cancelled; any other has its files
            ended = self.service.end(job.id, FAILED, error="an internal error; the log says more")
        if not ended:
            self._forget_results(job.id)

    def _forget_results(self, job_id: str) -> None:
        shutil.rmtree(self.service.results(job_id), ignore_errors=True)

    def _fail(self, jobs: list[Job], error: str, *, crashed: bool) -> None:
        """The one job of a failed batch has failed. Of several, each gets its own try to find the culprit."""
        for job in jobs:
            self._forget_results(job.id)
            if len(jobs) == 1:
                self.service.end(job.id, FAILED, error=error)
            else:
                self.service.store.requeue(job.id, alone=True, forgive=not crashed)
