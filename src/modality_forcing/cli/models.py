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


def models() -> None:
    """List the named models and count their parameters."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for heading in ("transformer", "autoencoder"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("hidden", "heads", "blocks"):
        table.add_column(heading, justify="right")
    for heading in ("depth", "text encoder", "licence of weights"):
        table.add_column(heading)
    for row in rows():
        c = row.config
        blocks = f"{c.num_double_blocks}+{c.num_single_blocks}"
        blocks += f"+{c.num_depth_blocks}" if c.depth_channels is not None else ""
        table.add_row(
            row.name, f"{row.transformer:,}", "" if row.autoencoder is None else f"{row.autoencoder:,}",
            str(c.hidden), str(c.num_heads), blocks, "no" if c.depth_channels is None else "yes", row.text, row.licence,
        )  # fmt: skip
    console = Console()
    # A pipe has no width: lines must not break there.
    console.print(table, width=None if console.is_terminal else 200)
