"""Writing models, and converting between layouts, which changes no bit unless asked to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modality_forcing.checkpoint import describe, keymaps, layouts
from modality_forcing.checkpoint.keymaps import KeyMap
from modality_forcing.checkpoint.layouts import Checkpoint, Part, meta_state, open_checkpoint
from modality_forcing.checkpoint.weights import save_weights
from modality_forcing.config import ModelConfig, to_dict
from modality_forcing.errors import UserError
from modality_forcing.io.atomic import atomic_file, atomic_folder
from modality_forcing.presets import MODELS

State = Mapping[str, Tensor]
METADATA = {"format": "pt"}  # other libraries ask for it


def save_model(
    folder: str | Path,
    config: ModelConfig,
    *,
    transformer: State | None = None,
    autoencoder: State | None = None,
    refiner: State | None = None,
) -> Path:
    """Write a model in our own layout; an older one in the same folder is replaced file by file.

    Args:
        config: becomes ``config.json``.
        transformer, autoencoder: state dicts; one of them may be missing in a training run.
        refiner: state dict, exactly where ``config`` has one.

    Returns:
        The folder.

    Raises:
        UserError: nothing to write, a refiner missing, tensors that ``config`` does not describe, or no
            permission to write.
    """
    folder = Path(folder)
    parts = {"transformer": transformer, "autoencoder": autoencoder, "refiner": refiner}
    if transformer is None and autoencoder is None:
        raise UserError("nothing to save: give a transformer, an autoencoder or both")
    if config.refiner is not None and refiner is None:
        raise UserError("the configuration has a refiner, whose weights are missing; set refiner to none")
    for name, state in parts.items():
        if state is not None:
            _check_state(state, config, name)
    files = {
        "transformer": layouts.TRANSFORMER_FILE,
        "autoencoder": layouts.AUTOENCODER_FILE,
        "refiner": layouts.REFINER_FILE,
    }
    for name, state in parts.items():
        if state is not None:
            save_weights(folder / files[name], state, METADATA)
    # Last, so that a folder with a config.json is whole.
    header = {"format": layouts.FORMAT, "format_version": layouts.FORMAT_VERSION}
    _write_json(folder / "config.json", {**header, **to_dict(config)})
    return folder


def convert(
    source: str | Path,
    destination: str | Path,
    layout: str,
    *,
    autoencoder: str | Path | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Copy a model into another layout.

    Args:
        source: path or Hub id of a model in any layout.
        destination: a folder that does not exist or is empty.
        layout: "ours", "release", "bfl" or "diffusers"; the last two hold text-to-image backbones only.
        autoencoder: see :func:`~modality_forcing.checkpoint.layouts.open_checkpoint`.
        dtype: of the transformer's and the refiner's matrices; the depth head and vectors (norms, mixers) are
            float32 then, the autoencoder stays as it is. None: so does everything, to the bit.

    Returns:
        The folder written.

    Raises:
        UserError: unreadable source, a layout that cannot hold this model, or a taken destination.
    """
    if layout not in layouts.LAYOUTS:
        raise UserError(f"unknown layout {layout!r}; known: {', '.join(layouts.LAYOUTS)}")
    destination = Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UserError(f"{destination} exists; name a new folder")
    checkpoint = open_checkpoint(source, autoencoder=autoencoder)
    writer = {
        "ours": _write_ours,
        "release": _write_release,
        "bfl": _write_bfl,
        "diffusers": _write_diffusers,
    }
    with atomic_folder(destination) as folder:
        writer[layout](checkpoint, folder.aside, dtype)
    assert folder.path is not None
    return folder.path


def _write_ours(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None) -> None:
    save_model(
        folder,
        checkpoint.config,
        transformer=_state(checkpoint, "transformer", dtype),
        autoencoder=_state(checkpoint, "autoencoder"),
        refiner=_state(checkpoint, "refiner", dtype),
    )


def _write_release(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None) -> None:
    config = checkpoint.config
    if config.transformer.family != "flux2" or config.transformer.depth_channels is None:
        raise UserError("the release layout holds FLUX.2 models with a depth stream; this model is none")
    transformer, autoencoder = _state(checkpoint, "transformer", dtype), _state(checkpoint, "autoencoder")
    if transformer is None or autoencoder is None:
        raise UserError("the release layout needs a transformer and an autoencoder")
    _write_part(folder / layouts.RELEASE_FILE, transformer, keymaps.release_map)
    for prefix, file in (("encoder.", layouts.RELEASE_ENCODER), ("decoder.", layouts.RELEASE_DECODER)):
        half = {name.removeprefix(prefix): t for name, t in autoencoder.items() if name.startswith(prefix)}
        _write_part(folder / file, half, keymaps.identity_map)
    refiner = _state(checkpoint, "refiner", dtype)
    if refiner is not None:
        _write_part(folder / layouts.REFINER_FILE, refiner, keymaps.identity_map)
    variant = describe.variant_name(config.transformer)
    values: dict[str, Any] = {"variant": variant or "custom"}
    if variant is None or not _same_model(config, MODELS[variant]):
        # The variant alone would not say it all: other sizes, another text encoder or autoencoder.
        values["model"] = to_dict(config)
    _write_json(folder / "config.json", values)


def _same_model(a: ModelConfig, b: ModelConfig) -> bool:
    """Equal but for what only describes it."""
    return replace(a, name=b.name, licence=b.licence, note=b.note) == b


def _write_bfl(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None) -> None:
    if checkpoint.config.transformer.family != "flux2":
        raise UserError("the bfl layout holds FLUX.2 backbones; this model is of the flat family")
    if checkpoint.config.transformer.depth_channels is not None and checkpoint.transformer is not None:
        raise UserError("the bfl layout has no depth stream; only a text-to-image backbone fits it")
    for name, file, make_map in (
        ("transformer", "flux2.safetensors", keymaps.identity_map),
        ("autoencoder", "ae.safetensors", keymaps.bfl_autoencoder_map),
    ):
        state = _state(checkpoint, name, dtype)
        if state is not None:
            _write_part(folder / file, state, make_map)


def _write_diffusers(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None) -> None:
    config = checkpoint.config
    file = "diffusion_pytorch_model.safetensors"
    transformer, autoencoder = _state(checkpoint, "transformer", dtype), _state(checkpoint, "autoencoder")
    if transformer is not None:
        values = describe.transformer_to_diffusers(config.transformer)
        _write_part(folder / "transformer" / file, transformer, keymaps.diffusers_transformer_map)
        _write_json(folder / "transformer" / "config.json", values)
    if autoencoder is not None:
        _write_part(folder / "vae" / file, autoencoder, keymaps.diffusers_autoencoder_map)
        _write_json(folder / "vae" / "config.json", describe.autoencoder_to_diffusers(config.autoencoder))


def _state(checkpoint: Checkpoint, name: str, dtype: torch.dtype | None = None) -> dict[str, Tensor] | None:
    """All tensors of one part under our names, as they are stored; maps of the file where possible.

    ``dtype``: see :func:`convert`.
    """
    part: Part | None = getattr(checkpoint, name)
    if part is None:
        return None
    key_map = part.make_map(meta_state(checkpoint.config, name))
    part.weights.check(key_map, {n: tuple(t.shape) for n, t in meta_state(checkpoint.config, name).items()})
    state = key_map.to_ours(dict(part.weights.read()))
    if dtype is None or name == "autoencoder":
        return state
    small = {n for n, tensor in state.items() if tensor.ndim < 2 or n.startswith(layouts.FLOAT32_ALWAYS)}
    return {n: tensor.to(torch.float32 if n in small else dtype) for n, tensor in state.items()}


def _write_part(path: Path, state: State, make_map: Callable[[Iterable[str]], KeyMap]) -> None:
    save_weights(path, make_map(state).to_theirs(state), METADATA)


def _check_state(state: State, config: ModelConfig, part: str) -> None:
    expected = {name: tuple(t.shape) for name, t in meta_state(config, part).items()}
    given = {name: tuple(t.shape) for name, t in state.items()}
    if given != expected:
        wrong = sorted(name for name in {*expected, *given} if expected.get(name) != given.get(name))
        raise UserError(f"the {part} does not fit its configuration: {', '.join(wrong[:3])}")


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with atomic_file(path) as aside:
        aside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
