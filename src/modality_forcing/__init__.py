"""Modality Forcing: one diffusion transformer for images and depth (arXiv 2606.13676).

Importing the package is cheap: torch is imported when a name below is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modality_forcing.pipeline import Pipeline
    from modality_forcing.types import RGBD, Camera

__version__ = "0.1.0"
__all__ = ["RGBD", "Camera", "Pipeline", "__version__"]

_HOMES = {
    "Pipeline": "modality_forcing.pipeline",
    "RGBD": "modality_forcing.types",
    "Camera": "modality_forcing.types",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
