"""What a command line did, and what it left."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Result:
    """What one command line did."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """Lines on stderr that are no notices."""
        return [line for line in self.err.splitlines() if not line.startswith("note: ")]

    @property
    def notices(self) -> list[str]:
        """Lines on stderr that are notices."""
        return [line for line in self.err.splitlines() if line.startswith("note: ")]


def tree(folder: Path) -> set[str]:
    """Every file below a folder, hidden ones included."""
    return {
        os.path.relpath(os.path.join(root, name), folder)
        for root, _, names in os.walk(folder)
        for name in names
    }
