"""Filling a folder with shards in several processes, so that a killed run goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

from modality_forcing.data.shards.index import scan_index
from modality_forcing.data.shards.manifest import MANIFEST, Manifest, ShardInfo, read_manifest
from modality_forcing.data.shards.writer import write_shard
from modality_forcing.errors import OutOfMemoryError, UserError
from modality_forcing.io.atomic import write_errors

EncodedSamples = Iterable[tuple[str, list[tuple[str, bytes]]]]
LOCK = ".making.lock"
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_POLL = 0.25  # seconds between looks at what the workers have done


@dataclass(frozen=True)
class Job:
    """One shard to make.

    Attributes:
        name: file name that ends in ".tar".
        samples: how many samples it gets; None when only making it tells.
        make: gives (key, members as of ``encode_sample``) one after the other; a function of a module, which
            other processes can import. What it raises ends the run.
        arguments: of ``make``.
    """

    name: str
    samples: int | None
    make: Callable[..., EncodedSamples]
    arguments: tuple[Any, ...] = ()


def build_shards(
    folder: str | Path,
    generator: dict[str, Any],
    settings: dict[str, Any],
    jobs: Sequence[Job],
    *,
    workers: int = 1,
    same: Sequence[str] = ("name",),
    progress: Callable[[int, int | None], None] | None = None,
) -> Manifest:
    """Make the shards that are not there yet.

    Finished shards are kept: what was killed goes on, and a run with a larger ``settings["count"]`` adds to a
    folder. Whatever the number of workers, the bytes are the same. At any moment the folder holds whole
    shards, a manifest that is true, and hidden temporary files, which the next run removes.

    Args:
        folder: new, empty, or made with the same settings.
        generator: what makes the samples ("name", versions), for the manifest.
        settings: what was asked for. They may not differ from those of the folder; only "count" may grow.
        jobs: all shards of the folder, finished ones too.
        workers: processes; 1 works in this one.
        same: entries of ``generator`` that must be those of the folder.
        progress: called with (samples finished, samples in all or None).

    Raises:
        UserError: the folder holds something else or was made with other settings, another run fills it at
            this moment, or it cannot be written.
        OutOfMemoryError: a worker was killed.
    """
    folder = Path(folder)
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        manifest = _begin(folder, generator, settings, same)
        for leftover in folder.glob(".*.tmp*"):
            leftover.unlink(missing_ok=True)
        todo = [job for job in jobs if not _is_done(folder, manifest, job)]
        manifest.write(folder)
        counts = [job.samples for job in jobs]
        total = None if None in counts else sum(count or 0 for count in counts)
        remaining = {job.name for job in todo}
        done = sum(
            manifest.shards[job.name].samples
            for job in jobs
            if job.name in manifest.shards and job.name not in remaining
        )

        def report(made: int) -> None:
            if progress is not None:
                progress(done + made, total)

        report(0)
        with contextlib.closing(_make_all(folder, todo, workers, report)) as finished:
            for shard in finished:
                manifest.shards[shard.name] = shard
                manifest.write(folder)
    return manifest


def _begin(
    folder: Path, generator: dict[str, Any], settings: dict[str, Any], same: Sequence[str]
) -> Manifest:
    """The folder's manifest with the new settings, or a new one; refuses a folder that is not ours."""
    if not (folder / MANIFEST).exists():
        others = sorted(item.name for item in folder.iterdir() if not item.name.startswith("."))
        if others:
            raise UserError(
                f"{folder} holds other files ({', '.join(others[:3])}); choose a new or empty folder"
            )
        return Manifest(dict(generator), dict(settings))
    manifest = read_manifest(folder)
    before = {name: manifest.generator.get(name) for name in same} | manifest.settings
    now = {name: generator.get(name) for name in same} | settings
    different = [
        f"{name}={before.get(name)} (now {now.get(name)})"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not _may_grow(name, before, now)
    ]
    if different:
        raise UserError(
            f"{folder} holds shards made with other settings: {', '.join(different)};"
            " choose a new folder or the same settings"
        )
    manifest.generator, manifest.settings = dict(generator), dict(settings)
    return manifest


def _may_grow(name: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    old, new = before.get(name), now.get(name)
    return name == "count" and isinstance(old, int) and isinstance(new, int) and old < new


def _is_done(folder: Path, manifest: Manifest, job: Job) -> bool:
    """Whether a job's shard is whole. One that was renamed just before a kill is taken into the manifest."""
    path = folder / job.name
    known = manifest.shards.get(job.name)
    if known is not None:
        whole = path.is_file() and path.stat().st_size == known.bytes
        if whole and job.samples in (None, known.samples):
            return True
        del manifest.shards[job.name]
        return False
    if job.samples is None or not path.is_file():
        return False
    index = scan_index(path)
    if index.fault or index.partial or len(index.keys) != job.samples:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    manifest.shards[job.name] = ShardInfo(job.name, job.samples, path.stat().st_size, digest.hexdigest())
    return True


def _make_all(
    folder: Path, jobs: Sequence[Job], workers: int, report: Callable[[int], None]
) -> Generator[ShardInfo, None, None]:
    """Every shard as it is finished; ``report`` hears how many samples were made."""
    if workers <= 1 or len(jobs) <= 1:
        made = 0

        def count() -> None:
            nonlocal made
            made += 1
            report(made)

        for job in jobs:
            yield _make(folder, job, count)
        return
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    with _one_thread_each():
        pool = ProcessPoolExecutor(
            min(workers, len(jobs)), mp_context=context, initializer=_begin_work, initargs=(counter, stop)
        )
        try:
            waiting = {pool.submit(_work, folder, job) for job in jobs}
            while waiting:
                finished, waiting = wait(waiting, timeout=_POLL, return_when=FIRST_COMPLETED)
                report(counter.value)
                for future in finished:
                    yield future.result()
        except BrokenProcessPool:
            raise OutOfMemoryError(
                "a process that made shards was killed, mostly because memory is full; use fewer --workers"
                " and run again: finished shards are kept"
            ) from None
        finally:
            # Also after Ctrl-C: workers leave at their next sample and remove what they began.
            stop.set()
            pool.shutdown(cancel_futures=True)


def _make(folder: Path, job: Job, count: Callable[[], None]) -> ShardInfo:
    def counted() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
        for sample in job.make(*job.arguments):
            yield sample
            count()

    return write_shard(folder, job.name, counted())


_shared: dict[str, Any] = {}  # of a worker process


def _begin_work(counter: Any, stop: Any) -> None:
    _shared.update(counter=counter, stop=stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent says when to stop
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A pool's worker does not notice that its parent was killed and would wait for ever.
        def leave() -> None:
            wait_for([parent.sentinel])
            os._exit(1)

        threading.Thread(target=leave, daemon=True).start()


def _work(folder: Path, job: Job) -> ShardInfo:
    def count() -> None:
        if _shared["stop"].is_set():
            raise UserError(f"making {job.name} was stopped")
        with _shared["counter"].get_lock():
            _shared["counter"].value += 1

    return _make(folder, job, count)


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started inside use one thread each for linear algebra, unless the user set a number."""
    added = [name for name in _THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Only one run fills a folder; the lock goes with its process, however that ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path = folder / LOCK
    with write_errors(folder), path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is being filled by another run; wait for it to end") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
