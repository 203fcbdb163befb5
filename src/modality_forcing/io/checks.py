"""What holds for every file a user names: it exists, it is a file, and it is not absurdly large."""

from __future__ import annotations

from pathlib import Path

from modality_forcing.errors import UserError

MAX_PIXELS = 128 * 1024 * 1024  # 134 million: above every camera sold, below what fills a machine's memory
MIN_SIDE = 16  # pixels: one token of the model
MAX_ASPECT = 10.0


def existing_file(path: str | Path, what: str) -> Path:
    """``path`` as a readable, regular, non-empty file.

    Args:
        path: what the user gave.
        what: how the message calls it ("image", "depth map").

    Raises:
        UserError: missing, a folder, something else than a file, unreadable or empty.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise UserError(f"{what} {path} is a folder; right is a file")
        if not path.exists():
            raise UserError(f"{what} {path} does not exist")
        if not path.is_file():
            raise UserError(f"{what} {path} is a device or pipe; right is a file")
        with path.open("rb") as stream:
            first = stream.read(1)
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{what} {path} cannot be read: {reason}") from None
    if not first:
        raise UserError(f"{what} {path} is empty (0 bytes)")
    return path


def check_size(width: int, height: int, name: str, *, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse sizes that nothing downstream can use; called before pixels are decoded.

    Raises:
        UserError: more than ``max_pixels``, a side below ``MIN_SIDE``, or sides beyond ``MAX_ASPECT``.
    """
    if width * height > max_pixels:
        raise UserError(
            f"{name} is {width}x{height} = {width * height / 1e6:.0f} million pixels;"
            f" the limit is {max_pixels / 1e6:.0f} million, make it smaller"
        )
    if min(width, height) < MIN_SIDE:
        raise UserError(f"{name} is {width}x{height} pixels; each side needs at least {MIN_SIDE}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UserError(
            f"{name} is {width}x{height} pixels; crop it: the limit for long to short is {MAX_ASPECT:g}:1"
        )
