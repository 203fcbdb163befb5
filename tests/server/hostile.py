"""Requests that mean harm. Each has a name, and says which answers are right."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hostile_files import DEPTH, SMALL, depth_files, image_files, png_bomb
from serving import npy, png

REFUSED = (400, 404, 405, 413, 415, 422)
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Attack:
    """One request: keyword arguments of ``httpx.Client.request``, and the right answers."""

    name: str
    method: str
    path: str
    arguments: dict[str, Any] = field(default_factory=dict)
    right: tuple[int, ...] = REFUSED


def bodies() -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """Bodies that are no good JSON, and content types that are not known."""
    for name, body in {
        "nothing": b"",
        "null": b"null",
        "a list": b"[]",
        "a number": b"1",
        "a text": b'"a"',
        "half": b'{"prompt": "a"',
        "latin-1": '{"prompt": "é"}'.encode("latin-1"),
        "utf-16": '{"prompt": "a"}'.encode("utf-16"),
        "utf-7": b"{+ACI-prompt+ACI-: +ACI-a+ACI-}",
        "overlong utf-8": b'{"prompt": "\xc0\xaf"}',
        "a null byte": b'{"prompt": "a"}\0',
        "a lone surrogate": b'{"prompt": "\\ud800"}',
        "an escaped null": b'{"prompt": "a\\u0000b"}',
        "escape codes": b'{"prompt": "\\u001b[2J"}',
        "NaN": b'{"prompt": "a", "guidance": NaN}',
        "Infinity": b'{"prompt": "a", "guidance": Infinity}',
        "minus Infinity": b'{"prompt": "a", "fov_x": -Infinity}',
        "1e999": b'{"prompt": "a", "guidance": 1e999}',
        "a field twice": b'{"prompt": "a", "prompt": "b"}',
        "a huge seed": b'{"prompt": "a", "seed": ' + b"9" * 4000 + b"}",
        "an endless seed": b'{"prompt": "a", "seed": ' + b"9" * 100_000 + b"}",
        "a huge float": b'{"prompt": "a", "steps": 1e308}',
        "deep lists": b'{"prompt": ' + b"[" * 200_000 + b"}",
        "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        "many prompts": b'{"prompt": [' + b'"a",' * 50_000 + b'"a"]}',
        "a long prompt": b'{"prompt": "' + b"a" * 5_000_000 + b'"}',
        "many fields": json.dumps({"prompt": "a"} | {f"x{i}": 1 for i in range(20_000)}).encode(),
        "a proto field": b'{"prompt": "a", "__proto__": {"x": 1}}',
        "a class field": b'{"prompt": "a", "__class__": "x"}',
        "a path as a model": b'{"prompt": "a", "model": "/etc/passwd"}',
        "a Hub id": b'{"prompt": "a", "model": "org/evil"}',
        "a model that climbs": b'{"prompt": "a", "model": "../../tiny"}',
        "an address": b'{"prompt": "a", "model": "http://[::1]/"}',
        "SQL": b'{"prompt": "a", "model": "x\'; DROP TABLE job; --"}',
        "a true seed": b'{"prompt": "a", "seed": {"$gt": 0}}',
        "negative steps": b'{"prompt": "a", "steps": -1}',
        "steps as text": b'{"prompt": "a", "steps": "many"}',
        "a template": b'{"prompt": ["{{7*7}}"], "steps": "{{7*7}}"}',
        "width alone": b'{"prompt": "a", "width": 64}',
        "a giant picture": b'{"prompt": "a", "width": 1000000, "height": 1000000}',
        "tiny picture": b'{"prompt": "a", "width": 1, "height": 1}',
        "prompt of lists": b'{"prompt": [["a"]]}',
        "prompt of nothing": b'{"prompt": []}',
        "prompt null": b'{"prompt": null}',
        "prompt missing": b"{}",
    }.items():
        yield name, body, JSON
    good = b'{"prompt": "a"}'
    for kind in (
        "",
        "text/plain",
        "application/xml",
        "application/x-www-form-urlencoded",
        "application/octet-stream",
        "image/png",
        "application/json-patch+json",
        "application/x-python-pickle",
        "multipart/form-data",
        "multipart/mixed; boundary=x",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "x" * 300,
        "application/yaml",
        "application/jsonx",
    ):
        yield f"content type {kind[:40]!r}", good, {"Content-Type": kind}


def paths() -> Iterator[str]:
    """Addresses that climb, inject, or point elsewhere."""
    job = "0" * 32
    names = (
        "..%2f..%2f..%2fetc%2fpasswd",
        "..%5c..%5cwindows%5cwin.ini",
        "%2e%2e%2fjobs.sqlite",
        "....//....//etc/passwd",
        "rgb.png%00.json",
        "%00",
        "rgb.png%0d%0aX-Evil:%201",
        "%c0%ae%c0%ae/etc/passwd",
        "%ff%fe",
        "~root",
        ".",
        "%2e",
        "inputs",
        "metadata.json/..",
        "C:%5cboot.ini",
        "file:%2f%2f%2fetc%2fpasswd",
        "a" * 99,
        "%24%7b7*7%7d",
        "*",
        "rgb.png;x",
    )
    for name in names:
        yield f"/v1/jobs/{job}/results/0/{name}"
    for index in ("-1", "1e9", "9" * 4000, "0x0", "%20", "nan", "0%2f..", "١"):
        yield f"/v1/jobs/{job}/results/{index}/rgb.png"
    for name in (
        "..",
        "%2e%2e",
        "' OR 1=1 --",
        "%27%3b--",
        "\u0000".encode().hex(),
        "%00",
        "a" * 5000,
        "%ff",
        "*",
        "%0d%0aSet-Cookie:a",
    ):
        yield f"/v1/jobs/{name}"
        yield f"/v1/jobs/{name}/events"
    yield from (
        "/../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/static/../../etc/passwd",
        "/v1/../../etc/passwd",
        "//evil.example/a",
        "/v1/jobs/../../../../etc/passwd",
        "/.git/config",
        "/.env",
        "/v1/joint/../../x",
        "/file=/etc/passwd",
        "/v1//joint",
        "/proc/self/environ",
        "/v1/%6aobs%2f..%2f..",
        "/http://169.254.169.254/latest/meta-data/",
        "/v1/jobs/" + job + "/inputs/0.npy",
    )


def forms() -> Iterator[tuple[str, dict[str, Any]]]:
    """Forms that are no good."""
    good = png(SMALL)
    yield "no file", {"data": {"steps": "1"}, "files": {"nothing": ("", b"")}}
    yield "a file of another name", {"files": {"evil": ("a.png", good)}}
    yield "a file and a text", {"files": {"image": ("a.png", good)}, "data": {"image": "abc"}}
    yield "seventeen files", {"files": [("image", ("a.png", good))] * 17}
    yield "a field twice", {"files": {"image": ("a.png", good)}, "data": {"steps": ["1", "2"]}}
    yield (
        "a thousand fields",
        {"files": {"image": ("a.png", good)}, "data": {f"x{i}": "1" for i in range(1000)}},
    )
    yield "a long field", {"files": {"image": ("a.png", good)}, "data": {"prompt": "a" * 100_000}}
    yield "a null in a field", {"files": {"image": ("a.png", good)}, "data": {"prompt": "a\0b"}}
    yield (
        "two files, three prompts",
        {"files": [("image", ("a", good))] * 2, "data": {"prompt": ["a", "b", "c"]}},
    )
    yield "NaN", {"files": {"image": ("a.png", good)}, "data": {"guidance": "nan"}}
    yield "inf", {"files": {"image": ("a.png", good)}, "data": {"fov_x": "inf"}}
    raw = {"Content-Type": "multipart/form-data; boundary=x"}
    for name, body in {
        "no end": b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n',
        "no name": b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n",
        "no disposition": b"--x\r\n\r\na\r\n--x--\r\n",
        "another boundary": b'--y\r\nContent-Disposition: form-data; name="image"\r\n\r\na\r\n--y--\r\n',
        "a broken header": b"--x\r\n\0\0\0: \xff\r\n\r\na\r\n--x--\r\n",
        "a long header": b"--x\r\nX: " + b"a" * 100_000 + b"\r\n\r\na\r\n--x--\r\n",
        "a name in latin-1": b'--x\r\nContent-Disposition: form-data; name="\xff"\r\n\r\na\r\n--x--\r\n',
        "a charset": b"--x\r\nContent-Disposition: form-data; name=_charset_\r\n\r\nutf-7\r\n--x--\r\n",
        "endless parts": b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\na\r\n" * 5000 + b"--x--\r\n",
    }.items():
        yield name, {"content": body, "headers": raw}


def fetches() -> Iterator[str]:
    """What a server might be lured into fetching or opening."""
    yield from (
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1:22/",
        "https://example.com/a.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "../../../etc/passwd",
        "\\\\evil.example\\share\\a.png",
        "ftp://example.com/a.png",
        "gopher://127.0.0.1/_x",
        "dict://127.0.0.1:11211/",
        "data:text/html;base64,",
        "data:image/png;base64,%%%",
        "data:,",
        "jar:http://a!/b",
        "~/.ssh/id_rsa",
    )


def attacks() -> Iterator[Attack]:
    """All of them."""
    for name, data in image_files():
        yield Attack(f"image as a form: {name}", "POST", "/v1/i2d", {"files": {"image": ("a.png", data)}})
    for name, data in depth_files():
        fields = {"prompt": "a", "depth": base64.b64encode(data).decode()}
        yield Attack(f"depth as JSON: {name}", "POST", "/v1/d2i", {"json": fields})
    for name, data in (
        ("text", b"white"),
        ("other size", png(SMALL[:16])),
        ("black", png(SMALL * 0)),
        ("bomb", png_bomb(6016)),
    ):
        fields = {
            "prompt": "a",
            "depth": base64.b64encode(npy(DEPTH)).decode(),
            "mask": base64.b64encode(data).decode(),
        }
        yield Attack(f"mask as JSON: {name}", "POST", "/v1/d2i", {"json": fields})
    for name, body, headers in bodies():
        yield Attack(f"body: {name}", "POST", "/v1/joint", {"content": body, "headers": headers})
    for name, arguments in forms():
        yield Attack(f"form: {name}", "POST", "/v1/i2d", arguments)
    for text in fetches():
        yield Attack(f"image from {text}", "POST", "/v1/i2d", {"json": {"image": text}})
    for number, path in enumerate(paths()):
        yield Attack(f"path {number} {path[:60]}", "GET", path)
    for method in ("PUT", "PATCH", "TRACE", "CONNECT", "PROPFIND", "X" * 50):
        yield Attack(f"method {method[:10]}", method, "/v1/joint")
    for header, value in {
        "Idempotency-Key": "a b",
        "Host": "evil.example",
        "Origin": "http://evil.example",
        "Content-Length": "-1",
        "Authorization": "Bearer " + "x" * 5000,
        "X-HTTP-Method-Override": "DELETE",
        "Range": "bytes=" + "0-1," * 2000,
        "Cookie": "a=" + "b" * 5000,
        "X-Forwarded-For": "127.0.0.1\t",
        "Last-Event-ID": "9" * 2000,
        "Accept": "*/*;q=nan",
    }.items():
        right = (*REFUSED, 403)
        yield Attack(
            f"header {header}",
            "POST",
            "/v1/joint",
            {"content": b"[]", "headers": JSON | {header: value}},
            right,
        )
    yield Attack(
        "a key of 300",
        "POST",
        "/v1/joint",
        {"json": {"prompt": "a"}, "headers": {"Idempotency-Key": "k" * 300}},
    )
    yield Attack("a task that is none", "POST", "/v1/%2e%2e", {"json": {"prompt": "a"}})
    yield Attack(
        "a body of 40 MB", "POST", "/v1/joint", {"content": b" " * 40_000_000, "headers": JSON}, (413,)
    )
