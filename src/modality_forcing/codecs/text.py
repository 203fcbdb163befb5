"""Text encoders by name; see :class:`TextEncoder` for what all of them offer."""

from __future__ import annotations

from modality_forcing.codecs.text_base import TextEncoder
from modality_forcing.codecs.text_cache import CachedTextEncoder
from modality_forcing.codecs.text_minilm import MiniLMTextEncoder

__all__ = ["CachedTextEncoder", "MiniLMTextEncoder", "TextEncoder"]
