"""What every request passes first: host, origin, key, size and time to arrive."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modality_forcing.server.errors import Refused
from modality_forcing.server.metrics import Metrics
from modality_forcing.server.settings import ServerSettings

OPEN = ("/healthz", "/readyz")
"""Addresses that need no key: probes have none."""
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
TITLES = {
    400: "Bad request", 401: "Key needed", 403: "Forbidden", 404: "Not found", 405: "Method not allowed",
    408: "Too slow", 409: "Conflict", 413: "Too large", 415: "Unsupported media type", 422: "Invalid request",
    429: "Too many", 500: "Internal error", 503: "Not available",
}  # fmt: skip


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error as ``application/problem+json`` (RFC 9457)."""
    title = TITLES.get(status, "Error")
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return JSONResponse(body, status, dict(headers or {}), media_type="application/problem+json")


def refusal(error: Refused) -> Response:
    """A refusal as an answer."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return problem(error.status, str(error), headers)


class Gate:
    """ASGI middleware, outermost."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self._keys = [hashlib.sha256(key.encode()).digest() for key in settings.api_keys]
        self._hosts = {host.lower() for host in settings.hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = self._refuse(scope, headers)
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._mark(MutableHeaders(scope=message), scope["path"])
            await send(message)

        if refused is not None:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await refused(scope, receive, send_marked)
                self.metrics.requests.labels("refused", scope["method"], refused.status_code).inc()
            return
        if scope["type"] == "websocket":
            await self.app(scope, receive, send)
            return
        await self.app(scope, self._in_time(receive), send_marked)
        # The pattern, not the address: labels must be few and hold nothing that a user wrote.
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in (*SAFE_METHODS, "POST", "DELETE") else "other"
        self.metrics.requests.labels(route, method, status).inc()

    def _refuse(self, scope: Scope, headers: Headers) -> Response | None:
        host = headers.get("host", "")
        if "*" not in self._hosts and urlsplit(f"//{host}").hostname not in {
            h.strip("[]") for h in self._hosts
        }:
            return problem(403, "this server does not answer to that name; see --allowed-host")
        if scope["type"] == "websocket" or scope["method"] not in SAFE_METHODS:
            # A page of another site must not use the browser of somebody who may come in here.
            origin = headers.get("origin")
            foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
            if foreign or headers.get("sec-fetch-site") == "cross-site":
                return problem(403, "requests from pages of other sites are not served")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length[:20]) > self.settings.max_body:
            return refusal(_too_large(self.settings.max_body))
        if not self._keys or scope["path"] in OPEN:
            scope.setdefault("state", {})["owner"] = ""
            return None
        given = _key(headers)
        digest = hashlib.sha256(given.encode("utf-8", "surrogateescape")).digest()
        if not any(hmac.compare_digest(digest, key) for key in self._keys):
            ask = (
                "Bearer"
                if scope["path"].startswith("/v1")
                else 'Basic realm="modality-forcing", charset="UTF-8"'
            )
            text = (
                "an API key is needed: send it as 'Authorization: Bearer KEY' or as the password in a browser"
            )
            return problem(401, text, {"WWW-Authenticate": ask})
        scope.setdefault("state", {})["owner"] = f"key:{digest.hex()[:16]}"
        return None

    def _in_time(self, receive: Receive) -> Receive:
        """``receive`` with one deadline and one limit of size for the whole body."""
        deadline = time.monotonic() + self.settings.body_timeout
        arrived, size = False, 0

        async def receive_in_time() -> Message:
            nonlocal arrived, size
            if arrived:
                return await receive()
            message: Message | None = None
            with anyio.move_on_after(max(0.0, deadline - time.monotonic())):
                message = await receive()
            if message is None:
                raise Refused(
                    408, f"the request took longer than {self.settings.body_timeout:g} seconds to arrive"
                )
            arrived = not message.get("more_body", False)
            size += len(message.get("body", b""))
            if size > self.settings.max_body:  # it came without saying how long it is
                raise _too_large(self.settings.max_body)
            return message

        return receive_in_time

    @staticmethod
    def _mark(headers: MutableHeaders, path: str) -> None:
        headers.setdefault("X-Content-Type-Options", "nosniff")
        headers.setdefault("Referrer-Policy", "same-origin")
        if path.startswith("/v1"):
            headers.setdefault(
                "Content-Security-Policy", "default-src 'none'; sandbox; frame-ancestors 'self'"
            )
            headers.setdefault("Cache-Control", "no-store")


def _too_large(limit: int) -> Refused:
    return Refused(413, f"the body is larger than {limit} bytes, the limit")


def _key(headers: Headers) -> str:
    """The key in a request: Bearer, X-API-Key, or the password of Basic; "" without one."""
    if "x-api-key" in headers:
        return headers["x-api-key"]
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return ""


def owner_of(scope: Mapping[str, Any]) -> str:
    """Whose request this is: "" on a server without keys."""
    return scope["state"]["owner"]
