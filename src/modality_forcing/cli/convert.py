"""``mf convert``: checkpoints between layouts, and training runs to models."""

from __future__ import annotations

from typing import Annotated

import typer

DTYPES = ("bfloat16", "float32")


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A folder, a file or a Hub id, in any layout, or a training run."
        ),
    ],
    destination: Annotated[str, typer.Argument(metavar="FOLDER", help="A new or empty folder.")],
    to: Annotated[
        str, typer.Option("--to", metavar="ours|release|bfl|diffusers", help="The layout to write.")
    ] = "ours",
    autoencoder: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Take the autoencoder from here, a model, a file or a run; a lone BFL file has none.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="bfloat16|float32",
            help="Type of the transformer's matrices; by default nothing changes, not a bit.",
        ),
    ] = None,
) -> None:
    """Convert a checkpoint between layouts, or a training run (averaged, adapters merged) to a model."""
    import time

    from modality_forcing.cli.inputs import writable_folder
    from modality_forcing.cli.output import progress
    from modality_forcing.errors import UserError

    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype is {dtype!r}; known: {', '.join(DTYPES)}")
    writable_folder(destination, "FOLDER")
    begin = time.perf_counter()
    with progress() as bars:
        bars.add_task(f"converting to the layout {to}", total=None)
        folder = _convert(source, destination, to, autoencoder, dtype)
    print(folder)
    typer.echo(f"convert {time.perf_counter() - begin:.1f} s", err=True)


def _convert(source: str, destination: str, to: str, autoencoder: str | None, dtype: str | None) -> object:
    """The folder written."""
    import tempfile
    from pathlib import Path

    import torch

    from modality_forcing.checkpoint.layouts import LAYOUTS
    from modality_forcing.checkpoint.writing import convert as convert_checkpoint
    from modality_forcing.errors import UserError
    from modality_forcing.training.export import export_autoencoder, export_run, is_run

    wanted = None if dtype is None else getattr(torch, dtype)
    takes_run = autoencoder is not None and is_run(autoencoder)
    if not (is_run(source) or takes_run):
        return convert_checkpoint(source, destination, to, autoencoder=autoencoder, dtype=wanted)
    if to not in LAYOUTS:
        raise UserError(f"unknown layout {to!r}; known: {', '.join(LAYOUTS)}")
    # Beside the destination, which has the room; it goes whatever happens.
    where = Path(destination).expanduser().resolve().parent
    where.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".convert-", dir=where) as aside:
        if takes_run:
            autoencoder = str(export_autoencoder(str(autoencoder), Path(aside) / "autoencoder"))
        if is_run(source):
            source, autoencoder = (
                str(export_run(source, Path(aside) / "model", autoencoder=autoencoder)),
                None,
            )
        return convert_checkpoint(source, destination, to, autoencoder=autoencoder, dtype=wanted)
