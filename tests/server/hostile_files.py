"""Files that mean harm, by name: no pictures or depth maps at all, wrong sizes declared, code inside."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image
from serving import npy, png

SMALL = np.full((32, 32, 3), 90, np.uint8)
DEPTH = np.full((32, 32), 2, np.float32)


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
