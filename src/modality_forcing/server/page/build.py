"""The page: tabs on one side, the result on the other, the visitor's results below."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modality_forcing.server.page.controls import TABS, Form, make_form
from modality_forcing.server.page.examples import EXAMPLES, FOLDER
from modality_forcing.server.page.result import WAITING
from modality_forcing.server.page.visit import Visit
from modality_forcing.server.tasks import TASKS

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from modality_forcing.server.service import JobService

STATIC = Path(__file__).parent / "static"
TITLE = "Modality Forcing"
LEAD = "One model of pictures and depth. Results are kept for a while."
PROGRAMS = " Programs can ask too: [docs](/docs)."
AT_ONCE = 24  # runs watched at a time, each by one thread of the page; further ones wait their turn
SHORT_AT_ONCE = 12  # of everything else; together they stay below the toolkit's forty threads
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:;"
    " style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:;"
    " connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self';"
    " form-action 'self'; frame-ancestors 'self'"
)
"""The toolkit makes scripts at run time, hence unsafe-eval; nothing at all comes from elsewhere."""


def head_html() -> str:
    """Our scripts with the colour maps of ``viz``, inline: the same wherever the page is mounted."""
    from modality_forcing.viz import COLOR_MAPS

    tables = json.dumps({name: table.tolist() for name, table in COLOR_MAPS.items()}, separators=(",", ":"))
    scripts = [f"window.mfColorMaps = {tables};"]
    scripts += [(STATIC / name).read_text(encoding="utf-8") for name in ("cloud.js", "view.js", "paint.js")]
    return "".join(f"<script>{script}</script>" for script in scripts)


def page_options() -> dict[str, Any]:
    """Theme, styles and scripts: what ``launch`` and ``mount_gradio_app`` take alike."""
    import gradio as gr

    system = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "Menlo", "Consolas", "monospace"]
    theme = gr.themes.Base(primary_hue="indigo", neutral_hue="slate", font=system, font_mono=mono)
    return {
        "theme": theme, "css": (STATIC / "page.css").read_text(encoding="utf-8"), "head": head_html(),
        "footer_links": [], "run_history": False, "show_error": False, "pwa": False, "ssr_mode": False,
        "mcp_server": False,
    }  # fmt: skip


def build(service: JobService, programs: bool = True) -> Any:
    """The page as Gradio blocks around a service.

    Args:
        service: ``JobService``, or what has its ``settings``, ``submit``, ``stream``, ``get``, ``cancel`` and
            ``file``.
        programs: point to the description of the addresses for programs.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr

    _fetch_nothing()
    visit = Visit(service)
    forms: dict[str, Form] = {}
    buttons: dict[str, Any] = {}
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(3600, 6 * 3600)
    ) as page:
        seen = gr.BrowserState([], storage_key="modality-forcing-jobs", secret=visit.secret)
        job = gr.Textbox(visible="hidden", elem_id="job")
        gr.Markdown(f"# {TITLE}\n{LEAD}{PROGRAMS if programs else ''}", elem_id="lead")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320), gr.Tabs(overflow_behavior="wrap") as tabs:
                for task in TASKS.values():
                    with gr.Tab(TABS.get(task.name, task.title), id=task.name, elem_id=f"tab-{task.name}"):
                        form = forms[task.name] = make_form(gr, task, service.settings)
                        buttons[task.name] = gr.Button(
                            "Make it", variant="primary", elem_id=f"{task.name}-run"
                        )
                        _examples(gr, form)
            with gr.Column(scale=6, min_width=320):
                panel = gr.HTML(WAITING, elem_id="panel")
                cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id="cancel")
                with gr.Accordion("Settings that repeat it", open=False):
                    settings = gr.Code(
                        language="json", interactive=True, label="Settings as JSON", elem_id="settings"
                    )
                    apply = gr.Button("Fill in the form from these settings", size="sm", elem_id="apply")
        gr.Markdown("## Your results")
        history = gr.HTML(elem_id="history")

        shown = [panel, cancel, job, settings, seen, history]
        visit.connect(shown, tabs, forms)
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        for name, form in forms.items():
            buttons[name].click(
                visit.runner(name), [seen, *form.inputs], shown, js=_on_click(form),
                concurrency_limit=AT_ONCE,
                concurrency_id="runs", trigger_mode="multiple", **private,
            )  # fmt: skip
            if form.painted:
                show = (
                    f"(file) => {{ document.querySelector('#{name}-paint mf-paint')?.picture(file?.url); }}"
                )
                form.components["image"].change(None, form.components["image"], js=show, **private)
        cancel.click(visit.cancel, [job], [cancel], **private)
        everything = [*shown, tabs, *(c for form in forms.values() for c in form.components.values())]
        apply.click(visit.fill_in, [settings], everything, **private)
        # Two steps: opening the page must not wait until others have watched their runs.
        page.load(visit.open, [seen], everything, **private).then(
            visit.resume, [seen, job], shown, concurrency_limit=AT_ONCE, concurrency_id="runs", **private
        )
    limits = {"max_size": service.settings.max_queue + AT_ONCE, "default_concurrency_limit": SHORT_AT_ONCE}
    return page.queue(**limits, api_open=False)


def _on_click(form: Form) -> str:
    """Script of a button: show where the result comes, and add the drawn masks, whose values come last."""
    steps = ["document.querySelector('#panel')?.scrollIntoView({ block: 'nearest', behavior: 'smooth' });"]
    if form.painted:
        painted = f"document.querySelector('#{form.task.name}-paint mf-paint')?.mask() ?? ''"
        steps.append(f"values[values.length - {len(form.painted)}] = {painted};")
    return f"(...values) => {{ {' '.join(steps)} return values; }}"


def _examples(gr: Any, form: Form) -> None:
    rows = EXAMPLES.get(form.task.name, [])
    if not rows:
        return
    names = list(rows[0])
    values = [
        [str(FOLDER / v) if isinstance(v, str) and (FOLDER / v).is_file() else v for v in row.values()]
        for row in rows
    ]
    gr.Examples(
        values, [form.components[name] for name in names], label="Examples", cache_examples=False,
        elem_id=f"{form.task.name}-examples", api_visibility="private",
    )  # fmt: skip


def _fetch_nothing() -> None:
    """The toolkit fetches addresses that a request names, in uploads and as ``file=``; not here."""
    import safehttpx

    async def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError("addresses are not fetched")

    safehttpx.get = safehttpx.async_validate_url = refuse


class Policy:
    """ASGI middleware: the page loads nothing from elsewhere; of the toolkit only what it uses is open."""

    OURS = ("/v1/", "/docs", "/openapi.json", "/healthz", "/readyz", "/metrics")
    EXACT = (
        "/",
        "/config",
        "/theme.css",
        "/favicon.ico",
        "/robots.txt",
        "/manifest.json",
        "/gradio_api/info",
    )
    UNDER = (
        "/assets/", "/static/", "/svelte/", "/gradio_api/upload", "/gradio_api/file=", "/gradio_api/queue/",
        "/gradio_api/run/predict", "/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/heartbeat/",
        "/gradio_api/startup-events", "/gradio_api/app_id",
    )  # fmt: skip

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or path.startswith(self.OURS):
            await self.app(scope, receive, send)
            return
        from starlette.datastructures import MutableHeaders
        from starlette.responses import PlainTextResponse

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
            await send(message)

        if path not in self.EXACT and not path.startswith(self.UNDER):
            await PlainTextResponse("not here\n", 404)(scope, receive, send_marked)
            return
        await self.app(scope, receive, send_marked)


def mount(app: FastAPI, service: JobService) -> None:
    """Put the page at "/" of the application: the ``page`` of ``server.app.create_app``."""
    uploads = service.settings.data / "page"
    uploads.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    import gradio as gr

    app.add_middleware(Policy)
    gr.mount_gradio_app(
        app,
        build(service),
        "/",
        max_file_size=service.settings.max_body,
        enable_monitoring=False,
        **page_options(),
    )
