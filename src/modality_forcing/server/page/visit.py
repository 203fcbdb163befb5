"""What happens when a visitor clicks: jobs are submitted, watched, cancelled and shown again."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from modality_forcing.errors import UserError
from modality_forcing.io.atomic import atomic_file
from modality_forcing.server.errors import Refused
from modality_forcing.server.page.controls import Form, parse_settings
from modality_forcing.server.page.result import (
    WAITING,
    done_html,
    history_html,
    note_html,
    running_html,
)
from modality_forcing.server.tasks import TASKS

if TYPE_CHECKING:
    from modality_forcing.server.service import JobService
    from modality_forcing.server.views import JobView

log = logging.getLogger("modality_forcing.server")
REMEMBERED = 40  # jobs that a browser remembers
FAULT = "something went wrong here; the log of the server says more"
_ID = re.compile(r"[0-9a-f]{32}")


class Visit:
    """Handlers of the page around one service.

    A job belongs to whoever holds its id (128 random bits) and, on a server with keys, its key.
    """

    def __init__(self, service: JobService) -> None:
        self.service = service
        self.secret = self._secret()
        self._limiter = _Limiter(service.settings.rate)

    def connect(self, shown: list[Any], tabs: Any, forms: dict[str, Form]) -> None:
        """Say which components the handlers write to."""
        import gradio as gr

        # The toolkit hands over the request where the annotation says so; this module must import without it.
        for handler in (Visit.open, Visit.resume, Visit.cancel):
            handler.__annotations__["request"] = gr.Request
        self.panel, self.cancel_button, self.job, self.settings, self.seen, self.history = shown
        self.tabs, self.forms = tabs, forms

    def _secret(self) -> str:
        """Key under which browsers keep their list of jobs, the same after a restart."""
        path = self.service.settings.data / "page-secret"
        if not path.is_file():
            with atomic_file(path) as aside:
                aside.touch(mode=0o600)
                aside.write_text(secrets.token_hex(32), encoding="ascii")
        return path.read_text(encoding="ascii").strip()

    # -- handlers ------------------------------------------------------------------------------------------

    def runner(self, task: str) -> Callable[..., Iterator[dict[Any, Any]]]:
        """The handler of one tab's button."""
        import gradio as gr

        def run(request: Any, seen: Any, *values: Any) -> Iterator[dict[Any, Any]]:
            owner = owner_of_page(request)
            try:
                self._limiter.check(owner, request)
                fields, uploads = self.forms[task].read(list(values))
                job, _ = self.service.submit(task, {**fields, "previews": True}, uploads, owner=owner)
            except UserError as error:
                yield self._refused(str(error))
                return
            except Exception:  # a fault of ours: the log has it, the visitor hears of it
                log.exception("the page could not submit a job")
                yield self._refused(FAULT)
                return
            remembered = [job.id, *(known for known in _ids(seen) if known != job.id)][:REMEMBERED]
            yield {self.seen: remembered}
            yield from self._watch(job.id, owner, remembered)

        run.__annotations__["request"] = gr.Request
        return run

    def open(self, request: Any, seen: Any) -> dict[Any, Any]:
        """The page is opened: show what its address names; :meth:`resume` watches a job that is not over."""
        owner, query = owner_of_page(request), dict(request.query_params or {})
        shown: dict[Any, Any] = {self.history: self._history(_ids(seen), owner)}
        job_id = query.get("job", "")
        if job_id:
            try:
                job = self.service.get(job_id if _ID.fullmatch(job_id) else "", owner)
                shown |= {**self._filled(job.task, job.request), self.job: job.id}
                shown[self.panel] = self._ended(job, owner) if job.over else running_html(job, None)
            except Refused as error:
                shown[self.panel] = note_html(str(error), error=True)
            except Exception:  # a fault of ours: the log has it, the visitor hears of it
                log.exception("the page could not show a job")
                shown[self.panel] = note_html(FAULT, error=True)
        elif "settings" in query:
            shown |= self.fill_in(query["settings"])
        return shown

    def resume(self, request: Any, seen: Any, job_id: str) -> Iterator[dict[Any, Any]]:
        """Watch a job of the page's address that was not over when the page was opened."""
        owner = owner_of_page(request)
        try:
            waits = bool(_ID.fullmatch(job_id or "")) and not self.service.get(job_id, owner).over
        except Refused:  # :meth:`open` has said so
            waits = False
        # A generator that yields nothing would empty every component it may write to.
        yield {self.job: job_id}
        if waits:
            yield from self._watch(job_id, owner, _ids(seen))

    def cancel(self, request: Any, job_id: str) -> dict[Any, Any]:
        """End the job that is shown."""
        import gradio as gr

        if _ID.fullmatch(job_id or ""):
            try:
                self.service.cancel(job_id, owner_of_page(request))
            except Refused as error:
                log.info("nothing to cancel: %s", error)
        return {self.cancel_button: gr.update(interactive=False, value="Cancelling")}

    def fill_in(self, text: str) -> dict[Any, Any]:
        """Fill the form of the task that settings name."""
        try:
            task, found = parse_settings(text or "", TASKS)
        except UserError as error:
            return {self.panel: note_html(str(error), error=True)}
        return self._filled(task, found)

    # -- inside --------------------------------------------------------------------------------------------

    def _filled(self, task: str, found: dict[str, Any]) -> dict[Any, Any]:
        import gradio as gr

        shown: dict[Any, Any] = self.forms[task].show(found)
        model = self.forms[task].components.get("model")
        if model in shown and shown[model] not in self.service.settings.models:
            del shown[model]
        return {**shown, self.tabs: gr.update(selected=task), self.settings: _pretty(found)}

    def _watch(self, job_id: str, owner: str, remembered: list[str]) -> Iterator[dict[Any, Any]]:
        """Show a job until it is over."""
        import gradio as gr

        preview: dict[str, Any] | None = None
        try:
            job = self.service.get(job_id, owner)
            busy = gr.update(visible=True, interactive=True, value="Cancel")
            yield {self.job: job_id, self.cancel_button: busy, self.settings: _pretty(job.request),
                   self.panel: running_html(job, None)} if not job.over else {self.job: job_id}  # fmt: skip
            for event in self.service.stream(job_id, owner, timeout=self.service.settings.job_timeout):
                if event.kind == "preview" and event.data.get("item", 0) == 0:
                    preview = event.data
                job = self.service.get(job_id, owner)
                if job.over:
                    break
                yield {self.panel: running_html(job, preview)}
            yield {
                self.panel: self._ended(job, owner),
                self.cancel_button: gr.update(visible=False),
                self.settings: _pretty(job.request),
                self.history: self._history(remembered, owner),
            }
        except Refused as error:
            yield self._refused(str(error))
        except Exception:  # a fault of ours: the log has it, the visitor hears of it
            log.exception("the page could not show a job")
            yield self._refused(FAULT)

    def _refused(self, text: str) -> dict[Any, Any]:
        import gradio as gr

        return {self.panel: note_html(text, error=True), self.cancel_button: gr.update(visible=False)}

    def _ended(self, job: JobView, owner: str) -> str:
        if job.state == "done":
            return done_html(job, self.service, owner)
        if job.state == "cancelled":
            return note_html("cancelled")
        return note_html(job.error or FAULT, error=True) if job.state == "failed" else WAITING

    def _history(self, ids: list[str], owner: str) -> str:
        found = []
        for job_id in ids:
            try:
                found.append(self.service.get(job_id, owner))
            except Refused:  # past its time
                continue
        return history_html(found)


class _Limiter:
    """Submissions per minute and key, or address where there are no keys."""

    def __init__(self, per_minute: int) -> None:
        from limits import RateLimitItemPerMinute
        from limits.storage import MemoryStorage
        from limits.strategies import MovingWindowRateLimiter

        self._rate = RateLimitItemPerMinute(per_minute)
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def check(self, owner: str, request: Any) -> None:
        """Count one submission.

        Raises:
            Refused: 429.
        """
        if not self._limiter.hit(self._rate, owner or (request.client.host if request.client else "")):
            raise Refused(429, f"{self._rate.amount} submissions in a minute are the limit; slow down", 60)


def owner_of_page(request: Any) -> str:
    """Whose request this is, as the gate found: "" on a server without keys."""
    state = getattr(request.request, "scope", {}).get("state", {}) if request.request is not None else {}
    return state.get("owner", "")


def _ids(values: Any) -> list[str]:
    """Ids of jobs as a browser gave them back: it may send anything."""
    given = values if isinstance(values, list) else []
    return [value for value in given if isinstance(value, str) and _ID.fullmatch(value)][:REMEMBERED]


def _pretty(request: dict[str, Any]) -> str:
    import json

    return json.dumps(request, indent=2, ensure_ascii=False)
