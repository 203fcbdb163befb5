"""Writing so that nothing half done is ever seen: aside first, then one rename."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from modality_forcing.errors import UserError

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "your disk quota is used up; free some space or choose another folder",
    errno.EACCES: "permission denied; choose a folder you may write to",
    errno.EPERM: "permission denied; choose a folder you may write to",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a part of the path is a file, not a folder",
    errno.EISDIR: "it is a folder; give a file name",
}


@contextlib.contextmanager
def write_errors(target: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write ``target`` into one clear line (UserError)."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0) or error.strerror or str(error)
        raise UserError(f"could not write {target}: {reason}") from error


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it becomes ``path`` when the block ends well.

    An older file is replaced in one step; after an exception or Ctrl-C it is untouched and nothing is left.
    Missing parent folders are made. The temporary name keeps the ending, which writers look at.

    Raises:
        UserError: the disk is full, no permission, ``path`` is a folder, ...
    """
    path = Path(path)
    aside = path.with_name(f".{secrets.token_hex(4)}.tmp{path.suffix}")
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            os.replace(aside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise


class AtomicFolder:
    """A folder filled aside. ``aside`` is where to write; ``path`` is where it ended up, once done."""

    def __init__(self, aside: Path) -> None:
        self.aside = aside
        self.path: Path | None = None


@contextlib.contextmanager
def atomic_folder(target: str | Path) -> Iterator[AtomicFolder]:
    """Yield a folder to fill; when the block ends well it is renamed to ``target``.

    ``target`` may be missing or an empty folder. If it is taken, ``target-2``, ``target-3``, ... is used:
    what exists is never overwritten, and of two runs that finish together each gets its own folder.
    After an exception or Ctrl-C nothing is left.

    Raises:
        UserError: the disk is full, no permission, ...
    """
    target = Path(target)
    aside = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.tmp")
    folder = AtomicFolder(aside)
    with write_errors(target):
        aside.mkdir(parents=True)
        try:
            yield folder
            folder.path = _rename_to_free(aside, target)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def _rename_to_free(aside: Path, target: Path) -> Path:
    number = 1
    while True:
        candidate = _numbered(target, number)
        try:
            # The test and the taking are one step: renaming over a filled folder (or a file) fails.
            os.rename(aside, candidate)
            return candidate
        except OSError as error:
            if not os.path.lexists(candidate):
                raise
            if os.name != "nt" and error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            # Windows does not rename over an empty folder either.
            if os.name == "nt" and candidate.is_dir() and not any(candidate.iterdir()):
                candidate.rmdir()
                continue
        number += 1


def slug(text: str, longest: int = 48) -> str:
    """Any text as part of a file name: lower-case letters, digits and hyphens; "run" when none is left."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:longest].strip("-") or "run"


def _numbered(path: Path, number: int) -> Path:
    return path if number == 1 else path.with_name(f"{path.name}-{number}")
