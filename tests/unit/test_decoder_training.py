"""The autoencoder stage that goes on from another one: behind a frozen encoder latents stay what they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from modality_forcing.checkpoint.layouts import open_checkpoint
from modality_forcing.cli.main import main
from modality_forcing.config import AugmentConfig, DataConfig, ForcingConfig, SourceConfig
from modality_forcing.errors import UserError
from modality_forcing.presets import TINY
from modality_forcing.training.encoding import load_autoencoder
from modality_forcing.training.export import export_run
from modality_forcing.training.trainer import Trainer, finish_autoencoder
from shard_folders import toy_sample, write_samples

WEIGHT = 6.0


def trained_on(config, begun, run, **settings):
    """``config`` for three steps from the autoencoder in ``begun``, finished."""
    config = replace(config, steps=3, seed=5, init=str(begun), **settings)
    Trainer(config, run).run()
    finish_autoencoder(config, run, num_batches=3)
    return load_autoencoder(run, config)


def differing(before: torch.nn.Module, after: torch.nn.Module) -> set[str]:
    known = after.state_dict()
    return {name for name, value in before.state_dict().items() if not torch.equal(value, known[name])}


def test_latents_are_the_same_to_the_bit_behind_a_frozen_encoder(configs, tmp_path):
    begun = configs["t2i"].autoencoder
    before = load_autoencoder(begun, configs["t2i"])
    after = trained_on(configs["autoencoder"], begun, tmp_path, freeze=("encoder",))
    changed = differing(before, after)
    assert len(changed) > 20 and all(name.startswith("decoder.") for name in changed)
    assert not any(".bn." in name for name in changed)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        assert torch.equal(before.encode(images), after.encode(images))


def test_latents_of_an_encoder_that_trains_are_measured_anew(configs, tmp_path):
    begun = configs["t2i"].autoencoder
    after = trained_on(configs["autoencoder"], begun, tmp_path)
    changed = differing(load_autoencoder(begun, configs["t2i"]), after)
    assert {"encoder.conv_in.weight", "encoder.bn.running_mean", "decoder.bn.running_var"} <= changed


def test_a_resumed_run_ends_where_one_without_a_stop_ends(configs, tmp_path):
    config = replace(
        configs["autoencoder"], steps=4, init=str(configs["t2i"].autoencoder), freeze=("encoder",)
    )
    whole = Trainer(config, tmp_path / "whole")
    whole.run()
    stopped = Trainer(config, tmp_path / "stopped")
    stopped.train_step()
    stopped.save()
    resumed = Trainer(config, tmp_path / "stopped", resume=True)
    resumed.run()
    assert not differing(whole.model, resumed.model)


def test_a_model_takes_the_decoder_of_a_run(configs, tmp_path):
    model = export_run(configs["forcing"].init, tmp_path / "model")
    begun = configs["t2i"].autoencoder
    after = trained_on(configs["autoencoder"], begun, tmp_path / "run", freeze=("encoder",))
    words = ["convert", str(model), str(tmp_path / "new"), "--autoencoder", str(tmp_path / "run")]
    assert main(words) == 0
    old, new = open_checkpoint(model), open_checkpoint(tmp_path / "new")
    assert new.config == old.config
    assert not differing(old.load_transformer(), new.load_transformer())
    assert not differing(after, new.load_autoencoder())


def test_a_run_without_an_autoencoder_of_its_own_is_refused(configs, tmp_path, capsys):
    model = export_run(configs["forcing"].init, tmp_path / "model")
    words = ["convert", str(model), str(tmp_path / "new"), "--autoencoder", configs["forcing"].init]
    assert main(words) == 2
    assert "right is one of stage autoencoder" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_an_autoencoder_of_other_sizes_is_refused(configs, tiny_model, tmp_path):
    sizes = replace(TINY, autoencoder=replace(TINY.autoencoder, z_channels=4))
    with pytest.raises(UserError, match=r"autoencoder\.safetensors holds \d+ misshapen"):
        Trainer(replace(configs["autoencoder"], init=str(tiny_model), model=sizes), tmp_path)


@pytest.fixture
def named_config(configs, tmp_path):
    """Samples of 32 x 32 pixels with one named thing in the upper left token."""

    def one(seed: int):
        plain = toy_sample(seed)
        ids = torch.zeros(32, 32, dtype=torch.int32).numpy()
        ids[2:10, 4:12] = 1
        claims = [{"objects": [{"name": "box", "ids": [1]}]}] * len(plain.captions)
        return replace(plain, object_ids=ids, meta={**plain.meta, "objects": [], "claims": claims})

    shards = write_samples(tmp_path / "named", [one(seed) for seed in range(8)])
    return replace(
        configs["autoencoder"],
        data=DataConfig(sources=(SourceConfig(str(shards)),), augment=AugmentConfig(mirror=0.0)),
        forcing=ForcingConfig(named_weight=WEIGHT),
    )


def test_pixels_of_named_things_count_more(named_config, tmp_path):
    trainer = Trainer(named_config, tmp_path / "run")
    (batch,) = trainer.loader.load(0)
    work = trainer.stage.prepare(batch, 0)
    weight = torch.ones(len(batch), 1, 32, 32)
    weight[..., :16, :16] += WEIGHT
    assert torch.equal(work.rgb_weight, weight)
    with torch.no_grad():
        decoded, code = trainer.model(work.rgb0, work.rgb_noise)
    error = decoded - work.rgb0

    def mean(values, counted):
        return ((values * counted).mean(dim=1).sum(dim=(1, 2)) / counted.sum(dim=(1, 2, 3))).mean()

    pooled = sum(mean(F.avg_pool2d(error, k).abs(), F.avg_pool2d(weight, k)) for k in (2, 4))
    edges = mean(error.diff(dim=2).abs(), weight[:, :, 1:]) + mean(error.diff(dim=3).abs(), weight[..., 1:])
    wanted = mean(error.abs(), weight) + 0.5 * pooled + 0.5 * edges
    wanted = wanted + named_config.latent_penalty * code.square().mean()
    assert trainer.losses([batch], 0).loss == pytest.approx(float(wanted), rel=1e-5)


def test_a_crop_takes_its_weights_along(named_config, tmp_path):
    trainer = Trainer(replace(named_config, crop=16), tmp_path / "run")
    (batch,) = trainer.loader.load(0)
    whole = Trainer(named_config, tmp_path / "whole").stage.prepare(batch, 0)
    cut = trainer.stage.prepare(batch, 0)
    windows = [
        (whole.rgb0[i, :, r : r + 16, c : c + 16], whole.rgb_weight[i, :, r : r + 16, c : c + 16])
        for i in range(len(batch)) for r in range(17) for c in range(17)
        if torch.equal(whole.rgb0[i, :, r : r + 16, c : c + 16], cut.rgb0[i])
    ]  # fmt: skip
    assert len(windows) == len(batch)
    assert all(torch.equal(weight, cut.rgb_weight[i]) for i, (_, weight) in enumerate(windows))
    assert not cut.rgb_weight.eq(1).all()
