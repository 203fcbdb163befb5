"""``mf models``: which models there are, how large they are and what of them trains, without loading one."""

from __future__ import annotations

from dataclasses import dataclass

from modality_forcing.config import ModelConfig


@dataclass(frozen=True)
class Row:
    """One line of the table: a preset, the weights of its transformer (``trainable``: what its recipe does
    not freeze) and of its autoencoder."""

    model: ModelConfig
    total: int
    trainable: int
    autoencoder: int

    @property
    def frozen(self) -> int:
        """Weights of the transformer that its recipe leaves alone."""
        return self.total - self.trainable


def rows() -> list[Row]:
    """Every named model. Parameters are counted on the meta device, so nothing is allocated."""
    import torch

    from modality_forcing.model.autoencoder import Autoencoder
    from modality_forcing.model.build import build_transformer
    from modality_forcing.model.warm_start import freeze
    from modality_forcing.presets import FREEZE, MODELS

    def count(module: torch.nn.Module) -> tuple[int, int]:
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
        return sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)

    found = []
    with torch.device("meta"):
        for name, model in MODELS.items():
            transformer = build_transformer(model.transformer)
            freeze(transformer, FREEZE.get(name, ()))
            found.append(Row(model, *count(transformer), count(Autoencoder(model.autoencoder))[0]))
    return found


HEADINGS = (
    "model",
    "transformer",
    "trainable",
    "frozen",
    "autoencoder",
    "hidden",
    "heads",
    "blocks",
    "depth",
    "text encoder",
    "licence",
)
RIGHT_ALIGNED = range(1, 7)
FOOTNOTE = """\
Parameters. trainable, frozen: by the model's recipe (mf train); the text encoder is frozen and not counted.
heads: of queries/of keys and values where these are fewer. blocks: double + single + depth; flat models have
one kind. With LoRA: mf train RECIPE --out RUN --dry-run."""


def models() -> None:
    """List the named models and count their parameters: all, those that train, those that are frozen."""
    lines: list[tuple[str, ...]] = [HEADINGS]
    for row in rows():
        c = row.model.transformer
        blocks = (
            f"{c.num_single_blocks}" if c.family == "flat" else f"{c.num_double_blocks}+{c.num_single_blocks}"
        )
        blocks += f"+{c.num_depth_blocks}" if c.depth_channels is not None else ""
        heads = f"{c.num_heads}" if c.kv_heads == c.num_heads else f"{c.num_heads}/{c.kv_heads}"
        counts = (row.total, row.trainable, row.frozen, row.autoencoder)
        depth = "no" if c.depth_channels is None else "yes"
        numbers = (*(f"{count:,}" for count in counts), str(c.hidden), heads)
        lines.append((row.model.name, *numbers, blocks, depth, row.model.text.encoder, row.model.licence))
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    for line in lines:
        cells = [
            text.rjust(width) if i in RIGHT_ALIGNED else text.ljust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    print(FOOTNOTE)
