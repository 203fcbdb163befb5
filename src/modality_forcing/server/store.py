"""Jobs on disk: one SQLite file. What stands here survives the process."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peewee

from modality_forcing.errors import UserError
from modality_forcing.server.errors import Refused

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
FINISHED = (DONE, FAILED, CANCELLED)
VERSION = 1  # of the table below; raise it when a column changes


class Job(peewee.Model):
    """One row. Times are seconds since 1970; the texts of dictionaries and lists are JSON."""

    seq = peewee.AutoField()
    id = peewee.CharField(unique=True)
    owner = peewee.CharField(index=True)
    task = peewee.CharField()
    model = peewee.CharField()
    state = peewee.CharField(index=True)
    request = peewee.TextField()
    """What repeats the result: the checked fields, seeds drawn."""
    items = peewee.TextField()
    """What the worker gets for each item."""
    plan = peewee.TextField()
    """Options of the batch: jobs with equal ones may be computed together."""
    notices = peewee.TextField(default="[]")
    results = peewee.TextField(default="[]")
    """For each item a list of [file name, bytes]; nothing else is ever served."""
    error = peewee.TextField(null=True)
    attempts = peewee.IntegerField(default=0)
    alone = peewee.BooleanField(default=False)
    """Compute it in no batch with others: one of its batches failed."""
    created = peewee.DoubleField()
    started = peewee.DoubleField(null=True)
    finished = peewee.DoubleField(null=True, index=True)
    size = peewee.BigIntegerField(default=0)
    """Bytes of its folder."""
    repeat_key = peewee.CharField(null=True)
    repeat_digest = peewee.CharField(null=True)

    class Meta:
        indexes = ((("owner", "repeat_key"), True),)  # NULL keys do not collide

    def json(self, column: str) -> Any:
        """The value of a JSON column."""
        return json.loads(getattr(self, column))


class Store:
    """The table of jobs. Every method is one transaction; all threads share one connection under a lock."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # FULL: an accepted job survives a power cut, not only the end of the process.
        pragmas = {"journal_mode": "wal", "synchronous": "full", "busy_timeout": 5000}
        self._db = peewee.SqliteDatabase(
            str(path), pragmas=pragmas, thread_safe=False, check_same_thread=False
        )
        self._lock = threading.RLock()
        # A class of its own: its file is its own, too.
        self._jobs: Any = type(
            "Job", (Job,), {"Meta": type("Meta", (), {"database": self._db, "table_name": "job"})}
        )
        try:
            self._db.connect()
            version = self._db.pragma("user_version")
            if version not in (0, VERSION):
                raise UserError(f"{path} was written by another version; name another folder with --data")
            self._db.create_tables([self._jobs])
            self._db.pragma("user_version", VERSION)
        except peewee.DatabaseError as error:
            raise UserError(
                f"{path} is no readable job store ({error}); name another folder with --data"
            ) from None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        with self._lock, self._db.atomic("IMMEDIATE"):
            yield

    def add(self, values: dict[str, Any], limit: int) -> tuple[Job, bool]:
        """Append a job, unless its owner sent the same one before under the same repeat key.

        Returns:
            The job, and whether it is new.

        Raises:
            Refused: 422, the key was used for another request; 429, more than ``limit`` jobs wait.
        """
        with self._whole():
            found = self.repeated(values["owner"], values.get("repeat_key"), values.get("repeat_digest"))
            if found is not None:
                return found, False
            waiting = self.count(QUEUED)
            if waiting >= limit:
                raise Refused(429, f"{waiting} jobs wait already; try again later", 10)
            return self._jobs.create(created=time.time(), state=QUEUED, **values), True

    def repeated(self, owner: str, key: str | None, digest: str | None) -> Job | None:
        """The job that this owner sent under this key before, None without one.

        Raises:
            Refused: 422, it was another request.
        """
        if key is None:
            return None
        with self._lock:
            found = self._jobs.get_or_none((self._jobs.owner == owner) & (self._jobs.repeat_key == key))
        if found is not None and found.repeat_digest != digest:
            raise Refused(422, "this Idempotency-Key was used for another request; take a new one")
        return found

    def get(self, job_id: str) -> Job | None:
        """A job by its public id."""
        with self._lock:
            return self._jobs.get_or_none(self._jobs.id == job_id)

    def of_owner(self, owner: str, limit: int) -> list[Job]:
        """The newest jobs of one owner."""
        with self._lock:
            query = self._jobs.select().where(self._jobs.owner == owner).order_by(self._jobs.seq.desc())
            return list(query.limit(limit))

    def count(self, state: str) -> int:
        """Jobs in one state."""
        with self._lock:
            return self._jobs.select().where(self._jobs.state == state).count()

    def ahead(self, job: Job) -> int:
        """Jobs that are queued before this one."""
        with self._lock:
            return (
                self._jobs.select().where((self._jobs.state == QUEUED) & (self._jobs.seq < job.seq)).count()
            )

    def take(self, batch_size: int) -> list[Job]:
        """Start the oldest queued job and the queued ones after it that may share its batch.

        They are marked as running. A job larger than ``batch_size`` items is taken by itself.
        """
        with self._whole():
            waiting = self._jobs.select().where(self._jobs.state == QUEUED).order_by(self._jobs.seq)
            taken: list[Job] = []
            room = batch_size
            for job in waiting.limit(1000).iterator():
                count = len(job.json("items"))
                if not taken:
                    taken, room = [job], batch_size - count
                    if job.alone:
                        break
                elif count <= room and not job.alone and self._kind(job) == self._kind(taken[0]):
                    taken.append(job)
                    room -= count
                if room <= 0:
                    break
            now = time.time()
            for job in taken:
                job.state, job.started, job.attempts = RUNNING, now, job.attempts + 1
                job.save(only=[self._jobs.state, self._jobs.started, self._jobs.attempts])
            return taken

    def begin(self, job_id: str) -> Job | None:
        """Start one queued job out of turn; None when it is not queued."""
        with self._whole():
            query = self._jobs.update(state=RUNNING, started=time.time(), attempts=self._jobs.attempts + 1)
            if not query.where((self._jobs.id == job_id) & (self._jobs.state == QUEUED)).execute():
                return None
            return self._jobs.get(self._jobs.id == job_id)

    @staticmethod
    def _kind(job: Job) -> tuple[str, str, str]:
        return job.task, job.model, job.plan

    def finish(self, job_id: str, state: str, **values: Any) -> bool:
        """Bring a queued or running job to its end; False when it had ended before."""
        with self._whole():
            query = self._jobs.update(state=state, finished=time.time(), **values)
            return bool(
                query.where((self._jobs.id == job_id) & self._jobs.state.in_((QUEUED, RUNNING))).execute()
            )

    def requeue(self, job_id: str, *, alone: bool, forgive: bool = False) -> None:
        """Put a running job back into its old place. ``forgive``: the attempt does not count."""
        with self._whole():
            attempts = self._jobs.attempts - 1 if forgive else self._jobs.attempts
            query = self._jobs.update(state=QUEUED, started=None, alone=alone, attempts=attempts)
            query.where((self._jobs.id == job_id) & (self._jobs.state == RUNNING)).execute()

    def running(self) -> list[Job]:
        """What a server that ended left half done."""
        with self._lock:
            return list(self._jobs.select().where(self._jobs.state == RUNNING).order_by(self._jobs.seq))

    def remove(self, job_id: str) -> None:
        """Forget a job."""
        with self._whole():
            self._jobs.delete().where(self._jobs.id == job_id).execute()

    def ids(self) -> set[str]:
        """Every job."""
        with self._lock:
            return {row[0] for row in self._jobs.select(self._jobs.id).tuples()}

    def surplus(self, ttl: float, cap: int) -> list[str]:
        """Finished jobs past their time, and the oldest finished ones beyond ``cap`` bytes in all."""
        with self._lock:
            query = self._jobs.select(self._jobs.id, self._jobs.finished, self._jobs.size)
            finished = list(
                query.where(self._jobs.state.in_(FINISHED)).order_by(self._jobs.finished).tuples()
            )
        total, late, found = sum(row[2] for row in finished), time.time() - ttl, []
        for job_id, ended, size in finished:
            if ended < late or total > cap:
                found.append(job_id)
                total -= size
        return found

    def mean_seconds(self) -> float:
        """Seconds a finished job computed lately, 1 where there was none."""
        with self._lock:
            query = self._jobs.select(self._jobs.started, self._jobs.finished).where(self._jobs.state == DONE)
            rows = list(query.order_by(self._jobs.finished.desc()).limit(20).tuples())
        return sum(end - start for start, end in rows) / len(rows) if rows else 1.0
