"""The work of a study in parallel processes of one thread each, with progress; safe to stop at any time."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from modality_forcing.errors import TrainingError, UserError
from modality_forcing.studies.plan import Job

Do = Callable[[Job, Any, Callable[[float], None]], None]
"""(job, place, progress): does a job or what is left of it."""
WAKE = 0.5  # seconds between looks at the clock
PATIENCE = 60.0
"""Seconds a process has to save its training after it was told to stop."""
SHORT = 300  # characters of an error
# Math libraries read these when they are loaded; processes of one thread each do not wait for each other.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_STOP = None


@dataclass
class State:
    """How far a study is.

    Attributes:
        total: jobs in all.
        done: names of finished jobs.
        running: name -> share that is done.
        failed: name -> why; jobs that needed it are not tried.
        seconds_left: estimate until everything is done; None before anything was measured.
    """

    total: int
    done: list[str] = field(default_factory=list)
    running: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    seconds_left: float | None = None


@dataclass
class _Worker:
    """A process, the pipe to it, and what it does."""

    process: Any
    pipe: Connection
    job: Job | None = None
    share: float = 0.0
    began: float = 0.0
    resumed: float | None = None


def run_jobs(
    jobs: Sequence[Job],
    place: Any,
    processes: int,
    report: Callable[[State, str], None],
    do: Do | None = None,
) -> State:
    """Do jobs, each after what it needs, as many at a time as there are processes.

    Args:
        jobs: those that are not done, in the order of preference, each after its needs; what it needs and is
            not among them counts as done.
        place: see :class:`~modality_forcing.studies.work.Place`.
        report: called with the state and the name of a job that just ended ("" in between).
        do: what does a job, a function of a module; :func:`studies.work.do` by default.

    Returns:
        The last state. Jobs that failed are in it; the others were done.

    Raises:
        KeyboardInterrupt: after all processes have saved what they were at.
    """
    state = State(len(jobs))
    waiting = list(jobs)
    names = {job.name for job in jobs}
    clock = _Clock()
    workers: list[_Worker] = []
    try:
        workers += [_start(place, do) for _ in range(min(processes, len(jobs)))]
        while True:
            _drop_hopeless(waiting, state)
            _hand_out(waiting, names, state, workers)
            busy = [worker for worker in workers if worker.job is not None]
            if not busy:
                return state
            ready = wait([worker.pipe for worker in busy], WAKE)
            for number, worker in enumerate(workers):
                if worker.pipe in ready:
                    ended = _hear(worker, state, clock)
                    if not worker.process.is_alive():
                        workers[number] = _start(place, do)
                    if ended:
                        _tell(state, workers, waiting, clock, processes, report, ended)
            _tell(state, workers, waiting, clock, processes, report, "")
    finally:
        _end(workers)


def _hand_out(waiting: list[Job], names: set[str], state: State, workers: Sequence[_Worker]) -> None:
    """A job for every idle worker, as long as there is one whose needs are done."""
    done = set(state.done)
    for worker in workers:
        free = [job for job in waiting if all(need in done or need not in names for need in job.needs)]
        if worker.job is None and free:
            waiting.remove(free[0])
            worker.job, worker.share, worker.resumed = free[0], 0.0, None
            worker.began = time.monotonic()
            # A worker that died idle is noticed by the end of its pipe, as one that dies at work.
            with contextlib.suppress(OSError):
                worker.pipe.send(free[0])


def _drop_hopeless(waiting: list[Job], state: State) -> None:
    """Jobs that need one that failed, and those that need them: needs come first in the list."""
    for job in list(waiting):
        missing = [need for need in job.needs if need in state.failed]
        if missing:
            waiting.remove(job)
            state.failed[job.name] = f"needs {missing[0]}"


def _hear(worker: _Worker, state: State, clock: _Clock) -> str | None:
    """Take what a worker says; the name of its job when that ended."""
    job = worker.job
    assert job is not None
    try:
        kind, value = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join(WAKE)
        code = worker.process.exitcode
        kind, value = (
            "failed",
            f"its process ended with code {code}" + (" (memory full?)" if code == -9 else ""),
        )
    if kind == "progress":
        if worker.resumed is None:
            worker.resumed = value
        worker.share = value
        return None
    worker.job = None
    if kind == "done":
        state.done.append(job.name)
        clock.learn(job, time.monotonic() - worker.began, worker.resumed or 0.0)
    else:
        state.failed[job.name] = value
    return job.name


def _tell(
    state: State, workers: Sequence[_Worker], waiting: Sequence[Job], clock: _Clock, processes: int,
    report: Callable[[State, str], None], ended: str,
) -> None:  # fmt: skip
    busy = [worker for worker in workers if worker.job is not None]
    state.running = {worker.job.name: worker.share for worker in busy if worker.job}
    state.seconds_left = clock.left(waiting, [(w.job, w.share) for w in busy if w.job], processes)
    report(state, ended)


class _Clock:
    """Turns estimates into an ETA: how much slower this machine is than they say, so far."""

    def __init__(self) -> None:
        self.estimated = self.taken = 0.0

    def learn(self, job: Job, seconds: float, share_before: float) -> None:
        """A job took so long from a share that an earlier run had done."""
        self.estimated += job.seconds * (1.0 - min(share_before, 0.95))
        self.taken += seconds

    def left(
        self, waiting: Sequence[Job], running: Sequence[tuple[Job, float]], processes: int
    ) -> float | None:
        """Seconds until all is done; the longest job is a bound of its own."""
        if not self.estimated:
            return None
        left = [job.seconds for job in waiting] + [job.seconds * (1.0 - share) for job, share in running]
        return self.taken / self.estimated * max(sum(left) / max(1, processes), max(left, default=0.0))


# -- processes -------------------------------------------------------------------------------------------


def _start(place: Any, do: Do | None) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, place, do))
    with _environment(ONE_THREAD):
        process.start()
    theirs.close()  # so that the end of the process ends the pipe
    return _Worker(process, ours)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _end(workers: Sequence[_Worker]) -> None:
    """Let idle processes go; tell the others to save and end."""
    for worker in workers:
        with contextlib.suppress(OSError, ValueError):
            if worker.job is None:
                worker.pipe.send(_STOP)
            else:
                worker.process.terminate()
    deadline = time.monotonic() + PATIENCE
    for worker in workers:
        worker.process.join(max(0.1, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _work(pipe: Connection, place: Any, do: Do | None) -> None:
    """A worker's life: jobs from the pipe until it is told to stop."""
    # While it trains, the trainer's own handlers finish the step and save; anything else just ends here.
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        import torch

        from modality_forcing.studies import work

        torch.set_num_threads(1)
        while (job := pipe.recv()) is not _STOP:
            last = [-1.0]

            def progress(share: float, last: list[float] = last) -> None:
                if share - last[0] >= 0.01:
                    last[0] = share
                    pipe.send(("progress", share))

            try:
                (do or work.do)(job, place, progress)
            except (UserError, TrainingError, FloatingPointError) as error:
                pipe.send(("failed", " ".join(str(error).split())[:SHORT]))
            except torch.OutOfMemoryError:
                pipe.send(("failed", "the accelerator's memory is full; lower batch or --jobs"))
            else:
                pipe.send(("done", None))
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        return


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    """A study that was killed leaves no process behind: each saves and ends."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
