"""What must hold when things go wrong: crashes, restarts, cancelling, batches, old results."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import PATIENCE, finished, npy, settings, until

from modality_forcing.errors import UserError
from modality_forcing.server.errors import Refused
from modality_forcing.server.service import JobService
from modality_forcing.server.settings import ServerSettings
from modality_forcing.server.store import QUEUED, RUNNING, Store


@pytest.fixture
def service(http: Any) -> JobService:
    """The running one."""
    return http.app.state.service


@contextmanager
def worker_held(service: JobService) -> Iterator[None]:
    """The worker computes nothing while the block runs: what is submitted in it queues up."""
    pid = worker_pid(service)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def worker_pid(service: JobService) -> int:
    """The process that computes, once it has loaded its model."""
    until(lambda: service.ready, "there was a worker")
    child = service.dispatchers[0]._child
    assert child is not None
    return child.process.pid


def kill_worker_at_step_of(service: JobService, jobs: list[Any]) -> None:
    """End the worker the hard way at the first step of a batch of just these jobs; returns when it is done.

    It happens in the thread that hears of the step: nothing can be missed between two looks.
    """
    dispatcher, wanted, hear = service.dispatchers[0], {job.id for job in jobs}, service.dispatchers[0]._hear
    killed = threading.Event()

    def kill_at_step(message: dict[str, Any]) -> None:
        hear(message)
        if message["event"] == "step" and set(dispatcher.progress) == wanted and not killed.is_set():
            os.kill(worker_pid(service), signal.SIGKILL)
            killed.set()

    dispatcher._hear = kill_at_step  # type: ignore[method-assign]
    try:
        assert killed.wait(PATIENCE), "these jobs never made a step together"
    finally:
        dispatcher._hear = hear  # type: ignore[method-assign]


def test_jobs_that_arrive_together_share_a_batch(service: JobService) -> None:
    """Equal to single runs up to the rounding that the pipeline allows; other options do not mix."""
    with worker_held(service):
        first, _ = service.submit("joint", {"prompt": "first", "steps": 40})
        jobs = [service.submit("joint", {"prompt": "a ball", "seed": seed})[0] for seed in range(4)]
        other, _ = service.submit("joint", {"prompt": "a ball", "seed": 0, "steps": 3})
    ended = [finished(service, job.id) for job in (first, *jobs, other)]
    assert [job.state for job in ended] == ["done"] * 6
    assert len({job.started for job in ended[1:5]}) == 1
    assert ended[5].started != ended[1].started
    alone = finished(service, service.submit("joint", {"prompt": "a ball", "seed": 2})[0].id)
    one, two = (
        np.load(service.file(job.id, 0, "depth.npy"), allow_pickle=False) for job in (ended[3], alone)
    )
    np.testing.assert_allclose(one, two, atol=2e-4, rtol=5e-3)  # as tests/unit/test_pipeline.py
    different = np.load(service.file(ended[1].id, 0, "depth.npy"), allow_pickle=False)
    assert np.abs(different - two).max() > 0.1


def test_files_of_several_sizes_in_one_job(service: JobService, ramp: np.ndarray) -> None:
    files = [npy(ramp), npy(ramp[:40]), npy(ramp)]
    job, _ = service.submit("d2i", {"prompt": "a", "seed": 1, "previews": True}, {"depth": files})
    seen = [event.data["item"] for event in service.stream(job.id) if event.kind == "preview"]
    assert set(seen) == {0, 1, 2}
    job = service.get(job.id)
    assert job.state == "done"
    for index, file in enumerate(files):
        depth = np.load(service.file(job.id, index, "depth.npy"), allow_pickle=False)
        assert depth.shape == np.load(io.BytesIO(file)).shape


def test_cancelling(service: JobService) -> None:
    running, _ = service.submit("joint", {"prompt": "a", "steps": 100})
    waiting, _ = service.submit("joint", {"prompt": "b", "steps": 99})
    until(lambda: service.get(running.id).progress.step > 0, "it ran")
    assert service.cancel(waiting.id).state == "cancelled"
    assert service.cancel(running.id).state == "cancelled"
    after, _ = service.submit("joint", {"prompt": "c", "steps": 1})
    assert finished(service, after.id).state == "done"
    step = service.metrics.registry.get_sample_value("mf_jobs_total", {"task": "joint", "state": "cancelled"})
    assert step >= 2
    assert service.get(running.id).state == "cancelled"
    assert not service.results(running.id).exists()
    assert service.cancel(after.id).state == "done"  # too late


def test_a_crash_fails_that_job_alone_and_the_worker_returns(service: JobService) -> None:
    service.metrics.restarts.inc(0)
    before = service.metrics.registry.get_sample_value("mf_worker_restarts_total") or 0
    with worker_held(service):
        victim, _ = service.submit("joint", {"prompt": "a", "steps": 100})
        others = [service.submit("joint", {"prompt": "b", "seed": n, "steps": 2})[0] for n in range(3)]
    kill_worker_at_step_of(service, [victim])
    ended = finished(service, victim.id)
    assert ended.state == "failed"
    assert ended.error == "the worker ended while it computed this job"
    assert [finished(service, job.id).state for job in others] == ["done"] * 3
    assert service.metrics.registry.get_sample_value("mf_worker_restarts_total") == before + 1


@pytest.mark.slow
def test_a_crash_of_a_batch_fails_none_that_is_innocent(service: JobService) -> None:
    with worker_held(service):
        service.submit("joint", {"prompt": "first", "steps": 30})
        jobs = [service.submit("joint", {"prompt": "b", "seed": n, "steps": 50})[0] for n in range(3)]
    kill_worker_at_step_of(service, jobs)
    ended = [finished(service, job.id) for job in jobs]
    assert [job.state for job in ended] == ["done"] * 3
    assert len({job.started for job in ended}) == 3  # each by itself the second time


@pytest.mark.slow
def test_an_idle_worker_that_ends_is_replaced(service: JobService) -> None:
    until(lambda: service.ready and service.store.count(RUNNING) == 0, "it was idle")
    os.kill(worker_pid(service), signal.SIGKILL)
    until(lambda: not service.ready, "the end was noticed")
    until(lambda: service.ready, "there was a new one")


def test_jobs_survive_a_restart(tiny_model: Path, tmp_path: Path) -> None:
    """One server stops in the middle of a job, a second one is killed without a word, the third finishes."""
    short = settings(tiny_model, tmp_path, grace=0.0)
    with JobService(short) as first:
        long, _ = first.submit("joint", {"prompt": "a", "seed": 5, "steps": 100})
        queued, _ = first.submit("joint", {"prompt": "b", "seed": 6, "steps": 1}, repeat_key="k")
        until(lambda: first.get(long.id).progress.step > 0, "it ran")
        with pytest.raises(UserError, match="another server"):
            JobService(short)
    store = Store(tmp_path / "jobs.sqlite")
    assert [store.get(job.id).state for job in (long, queued)] == [QUEUED, QUEUED]  # type: ignore[union-attr]
    assert store.take(1)[0].id == long.id  # as a server that is killed leaves it
    store.close()
    (tmp_path / "jobs" / long.id / "results" / "0").mkdir(parents=True)
    with JobService(short) as third:
        assert (
            third.submit("joint", {"prompt": "b", "seed": 6, "steps": 1}, repeat_key="k")[0].id == queued.id
        )
        assert finished(third, queued.id).state == "done"
        ended = finished(third, long.id)
        assert ended.state == "done"
        assert third.file(long.id, 0, "rgb.png").is_file()
        assert sorted(path.name for path in third.results(long.id).iterdir()) == ["0"]


def test_a_server_that_ends_thrice_over_one_job_gives_it_up(tiny_model: Path, tmp_path: Path) -> None:
    service = JobService(settings(tiny_model, tmp_path))
    job, _ = service.submit("joint", {"prompt": "a"})
    for _ in range(3):
        assert service.store.take(1)
        service.store.requeue(job.id, alone=False)
    service.store.take(1)
    service.start()
    assert service.get(job.id).state == "failed"
    service.close()


def test_old_results_and_surplus_go_oldest_first(tiny_model: Path, tmp_path: Path) -> None:
    service = JobService(settings(tiny_model, tmp_path, disk_cap=10**6, ttl=1000))
    jobs = [service.submit("joint", {"prompt": str(n)})[0] for n in range(4)]
    for job in jobs:
        folder = service.results(job.id) / "0"
        folder.mkdir(parents=True)
        (folder / "rgb.png").write_bytes(b"x" * 400_000)
        assert service.end(job.id, "done", results='[[["rgb.png", 400000]]]')
    service.clean()
    left = [job.id for job in jobs[2:]]
    assert service.store.ids() == set(left)
    assert sorted(path.name for path in service.folder.iterdir()) == sorted(left)
    service.store._jobs.update(finished=time.time() - 2000).where(service.store._jobs.id == left[0]).execute()
    service.clean()
    assert service.store.ids() == {left[1]}
    with pytest.raises(Refused) as refused:
        service.file(left[0], 0, "rgb.png")
    assert refused.value.status == 404
    service.close()


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    service = JobService(ServerSettings(models={"none": str(tmp_path / "nothing")}, data=tmp_path / "data"))
    service.on_broken = told.append
    service.start()
    until(lambda: bool(told), "it was told")
    assert not service.ready
    assert "nothing" in told[0]
    service.close()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"host": "0.0.0.0"}, "--api-key"),
        ({"host": "::"}, "--insecure"),
        ({"api_keys": ("short",)}, "5 characters"),
        ({"api_keys": ("with a blank in it.",)}, "printable"),
        ({"models": {}}, "--model"),
        ({"models": {"../../etc": "x"}}, "named"),
        ({"ttl": float("nan")}, "--ttl"),
        ({"rate": 0}, "--rate"),
        ({"batch_size": 0}, "--batch-size"),
    ],
)
def test_settings_are_checked(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        ServerSettings(**change)
    assert "with a blank" not in str(error.value)  # keys are not repeated


def test_keys_are_not_shown() -> None:
    assert "secret" not in repr(ServerSettings(api_keys=("secret-secret-secret",)))
