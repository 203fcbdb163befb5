"""``mf models``: which models there are, how large they are and what of them trains, without loading one."""

from __future__ import annotations

from dataclasses import dataclass

from modality_forcing.config import ModelConfig


@dataclass(frozen=True)
class Row:
    """One line of the table: a preset, the weights of its transformer (``trainable``: what its recipe does
    not freeze), of its autoencoder, and of the refiner of the model that ships under its name."""

    model: ModelConfig
    total: int
    trainable: int
    autoencoder: int
    refiner: int

    @property
    def frozen(self) -> int:
        """Weights of the transformer that its recipe leaves alone."""
        return self.total - self.trainable


def rows() -> list[Row]:
    """Every named model. Parameters are counted on the meta device, so nothing is allocated."""
    import torch

    from modality_forcing.checkpoint.layouts import open_checkpoint
    from modality_forcing.model.autoencoder import Autoencoder
    from modality_forcing.model.build import build_transformer
    from modality_forcing.model.refiner import DepthRefiner
    from modality_forcing.model.warm_start import freeze
    from modality_forcing.pipeline import EMBEDDED
    from modality_forcing.presets import FREEZE, MODELS

    def count(module: torch.nn.Module) -> tuple[int, int]:
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
        return sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)

    # A refiner is trained beside a finished model, so a preset, which training starts from, has none.
    shipped = {name: open_checkpoint(folder).config.refiner for name, folder in EMBEDDED.items()}
    found = []
    with torch.device("meta"):
        for name, model in MODELS.items():
            transformer = build_transformer(model.transformer)
            freeze(transformer, FREEZE.get(name, ()))
            config = shipped.get(name)
            refiner = 0 if config is None else count(DepthRefiner(config))[0]
            autoencoder, _ = count(Autoencoder(model.autoencoder))
            found.append(Row(model, *count(transformer), autoencoder, refiner))
    return found


HEADINGS = (
    "model",
    "transformer",
    "trainable",
    "frozen",
    "autoencoder",
    "refiner",
    "hidden",
    "heads",
    "blocks",
    "depth",
    "text encoder",
    "licence",
)
RIGHT_ALIGNED = range(1, 8)
FOOTNOTE = """\
Parameters. trainable, frozen: by the model's recipe (mf train); the text encoder is frozen and not counted.
refiner: that of the model which comes with the package. heads: of queries/of keys and values where these are
fewer. blocks: double + single + depth; flat models have one kind.
With LoRA: mf train RECIPE --out RUN --dry-run."""


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
        counts = (row.total, row.trainable, row.frozen, row.autoencoder, row.refiner)
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
