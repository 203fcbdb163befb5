"""Requests that mean harm: no error of the server's own, no path, no trace, nothing left behind."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient
from hostile import Attack, attacks
from serving import settings, until

from modality_forcing.server.app import create_app

ALL = list(attacks())
POST = b"POST /v1/joint HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
LEAKS = (
    "Traceback",
    'File "',
    ".py",
    "site-packages",
    "sqlite",
    "/tmp",
    "/root",
    "/home",
    "/usr",
    "modality_forcing",
)


@pytest.fixture(scope="module")
def idle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """An application that accepts jobs and computes none: it is not started."""
    app = create_app(settings(tiny_model, tmp_path_factory.mktemp("idle"), max_queue=10**6, body_timeout=1.0))
    yield TestClient(app, base_url="http://127.0.0.1:7860", raise_server_exceptions=False)
    app.state.service.close()


def no_leak(text: str) -> None:
    """Nothing that tells how or where the server is built."""
    found = [leak for leak in LEAKS if leak in text]
    assert not found, f"{found} in {text[:500]}"


def test_there_are_enough() -> None:
    assert len(ALL) >= 200
    assert len({attack.name for attack in ALL}) == len(ALL)


@pytest.mark.parametrize("attack", ALL, ids=[attack.name for attack in ALL])
def test_hostile(idle: TestClient, attack: Attack) -> None:
    service = idle.app.state.service
    before = (sorted(service.folder.iterdir()), service.store.ids())
    answer = idle.request(attack.method, attack.path, **attack.arguments)
    assert answer.status_code in attack.right, answer.text[:300]
    if answer.status_code != 404 or answer.headers.get("content-type", "").startswith("application"):
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == answer.status_code
    no_leak(answer.text + str(answer.headers))
    assert "evil" not in str(answer.headers).lower()
    assert (sorted(service.folder.iterdir()), service.store.ids()) == before, "a refused job left files"


@pytest.fixture(scope="module")
def address(idle: TestClient) -> Iterator[tuple[str, int]]:
    """The same application behind a real socket."""
    server = uvicorn.Server(
        uvicorn.Config(idle.app, port=0, lifespan="off", log_level="critical", server_header=False)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started, "it listened")
    yield server.servers[0].sockets[0].getsockname()
    server.should_exit = True
    thread.join(10)


def talk(address: tuple[str, int], data: bytes, wait: float = 5.0) -> bytes:
    """Send bytes, return what comes until the connection is closed or silent."""
    with socket.create_connection(address, timeout=wait) as connection:
        connection.sendall(data)
        found = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            while part := connection.recv(65536):
                found += part
                if b"\r\n\r\n" in found and b"}" in found:
                    break
        return found


RAW: list[tuple[str, bytes]] = [
    ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    ("a null in the address", b"GET /\0 HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ("no host", b"GET /v1/jobs/x HTTP/1.1\r\n\r\n"),
    ("two hosts", b"GET /v1/jobs/x HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n"),
    (
        "a line break in a header",
        b"GET /v1/jobs/x HTTP/1.1\r\nHost: localhost\r\nA: b\nSet-Cookie: c\r\n\r\n",
    ),
    ("a header without a colon", b"GET /v1/jobs/x HTTP/1.1\r\nHost: localhost\r\nrubbish\r\n\r\n"),
    (
        "an endless header",
        b"GET /v1/jobs/x HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * 200_000 + b"\r\n\r\n",
    ),
    (
        "ten thousand headers",
        b"GET /v1/jobs/x HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 10_000 + b"\r\n",
    ),
    ("a negative length", b"POST /v1/joint HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n"),
    (
        "two lengths",
        b"POST /v1/joint HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n[]",
    ),
    (
        "smuggling",
        b"POST /v1/joint HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        b"GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ),
    (
        "a chunk that is none",
        b"POST /v1/joint HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ),
    ("an address of megabytes", b"GET /" + b"a" * 2_000_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ("an absolute address", b"GET http://evil.example/v1/jobs/x HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ("HTTP 9", b"GET /v1/jobs/x HTTP/9.9\r\nHost: localhost\r\n\r\n"),
]


@pytest.mark.parametrize(("name", "data"), RAW, ids=[name for name, _ in RAW])
def test_hostile_bytes(address: tuple[str, int], name: str, data: bytes) -> None:
    found = b""
    with contextlib.suppress(ConnectionError, BrokenPipeError):  # hanging up is an answer, too
        found = talk(address, data, 2.0)
    if found:
        assert found.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), found[:200]
    no_leak(found.decode("latin-1"))
    assert b"evil" not in found.lower().split(b"\r\n\r\n")[0]
    with socket.create_connection(address, timeout=5):
        pass  # it still listens


def test_a_slow_body_is_given_up(address: tuple[str, int]) -> None:
    """One byte now and then must not hold a connection for ever."""
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(POST + b"Content-Length: 1000\r\n\r\n")
        started, found = time.monotonic(), b""
        connection.settimeout(0.2)
        while b"\r\n\r\n" not in found and time.monotonic() - started < 10:
            with contextlib.suppress(TimeoutError):
                found += connection.recv(65536)
            with contextlib.suppress(OSError):
                connection.sendall(b" ")
    assert found.startswith(b"HTTP/1.1 408")
    assert 0.9 < time.monotonic() - started < 6


def test_a_body_without_a_length_is_bounded(address: tuple[str, int]) -> None:
    head = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    piece = b"100000\r\n" + b" " * 2**20 + b"\r\n"
    found = b""
    with socket.create_connection(address, timeout=10) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(head)
            for _ in range(40):
                connection.sendall(piece)
        with contextlib.suppress(ConnectionError, TimeoutError):
            found = connection.recv(65536)
    assert found == b"" or found.startswith(b"HTTP/1.1 413"), found[:200]


@pytest.mark.slow
def test_the_description_holds(idle: TestClient, address: tuple[str, int]) -> None:
    """Values that Schemathesis makes of the OpenAPI description, good and bad ones, for every address."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given
    from hypothesis import settings as limits

    schema = schemathesis.openapi.from_dict(idle.app.openapi())
    count = 0
    quiet = limits(
        max_examples=8,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    modes = schemathesis.GenerationMode

    def send(case: Any) -> None:
        nonlocal count
        count += 1
        answer = case.call(base_url=f"http://{address[0]}:{address[1]}")
        assert answer.status_code < 500 or case.path == "/readyz", (case.path, answer.text)
        if case.path != "/metrics":
            no_leak(answer.text)

    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in (modes.POSITIVE, modes.NEGATIVE):
            try:
                strategy = operation.as_strategy(generation_mode=mode)
                quiet(given(case=strategy)(send))()
            except Exception as error:
                # An address without parameters cannot be asked wrongly.
                if type(error).__name__ not in ("Unsatisfiable", "SkipTest", "Skipped"):
                    raise
    assert count >= 100
