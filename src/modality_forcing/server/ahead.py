"""The transformer compiled before anybody asks: a card that is lent for a minute has no time for it.

A compiled program fits one shape of inputs. Those of the model's own size are made, with guidance and
without; every other shape runs as it is. Nothing is ever compiled inside a call.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from modality_forcing.pipeline import Pipeline

log = logging.getLogger("modality_forcing.server")
Arguments = tuple[Any, ...]
SECONDS = 1500  # what a Space may ask for while it starts


class _Caught(Exception):
    def __init__(self, arguments: Arguments) -> None:
        super().__init__()
        self.arguments = arguments


def shape_key(arguments: Arguments) -> tuple[Any, ...]:
    """What a compiled program is made for: shapes and kinds of the inputs."""
    return tuple(None if value is None else (tuple(value.shape), str(value.dtype)) for value in arguments)


def example_calls(pipeline: Pipeline) -> list[Arguments]:
    """The transformer's inputs at the model's own size, with guidance and, where that differs, without."""
    transformer: Any = pipeline.engine.transformer

    def catch(*arguments: Any) -> Any:
        raise _Caught(arguments)

    found: dict[tuple[Any, ...], Arguments] = {}
    for guidance in (pipeline.sampler_defaults.guidance, 1.0):
        transformer.forward = catch
        try:
            pipeline.joint("", seed=0, steps=1, guidance=guidance, refine_depth=False)
        except _Caught as caught:
            found[shape_key(caught.arguments)] = caught.arguments
        finally:
            del transformer.forward
    return list(found.values())


def export(pipeline: Pipeline, arguments: Arguments) -> ExportedProgram:
    """The transformer as a graph for inputs like these."""
    import torch

    with torch.no_grad():
        return torch.export.export(pipeline.engine.transformer, arguments)


class ByShape:
    """``forward`` of a transformer: the compiled program that fits the inputs, else the code as it is."""

    def __init__(
        self, plain: Callable[..., Any], programs: dict[tuple[Any, ...], Callable[..., Any]]
    ) -> None:
        self.plain, self.programs = plain, programs

    def __call__(self, *arguments: Any) -> Any:
        return self.programs.get(shape_key(arguments), self.plain)(*arguments)


def cache_name(pipeline: Pipeline, arguments: Arguments) -> str:
    """A name for the program of these weights and shapes, this PyTorch and this kind of card."""
    import torch

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    parts = [pipeline.weights_hash, shape_key(arguments), torch.__version__, card]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def compile_ahead(pipeline: Pipeline, folder: Path, gpu: Callable[..., Any]) -> None:
    """Give the transformer of a pipeline its compiled programs, made now unless ``folder`` has them.

    Args:
        pipeline: on a Space, loaded.
        folder: keeps the programs, without weights; it outlives a restart where the Space's disk does.
        gpu: ``spaces.GPU``.
    """
    import spaces

    transformer: Any = pipeline.engine.transformer

    def compile_all() -> list[tuple[tuple[Any, ...], str]]:
        made = []
        for arguments in example_calls(pipeline):
            target = folder / cache_name(pipeline, arguments)
            if not (target / "root" / "package.pt2").is_file():
                log.info("compiling the transformer for %s", shape_key(arguments)[0])
                spaces.aoti_compile_and_save(target, export(pipeline, arguments))
            made.append((shape_key(arguments), str(target)))
        return made

    programs: dict[tuple[Any, ...], Callable[..., Any]] = {}
    for key, target in gpu(duration=SECONDS)(compile_all)():
        spaces.aoti_load_from_package_dir(transformer, target)  # sets ``forward`` of the module
        programs[key] = transformer.forward
        del transformer.forward
    transformer.forward = ByShape(transformer.forward, programs)
