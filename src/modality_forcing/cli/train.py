"""``mf train``: one stage of training from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A .json file, or a name such as lowpoly/forcing.")
    ],
    assignments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Change a setting, for example steps=100 optim.lr=1e-4."
        ),
    ] = None,
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FOLDER", help="The run.", show_default="runs/RECIPE")
    ] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in FOLDER stopped.")] = False,
) -> None:
    """Train one stage: autoencoder, text to image, or modality forcing."""
    from modality_forcing.cli.inputs import writable_folder
    from modality_forcing.cli.output import notice, progress
    from modality_forcing.config import override

    path = find_recipe(recipe)
    folder = writable_folder(out or f"runs/{recipe_name(path)}")
    from modality_forcing.training.trainer import Trainer, finish_autoencoder, read_config

    config = override(read_config(path), assignments or [])
    trainer = Trainer(config, folder, resume=resume)
    if trainer.step >= config.steps:
        notice(f"{folder} has already {trainer.step} of {config.steps} steps")

    with progress() as bars:
        bar = bars.add_task("training", total=config.steps, completed=trainer.step)

        def report(row: dict[str, float]) -> None:
            text = " ".join(f"{key} {value:.4g}" for key, value in row.items())
            bars.update(bar, completed=row["step"], description=f"loss {row['loss']:.4f}")
            if bars.disable:
                print(text, flush=True)

        last = trainer.run(report)
        finished = trainer.step >= config.steps
        if finished and config.stage == "autoencoder":
            bars.update(bar, description="measuring the latents", total=None)
            finish_autoencoder(config, folder)
    print(last)
    if not finished:
        notice(f"stopped at step {trainer.step} of {config.steps}; the same command with --resume goes on")
        raise typer.Exit(130)


def recipe_folders() -> list[Path]:
    """Where named recipes are looked for: here, in the installed package, in a source checkout."""
    package = Path(__file__).resolve().parents[1]
    return [Path("recipes"), package / "recipes", package.parents[1] / "recipes"]


def find_recipe(text: str) -> Path:
    """A recipe by path or by name.

    Raises:
        UserError: there is none; the message lists the known names.
    """
    from modality_forcing.errors import UserError
    from modality_forcing.io.checks import existing_file

    if text.endswith(".json") or Path(text).is_file():
        return existing_file(text, "recipe")
    for folder in recipe_folders():
        if (folder / f"{text}.json").is_file():
            return folder / f"{text}.json"
    known = {
        path.relative_to(folder).with_suffix("").as_posix()
        for folder in recipe_folders()
        for path in folder.rglob("*.json")
    }
    raise UserError(f"unknown recipe {text[:80]!r}; known: {', '.join(sorted(known)) or 'none here'}")


def recipe_name(path: Path) -> str:
    """recipes/lowpoly/forcing.json -> "lowpoly-forcing"; any/where.json -> "where"."""
    inside = path.parent.name if path.parent.parent.name == "recipes" else ""
    return f"{inside}-{path.stem}" if inside else path.stem
