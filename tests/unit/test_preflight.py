"""What is refused before anything slow begins, and what is only missing on this machine."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from modality_forcing.data.shards import Manifest, ShardInfo
from modality_forcing.errors import UserError
from modality_forcing.training import preflight
from modality_forcing.training.recipes import Recipe, read_recipe

REFINED = {"model": {"preset": "tiny", "refiner": {"blocks": [1, 1, 2, 4]}}}
LATENT = {"depth_coding": "latent"}
FORCING = {"stage": "forcing", "model": "tiny", "image_size": 64, "data": "shards", "autoencoder": "ae"}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A function from settings to a recipe in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def make(**values: object) -> Recipe:
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps({**FORCING, **values}))
        return read_recipe(path, "run")

    return make


def shards(folder: str, samples: int = 8, **settings: object) -> None:
    settings = {"split": "train", "start": 0, "size": 64, "supersample": 2, **settings}
    Path(folder).mkdir(parents=True, exist_ok=True)
    info = ShardInfo("train-000000.tar", samples, 1, "0" * 64)
    Manifest({"name": "lowpoly"}, settings, {info.name: info}).write(Path(folder))


def test_good_settings_pass(recipe):
    preflight.check_settings(recipe())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": ""}, "data names no folder"),
        ({"autoencoder": ""}, "stage forcing needs autoencoder=FOLDER"),
        ({"image_size": 72}, "image_size 72"),
        ({"data": {"sources": ["a"], "buckets": ["64"]}}, "right is WIDTHxHEIGHT"),
        ({"model": {"preset": "tiny", "transformer": {"depth_channels": None}}}, "has no depth stream"),
        ({"model": {"preset": "tiny", "transformer": {"depth_channels": 64}}}, "they must be the same"),
        ({"forcing": {"distill_high": 1.0}}, "needs a teacher"),
        ({"stage": "refiner", "init": "m"}, "needs sizes of one"),
        ({"stage": "refiner", **REFINED}, "needs init=FOLDER"),
        ({"stage": "refiner", "init": "m", "lora": {"rank": 2}, **REFINED}, r"lora\.rank is 2"),
        (
            {"stage": "refiner", "init": "m", "forcing": {"depth_coding": "latent"}, **REFINED},
            "depth in pixels",
        ),
        (
            {"stage": "refiner", "model": {"preset": "tiny", "transformer": {"depth_channels": None}}},
            "stage refiner needs one",
        ),
        ({"log": {"validate_every": 3}}, "log.validation is empty"),
        ({"log": {"sample_every": 3}}, "log.validation is empty"),
        (
            {"autoencoder": "", "stages": [{"name": "first", "stage": "forcing"}]},
            "stage first: stage forcing needs autoencoder",
        ),
    ],
)
def test_contradictions_are_refused(recipe, values, message):
    with pytest.raises(UserError, match=message):
        preflight.check_settings(recipe(**values))


def test_prompts_alone_are_enough_for_a_grid(recipe):
    preflight.check_settings(recipe(log={"sample_every": 3, "prompts": ["a house"]}))
    with pytest.raises(UserError, match=r"log\.validation"):  # an autoencoder needs pictures
        preflight.check_settings(recipe(stage="autoencoder", log={"sample_every": 3, "prompts": ["a house"]}))


def test_what_is_missing_is_listed_once(recipe):
    log = {"validate_every": 5, "validation": "val"}
    found = preflight.missing(recipe(init="runs/t2i/gone", log=log))
    assert [line.split(" ")[0] for line in found] == ["shards", "val", "autoencoder=ae", "init=runs/t2i/gone"]
    shards("shards")
    shards("val")
    Path("ae").mkdir()
    Path("runs/t2i/gone").mkdir(parents=True)
    assert preflight.missing(recipe(init="runs/t2i/gone", log=log)) == []


def test_what_earlier_stages_and_make_give_is_not_missing(recipe, monkeypatch):
    stages = [{"stage": "autoencoder"}, {"stage": "t2i"}, {"stage": "forcing"}]
    values = {"autoencoder": "", "data": "{run}/data", "make": {"count": 8, "size": 64}, "stages": stages}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert preflight.missing(recipe(**values)) == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (line,) = preflight.missing(recipe(**values))
    assert line.startswith("run/data has to be rendered, and the renderer embreex is missing")
    shards("run/data")
    assert preflight.missing(recipe(**values)) == []


def test_data_made_otherwise_is_not_taken_for_made(recipe):
    plan = recipe(data="{run}/data", make={"count": 8, "size": 64})
    (make,) = plan.make.values()
    assert not preflight.is_made(make)
    for settings, samples, made in (({"size": 32}, 8, False), ({}, 7, False), ({}, 8, True), ({}, 9, True)):
        shards("run/data", samples, **settings)
        assert preflight.is_made(make) is made
    assert preflight.samples_in("run/data", plan) == 8
    assert preflight.samples_in("elsewhere", plan) is None


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_missing_log_packages(recipe, monkeypatch, package):
    shards("shards")
    Path("ae").mkdir()
    monkeypatch.setitem(sys.modules, package, None)
    (line,) = preflight.missing(recipe(log={package: True}))
    assert f"the package {package} is missing" in line


def test_an_old_run_is_not_mixed_with_a_new_one(recipe):
    plan = recipe(stages=[{"name": "a", "stage": "forcing"}, {"name": "b", "stage": "forcing"}])
    preflight.check_folder(plan, resume=False)
    Path("run/b").mkdir(parents=True)
    Path("run/b/config.json").write_text("{}")
    with pytest.raises(UserError, match="run already holds a run; go on with --resume"):
        preflight.check_folder(plan, resume=False)
    preflight.check_folder(plan, resume=True)


def test_what_comes_from_the_hub(recipe, monkeypatch):
    shards("shards")
    owner = recipe(init="owner/model", autoencoder="owner/model")
    assert preflight.missing(owner) == []
    Path("owner").mkdir()  # with such a folder here, a path was meant
    assert preflight.missing(owner) == [
        "autoencoder=owner/model does not exist",
        "init=owner/model does not exist",
    ]
    (line,) = preflight.missing(recipe(autoencoder="runs/ae"))
    assert line == "autoencoder=runs/ae does not exist"
