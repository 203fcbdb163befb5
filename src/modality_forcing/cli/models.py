"""``mf models``: which models there are and how large, without loading one."""

from __future__ import annotations

from dataclasses import dataclass

from modality_forcing.config import ModelConfig, TransformerConfig


@dataclass(frozen=True)
class Row:
    """One line of the table; ``autoencoder`` is None for a lone backbone."""

    name: str
    config: TransformerConfig
    transformer: int
    autoencoder: int | None
    text: str
    licence: str


def rows() -> list[Row]:
    """Every named model. Parameters are counted on the meta device, so nothing is allocated."""
    import torch

    from modality_forcing.model.autoencoder import Autoencoder
    from modality_forcing.model.transformer import Transformer
    from modality_forcing.presets import MODELS, TRANSFORMERS

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    def row(name: str, config: TransformerConfig, model: ModelConfig | None) -> Row:
        autoencoder = None if model is None else count(Autoencoder(model.autoencoder))
        text = model.text.encoder if model is not None else f"{config.text_width} channels"
        licence = "" if model is None else model.licence
        return Row(name, config, count(Transformer(config)), autoencoder, text, licence)

    with torch.device("meta"):
        whole = [row(name, model.transformer, model) for name, model in MODELS.items()]
        bare = [row(name, config, None) for name, config in TRANSFORMERS.items() if name not in MODELS]
    return whole + bare


HEADINGS = (
    "model",
    "transformer",
    "autoencoder",
    "hidden",
    "heads",
    "blocks",
    "depth",
    "text encoder",
    "licence",
)
RIGHT_ALIGNED = (1, 2, 3, 4)


def models() -> None:
    """List the named models and count their parameters."""
    lines = [HEADINGS]
    for row in rows():
        c = row.config
        blocks = f"{c.num_double_blocks}+{c.num_single_blocks}"
        blocks += f"+{c.num_depth_blocks}" if c.depth_channels is not None else ""
        autoencoder = "" if row.autoencoder is None else f"{row.autoencoder:,}"
        depth = "no" if c.depth_channels is None else "yes"
        numbers = (f"{row.transformer:,}", autoencoder, str(c.hidden), str(c.num_heads))
        lines.append((row.name, *numbers, blocks, depth, row.text, row.licence))
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    for line in lines:
        cells = [
            text.rjust(width) if i in RIGHT_ALIGNED else text.ljust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
