"""The model inside the package: it loads, it says what it is, and it knows more than an average scene."""

from __future__ import annotations

import numpy as np
import pytest

from modality_forcing import Pipeline
from modality_forcing.config import SamplerConfig, to_dict
from modality_forcing.data.lowpoly import make_sample, split_seed
from modality_forcing.evaluation.metrics import mean_score, score_depth
from modality_forcing.pipeline import EMBEDDED
from modality_forcing.presets import LOWPOLY
from modality_forcing.training.recipes import find_recipe, read_recipe


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.from_pretrained("lowpoly", device="cpu")


def test_it_is_the_preset_and_small(pipeline):
    config, preset = to_dict(pipeline.config), to_dict(LOWPOLY)
    assert config.pop("note") != preset.pop("note")
    # The preset is what stage "forcing" trains; the refiner comes after it.
    *_, last = read_recipe(find_recipe("lowpoly/refiner"), "run").stages
    assert config.pop("refiner") == to_dict(last.config.model.refiner)
    assert preset.pop("refiner") is None
    assert config == preset
    assert config["licence"] == "Apache-2.0"
    assert sum(file.stat().st_size for file in EMBEDDED["lowpoly"].iterdir()) < 60e6


def test_text_guidance_of_depth_to_image_is_its_own(pipeline):
    ramp = np.linspace(1, 4, 128 * 128, dtype=np.float32).reshape(128, 128)
    (found,) = pipeline.depth_to_image("a park", ramp, seed=0, steps=1)
    defaults = pipeline.sampler_defaults
    assert found.provenance["guidance"] == defaults.guidance_d2i != defaults.guidance
    (joint,) = pipeline.joint("a park", seed=0, steps=1, refine_depth=False)
    assert joint.provenance["guidance"] == defaults.guidance
    plain = SamplerConfig(guidance=3.0)
    assert [plain.guidance_of(task) for task in ("joint", "d2i", "i2d")] == [3.0, 3.0, 1.0]


@pytest.mark.slow
def test_image_to_depth_beats_constant_depth(pipeline):
    samples = [make_sample(split_seed("val", i)) for i in range(12)]
    found = pipeline.image_to_depth([s.rgb for s in samples], steps=4, seed=0)
    pairs = list(zip(found, samples, strict=True))
    model = mean_score([score_depth(r.depth, s.depth) for r, s in pairs])
    constant = mean_score([score_depth(np.ones_like(s.depth), s.depth) for s in samples])
    assert model.abs_rel < 0.8 * constant.abs_rel
    assert model.delta1 > constant.delta1 + 0.15


@pytest.mark.slow
def test_the_prompt_is_heard(pipeline):
    def mean_color(prompt: str) -> np.ndarray:
        results = pipeline.joint([prompt] * 3, seed=0, steps=8)
        return np.mean([r.rgb for r in results], axis=(0, 1, 2))

    desert, forest = mean_color("a sunny desert with a pyramid"), mean_color("a forest with many green trees")
    assert desert[0] > forest[0] + 20  # sand is redder and brighter
    assert desert.sum() > forest.sum() + 60
