"""From a configuration to the module it describes."""

from __future__ import annotations

from modality_forcing.config import TransformerConfig
from modality_forcing.model.base import DiffusionTransformer
from modality_forcing.model.flat import FlatTransformer
from modality_forcing.model.transformer import Transformer

FAMILIES: dict[str, type[DiffusionTransformer]] = {"flux2": Transformer, "flat": FlatTransformer}


def build_transformer(config: TransformerConfig) -> DiffusionTransformer:
    """The transformer of ``config.family``, with torch's own initial values: load or initialise it."""
    return FAMILIES[config.family](config)
