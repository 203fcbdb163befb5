"""One server for each data folder: two would compute the same jobs."""

from __future__ import annotations

from pathlib import Path

from modality_forcing.errors import UserError


class Claim:
    """A lock on a file, held until :meth:`release` or the end of the process.

    Raises:
        UserError: another server holds it.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w")
        try:
            import fcntl
        except ImportError:  # Windows: SQLite's own locks must do
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(f"another server uses {path.parent}; name another folder with --data") from None

    def release(self) -> None:
        """Let another server in."""
        self._file.close()
