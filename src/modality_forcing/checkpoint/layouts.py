"""The folders models come in: which layout one has, what model it is, and how to load it.

=========== ===========================================================================================
ours        ``config.json`` (``"format": "modality-forcing"``), ``transformer.safetensors``,
            ``autoencoder.safetensors``; a training run may lack one of the two. With "refiner" in the
            configuration also ``refiner.safetensors``
release     ``config.json`` (``{"variant": ...}``), ``model.safetensors``, ``ae_encoder.safetensors``,
            ``ae_decoder.safetensors``: the published Modality Forcing weights. For sizes nobody published,
            the variant is "custom" and ``config.json`` has our whole configuration under "model" (a refiner
            is in our file, beside theirs)
bfl         a ``.safetensors`` file of a FLUX.2 transformer, without depth; its autoencoder is another file
diffusers   ``transformer/`` and ``vae/`` of a FLUX.2 pipeline, without depth
=========== ===========================================================================================

A source is a path or a Hub id; of a Hub repository only the files above are downloaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modality_forcing.checkpoint import describe, keymaps
from modality_forcing.checkpoint.hub import fetch, looks_like_hub_id
from modality_forcing.checkpoint.keymaps import KeyMap
from modality_forcing.checkpoint.weights import M, Weights, file_sha256, load_into, open_weights
from modality_forcing.config import ModelConfig, from_dict
from modality_forcing.errors import UserError
from modality_forcing.model.autoencoder import Autoencoder
from modality_forcing.model.base import DiffusionTransformer
from modality_forcing.model.build import build_transformer
from modality_forcing.model.refiner import DepthRefiner
from modality_forcing.presets import MODELS, TRANSFORMERS

LAYOUTS = ("ours", "release", "bfl", "diffusers")
FORMAT, FORMAT_VERSION = "modality-forcing", 1
TRANSFORMER_FILE, AUTOENCODER_FILE = "transformer.safetensors", "autoencoder.safetensors"
REFINER_FILE = "refiner.safetensors"
RELEASE_FILE, RELEASE_ENCODER, RELEASE_DECODER = (
    "model.safetensors",
    "ae_encoder.safetensors",
    "ae_decoder.safetensors",
)
FLOAT32_ALWAYS = ("depth_final_layer.",)  # bf16 in the depth head causes banding (spec section 5)

DESCRIPTIONS = ["*.json", "transformer/*.json", "vae/*.json"]
DATA = {
    "ours": [TRANSFORMER_FILE, AUTOENCODER_FILE, REFINER_FILE],
    "release": [RELEASE_FILE, RELEASE_ENCODER, RELEASE_DECODER, REFINER_FILE],
    "diffusers": ["transformer/*.safetensors", "vae/*.safetensors"],
}


@dataclass(frozen=True)
class Part:
    """The weights of one module and the map from our names to theirs."""

    weights: Weights
    make_map: Callable[[Iterable[str]], KeyMap] = keymaps.identity_map

    def load(self, module: M, dtype: torch.dtype | None, device: torch.device | str) -> M:
        """Fill a module; see :func:`~modality_forcing.checkpoint.weights.load_into`."""
        return load_into(
            module,
            self.weights,
            self.make_map(module.state_dict()),
            dtype=dtype,
            device=device,
            keep_float32=FLOAT32_ALWAYS,
        )


@dataclass(frozen=True)
class Checkpoint:
    """A model that was found; nothing but headers has been read.

    Attributes:
        layout: one of ``LAYOUTS``.
        path: the folder or file on this machine.
        config: sizes, text encoder and defaults.
        transformer: None in an autoencoder's training run.
        autoencoder: None where the source has none.
        refiner: None in a model without one.
    """

    layout: str
    path: Path
    config: ModelConfig
    transformer: Part | None
    autoencoder: Part | None
    refiner: Part | None = None

    def load_transformer(
        self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> DiffusionTransformer:
        """The transformer in evaluation mode; its depth head is float32 whatever ``dtype`` says.

        Raises:
            UserError: the source has none, or its tensors are not exactly those the configuration asks for.
        """
        part = self._present(self.transformer, "transformer")
        with torch.device("meta"):
            module = build_transformer(self.config.transformer)
        return part.load(module, dtype, device).eval()

    def load_autoencoder(
        self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Autoencoder:
        """The autoencoder in evaluation mode; its latent statistics stay float32.

        Raises:
            UserError: as for :meth:`load_transformer`.
        """
        part = self._present(self.autoencoder, "autoencoder")
        with torch.device("meta"):
            module = Autoencoder(self.config.autoencoder)
        loaded = part.load(module, dtype, device).eval()
        # Channels-last convolutions take about a quarter less time on a CPU (measured at width 16).
        if torch.device(device).type == "cpu":
            loaded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return loaded

    def load_refiner(self, device: torch.device | str = "cpu") -> DepthRefiner | None:
        """The network that sharpens depth, float32, in evaluation mode; None in a model without one.

        Raises:
            UserError: its tensors are not exactly those the configuration asks for.
        """
        if self.config.refiner is None:
            return None
        part = self._present(self.refiner, "refiner")
        with torch.device("meta"):
            module = DepthRefiner(self.config.refiner)
        loaded = part.load(module, torch.float32, device).eval()
        if torch.device(device).type == "cpu":
            loaded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return loaded

    def sha256(self) -> dict[str, str]:
        """File name -> SHA-256 of every weight file: what ``metadata.json`` records of a run."""
        files = {
            file
            for part in (self.transformer, self.autoencoder, self.refiner)
            if part is not None
            for file in part.weights.files
        }
        return {file.name: _sha256(file) for file in sorted(files)}

    def _present(self, part: Part | None, name: str) -> Part:
        if part is None:
            raise UserError(f"{self.path} holds no {name}")
        return part


def _sha256(file: Path) -> str:
    # The Hub's cache names large files by their SHA-256, which saves reading 24 GB once more.
    real = file.resolve()
    if real.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", real.name):
        return real.name
    return file_sha256(file)


def open_checkpoint(
    source: str | Path, *, autoencoder: str | Path | None = None, revision: str | None = None
) -> Checkpoint:
    """Find a model: recognise its layout, read its configuration and the headers of its weights.

    Args:
        source: a path or a Hub id.
        autoencoder: another source to take the autoencoder from, for example with a lone BFL transformer: a
            model in any layout or an autoencoder file.
        revision: of a Hub repository.

    Raises:
        UserError: missing, in no known layout, damaged, or configured in a way we do not know.
    """
    path = fetch(source, DESCRIPTIONS, revision)
    if path.is_dir():
        layout = _layout_of_folder(path)
        if looks_like_hub_id(source):
            fetch(source, DATA[layout], revision)
        checkpoint = {"ours": _open_ours, "release": _open_release, "diffusers": _open_diffusers}[layout](
            path
        )
    else:
        checkpoint = _open_bfl(path)
    if autoencoder is None:
        return checkpoint
    config, part = open_autoencoder(autoencoder)
    return replace(checkpoint, autoencoder=part, config=replace(checkpoint.config, autoencoder=config))


def _layout_of_folder(folder: Path) -> str:
    if (folder / "transformer").is_dir() or (folder / "vae").is_dir():
        return "diffusers"
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no model: it has neither config.json nor transformer/")
    values = _read_json(folder / "config.json")
    if values.get("format") == FORMAT:
        return "ours"
    if "variant" in values:
        return "release"
    raise UserError(f"{folder / 'config.json'} belongs to no known layout ({', '.join(LAYOUTS)})")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path} is no valid JSON") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a table of keys and values")
    return values


def _open_ours(folder: Path) -> Checkpoint:
    values = _read_json(folder / "config.json")
    version = values.pop("format_version", None)
    values.pop("format")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{folder / 'config.json'} has format version {version}; this program reads {FORMAT_VERSION}"
        )
    config = from_dict(ModelConfig, values, str(folder / "config.json"))
    parts = [
        Part(open_weights(folder / name)) if (folder / name).is_file() else None
        for name in (TRANSFORMER_FILE, AUTOENCODER_FILE)
    ]
    if not any(parts):
        raise UserError(f"{folder} holds neither {TRANSFORMER_FILE} nor {AUTOENCODER_FILE}")
    return Checkpoint("ours", folder, config, *parts, _refiner(folder, config))


def _refiner(folder: Path, config: ModelConfig) -> Part | None:
    """What the configuration asks for must be there."""
    return None if config.refiner is None else Part(open_weights(folder / REFINER_FILE))


def _open_release(folder: Path) -> Checkpoint:
    values = _read_json(folder / "config.json")
    variant, table = values["variant"], values.get("model")
    if table is not None:
        config = from_dict(ModelConfig, table, f"{folder / 'config.json'}.model")
    elif variant in TRANSFORMERS and TRANSFORMERS[variant].depth_channels is not None:
        config = MODELS[variant]
    else:
        known = ", ".join(name for name, known in TRANSFORMERS.items() if known.depth_channels is not None)
        raise UserError(f"{folder / 'config.json'} names the variant {variant!r}; known: {known}")
    transformer = Part(open_weights(folder / RELEASE_FILE), keymaps.release_map)
    autoencoder = Part(_release_autoencoder(folder))
    return Checkpoint("release", folder, config, transformer, autoencoder, _refiner(folder, config))


def _release_autoencoder(folder: Path) -> Weights:
    halves = {"encoder.": folder / RELEASE_ENCODER, "decoder.": folder / RELEASE_DECODER}
    tensors = {
        prefix + name: info
        for prefix, file in halves.items()
        for name, info in open_weights(file).tensors.items()
    }
    return Weights(folder / RELEASE_ENCODER, tensors, {})


def _open_bfl(file: Path) -> Checkpoint:
    weights = open_weights(file)
    shapes = {name: info.shape for name, info in weights.tensors.items()}
    config = describe.backbone_model(describe.transformer_from_shapes(shapes), ModelConfig().autoencoder)
    return Checkpoint("bfl", file, config, Part(weights), None)


def _open_diffusers(folder: Path) -> Checkpoint:
    autoencoder, autoencoder_part = ModelConfig().autoencoder, None
    if (folder / "vae").is_dir():
        autoencoder, autoencoder_part = _open_diffusers_vae(folder / "vae")
    if not (folder / "transformer").is_dir():
        config = replace(ModelConfig(), autoencoder=autoencoder)
        return Checkpoint("diffusers", folder, config, None, autoencoder_part)
    values = _read_json(folder / "transformer" / "config.json")
    config = describe.backbone_model(describe.transformer_from_diffusers(values), autoencoder)
    transformer = Part(open_weights(folder / "transformer"), keymaps.diffusers_transformer_map)
    return Checkpoint("diffusers", folder, config, transformer, autoencoder_part)


def _open_diffusers_vae(folder: Path) -> tuple[Any, Part]:
    config = describe.autoencoder_from_diffusers(_read_json(folder / "config.json"))
    return config, Part(open_weights(folder), keymaps.diffusers_autoencoder_map)


def open_autoencoder(source: str | Path) -> tuple[Any, Part]:
    """The autoencoder of any source: a model, a diffusers ``vae`` folder, a file in BFL's or our layout."""
    path = Path(source).expanduser()
    if path.is_dir() and not (path / "vae").is_dir() and (path / "config.json").is_file():
        kind = _read_json(path / "config.json").get("_class_name")
        if kind is not None:
            return _open_diffusers_vae(path)
    if path.is_file():
        weights = open_weights(path)
        shapes = {name: info.shape for name, info in weights.tensors.items()}
        if any(name.startswith("encoder.down_blocks.") for name in shapes):
            raise UserError(
                f"{path} is in the diffusers layout; name its folder, which has the config.json too"
            )
        make_map = (
            keymaps.identity_map if "encoder.bn.running_mean" in shapes else keymaps.bfl_autoencoder_map
        )
        return describe.autoencoder_from_shapes(shapes), Part(weights, make_map)
    checkpoint = open_checkpoint(source)
    if checkpoint.autoencoder is None:
        raise UserError(f"{source} holds no autoencoder")
    return checkpoint.config.autoencoder, checkpoint.autoencoder


def meta_state(config: ModelConfig, part: str) -> dict[str, torch.Tensor]:
    """Names and shapes (tensors without data) of ``part``: "transformer", "autoencoder" or "refiner".

    Raises:
        UserError: the configuration has no such part.
    """
    with torch.device("meta"):
        module: nn.Module
        if part == "transformer":
            module = build_transformer(config.transformer)
        elif part == "autoencoder":
            module = Autoencoder(config.autoencoder)
        elif config.refiner is not None:
            module = DepthRefiner(config.refiner)
        else:
            raise UserError(f"the model's configuration has no {part}")
    return module.state_dict()
