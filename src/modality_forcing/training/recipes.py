"""Recipes: JSON files that describe a run of one stage or of several, one after the other.

A recipe of one stage is a :class:`~modality_forcing.config.TrainConfig` as JSON. A recipe of several holds
what they share and ``"stages"``, a list of tables with a ``"name"`` each; what a stage says stands above what
is shared. Each stage runs in ``RUN/name``; a later one takes its autoencoder and its first weights from the
earlier ones unless it names others. ``"make"`` asks for procedural data. ``{run}`` in a path is that RUN.
``"base"`` names a recipe that this one changes.

Nothing here imports torch: a wrong recipe is refused at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modality_forcing.config import MakeConfig, TrainConfig, from_dict, override, to_dict
from modality_forcing.data.lowpoly.seeds import SPLITS
from modality_forcing.errors import UserError
from modality_forcing.io.checks import existing_file
from modality_forcing.presets import model_preset

RUN = "{run}"
_STAGE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_TAKEN = ("model", "data", "samples", "checkpoints")  # what a run keeps beside its stages
_TABLES = to_dict(TrainConfig())


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe: its name, its settings with every path filled in, and its run folder."""

    name: str
    config: TrainConfig
    folder: Path


@dataclass(frozen=True)
class Recipe:
    """A recipe as it will run.

    Attributes:
        name: where it came from, for example "tiny" or "lowpoly-forcing".
        run: folder of the whole run.
        stages: in their order; a recipe of one stage runs in ``run`` itself.
        make: procedural data by name, each with its folder.
    """

    name: str
    run: Path
    stages: tuple[Stage, ...]
    make: dict[str, MakeConfig]

    @property
    def single(self) -> bool:
        """Whether the one stage is the run itself."""
        return self.stages[0].folder == self.run

    def to_dict(self) -> dict[str, Any]:
        """Plain values that are a valid recipe and give this one again."""
        made = {name: to_dict(make) for name, make in self.make.items()}
        extra = {"make": made} if made else {}
        if self.single:
            return {**to_dict(self.stages[0].config), **extra}
        stages = [{"name": stage.name, **to_dict(stage.config)} for stage in self.stages]
        return {"stages": stages, **extra}


def read_config(path: Path) -> TrainConfig:
    """The configuration of one stage from JSON; ``"model"`` may be the name of a preset.

    Raises:
        UserError: unreadable, not JSON, several stages, or an unknown key or preset.
    """
    values = _read(path)
    if "stages" in values:
        raise UserError(f"{path} is a recipe of several stages; one stage is needed here")
    values.pop("make", None)
    return from_dict(TrainConfig, _normal(values, path.name), path.name)


def read_recipe(path: Path, run: str | Path, assignments: Sequence[str] = ()) -> Recipe:
    """A recipe of one or several stages, resolved for a run folder.

    Args:
        run: folder of the whole run.
        assignments: ``key=value`` for every stage, ``STAGE.key=value`` for one, ``make.[NAME.]key=value`` for
            the data. ``forcing.p_i2d=0.3`` is a setting of that name; ``forcing.steps=10`` is the stage's.

    Raises:
        UserError: anything wrong in the file or an assignment; the message names the key.
    """
    run = Path(run)
    values = _read(path)
    overlays, making = values.pop("stages", None), values.pop("make", None)
    shared = _normal(values, path.name)
    make = _make_tables(making, path.name)
    names = [""] if overlays is None else _stage_names(overlays, path.name)
    wanted = _sort_assignments(assignments, [name for name in names if name], list(make))
    stages: list[Stage] = []
    for number, name in enumerate(names):
        overlay: dict[str, Any] = {}
        if overlays is not None:
            overlay = {key: value for key, value in overlays[number].items() if key != "name"}
        where = f"{path.name}:{name}" if name else path.name
        merged = _merge(shared, _normal(overlay, where))
        mine = [*wanted[""], *(wanted[name] if name else [])]
        presets = [text for text in mine if text.partition("=")[0] == "model"]
        if presets:
            merged["model"] = to_dict(model_preset(presets[-1].partition("=")[2]))
        config = from_dict(TrainConfig, _fill(merged, str(run)), where)
        config = override(config, [text for text in mine if text not in presets])
        config = from_dict(TrainConfig, _fill(to_dict(config), str(run)), where)
        folder = run / name if name else run
        stages.append(Stage(name or config.stage, _linked(config, stages), folder))
    made = {}
    for name, table in make.items():
        config_ = override(
            from_dict(MakeConfig, _fill(table, str(run)), f"make.{name}"), wanted[f"make.{name}"]
        )
        default = run / "data" / name if name else run / "data"
        made[name] = config_ if config_.folder else replace(config_, folder=str(default))
    return Recipe(recipe_name(path), run, tuple(stages), made)


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The table in a file, put above that of its "base"."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as a JSON configuration: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no table of keys and values; right is {{...}}")
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"{path.name}.base is {str(base)[:60]!r}; right is the name of a recipe")
    # Beside the file, or where named recipes are.
    beside = path.parent / base
    source = beside if beside.is_file() else find_recipe(base)
    above = (*above, path.resolve())
    if source.resolve() in above:
        raise UserError(f"{path} is its own base")
    low = _read(source, above)
    for table in (low, values):
        if isinstance(table.get("data"), str):
            table["data"] = {"sources": [{"path": table["data"]}] if table["data"] else []}
        if isinstance(table.get("model"), str):
            table["model"] = {"preset": table["model"]}
    return _merge(low, values)


def _normal(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Short forms as tables: a preset's name (alone or as "preset" in a table), a folder of data."""
    if not isinstance(values, dict):
        raise UserError(f"{where} is {values!r}; a table of keys and values is needed")
    values = dict(values)
    model = values.get("model")
    if isinstance(model, str):
        values["model"] = to_dict(model_preset(model))
    elif isinstance(model, dict) and "preset" in model:
        rest = {key: value for key, value in model.items() if key != "preset"}
        values["model"] = _merge(to_dict(model_preset(str(model["preset"]))), rest)
    if isinstance(values.get("data"), str):
        values["data"] = {"sources": [{"path": values["data"]}] if values["data"] else []}
    return values


def _merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """``high`` above ``low``, table by table; lists are replaced."""
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _fill(value: Any, run: str) -> Any:
    """``{run}`` replaced in every text."""
    if isinstance(value, str):
        return value.replace(RUN, run)
    if isinstance(value, dict):
        return {key: _fill(part, run) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_fill(part, run) for part in value]
    return value


def _stage_names(overlays: Any, where: str) -> list[str]:
    """Names of the stages; a stage without one is called after its kind."""
    if not isinstance(overlays, list) or not overlays:
        raise UserError(f"{where}: stages is {str(overlays)[:60]!r}; right is a list of tables")
    names: list[str] = []
    for number, overlay in enumerate(overlays):
        if not isinstance(overlay, dict):
            raise UserError(f"{where}: stages[{number}] is {str(overlay)[:60]!r}; right is a table")
        name = overlay.get("name", overlay.get("stage"))
        if not isinstance(name, str) or not _STAGE_NAME.fullmatch(name) or name in _TAKEN:
            raise UserError(
                f"{where}: stages[{number}] is called {str(name)[:60]!r}; right is a name of small letters, "
                f"digits, - and _, other than {', '.join(_TAKEN)}"
            )
        table = _TABLES.get(name)
        if isinstance(table, dict) and table.keys() & _TABLES.keys():
            raise UserError(f"{where}: a stage may not be called {name!r}, which is a setting")
        if name in names:
            raise UserError(f"{where}: two stages are called {name!r}")
        names.append(name)
    return names


def _make_tables(making: Any, where: str) -> dict[str, dict[str, Any]]:
    """ "make" as tables by name; one table alone has the name ""."""
    if making is None:
        return {}
    if not isinstance(making, dict) or not making:
        raise UserError(f'{where}: make is {str(making)[:60]!r}; right is a table such as {{"count": 1000}}')
    if not all(isinstance(table, dict) for table in making.values()):
        return {"": making}
    for name in making:
        if not _STAGE_NAME.fullmatch(name):
            raise UserError(f"{where}: make has {name[:60]!r}; right is small letters, digits, - and _")
    return {name: {"split": name if name in SPLITS else "train", **table} for name, table in making.items()}


def _sort_assignments(assignments: Iterable[str], stages: list[str], made: list[str]) -> dict[str, list[str]]:
    """Assignments by whom they are for: "" every stage, a stage's name, "make.NAME"."""
    wanted: dict[str, list[str]] = {"": [], **{name: [] for name in stages}}
    wanted |= {f"make.{name}": [] for name in made}
    for text in assignments:
        key, equals, _ = text.partition("=")
        first, _, rest = key.partition(".")
        if not equals:
            raise UserError(f"{text[:80]!r} is not of the form key=value")
        if first == "make":
            name, _, inner = rest.partition(".")
            if not made:
                raise UserError(f"unknown key {key}; this recipe makes no data")
            if name in made and inner:
                wanted[f"make.{name}"].append(text.split(".", 2)[2])
            else:
                for each in made:
                    wanted[f"make.{each}"].append(text.split(".", 1)[1])
        elif first in stages and rest.split(".")[0] in _TABLES:
            wanted[first].append(text.split(".", 1)[1])
        elif key == "stage" and stages:
            raise UserError(f"{text[:80]!r} cannot be set: this recipe has the stages {', '.join(stages)}")
        else:
            wanted[""].append(text)
    return wanted


def _linked(config: TrainConfig, before: Sequence[Stage]) -> TrainConfig:
    """Empty ``autoencoder``, ``init`` and ``refine.start`` from the stages that ran before."""
    if config.stage != "autoencoder" and not config.autoencoder:
        earlier = [stage for stage in before if stage.config.stage == "autoencoder"]
        if earlier:
            config = replace(config, autoencoder=str(earlier[-1].folder))
    if config.stage in ("forcing", "refiner") and not config.init:
        known = ("t2i", "forcing") if config.stage == "forcing" else ("forcing",)
        earlier = [stage for stage in before if stage.config.stage in known]
        if earlier:
            config = replace(config, init=str(earlier[-1].folder))
    if config.stage == "refiner" and not config.refine.start:
        earlier = [stage for stage in before if stage.config.stage == "refiner"]
        if earlier:
            config = replace(config, refine=replace(config.refine, start=str(earlier[-1].folder)))
    return config


def recipe_folders() -> list[Path]:
    """Where named recipes are looked for: here, in the installed package, in a source checkout."""
    package = Path(__file__).resolve().parents[1]
    return [Path("recipes"), package / "recipes", package.parents[1] / "recipes"]


def recipe_names() -> list[str]:
    """Names of all recipes that are found."""
    return sorted(
        {
            path.relative_to(folder).with_suffix("").as_posix()
            for folder in recipe_folders()
            for path in folder.rglob("*.json")
        }
    )


def find_recipe(text: str) -> Path:
    """A recipe by path or by name.

    Raises:
        UserError: there is none; the message lists the known names.
    """
    if text.endswith(".json") or Path(text).is_file():
        return existing_file(text, "recipe")
    for folder in recipe_folders():
        if (folder / f"{text}.json").is_file():
            return folder / f"{text}.json"
    known = recipe_names()
    inside = [name for name in known if name.startswith(f"{text.rstrip('/')}/")]
    if inside:
        raise UserError(f"{text[:80]} holds several recipes; name one: {', '.join(inside)}")
    raise UserError(f"unknown recipe {text[:80]!r}; known: {', '.join(known) or 'none here'}")


def recipe_name(path: Path) -> str:
    """recipes/lowpoly/forcing.json -> "lowpoly-forcing"; any/where.json -> "where"."""
    inside = path.parent.name if path.parent.parent.name == "recipes" else ""
    return f"{inside}-{path.stem}" if inside else path.stem
