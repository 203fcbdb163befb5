"""``mf convert``: checkpoints between layouts, without a change of a single bit."""

from __future__ import annotations

from typing import Annotated

import typer


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A folder, a file or a Hub id, in any layout.")
    ],
    destination: Annotated[str, typer.Argument(metavar="FOLDER", help="A new or empty folder.")],
    to: Annotated[
        str, typer.Option("--to", metavar="ours|release|bfl|diffusers", help="The layout to write.")
    ] = "ours",
    autoencoder: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Take the autoencoder from here; a lone BFL file has none."),
    ] = None,
) -> None:
    """Convert a checkpoint between layouts."""
    import time

    from modality_forcing.cli.inputs import writable_folder
    from modality_forcing.cli.output import progress

    writable_folder(destination, "FOLDER")
    from modality_forcing.checkpoint.writing import convert as convert_checkpoint

    begin = time.perf_counter()
    with progress() as bars:
        bars.add_task(f"converting to the layout {to}", total=None)
        folder = convert_checkpoint(source, destination, to, autoencoder=autoencoder)
    print(folder)
    typer.echo(f"convert {time.perf_counter() - begin:.1f} s", err=True)
