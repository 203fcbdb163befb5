"""Scripts beside the package: each one loads, and says what it takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    path
    for folder in ("recipes", "benchmarks", "examples")
    for path in (ROOT / folder).rglob("*.py")
    if not path.name.startswith("_") and "__main__" in path.read_text(encoding="utf-8")
)


def test_there_are_scripts():
    assert len(SCRIPTS) > 10


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_script_loads_and_has_help(script, tmp_path):
    """In a process and a folder of its own, as it is started by hand."""
    done = subprocess.run(
        [sys.executable, str(script), "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()
    assert not list(tmp_path.iterdir())
