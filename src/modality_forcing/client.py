"""The service from Python, with the standard library alone.

from modality_forcing.client import Client

client = Client("http://127.0.0.1:7860")
job = client.submit("joint", prompt="a lake", seed=1)
for event in client.events(job["id"]):
    print(event.kind, event.data)
client.download(job["id"], "results")
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from modality_forcing.errors import UserError

FILE_FIELDS = ("image", "depth", "mask")
OVER = ("done", "failed", "cancelled")
_CHUNK = 2**20  # bytes


class ServerError(UserError):
    """The server refused or failed. The message is the server's own.

    Attributes:
        status: of HTTP, 0 when the server cannot be reached.
        retry_after: seconds after which it says another try is worth it, None where it says nothing.
    """

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


@dataclass(frozen=True)
class Event:
    """One piece of news about a job: ``kind`` is "state", "step" or "preview"."""

    kind: str
    data: dict[str, Any]


class Client:
    """One server.

    Args:
        url: such as "http://127.0.0.1:7860".
        api_key: where the server asks for one; None: ``MF_API_KEY``.
        timeout: seconds of silence after which a connection is given up.
        patience: seconds to go on trying while the server says "later" (429, 503) or cannot be reached.

    Raises:
        UserError: no address of a server.
    """

    def __init__(
        self, url: str, api_key: str | None = None, *, timeout: float = 60.0, patience: float = 120.0
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{url[:100]!r} is no server; right is http://HOST:PORT")
        self._parts = parts
        self._key = api_key or os.environ.get("MF_API_KEY")
        self.timeout, self.patience = timeout, patience

    def models(self) -> dict[str, Any]:
        """Models, tasks and limits."""
        return self._json("GET", "/v1/models")

    def submit(self, task: str, *, idempotency_key: str | None = None, **fields: Any) -> dict[str, Any]:
        """Submit a job; it is sent again when the server was busy or the connection broke, never done twice.

        Args:
            task: "joint", "i2d", "d2i", ...
            idempotency_key: for a job that may have been submitted before; None: a new one.
            **fields: as the server's /docs lists them. Files are paths, or bytes, or a list of either.

        Returns:
            The job as the server describes it.

        Raises:
            ServerError: refused, or not reached within ``patience`` seconds.
            UserError: a file that cannot be read.
        """
        body = {name: _encoded(value) if name in FILE_FIELDS else value for name, value in fields.items()}
        body = {name: value for name, value in body.items() if value is not None}
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        return self._json("POST", f"/v1/{quote(task, safe='')}", json.dumps(body).encode(), headers)

    def job(self, job_id: str) -> dict[str, Any]:
        """A job as it is now."""
        return self._json("GET", f"/v1/jobs/{quote(job_id, safe='')}")

    def jobs(self) -> list[dict[str, Any]]:
        """The newest jobs of this key."""
        found: list[dict[str, Any]] = self._json("GET", "/v1/jobs")
        return found

    def cancel(self, job_id: str) -> dict[str, Any]:
        """End a job."""
        return self._json("POST", f"/v1/jobs/{quote(job_id, safe='')}/cancel")

    def delete(self, job_id: str) -> None:
        """Remove a job with its files."""
        self._retry("DELETE", f"/v1/jobs/{quote(job_id, safe='')}")

    def events(self, job_id: str) -> Iterator[Event]:
        """What happens to a job until it is over. A broken connection is taken up again.

        Raises:
            ServerError: no such job, or the server cannot be reached.
        """
        while True:
            over = False
            connection, response = self._open("GET", f"/v1/jobs/{quote(job_id, safe='')}/events")
            try:
                for event in _events(response):
                    over = event.kind == "state" and event.data["state"] in OVER
                    yield event
                    if over:
                        return
            except (OSError, http.client.HTTPException):
                pass
            finally:
                connection.close()
            time.sleep(0.5)

    def wait(self, job_id: str) -> dict[str, Any]:
        """A job once it is over.

        Raises:
            ServerError: as :meth:`events`; or the job failed (status 200, the message says why).
        """
        last: dict[str, Any] = {}
        for event in self.events(job_id):
            if event.kind == "state":
                last = event.data
        if last["state"] == "failed":
            raise ServerError(200, f"the job failed: {last['error']}")
        return last

    def download(self, job_id: str, folder: str | Path) -> list[Path]:
        """Fetch every file of a done job: one folder per result below ``folder``, named by its index.

        Returns:
            The folders.

        Raises:
            ServerError: the job is not done, or a file came incomplete.
        """
        job = self.job(job_id)
        if job["state"] != "done":
            raise ServerError(200, f"the job is {job['state']}; only a done one has files")
        folders = []
        for item in job["items"]:
            target = Path(folder) / str(int(item["index"]))
            target.mkdir(parents=True, exist_ok=True)
            for file in item["files"]:
                # A name of the server's, but a folder of ours: only its last part counts.
                self._fetch(file["url"], target / Path(file["name"]).name, int(file["bytes"]))
            folders.append(target)
        return folders

    # -- inside ------------------------------------------------------------------------------------------

    def _fetch(self, url: str, path: Path, size: int) -> None:
        connection, response = self._open("GET", url)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as stream:
                while chunk := response.read(_CHUNK):
                    stream.write(chunk)
                count = stream.tell()
            if count != size:
                raise ServerError(200, f"{path.name} came incomplete: {count} of {size} bytes")
            os.replace(aside, path)
        finally:
            connection.close()
            Path(aside).unlink(missing_ok=True)

    def _json(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Any:
        return json.loads(self._retry(method, path, body, headers))

    def _retry(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> bytes:
        end = time.monotonic() + self.patience
        while True:
            try:
                connection, response = self._open(method, path, body, headers)
                try:
                    return response.read()
                except (OSError, http.client.HTTPException) as error:
                    raise ServerError(0, f"the connection to {self._parts.netloc} broke: {error}") from None
                finally:
                    connection.close()
            except ServerError as error:
                pause = error.retry_after or 1.0
                if error.status not in (0, 429, 503) or time.monotonic() + pause > end:
                    raise
                time.sleep(pause)

    def _open(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        parts = self._parts
        make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = make(parts.hostname or "", parts.port, timeout=self.timeout)
        sent = {"Accept": "*/*", **(headers or {})}
        if body is not None:
            sent["Content-Type"] = "application/json"
        if self._key:
            sent["Authorization"] = f"Bearer {self._key}"
        try:
            connection.request(method, parts.path.rstrip("/") + path, body, sent)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise ServerError(0, f"{parts.netloc} cannot be reached: {error}") from None
        if response.status < 300:
            return connection, response
        try:
            text = response.read(100_000)
        except (OSError, http.client.HTTPException):
            text = b""
        finally:
            connection.close()
        try:
            detail = str(json.loads(text)["detail"])
        except (ValueError, KeyError, TypeError):
            detail = response.reason or "no reason given"
        after = response.getheader("Retry-After", "")
        wait = float(after) if after.isdigit() else None
        raise ServerError(response.status, f"the server answered {response.status}: {detail}", wait)


def _events(response: http.client.HTTPResponse) -> Iterator[Event]:
    """Events of a stream (HTML standard, "server-sent events"; our data is one line)."""
    kind, data = "message", ""
    for raw in response:
        line = raw.decode("utf-8").rstrip("\r\n")
        if line.startswith("event: "):
            kind = line[7:]
        elif line.startswith("data: "):
            data = line[6:]
        elif not line and data:
            yield Event(kind, json.loads(data))
            kind, data = "message", ""


def _encoded(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_encoded(item) for item in value]
    if value is None:
        return None
    if not isinstance(value, bytes):
        try:
            value = Path(value).read_bytes()
        except OSError as error:
            raise UserError(f"{value} cannot be read: {error.strerror or error}") from None
    return base64.b64encode(value).decode("ascii")
