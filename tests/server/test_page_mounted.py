"""The page on the application: what it may load, what is shut, what it never fetches."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")

from fastapi.testclient import TestClient

from modality_forcing.server.app import create_app
from modality_forcing.server.page.build import mount
from modality_forcing.server.settings import ServerSettings

KEY = "a-key-that-nobody-guesses"


@pytest.fixture(scope="module")
def client(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("mounted")
    settings = ServerSettings(
        models={"tiny": str(tiny_model)}, data=folder, max_body=20_000, devices=("cpu",)
    )
    with TestClient(create_app(settings, page=mount), base_url="http://127.0.0.1:7860") as made:
        yield made


def test_the_page_may_load_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert "Modality Forcing" in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']([^\"']+)", answer.text)
    assert loaded
    assert [address for address in loaded if re.match(r"(https?:)?//", address)] == []


def test_the_service_still_answers(client: TestClient) -> None:
    assert client.get("/healthz").text == "ok\n"
    assert "joint" in client.get("/v1/models").json()["tasks"]
    assert client.get("/docs").status_code == 200
    assert "default-src 'none'" in client.get("/v1/models").headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=https://example.org", "/gradio_api/runs", "/gradio_api/deep_link", "/monitoring",
        "/gradio_api/stream/x", "/gradio_api/component_server", "/gradio_api/call/run", "/gradio_api/api/run",
        "/gradio_api/custom_component/a/b/c/d", "/gradio_api/run-history/buckets", "/gradio_api/token",
        "/login", "/dev/reload", "/gradio_api/mcp/", "/nothing",
    ],
)  # fmt: skip
def test_what_the_page_does_not_use_is_shut(client: TestClient, path: str) -> None:
    for answer in (client.get(path), client.post(path)):
        assert answer.status_code == 404
        assert answer.text == "not here\n"


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../../../../etc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        "/proc/self/environ",
        "http://127.0.0.1/",
    ],
)
def test_no_file_of_this_machine_is_handed_out(client: TestClient, path: str) -> None:
    answer = client.get(f"/gradio_api/file={path}", follow_redirects=False)
    assert answer.status_code in (400, 403, 404)
    assert "root:" not in answer.text


def test_uploads_have_a_limit(client: TestClient) -> None:
    answer = client.post("/gradio_api/upload", files={"files": ("x.png", b"\0" * 40_000)})
    assert answer.status_code == 413


def _functions(client: TestClient) -> list[dict[str, Any]]:
    return client.get("/config").json()["dependencies"]


def _call(client: TestClient, data: list[Any], function: int) -> str:
    body = {
        "data": data,
        "fn_index": function,
        "session_hash": "abcdefghij",
        "trigger_id": None,
        "event_data": None,
    }
    answer = client.post("/gradio_api/queue/join", json=body)
    if answer.status_code != 200:
        return answer.text
    return client.get("/gradio_api/queue/data", params={"session_hash": "abcdefghij"}).text


def test_no_address_is_ever_fetched(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files named by an address, in an upload or to be handed out: no name is looked up."""
    asked: list[str] = []

    def getaddrinfo(host: Any, *_: Any, **__: Any) -> Any:
        asked.append(str(host))
        raise socket.gaierror("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    address = "http://pictures.example.org/x.png"
    marked = {"orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}
    names = {c["id"]: c["props"].get("elem_id") for c in client.get("/config").json()["components"]}
    run = next(f for f in _functions(client) if "i2d-image" in [names.get(i) for i in f["inputs"]])
    local = "/etc/passwd"
    for given in ({"path": address, "url": address}, {"path": "", "url": address}, {"path": local}):
        data = [{**given, **marked} if names.get(i) == "i2d-image" else "" for i in run["inputs"]]
        text = _call(client, data, run["id"])
        assert "root:" not in text
        assert "mf-done" not in text
    for path in (address, "https://example.org/", "http://169.254.169.254/latest"):
        assert client.get(f"/gradio_api/file={path}", follow_redirects=False).status_code in (400, 403, 404)
    assert asked == []


def test_functions_are_not_an_interface(client: TestClient) -> None:
    described = client.get("/gradio_api/info").json()
    assert described["named_endpoints"] == {}
    assert described["unnamed_endpoints"] == {}


def test_with_keys_the_page_needs_one(tiny_model: Path, tmp_path: Path) -> None:
    settings = ServerSettings(
        models={"tiny": str(tiny_model)}, data=tmp_path, api_keys=(KEY,), devices=("cpu",)
    )
    client = TestClient(create_app(settings, page=mount), base_url="http://127.0.0.1:7860")
    refused = client.get("/")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Basic")
    assert client.get("/config").status_code == 401
    assert client.get("/", auth=("", KEY)).status_code == 200
    client.app.state.service.close()  # type: ignore[attr-defined]
