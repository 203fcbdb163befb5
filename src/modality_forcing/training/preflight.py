"""What can be seen to go wrong before anything slow begins: contradictions, and what is not there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from modality_forcing.checkpoint.hub import looks_like_hub_id
from modality_forcing.config import MakeConfig, TrainConfig
from modality_forcing.data.shards import read_manifest
from modality_forcing.errors import UserError
from modality_forcing.training.buckets import parse_buckets
from modality_forcing.training.recipes import Recipe, Stage
from modality_forcing.training.sinks import check_sinks


def check_settings(recipe: Recipe) -> None:
    """Refuse settings that cannot work on any machine.

    Raises:
        UserError: names the stage, the setting and what would be right.
    """
    for stage in recipe.stages:
        where = "" if recipe.single else f"stage {stage.name}: "
        try:
            _check_stage(stage.config)
        except UserError as error:
            raise UserError(f"{where}{error}") from None


def _check_stage(config: TrainConfig) -> None:
    cell = config.model.transformer.patch_size
    parse_buckets(config.data.buckets, config.image_size, cell)
    if cell != config.model.autoencoder.downscale:
        raise UserError(
            f"one depth token covers {cell} pixels, one image token {config.model.autoencoder.downscale}; "
            "they must be the same"
        )
    if not config.data.sources or not all(source.path for source in config.data.sources):
        raise UserError(
            "data names no folder; right is data=FOLDER of shards (mf data make, mf data convert)"
        )
    if config.stage != "autoencoder" and not config.autoencoder:
        raise UserError(f"stage {config.stage} needs autoencoder=FOLDER: an autoencoder run or a model")
    if config.stage in ("forcing", "refiner") and config.model.transformer.depth_channels is None:
        raise UserError(f"model {config.model.name!r} has no depth stream; stage {config.stage} needs one")
    if config.stage == "refiner":
        _check_refiner(config)
    forcing = config.forcing
    distills = config.stage == "forcing" and bool(forcing.distill_high or forcing.distill_low)
    if distills and not (config.init or forcing.teacher):
        raise UserError("forcing.distill_* needs a teacher: init=FOLDER of a text-to-image run")
    log = config.log
    looks = log.validate_every or (log.sample_every and (config.stage == "autoencoder" or not log.prompts))
    if looks and not log.validation:
        raise UserError(
            "log.validation is empty; name a folder of shards to look at, or set log.validate_every=0 and "
            "log.sample_every=0"
        )


def _check_refiner(config: TrainConfig) -> None:
    if config.model.refiner is None:
        raise UserError(
            'stage refiner needs sizes of one; right is "model": {"refiner": {"blocks": [1, 1, 2, 4]}}'
        )
    if not config.init:
        raise UserError("stage refiner needs init=FOLDER: the finished model whose depth it refines")
    if config.lora.rank:
        raise UserError(f"lora.rank is {config.lora.rank}; a refiner has no layers for adapters: right is 0")
    if config.forcing.depth_coding != "pixels":
        raise UserError("forcing.depth_coding is 'latent'; a refiner works on depth in pixels")


def missing(recipe: Recipe) -> list[str]:
    """What the recipe needs and this machine lacks, one line each; data that will be made is not missing."""
    made = {Path(make.folder): make for make in recipe.make.values()}
    folders = {stage.folder for stage in recipe.stages}
    found: list[str] = []
    for make in made.values():
        if not is_made(make) and importlib.util.find_spec("embreex") is None:
            found.append(
                f"{make.folder} has to be rendered, and the renderer embreex is missing: "
                'pip install "modality-forcing[train]"'
            )
    for stage in recipe.stages:
        config = stage.config
        try:
            check_sinks(config.log)
        except UserError as error:
            found.append(str(error))
        paths = [source.path for source in config.data.sources]
        if config.log.validation and (config.log.validate_every or config.log.sample_every):
            paths.append(config.log.validation)
        for path in paths:
            if Path(path) not in made:
                found += _unreadable(path)
        for name, path in _sources(stage):
            here = Path(path) in folders or Path(path).expanduser().exists()
            if not here and not is_remote(path):
                found.append(f"{name}={path} does not exist")
    return list(dict.fromkeys(found))


def is_remote(path: str) -> bool:
    """Whether weights would come from the Hub: ``owner/name``, where neither it nor a folder "owner" is here.

    ``runs/NAME`` and ``models/NAME`` are always paths, which may be missing.
    """
    local = Path(path).parent.is_dir() or path.startswith(("runs/", "models/"))
    return looks_like_hub_id(path) and not local


def _sources(stage: Stage) -> list[tuple[str, str]]:
    """Weights a stage starts from, by setting."""
    config = stage.config
    named = [("autoencoder", config.autoencoder)] if config.stage != "autoencoder" else []
    named += [("init", config.init), ("forcing.teacher", config.forcing.teacher)]
    named += [("forcing.reader", config.forcing.reader), ("forcing.judge", config.forcing.judge)]
    named += [("refine.start", config.refine.start)]
    return [(name, path) for name, path in named if path]


def _unreadable(path: str) -> list[str]:
    try:
        read_manifest(path)
    except UserError as error:
        return [str(error)]
    return []


def is_made(make: MakeConfig) -> bool:
    """Whether all of the data is there, made as the recipe asks."""
    try:
        manifest = read_manifest(make.folder)
    except UserError:
        return False
    wanted = {key: getattr(make, key) for key in ("split", "start", "size", "supersample")}
    same = {key: manifest.settings.get(key) for key in wanted} == wanted
    return same and manifest.samples >= make.count


def samples_in(path: str, recipe: Recipe) -> int | None:
    """Samples of a folder of shards, counting those that will be made; None when it is not there."""
    for make in recipe.make.values():
        if Path(make.folder) == Path(path):
            return make.count
    try:
        return read_manifest(path).samples
    except UserError:
        return None


def check_folder(recipe: Recipe, *, resume: bool) -> None:
    """Refuse to mix a new run into an old one.

    Raises:
        UserError: the run's folder already holds a run and ``resume`` is not set.
    """
    if resume:
        return
    for stage in recipe.stages:
        if (stage.folder / "config.json").exists() or (stage.folder / "checkpoints").exists():
            raise UserError(
                f"{recipe.run} already holds a run; go on with --resume, or name another folder with --out"
            )
