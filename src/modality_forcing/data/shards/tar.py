"""The plain end of tar files: headers that hold nothing but names and sizes, and where each member lies."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512
END = b"\0" * (2 * BLOCK)


def header(name: str, size: int) -> bytes:
    """The ustar header of a regular file: mode 0644, and no time, owner or group, so that bytes repeat."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info.tobuf(tarfile.USTAR_FORMAT)


def padding(size: int) -> bytes:
    """Zeros that fill the last block of a member."""
    return b"\0" * (-size % BLOCK)


@dataclass(frozen=True)
class Member:
    """A file inside a tar: its name, and where its content begins and how long it is, in bytes."""

    name: str
    offset: int
    size: int


@dataclass
class Scan:
    """The whole members of a tar, in order; ``fault`` says where and why reading stopped early, or is ""."""

    members: list[Member]
    fault: str = ""


def scan(stream: BinaryIO) -> Scan:
    """Walk over the headers of an uncompressed tar; a damaged one gives what stands before the fault."""
    length = stream.seek(0, 2)
    found = Scan([])
    for item in _walk(stream, length):
        if isinstance(item, str):
            found.fault = item
        else:
            found.members.append(item)
    return found


def _walk(stream: BinaryIO, length: int) -> Iterator[Member | str]:
    position = 0
    while True:
        stream.seek(position)
        block = stream.read(BLOCK)
        if len(block) < BLOCK:
            yield f"the file ends at byte {length} without an end mark"
            return
        if block == END[:BLOCK]:
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            yield f"no tar header at byte {position}: {error}"
            return
        content = position + BLOCK
        if info.size < 0 or content + info.size > length:
            yield f"the file ends at byte {length}, inside {info.name[:120]}"
            return
        if info.isreg():  # other kinds (folders, long names) carry no sample
            yield Member(info.name, content, info.size)
        position = content + info.size + len(padding(info.size))
