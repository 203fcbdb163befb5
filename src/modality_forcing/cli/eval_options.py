"""Options and checks that the verbs of ``mf eval`` share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from modality_forcing.evaluation.run import Shard

MAX_LIMIT, MAX_ENSEMBLE, MAX_SHARDS, MAX_BATCH = 10**9, 64, 10_000, 1024

Data = Annotated[
    str,
    typer.Option(
        "--data",
        "-d",
        metavar="SET",
        help="lowpoly:test, lowpoly:combination, a folder (index.json, shards, or MoGe's layout), or"
        " nyuv2|kitti|eth3d|scannet|diode:FOLDER in MoGe's or Marigold's layout.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit", "-n", metavar="N", show_default="all; 100 rendered", help="The first N pictures."
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Picture i uses seed N + i.")]
Caption = Annotated[bool, typer.Option("--caption", help="Give the model the data's captions.")]
Batch = Annotated[int, typer.Option("--batch-size", metavar="N", help="Pictures the model gets together.")]
PredictorName = Annotated[
    str | None,
    typer.Option(
        "--predictor",
        metavar="constant|mean|FILE.py:NAME",
        show_default="the model",
        help="Another depth estimator. The file's code is run.",
    ),
]
PredictorOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--predictor-option", metavar="KEY=VALUE", help="Argument of a predictor's class; repeat it."
    ),
]
RenderSize = Annotated[
    int | None,
    typer.Option("--render-size", metavar="PIXELS", show_default="128", help="Side of rendered scenes."),
]
Features = Annotated[
    str,
    typer.Option(
        "--features",
        metavar="classifier|inception|none",
        help="What FID and KID compare: our place classifier's features (offline), or Inception's.",
    ),
]
InceptionFile = Annotated[
    str | None,
    typer.Option(
        "--inception", metavar="FILE.safetensors", help="Inception's weights; see docs/evaluation.md."
    ),
]
ClassifierFolder = Annotated[
    str | None,
    typer.Option("--classifier", metavar="FOLDER", show_default="the embedded one", help="Place classifier."),
]


def print_table(cells: list[list[str]]) -> None:
    """Columns of equal width: the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for row in cells:
        line = [
            text.ljust(w) if i == 0 else text.rjust(w)
            for i, (text, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(line).rstrip())


def parse_shard(text: str) -> Shard:
    """ "2/8" -> part 2 of 8."""
    import re

    from modality_forcing.errors import UserError
    from modality_forcing.evaluation.run import Shard

    match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]) <= MAX_SHARDS:
        raise UserError(f"--shard is {text[:40]!r}; right is I/N, for example 1/4, 2/4, 3/4 and 4/4")
    return Shard(int(match[1]), int(match[2]))


def parse_options(given: list[str] | None) -> dict[str, str]:
    """["a=1"] -> {"a": "1"}."""
    from modality_forcing.errors import UserError

    found = {}
    for text in given or []:
        key, sign, value = text.partition("=")
        if not sign or not key.isidentifier():
            raise UserError(f"--predictor-option is {text[:80]!r}; right is KEY=VALUE")
        found[key] = value
    return found


def check_model(
    model: str,
    text_encoder: str | None,
    device: str,
    dtype: str | None,
    steps: int | None,
    guidance: float | None,
    size: str | None,
    edge_radius: int | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of ``Pipeline.from_pretrained``, and those of its methods."""
    from modality_forcing.cli import inputs

    if steps is not None:
        inputs.whole_number("--steps", steps, 1, inputs.MAX_STEPS)
    inputs.in_range("--guidance", guidance, 0.0, inputs.MAX_GUIDANCE)
    if edge_radius is not None:
        inputs.whole_number("--edge-radius", edge_radius, 0, inputs.MAX_EDGE_RADIUS)
    sampling = {
        "steps": steps,
        "guidance": guidance,
        "size": None if size is None else inputs.parse_size(size),
        "edge_radius": edge_radius,
    }
    options = inputs.model_options(model, text_encoder, device, dtype, False)
    return options, {key: value for key, value in sampling.items() if value is not None}


def check_common(limit: int | None, seed: int, batch_size: int, ensemble: int = 1) -> None:
    from modality_forcing.cli.inputs import MAX_SEED, whole_number

    if limit is not None:
        whole_number("--limit", limit, 1, MAX_LIMIT)
    whole_number("--batch-size", batch_size, 1, MAX_BATCH)
    whole_number("--ensemble", ensemble, 1, MAX_ENSEMBLE)
    whole_number("--seed", seed, 0, MAX_SEED // MAX_ENSEMBLE - MAX_LIMIT)
