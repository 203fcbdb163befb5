"""What every benchmark writes beside its numbers: the machine and the versions."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

PACKAGES = ("modality-forcing", "torch", "numpy", "pillow")


def write(path: Path | None, results: dict[str, Any], *, packages: tuple[str, ...] = ()) -> None:
    """Write ``results`` with machine and versions as JSON; no path: nothing.

    Args:
        packages: further distributions whose version matters.
    """
    if path is None:
        return
    machine = {
        "system": platform.platform(), "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(), "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }  # fmt: skip
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in (*PACKAGES, *packages)}
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine, "versions": versions, **results}
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
