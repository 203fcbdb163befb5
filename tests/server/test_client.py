"""The client of the package against a real socket, and the command line that starts the server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from serving import png, until

from modality_forcing.client import Client, ServerError
from modality_forcing.errors import UserError


@pytest.fixture(scope="module")
def client(http: TestClient) -> Iterator[Client]:
    """A client of the running application behind a socket."""
    server = uvicorn.Server(uvicorn.Config(http.app, port=0, lifespan="off", log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started, "it listened")
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Client(f"http://127.0.0.1:{port}", patience=30)
    server.should_exit = True
    thread.join(10)


def test_submit_watch_download(client: Client, picture: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(png(picture))
    job = client.submit("i2d", image=[tmp_path / "in.png", png(picture)], seed=3, steps=2, fov_x=None)
    events = list(client.events(job["id"]))
    assert events[-1].data["state"] == "done"
    assert "step" in {event.kind for event in events}
    first, second = client.download(job["id"], tmp_path / "out")
    assert {path.name for path in first.iterdir()} >= {"rgb.png", "depth.npy", "metadata.json"}
    assert not [path for path in first.iterdir() if path.name.endswith(".tmp")]
    a, b = (np.load(folder / "depth.npy", allow_pickle=False) for folder in (first, second))
    assert (a != b).any()  # seeds 3 and 4
    assert job["id"] in {each["id"] for each in client.jobs()}
    client.delete(job["id"])
    with pytest.raises(ServerError, match="no such job") as error:
        client.job(job["id"])
    assert error.value.status == 404


def test_refusals_and_failures_are_told(client: Client, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="steps") as error:
        client.submit("joint", prompt="a", steps=0)
    assert error.value.status == 422
    with pytest.raises(UserError, match=r"nothing\.png"):
        client.submit("i2d", image=tmp_path / "nothing.png")
    with pytest.raises(UserError, match="http://HOST:PORT"):
        Client("127.0.0.1:7860")
    job = client.submit("joint", prompt="a", steps=100)
    assert client.cancel(job["id"])["state"] == "cancelled"
    with pytest.raises(ServerError, match="cancelled"):
        client.download(job["id"], tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = Client(f"http://127.0.0.1:{free.getsockname()[1]}", patience=0.1, timeout=2)
        with pytest.raises(ServerError, match="cannot be reached"):
            dead.models()


def test_the_same_submission_again_is_the_same_job(client: Client) -> None:
    first, again = (client.submit("joint", prompt="z", idempotency_key="client-1") for _ in range(2))
    assert first["id"] == again["id"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--host", "0.0.0.0"], "--api-key"),
        (["--device", "tpu"], "--device"),
        (["--model", "a b=x"], "NAME=SOURCE"),
        (["--model", "x="], "NAME=SOURCE"),
        (["--api-key", "short"], "16 to 200"),
        (["--api-key-file", "missing.txt"], "does not exist"),
        (["--max-steps", "0"], "--max-steps"),
        (["--port", "99999"], "--port"),
    ],
)
def test_wrong_options_are_one_line(
    options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from modality_forcing.cli.main import main

    assert main(["serve", "--data", str(tmp_path / "data"), *options]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_a_port_that_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from modality_forcing.cli.main import main

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", "--data", str(tmp_path), "--port", port, "--no-page"]) == 2
    assert "--port" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_that_is_missing_ends_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "modality_forcing", "serve", "--model", "none=missing", "--no-page"]
    done = subprocess.run(
        [*command, "--port", "0", "--data", str(tmp_path / "data")],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr.splitlines()[-1]
