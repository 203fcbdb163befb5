"""Every recipe in the repository is a valid configuration of a known model."""

from __future__ import annotations

from pathlib import Path

import pytest

from modality_forcing.config import OptimConfig
from modality_forcing.data.sensors import KINDS
from modality_forcing.errors import UserError
from modality_forcing.presets import LOWPOLY
from modality_forcing.training.trainer import read_config

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").rglob("*.json"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipe_is_valid(path):
    config = read_config(path)
    assert config.stage == path.stem
    assert config.optim != OptimConfig()
    assert set(config.forcing.sparse_kinds) <= set(KINDS)
    if path.parent.name == "lowpoly":
        assert config.model == LOWPOLY


def test_the_three_stages_are_there():
    assert {path.stem for path in RECIPES if path.parent.name == "lowpoly"} == {
        "autoencoder",
        "t2i",
        "forcing",
    }


def test_unknown_preset_is_named(tmp_path):
    (tmp_path / "a.json").write_text('{"model": "gigantic"}')
    with pytest.raises(UserError, match="unknown preset 'gigantic'"):
        read_config(tmp_path / "a.json")
