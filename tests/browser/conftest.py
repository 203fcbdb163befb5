"""A server with its page on a tiny model, and a real browser without a window."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
PHONE = {"width": 390, "height": 844}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(model: str, data: Path) -> Iterator[SimpleNamespace]:
    """``mf serve`` of one model in a thread of this process, with its worker process."""
    pytest.importorskip("gradio")
    uvicorn = pytest.importorskip("uvicorn")
    from modality_forcing.server.app import create_app
    from modality_forcing.server.page.build import mount
    from modality_forcing.server.settings import ServerSettings

    port = _free_port()
    settings = ServerSettings(
        models={"tested": model}, data=data, port=port, devices=("cpu",), preview_every=0.0, rate=10_000,
        grace=1.0,
    )  # fmt: skip
    app = create_app(settings, page=mount)
    running = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{port}"
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with contextlib.suppress(OSError), urlopen(f"{address}/readyz") as answer:
            if answer.status == 200:
                break
        time.sleep(0.3)
    yield SimpleNamespace(address=address, service=app.state.service)
    running.should_exit = True
    thread.join(30)


@pytest.fixture(scope="session")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A server of the tiny model: ``address``, ``service``."""
    with serving(str(tiny_model), tmp_path_factory.mktemp("page")) as running:
        yield running


@pytest.fixture(scope="session")
def embedded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A server of the model inside the package."""
    with serving("lowpoly", tmp_path_factory.mktemp("embedded")) as running:
        yield running


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Chromium: the system's where there is one, else Playwright's. Who has none may skip these tests, unless
    BROWSER_TESTS is "required", as continuous integration sets it."""
    missing = pytest.fail if os.environ.get("BROWSER_TESTS") == "required" else pytest.skip
    try:
        from playwright import sync_api as api
    except ModuleNotFoundError as error:
        missing(f"no browser driver here: {error}")
    with api.sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        try:
            browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        except api.Error as error:
            missing(f"no Chromium here: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture
def visitor(chromium: Any, server: SimpleNamespace) -> Iterator[Any]:
    """A visitor of the tiny model's server."""
    with visiting(chromium, server) as visit:
        yield visit


@pytest.fixture
def embedded_visitor(chromium: Any, embedded_server: SimpleNamespace) -> Iterator[Any]:
    """A visitor of the embedded model's server."""
    with visiting(chromium, embedded_server) as visit:
        yield visit


@contextlib.contextmanager
def visiting(chromium: Any, server: SimpleNamespace) -> Iterator[Any]:
    """Opens the page as somebody new: ``visit(path, **options of the context)``.

    At the end nothing may have left this computer, and no script may have failed.
    """
    contexts, outside, faults = [], [], []

    def look(request: Any) -> None:
        if not request.url.startswith((server.address + "/", "data:", "blob:")):
            outside.append(request.url)

    def hear(message: Any) -> None:
        if "Content Security Policy" in message.text:
            faults.append(message.text)

    def visit(path: str = "/", context: Any = None, **options: Any) -> Any:
        if context is None:
            context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
            context.on("request", look)
            contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", hear)
        page.goto(server.address + path)
        page.wait_for_selector("#joint-run")
        # The page's own handler has answered.
        page.wait_for_selector("#history .mf-empty, #history .mf-history")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert outside == []
    assert faults == []
