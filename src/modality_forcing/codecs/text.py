"""Text encoders by name; see :class:`TextEncoder` for what all of them offer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modality_forcing.codecs.text_base import TextEncoder
from modality_forcing.codecs.text_cache import CachedTextEncoder
from modality_forcing.codecs.text_minilm import MiniLMTextEncoder
from modality_forcing.codecs.text_qwen3 import Qwen3TextEncoder
from modality_forcing.codecs.text_umt5 import UMT5TextEncoder
from modality_forcing.errors import UserError

if TYPE_CHECKING:
    from modality_forcing.config import TextConfig

__all__ = [
    "CachedTextEncoder",
    "MiniLMTextEncoder",
    "Qwen3TextEncoder",
    "TextEncoder",
    "UMT5TextEncoder",
    "make_text_encoder",
]

QWEN3_SOURCES = {"qwen3-4b": "Qwen/Qwen3-4B", "qwen3-8b": "Qwen/Qwen3-8B"}


def make_text_encoder(
    config: TextConfig, device: torch.device | str = "cpu", dtype: torch.dtype = torch.bfloat16
) -> TextEncoder:
    """The encoder that a model was trained with. Nothing large is loaded before the first ``encode``.

    Args:
        dtype: of the large encoders; the small one always computes in float32.

    Raises:
        UserError: unknown name, or missing files.
    """
    if config.encoder == "minilm":
        return MiniLMTextEncoder(config.max_tokens, device, config.source)
    if config.encoder in QWEN3_SOURCES:
        source = config.source or QWEN3_SOURCES[config.encoder]
        return Qwen3TextEncoder(source, config.max_tokens, device, dtype)
    if config.encoder == "umt5-xxl":
        if config.source is None:
            raise UserError(
                "the text encoder umt5-xxl needs text.source: a folder or Hub id with text_encoder/ in "
                "safetensors and tokenizer/, for example Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
            )
        return UMT5TextEncoder(config.source, config.max_tokens, device, dtype)
    known = ", ".join(["minilm", *QWEN3_SOURCES, "umt5-xxl"])
    raise UserError(f"unknown text encoder {config.encoder!r}; known: {known}")
