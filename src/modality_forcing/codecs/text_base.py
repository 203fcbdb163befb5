"""What every text encoder offers, and the checks they share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import safe_open
from torch import Tensor

from modality_forcing.checkpoint.weights import Weights
from modality_forcing.errors import UserError


@runtime_checkable
class TextEncoder(Protocol):
    """Prompts to token embeddings. Frozen; the same prompt always gives the same embedding.

    Attributes:
        width: channels of one token.
        max_tokens: tokens per prompt; shorter prompts are padded, longer ones cut.
        fingerprint: names the weights and the recipe; equal fingerprints give equal embeddings.
    """

    width: int
    max_tokens: int

    @property
    def fingerprint(self) -> str:
        """See the class."""
        ...

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """B prompts -> (B, max_tokens, width), float32, on the CPU. The empty prompt is allowed."""
        ...

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        """Tokens each prompt would need uncut; more than ``max_tokens`` means that its end is lost."""
        ...

    def release(self) -> None:
        """Free the weights; the next ``encode`` loads them again."""
        ...


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts as a list.

    Raises:
        UserError: a bare string instead of a list, an empty list, or an item that is no string.
    """
    if isinstance(prompts, str):
        raise UserError("prompts must be a list of strings, not one string")
    prompts = list(prompts)
    if not prompts:
        raise UserError("no prompt given; use the empty string for an unconditional result")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise UserError(f"prompt {i} is {type(prompt).__name__}; it must be a string")
    return prompts


def check_max_tokens(max_tokens: int, limit: int) -> int:
    """``max_tokens`` itself.

    Raises:
        UserError: fewer than 3 tokens (start, one word, end) or more than the encoder has positions.
    """
    if not 3 <= max_tokens <= limit:
        raise UserError(f"max_tokens is {max_tokens}; this text encoder takes 3 to {limit}")
    return max_tokens


def split_folder(root: Path) -> tuple[Path, Path]:
    """Folders of the weights and of the tokenizer: one, or the two of the diffusers layout."""
    nested = (root / "text_encoder").is_dir()
    return (root / "text_encoder", root / "tokenizer") if nested else (root, root)


def read_encoder_config(folder: Path, source: str | Path, kind: str, width: str) -> dict[str, Any]:
    """``config.json`` of an encoder's weights.

    Args:
        source: as the user named it.
        kind: the ``model_type`` it must have.
        width: the key of its hidden width.

    Raises:
        UserError: missing, damaged, of another model, or without its width.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{source} has no readable {path.name} of a {kind} text encoder") from None
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != kind:
        raise UserError(f"{path} describes a model of type {found!r}; right is {kind!r}")
    if not isinstance(config.get(width), int):
        raise UserError(f"{path} does not say {width}")
    return config


def fingerprint(recipe: list[Any], files: Sequence[Path], weights: Weights) -> str:
    """32 digits of a large encoder: its recipe, small files (a missing one counts too), and the first row of
    every tensor; the weights are too large to hash.

    Args:
        recipe: plain values: configuration, length, precision.
        files: of the tokenizer.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps(recipe, sort_keys=True).encode())
    for path in files:
        digest.update(path.read_bytes() if path.is_file() else b"\0")
    for name in sorted(weights):
        info = weights.tensors[name]
        with safe_open(str(info.file), framework="pt") as handle:
            row = handle.get_slice(info.stored)[0:1]
        digest.update(f"{name}{info.shape}{info.dtype}".encode())
        digest.update(row.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
