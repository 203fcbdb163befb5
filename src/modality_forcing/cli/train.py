"""``mf train``: a recipe of one stage or of several, from its data to a model."""

from __future__ import annotations

import os
from typing import Annotated

import typer


def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A .json file, or a name such as tiny or lowpoly/forcing.")
    ],
    assignments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Change a setting (steps=100 optim.lr=1e-4), or one stage's (t2i.steps=100).",
        ),
    ] = None,
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FOLDER", help="The run.", show_default="runs/RECIPE")
    ] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in FOLDER stopped.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Train nothing; print the settings (JSON, a recipe), and on stderr sizes, memory and cost.",
        ),
    ] = False,
) -> None:
    """Train a model: autoencoder, text to image, modality forcing, or all of them in a row."""
    from modality_forcing.cli.inputs import writable_folder
    from modality_forcing.training.preflight import check_folder, check_settings, missing
    from modality_forcing.training.recipes import Recipe, find_recipe, read_recipe, recipe_name

    def prepare() -> Recipe:
        path = find_recipe(recipe)
        run = writable_folder(out or f"runs/{recipe_name(path)}")
        found = read_recipe(path, run, assignments or [])
        check_settings(found)
        return found

    if dry_run:
        from modality_forcing.cli.train_plan import show_plan

        show_plan(prepare())
        return

    def ready() -> Recipe:
        from modality_forcing.errors import UserError

        found = prepare()
        check_folder(found, resume=resume)
        lacking = missing(found)
        if lacking:
            raise UserError("; ".join(lacking))
        return found

    # Wrong input is refused before torch is imported. Processes of torchrun must agree about it first.
    connected = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    plan = None if connected else ready()
    from modality_forcing.cli.train_run import agreed, check_mesh, run_recipe

    code = run_recipe(agreed(lambda: check_mesh(plan or ready())), resume=resume)
    if connected:
        from modality_forcing.training.distributed import end_process

        end_process(code)
    if code:
        raise typer.Exit(code)
