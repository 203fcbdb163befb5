"""Recipes: every one in the repository is valid; stages inherit, link and take assignments as documented."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from modality_forcing.config import OptimConfig
from modality_forcing.errors import UserError
from modality_forcing.presets import LOWPOLY, TINY
from modality_forcing.training.recipes import find_recipe, read_config, read_recipe, recipe_name

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
RECIPES = sorted(FOLDER.rglob("*.json"))

THREE = {
    "model": "tiny",
    "data": "{run}/data/train",
    "batch": 8,
    "make": {"train": {"count": 64, "size": 64}, "val": {"count": 8, "size": 64}},
    "log": {"every": 5, "validation": "{run}/data/val"},
    "stages": [
        {"stage": "autoencoder", "log": {"every": 7}},
        {"name": "images", "stage": "t2i", "steps": 5},
        {"stage": "forcing", "forcing": {"p_i2d": 0.3}},
    ],
}


def write(folder: Path, values: object, name: str = "a.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_recipe_in_the_repository(path, tmp_path):
    recipe = read_recipe(path, tmp_path / "run")
    for stage in recipe.stages:
        assert stage.config.optim != OptimConfig()
        assert stage.config.data.sources
        if recipe.single:
            assert stage.config.stage in path.stem or stage.config.lora.rank > 0
        if path.parent.name == "lowpoly":
            assert replace(stage.config.model, refiner=None) == LOWPOLY
    again = write(tmp_path, recipe.to_dict())
    assert replace(read_recipe(again, tmp_path / "run"), name=recipe.name) == recipe


def test_tiny_and_the_stages_of_lowpoly_are_there():
    assert {path.stem for path in RECIPES if path.parent.name == "lowpoly"} == {
        "autoencoder",
        "t2i",
        "forcing",
        "onward",
        "refiner",
        "named",
        "again",
        "decoder",
        "given",
        "painted",
        "kept",
        "words",
        "outlines",
        "closer",
        "steady",
        "views",
    }
    onward = read_recipe(find_recipe("lowpoly/onward"), "runs/onward").stages
    assert [stage.config.init for stage in onward] == [
        "runs/forcing",
        "runs/onward/look",
        "runs/onward/open",
        "runs/onward/long",
        "runs/onward/longer",
        "runs/onward/near",
        "runs/onward/near",
        "runs/onward/visitors",
    ]
    *_, longer, near, edges, visitors, close = (stage.config for stage in onward)
    forcing = [stage.config for stage in onward if stage.config.stage == "forcing"]
    teachers = ["runs/forcing"] * 3 + [f"runs/onward/{name}" for name in ("long", "longer", "near")]
    assert [config.forcing.teacher for config in forcing] == teachers
    assert [config.stage for config in (edges, close)] == ["refiner"] * 2
    assert (edges.refine.start, close.refine.start) == ("", "runs/onward/edges")
    assert edges.model.refiner == close.model.refiner
    assert close.data.sources == visitors.data.sources
    long, last = (
        stage.config for stage in read_recipe(find_recipe("lowpoly/refiner"), "runs/refiner").stages
    )
    assert (long.init, long.refine.start, last.refine.start) == (
        "runs/averaged",
        "runs/averaged",
        "runs/refiner/long",
    )
    assert long.model == last.model
    (named,) = read_recipe(find_recipe("lowpoly/named"), "runs/named").stages
    assert (named.config.init, named.config.forcing.named_weight) == ("runs/before", 8)
    assert named.config.data.sensors == onward[0].config.data.sensors
    again, nearer = read_recipe(find_recipe("lowpoly/again"), "runs/again").stages
    assert (again.config.init, again.config.refine.start) == ("runs/averaged", "runs/averaged")
    assert (again.config.model, again.config.data.sensors) == (last.model, last.data.sensors)
    assert (nearer.config.init, nearer.config.refine.start) == ("runs/averaged", "runs/again/again")
    sharp, calm = (
        stage.config for stage in read_recipe(find_recipe("lowpoly/decoder"), "runs/decoder").stages
    )
    assert sharp.freeze == calm.freeze == ("encoder",)
    assert (sharp.init, calm.init) == ("runs/before", "runs/decoder/sharp")
    assert sharp.model == calm.model and sharp.latent_noise < calm.latent_noise
    (given,) = read_recipe(find_recipe("lowpoly/given"), "runs/given").stages
    assert given.config.init == given.config.forcing.reader == "runs/before"
    assert given.config.data.sensors == onward[0].config.data.sensors
    painted, worded = (
        stage.config for stage in read_recipe(find_recipe("lowpoly/painted"), "runs/painted").stages
    )
    assert painted.forcing.reader == worded.forcing.reader == given.config.init
    assert (painted.init, worded.init) == ("runs/begun", "runs/painted/painted")
    assert painted.forcing.painted > worded.forcing.painted > 0 == worded.forcing.cycle_below
    assert painted.data.sensors == worded.data.sensors == given.config.data.sensors
    kept, settled = (stage.config for stage in read_recipe(find_recipe("lowpoly/kept"), "runs/kept").stages)
    assert (kept.init, settled.init) == ("runs/begun", "runs/kept/kept")
    assert kept.forcing.reader == settled.forcing.reader == given.config.init
    assert settled.forcing.keep_depth > kept.forcing.keep_depth > 0 < settled.forcing.keep_painted
    (words,) = (stage.config for stage in read_recipe(find_recipe("lowpoly/words"), "runs/words").stages)
    assert (words.init, words.forcing.reader) == ("runs/kept/settled", kept.forcing.reader)
    assert words.data == settled.data and words.forcing.keep_painted == settled.forcing.keep_painted
    assert words.forcing.worded > 0 < words.forcing.word_weight
    outlines, coloured, closer, steady = (
        stage.config
        for name in ("outlines", "closer", "steady")
        for stage in read_recipe(find_recipe(f"lowpoly/{name}"), f"runs/{name}").stages
    )
    assert [config.init for config in (outlines, coloured, closer, steady)] == [
        "runs/half",
        "runs/outlines/outlines",
        "runs/both",
        "runs/between",
    ]
    assert [config.forcing.judge for config in (outlines, coloured, closer, steady)] == [
        "",
        words.forcing.judge,
        "",
        words.forcing.judge,
    ]
    assert closer.forcing == outlines.forcing and steady.data == outlines.data == words.data
    assert 0 < steady.forcing.word_weight == coloured.forcing.word_weight < words.forcing.word_weight
    assert steady.forcing.keep_depth > outlines.forcing.keep_depth == words.forcing.keep_depth
    (views,) = (stage.config for stage in read_recipe(find_recipe("lowpoly/views"), "runs/views").stages)
    assert views.init == "runs/averaged" and views.data.sensors == near.data.sensors
    assert views.freeze == ("trunk",)
    for config in (longer, near):
        assert [source.weight for source in config.data.sources] == [0.6, 0.4]
        assert config.data.sensors == onward[0].config.data.sensors
    assert (longer.forcing.p_i2d, longer.forcing.p_d2i) == (0.2, 0.2)
    assert (near.forcing.i2d_pure, near.forcing.i2d_relative) == (0.5, 0.3)
    sources = {source.path: source.weight for source in visitors.data.sources}
    assert sources["runs/visitors"] + sources["runs/altered_visitors"] == 0.75
    assert visitors.data.sensors == near.data.sensors
    stages = read_recipe(find_recipe("tiny"), "x").stages
    assert [stage.config.stage for stage in stages] == ["autoencoder", "t2i", "forcing"]


def test_one_stage_runs_in_the_folder_itself(tmp_path):
    path = write(tmp_path, {"stage": "t2i", "model": "tiny", "data": "here", "autoencoder": "ae"})
    recipe = read_recipe(path, tmp_path / "run", ["steps=3"])
    assert recipe.single
    assert [(s.name, s.folder, s.config.steps) for s in recipe.stages] == [("t2i", tmp_path / "run", 3)]
    assert replace(read_config(path), steps=3) == recipe.stages[0].config


def test_stages_inherit_and_link(tmp_path):
    autoencoder, images, forcing = read_recipe(write(tmp_path, THREE), "R").stages
    assert [s.folder for s in (autoencoder, images, forcing)] == [
        Path("R/autoencoder"),
        Path("R/images"),
        Path("R/forcing"),
    ]
    assert [s.config.log.every for s in (autoencoder, images, forcing)] == [7, 5, 5]
    assert forcing.config.log.validation == "R/data/val"
    assert [s.config.batch for s in (autoencoder, images, forcing)] == [8, 8, 8]
    assert images.config.data.sources[0].path == "R/data/train"
    assert (autoencoder.config.autoencoder, autoencoder.config.init) == ("", "")
    assert (images.config.autoencoder, images.config.init) == ("R/autoencoder", "")
    assert (forcing.config.autoencoder, forcing.config.init) == ("R/autoencoder", "R/images")
    assert forcing.config.model == TINY


def test_a_named_source_is_kept(tmp_path):
    values = {
        **THREE,
        "stages": [*THREE["stages"][:2], {"stage": "forcing", "init": "other", "autoencoder": "ae"}],
    }
    forcing = read_recipe(write(tmp_path, values), "R").stages[2].config
    assert (forcing.init, forcing.autoencoder) == ("other", "ae")


def test_made_data_has_a_folder_and_a_split(tmp_path):
    make = read_recipe(write(tmp_path, THREE), "R", ["make.count=32", "make.val.count=4"]).make
    assert {name: (m.folder, m.split, m.count) for name, m in make.items()} == {
        "train": ("R/data/train", "train", 32),
        "val": ("R/data/val", "val", 4),
    }
    one = {"stage": "autoencoder", "data": "{run}/data", "make": {"count": 9}}
    make = read_recipe(write(tmp_path, one), "R", ["make.size=32"]).make
    assert [(m.folder, m.count, m.size) for m in make.values()] == [("R/data", 9, 32)]


def test_assignments_reach_all_stages_or_one(tmp_path):
    wanted = [
        "steps=9",
        "images.steps=2",
        "forcing.p_d2i=0.1",
        "forcing.steps=4",
        "forcing.forcing.p_i2d=0.5",
    ]
    stages = read_recipe(write(tmp_path, THREE), "R", wanted).stages
    assert [s.config.steps for s in stages] == [9, 2, 4]
    assert [s.config.forcing.p_d2i for s in stages] == [0.1, 0.1, 0.1]
    assert [s.config.forcing.p_i2d for s in stages] == [0.2, 0.2, 0.5]


def test_the_model_can_be_a_preset_with_changes(tmp_path):
    model = {"preset": "tiny", "sampler": {"steps": 11}}
    config = read_config(write(tmp_path, {"model": model}))
    assert config.model == replace(TINY, sampler=replace(TINY.sampler, steps=11))
    assert (
        read_recipe(write(tmp_path, {"model": model}), "R", ["model=lowpoly"]).stages[0].config.model
        == LOWPOLY
    )


def test_a_recipe_changes_another(tmp_path):
    low = {
        "model": "tiny",
        "steps": 5,
        "data": {"sources": ["a"], "cache": "c"},
        "optim": {"lr": 0.5, "warmup": 7},
    }
    write(tmp_path, low, "low.json")
    high = {"base": "low.json", "data": "mine", "optim": {"lr": 0.25}, "model": {"sampler": {"steps": 9}}}
    config = read_config(write(tmp_path, high))
    assert (config.steps, config.optim.lr, config.optim.warmup) == (5, 0.25, 7)
    assert ([s.path for s in config.data.sources], config.data.cache) == (["mine"], "c")
    assert config.model == replace(TINY, sampler=replace(TINY.sampler, steps=9))
    named = read_recipe(write(tmp_path, {"base": "tiny", "batch": 3}), "R")
    assert [s.config.batch for s in named.stages] == [3, 3, 3]
    with pytest.raises(UserError, match="is its own base"):
        read_config(write(tmp_path, {"base": "a.json"}))
    with pytest.raises(UserError, match="unknown recipe 'nothing'"):
        read_config(write(tmp_path, {"base": "nothing"}))


@pytest.mark.parametrize(
    ("values", "assignments", "message"),
    [
        ({"model": "gigantic"}, [], "unknown preset 'gigantic'"),
        ({"stepz": 1}, [], r"unknown key a\.json\.stepz"),
        ({"stages": []}, [], "right is a list of tables"),
        ({"stages": [{"name": "A B", "stage": "t2i"}]}, [], "stages\\[0\\] is called 'A B'"),
        ({"stages": [{"name": "model", "stage": "t2i"}]}, [], "other than model"),
        ({"stages": [{"stage": "t2i"}, {"stage": "t2i"}]}, [], "two stages are called 't2i'"),
        ({"stages": [{"name": "x", "stage": "t2i", "optim": {"lrr": 1}}]}, [], r"a\.json:x\.optim\.lrr"),
        ({"make": {"count": 0}}, [], "make.count is 0"),
        ({"make": {"train": {"cont": 3}}}, [], r"unknown key make\.train\.cont"),
        ({"make": 3}, [], "make is '3'"),
        ([1], [], "holds no table"),
        ({}, ["optim.lrr=1"], "unknown key optim.lrr"),
        ({}, ["steps"], "not of the form key=value"),
        ({}, ["steps=many"], "steps='many' is not a valid int"),
        ({}, ["make.count=3"], "makes no data"),
        (THREE, ["stage=t2i"], "this recipe has the stages autoencoder, images, forcing"),
        (THREE, ["images.stepz=3"], "unknown key images.stepz"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, values, assignments, message):
    with pytest.raises(UserError, match=message):
        read_recipe(write(tmp_path, values), "R", assignments)


def test_a_recipe_of_stages_is_no_single_configuration(tmp_path):
    with pytest.raises(UserError, match="several stages"):
        read_config(write(tmp_path, THREE))


def test_finding_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes" / "mine").mkdir(parents=True)
    path = write(tmp_path / "recipes" / "mine", {}, "first.json")
    assert find_recipe("mine/first").resolve() == path
    assert recipe_name(path) == "mine-first"
    assert recipe_name(tmp_path / "recipes" / "tiny.json") == "tiny"
    with pytest.raises(UserError, match="mine holds several recipes; name one: mine/first"):
        find_recipe("mine")
    with pytest.raises(
        UserError, match=r"unknown recipe 'nothing'; known: .*lowpoly/forcing.*mine/first.*tiny"
    ):
        find_recipe("nothing")


def test_reading_a_recipe_imports_no_torch():
    code = (
        "from modality_forcing.training.recipes import *; read_recipe(find_recipe('tiny'), 'x')\n"
        "import sys; assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
