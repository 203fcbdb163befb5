"""Recipes of the large models: they say what their models need, and fit the machines they name."""

from __future__ import annotations

from pathlib import Path

import pytest

from modality_forcing.presets import FREEZE, MODELS
from modality_forcing.training.estimate import GIB, estimate
from modality_forcing.training.recipes import read_config

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
FAMILY = ("t2i-370m", "t2i-800m", "t2i-3.3b")
KLEIN = ("flux2-klein-4b", "flux2-klein-9b")


def processes(config) -> int:
    return config.parallel.shard * config.parallel.replicate


@pytest.mark.parametrize("name", FAMILY)
def test_the_family_in_two_stages(name):
    images, forcing = (read_config(FOLDER / name / f"{stage}.json") for stage in ("t2i", "forcing"))
    assert (images.stage, forcing.stage) == ("t2i", "forcing")
    assert forcing.model.transformer == MODELS[f"{name}-rgbd"].transformer
    assert images.model.transformer == forcing.model.transformer.backbone()
    assert images.batch * images.steps == 640_000_000  # images seen: one of the study's four points
    assert {source.depth for source in images.data.sources} == {"none"}
    assert forcing.freeze == () and forcing.lora.rank == 0
    assert (
        forcing.forcing.distill_high == forcing.forcing.distill_low == 0
    )  # not in this family (spec section 8)
    for config in (images, forcing):
        assert config.model.flow.rgb_prediction == "x0"
        assert config.image_size == 256 and not config.data.buckets
        assert estimate(config, processes(config)).memory.total < 70 * GIB


@pytest.mark.parametrize("name", KLEIN)
@pytest.mark.parametrize("kind", ["forcing", "lora"])
def test_post_training(name, kind):
    config = read_config(FOLDER / name / f"{kind}.json")
    assert config.stage == "forcing"
    assert config.model.transformer == MODELS[f"{name}-rgbd"].transformer
    assert config.freeze == FREEZE[f"{name}-rgbd"]
    assert (config.lora.rank > 0) == (kind == "lora")
    assert config.forcing.distill_high > config.forcing.distill_low > 0
    assert config.init == config.autoencoder == config.model.text.source
    sizes = [tuple(map(int, text.split("x"))) for text in config.data.buckets]
    assert all(max(size) == 512 and not any(side % 16 for side in size) for size in sizes)
    assert {(h, w) for w, h in sizes} == set(sizes)
    found = estimate(config, processes(config))
    largest = {"flux2-klein-4b": {"forcing": 70, "lora": 23}, "flux2-klein-9b": {"forcing": 70, "lora": 70}}
    assert found.memory.total < largest[name][kind] * GIB
    if kind == "lora":
        assert (processes(config), found.per_process) == (1, 1)
        assert found.memory.teacher == 0
        if name == "flux2-klein-4b":  # 24 GB hold the training state, not the text encoder too
            assert config.text_device == "cpu" and config.data.cache
