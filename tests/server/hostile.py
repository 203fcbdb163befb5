"""Requests that mean harm. Each has a name, and says which answers are right."""

from __future__ import annotations

import base64
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from serving import npy, png

REFUSED = (400, 404, 405, 413, 415, 422)
JSON = {"Content-Type": "application/json"}
SMALL = np.full((32, 32, 3), 90, np.uint8)
DEPTH = np.full((32, 32), 2, np.float32)


@dataclass(frozen=True)
class Attack:
    """One request: keyword arguments of ``httpx.Client.request``, and the right answers."""

    name: str
    method: str
    path: str
    arguments: dict[str, Any] = field(default_factory=dict)
    right: tuple[int, ...] = REFUSED


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG file with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, bits: int = 8, colour: int = 2) -> bytes:
    """A PNG that declares a size, whatever it holds."""
    return b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    )


def png_bomb(side: int, bits: int = 8, colour: int = 2) -> bytes:
    """A valid PNG of zeros: a megabyte or less that decodes to a thousand times as much."""
    row = 1 + side * bits // 8 * (3 if colour == 2 else 1)
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(bytes(row * 64)) for _ in range(side // 64)) + packer.flush()
    return png_header(side, side, bits, colour) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def npy_header(text: str, payload: bytes = b"") -> bytes:
    """An .npy file with any header text."""
    data = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(data)) + data + payload


def npz(members: dict[str, bytes]) -> bytes:
    """A zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def image_files() -> Iterator[tuple[str, bytes]]:
    """Files that are no good picture."""
    good = png(SMALL)
    yield "empty", b""
    yield "text", b"hello"
    yield "html", b"<html><script>alert(1)</script></html>"
    yield (
        "svg with a file",
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    )
    yield "postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n(/etc/passwd) (r) file\n"
    yield "postscript in dos wrapping", b"\xc5\xd0\xd3\xc6" + b"%!PS\n" * 40
    yield "pdf", b"%PDF-1.7\n1 0 obj<</Type/Catalog/OpenAction<</S/JavaScript>>>>"
    yield "elf", b"\x7fELF" + bytes(60)
    yield "script", b"#!/bin/sh\nid\n"
    yield (
        "pickle",
        b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93\x94\x8c\x02id\x85R.",
    )
    yield "gzip", b"\x1f\x8b\x08" + bytes(40)
    yield "zip", npz({"a": b"x"})
    yield "bmp", b"BM" + bytes(60)
    yield "gif", b"GIF89a" + bytes(60)
    yield "ico", b"\0\0\1\0" + bytes(60)
    yield "psd", b"8BPS" + bytes(60)
    yield "xpm", b"/* XPM */\nstatic char *x[] = {};"
    yield "hdf5", b"\x89HDF\r\n\x1a\n" + bytes(60)
    yield "fits", b"SIMPLE  =" + b" " * 2871
    yield "png cut short", good[: len(good) // 2]
    yield "png signature alone", good[:8]
    yield "png with a broken checksum", good[:30] + b"\xff" + good[31:]
    yield "png of no width", png_header(0, 32) + chunk(b"IEND", b"")
    yield "png of negative size", png_header(2**32 - 1, 2**32 - 1)
    yield (
        "png of four billion pixels",
        png_header(65536, 65536) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""),
    )
    yield "png bomb of 36 million pixels", png_bomb(6016)
    yield "png of one pixel", png(np.zeros((1, 1, 3), np.uint8))
    yield "png that is a line", png(np.zeros((16, 2000, 3), np.uint8))
    yield (
        "png text bomb",
        good[:33] + chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(200_000_000), 9)) + good[33:],
    )
    yield (
        "png icc bomb",
        good[:33] + chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(50_000_000), 9)) + good[33:],
    )
    yield "jpeg header alone", b"\xff\xd8\xff\xe0\x00\x10JFIF\x00"
    yield (
        "jpeg of 65500 squared",
        b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xdc\xff\xdc\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01",
    )
    yield "webp header alone", b"RIFF\x00\x00\x00\x00WEBPVP8 "
    yield "webp with a wrong length", b"RIFF\xff\xff\xff\xffWEBPVP8L\xff\xff\xff\xff" + bytes(20)
    yield "tiff in a circle", b"II*\0\x08\0\0\0\x01\0\x00\x01\x03\0\x01\0\0\0\x10\0\0\0\x08\0\0\0"
    yield "tiff that points outside", b"II*\0\xff\xff\xff\x7f"
    yield "tiff of huge strips", tiff_of(60_000, 60_000)
    yield "tiff of floats", float_tiff()


def float_tiff() -> bytes:
    """A TIFF with NaN."""
    stream = io.BytesIO()
    Image.fromarray(np.full((32, 32), np.nan, np.float32)).save(stream, "TIFF")
    return stream.getvalue()


def tiff_of(width: int, height: int) -> bytes:
    """A TIFF directory that declares a size."""
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, height),
        (279, 4, width * height),
    ]
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in tags)
    return b"II*\0\x08\0\0\0" + body + bytes(4)


def depth_files() -> Iterator[tuple[str, bytes]]:
    """Files that are no good depth map."""
    good = npy(DEPTH)
    yield "empty", b""
    yield "picture in colour", png(np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8))
    yield "png without a kind", png((DEPTH * 1000).astype(np.uint16))
    yield "png bomb", png_bomb(12032, 16, 0)
    yield (
        "npy with pickled objects",
        npy_header(
            "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"\x80\x04cposix\nsystem\n(S'id'\ntR."
        ),
    )
    yield "npy header that calls", npy_header("__import__('os').system('id')")
    yield "npy header of 64 kB", npy_header("{'descr':'<f4','x':" + "(" * 30_000 + "}")
    yield (
        "npy of a terabyte",
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (500000, 500000)}"),
    )
    yield "npy of negative size", npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-32, 32)}")
    yield (
        "npy of huge numbers",
        npy_header(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807, 9223372036854775807)}"
        ),
    )
    yield "npy cut short", good[:-100]
    yield "npy of version 9", b"\x93NUMPY\x09\x00" + good[8:]
    yield "npy of texts", npy(np.full((32, 32), "abc"))
    yield "npy of complex numbers", npy(DEPTH.astype(np.complex64))
    yield "npy of dates", npy(np.zeros((32, 32), "datetime64[s]"))
    yield "npy of records", npy(np.zeros((32, 32), [("a", "f4")]))
    yield "npy of one number", npy(np.float32(1))
    yield "npy of four axes", npy(np.ones((2, 2, 32, 32), np.float32))
    yield "npy of no size", npy(np.zeros((0, 32), np.float32))
    yield "npy of NaN", npy(DEPTH * np.nan)
    yield "npy of zeros", npy(DEPTH * 0)
    yield "npy of negatives", npy(-DEPTH)
    yield "npy of infinities", npy(DEPTH * np.inf)
    yield "npy that is a line", npy(np.ones((16, 4000), np.float32))
    yield "npy of 20 million pixels", npy(np.ones((4500, 4500), np.uint8))
    yield "npz of nothing", npz({})
    yield "npz of a path", npz({"../../../evil.npy": good, "b.npy": good})
    yield (
        "npz of pickles",
        npz({"depth.npy": npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}")}),
    )
    yield (
        "npz bomb",
        npz(
            {
                "depth.npy": npy_header(
                    "{'descr': '<f4', 'fortran_order': False, 'shape': (16384, 16384)}", bytes(400_000_000)
                )
            }
        ),
    )
    yield "npz that is damaged", npz({"depth.npy": good})[:-30]
    yield "zip of text", npz({"readme.txt": b"hello"})
    yield "exr header alone", b"\x76\x2f\x31\x01\x02\x00\x00\x00"
    yield "exr of rubbish", b"\x76\x2f\x31\x01\x02\x00\x00\x00" + bytes(range(256)) * 8
    yield "tiff of huge strips", tiff_of(60_000, 60_000)
    yield (
        "pickle",
        b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93\x94\x8c\x02id\x85R.",
    )
    yield "hdf5", b"\x89HDF\r\n\x1a\n" + bytes(60)


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
