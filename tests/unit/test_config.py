"""Configurations: strict keys and kinds, nested overrides, round trips, presets of published sizes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from modality_forcing.config import (
    AutoencoderConfig,
    DataConfig,
    DepthConfig,
    FlowConfig,
    ModelConfig,
    SamplerConfig,
    TrainConfig,
    TransformerConfig,
    from_dict,
    override,
    to_dict,
)
from modality_forcing.errors import UserError
from modality_forcing.presets import MODELS, TRANSFORMERS, model_preset, transformer_preset


@pytest.mark.parametrize("name", MODELS)
def test_every_model_preset_survives_json(name):
    config = model_preset(name)
    back = from_dict(ModelConfig, json.loads(json.dumps(to_dict(config))))
    assert back == config
    assert hash(back) == hash(config)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_transformer_preset_survives_json(name):
    config = transformer_preset(name)
    assert from_dict(TransformerConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_a_training_configuration_survives_json():
    config = TrainConfig(model=MODELS["tiny"], steps=7, data=DataConfig.from_text("somewhere"))
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_missing_keys_take_their_defaults():
    config = from_dict(
        ModelConfig, {"transformer": {"hidden": 64, "num_heads": 2, "rope_axes": [8, 8, 8, 8]}}
    )
    assert config.transformer.num_single_blocks == TransformerConfig().num_single_blocks
    assert config.sampler == SamplerConfig()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"colour": 1}, "config.colour"),
        ({"flow": {"mu": 1.0}}, "config.flow.mu"),
        ({"autoencoder": {"PATCH": 4}}, "config.autoencoder.PATCH"),
    ],
)
def test_unknown_keys_are_named(values, named):
    with pytest.raises(UserError, match=f"unknown key {named}"):
        from_dict(ModelConfig, values)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"steps": "many"}, "config.steps"),
        ({"steps": 1.5}, "config.steps"),
        ({"steps": None}, "config.steps"),
        ({"steps": float("inf")}, "config.steps"),
        ({"steps": float("nan")}, "config.steps"),
        ({"steps": [1]}, "config.steps"),
        ({"steps": True}, "config.steps"),
        ({"data": None}, "config.data"),
        ({"data": ["a"]}, "config.data"),
        ({"optim": {"lr": "little"}}, "config.optim.lr"),
        ({"optim": {"lr": True}}, "config.optim.lr"),
        ({"optim": 3}, "config.optim"),
        ({"optim": [1]}, "config.optim"),
        ({"optim": {"betas": 0.9}}, "config.optim.betas"),
        ({"optim": {"betas": ["x", "y"]}}, "config.optim.betas"),
        ({"model": {"transformer": {"rope_axes": {"t": 1}}}}, "config.model.transformer.rope_axes"),
        ({"model": {"transformer": {"guidance_embedding": "maybe"}}}, "guidance_embedding"),
        ({"model": {"transformer": {"guidance_embedding": 2}}}, "guidance_embedding"),
    ],
)
def test_values_of_the_wrong_kind_are_named(values, named):
    with pytest.raises(UserError, match=named):
        from_dict(TrainConfig, values)


def test_a_configuration_must_be_a_table():
    with pytest.raises(UserError, match="table of keys"):
        from_dict(ModelConfig, [1, 2])  # type: ignore[arg-type]


def test_overrides_reach_into_nested_tables():
    config = override(
        TrainConfig(model=MODELS["tiny"]),
        [
            "steps=12",
            "optim.lr=3e-4",
            "optim.betas=0.8,0.9",
            "model.flow.shift_mu=-0.5",
            "model.transformer.guidance_embedding=true",
            "model.sampler.log2_alpha=none",
            "model.transformer.depth_channels=64",
            "data.sources=a=b",
            "data.buckets=64x32,32x64",
        ],
    )
    assert config.steps == 12
    assert config.optim.lr == 3e-4
    assert config.optim.betas == (0.8, 0.9)
    assert config.model.flow.shift_mu == -0.5
    assert config.model.transformer.guidance_embedding is True
    assert config.model.sampler.log2_alpha is None
    assert config.model.transformer.depth_channels == 64
    assert config.data.buckets == ("64x32", "32x64")
    assert [source.path for source in config.data.sources] == ["a=b"]
    assert config.model.transformer.hidden == MODELS["tiny"].transformer.hidden


def test_overrides_leave_the_rest_alone():
    before = TrainConfig(model=MODELS["lowpoly"])
    assert override(before, []) == before
    after = override(before, ["seed=5"])
    assert to_dict(after) == to_dict(before) | {"seed": 5}
    assert before.seed == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps", "not of the form key=value"),
        ("step=3", "unknown key step"),
        ("optim.rate=3", r"unknown key optim\.rate"),
        ("optimiser.lr=3", "no table 'optimiser'"),
        ("steps.more=3", "no table 'steps'"),
        ("optim=adamw", r"config\.optim"),
        ("steps=1.5", r"config\.steps"),
        ("optim.lr=", r"config\.optim\.lr"),
        ("stage=sleep", "stage is 'sleep'"),
        ("batch=0", "batch is 0"),
    ],
)
def test_bad_overrides_are_named(text, message):
    with pytest.raises(UserError, match=message):
        override(TrainConfig(), [text])


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (TransformerConfig, {"hidden": 100, "num_heads": 3}, "hidden=100"),
        (TransformerConfig, {"rope_axes": (32, 32, 32)}, "sum to 96"),
        (DepthConfig, {"sky": "blue"}, "blue"),
        (AutoencoderConfig, {"norm_groups": 24}, "norm_groups 24"),
        (AutoencoderConfig, {"channel_multipliers": ()}, "channel_multipliers"),
        (FlowConfig, {"rgb_prediction": "v"}, "rgb_prediction"),
        (FlowConfig, {"depth_prediction": "noise"}, "depth_prediction"),
        (TrainConfig, {"precision": "fp16"}, "precision"),
        (TrainConfig, {"steps": 0}, "steps is 0"),
    ],
)
def test_values_that_make_no_sense(cls, values, message):
    with pytest.raises(UserError, match=message):
        cls(**values)


def test_configurations_are_frozen():
    with pytest.raises(AttributeError):
        SamplerConfig().steps = 3  # type: ignore[misc]


def test_sizes_of_the_presets():
    """Facts of the published models."""
    released = transformer_preset("flux_rgbd_9b_v2")
    assert (released.hidden, released.num_heads, released.text_width) == (4096, 32, 12288)
    assert (released.num_double_blocks, released.num_single_blocks, released.num_depth_blocks) == (8, 24, 4)
    assert released.patch_size == 16
    assert transformer_preset("flux2-dev").guidance_embedding
    for name in ("flux2-klein-4b", "flux2-klein-9b", "flux2-dev"):
        assert transformer_preset(name).depth_channels is None
    assert released.backbone() == transformer_preset("flux2-klein-9b")
    assert not transformer_preset("flux_rgbd_9b_v1").cross_stream_mixing


@pytest.mark.parametrize("name", MODELS)
def test_the_parts_of_a_preset_fit_together(name):
    config = model_preset(name)
    assert config.name == name
    assert config.licence
    assert config.transformer.latent_channels == config.autoencoder.latent_channels
    assert config.transformer.patch_size == config.autoencoder.downscale
    assert config.sampler.width % config.autoencoder.downscale == 0
    assert config.sampler.height % config.autoencoder.downscale == 0


@pytest.mark.parametrize("lookup", [model_preset, transformer_preset])
def test_unknown_presets_are_named(lookup):
    with pytest.raises(UserError, match="'huge'"):
        lookup("huge")


def test_importing_configurations_does_not_import_torch():
    code = "import sys, modality_forcing.config, modality_forcing.presets; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_depth_of_images_may_have_steps_of_its_own():
    assert SamplerConfig(steps=30).steps_of("i2d") == 30
    one = SamplerConfig(steps=30, steps_i2d=1)
    assert [one.steps_of(task) for task in ("joint", "i2d", "d2i", "complete")] == [30, 1, 30, 1]
