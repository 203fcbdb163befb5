"""What users see of jobs, models and errors."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from modality_forcing.server.store import Job

State = Literal["queued", "running", "done", "failed", "cancelled"]


class FileView(BaseModel):
    """One file of a run folder."""

    name: str
    bytes: int
    url: str = Field(description="Address on this server.")


class ItemView(BaseModel):
    """One result: a run folder."""

    index: int
    prompt: str
    seed: int
    files: list[FileView] = Field(description="Empty until the job is done.")


class ProgressView(BaseModel):
    """How far a running job is."""

    step: int = 0
    steps: int = Field(0, description="0: not known yet")


class JobView(BaseModel):
    """A job and, once it is done, where its files are. Times are seconds since 1970."""

    id: str
    task: str
    model: str
    state: State
    created: float
    started: float | None
    finished: float | None
    expires: float | None = Field(description="When its files are removed at the latest.")
    ahead: int | None = Field(description="Jobs that wait before this one, while it is queued.")
    progress: ProgressView
    error: str | None
    notices: list[str] = Field(description="What was assumed about the uploads.")
    request: dict[str, Any] = Field(description="Sent again with the same uploads, it repeats the result.")
    items: list[ItemView]

    @property
    def over(self) -> bool:
        """Whether the state is final."""
        return self.state not in ("queued", "running")


class Problem(BaseModel):
    """An error after RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


class ModelView(BaseModel):
    """A served model."""

    name: str
    loaded: bool
    defaults: dict[str, Any] | None = Field(description="Steps, guidance, size; null until it is loaded.")


class LimitsView(BaseModel):
    """What one request may ask for."""

    max_body_bytes: int
    max_upload_pixels: int
    max_side: int
    max_area: int
    max_steps: int
    max_items: int
    max_queue: int
    submissions_per_minute: int
    kept_seconds: float


class ServerView(BaseModel):
    """Models, tasks and limits."""

    models: list[ModelView]
    tasks: dict[str, str]
    limits: LimitsView


def job_view(job: Job, ttl: float, ahead: int | None, progress: tuple[int, int]) -> JobView:
    """A row as users see it."""
    results = job.json("results")
    items = [
        ItemView(
            index=index,
            prompt=item["prompt"],
            seed=item["seed"],
            files=[
                FileView(name=name, bytes=size, url=f"/v1/jobs/{job.id}/results/{index}/{name}")
                for name, size in (results[index] if results else [])
            ],
        )
        for index, item in enumerate(job.json("items"))
    ]
    step, steps = progress
    return JobView(
        id=job.id,
        task=job.task,
        model=job.model,
        state=job.state,
        created=job.created,
        started=job.started,
        finished=job.finished,
        expires=None if job.finished is None else job.finished + ttl,
        ahead=ahead,
        progress=ProgressView(step=step, steps=steps),
        error=job.error,
        notices=job.json("notices"),
        request=job.json("request"),
        items=items,
    )
