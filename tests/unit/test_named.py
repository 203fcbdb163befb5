"""What the caption names counts more in the image loss: where it is, and by how much."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from shard_samples import made_sample

from modality_forcing.config import DataConfig, ForcingConfig, ParallelConfig, SourceConfig
from modality_forcing.errors import UserError
from modality_forcing.training.named import LEAST_PIXELS, named_shares
from modality_forcing.training.trainer import Trainer
from modality_forcing.types import Sample
from shard_folders import toy_sample, write_samples

WEIGHT = 6.0


def sample() -> Sample:
    """32 x 48 pixels: object 1 over two tokens, 3 to 1; objects 2 and 3 in a corner each; 4 a few pixels."""
    ids = np.zeros((32, 48), np.int32)
    ids[4:8, 4:20] = 1
    ids[20:26, 0:4] = 2
    ids[20:26, 40:48] = 3
    ids[0, 30:34] = 4
    claims = [
        {"objects": [], "relations": [], "walls": None},
        {"objects": [{"name": "rug", "ids": [1]}, {"name": "chair", "ids": [2, 3]}]},
        {"objects": [{"name": "mug", "ids": [4]}, {"name": "hat", "ids": [9]}]},
    ]
    return replace(made_sample(0, 48, 32), object_ids=ids, meta={"claims": claims})


def test_every_named_thing_is_spread_over_the_tokens_that_show_it():
    np.testing.assert_allclose(
        named_shares(sample(), 1, 16), [[0.75, 0.25, 0.0], [1 / 3, 0.0, 2 / 3]], rtol=1e-6
    )
    assert named_shares(sample(), 1, 16).dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "caption"),
    [({}, 0), ({}, 2), ({}, 7), ({"object_ids": None}, 1), ({"meta": {}}, 1)],
    ids=["nothing is named", "too small or out of sight", "no claims for it", "no ids", "no claims"],
)
def test_nothing_to_weigh_is_zero(changes, caption):
    shares = named_shares(replace(sample(), **changes), caption, 16)
    assert shares.shape == (2, 3) and not shares.any()


def test_a_few_pixels_are_no_thing():
    seen = sample()
    ids = np.zeros_like(seen.object_ids)
    ids.flat[: LEAST_PIXELS - 1] = 1
    assert not named_shares(replace(seen, object_ids=ids), 1, 16).any()
    ids.flat[LEAST_PIXELS - 1] = 1
    assert named_shares(replace(seen, object_ids=ids), 1, 16).sum() == pytest.approx(1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Twelve samples of 32 x 32, each with one named thing in a place of its own; every third has no ids."""

    def one(seed: int) -> Sample:
        plain = toy_sample(seed)
        ids = np.zeros((32, 32), np.int32)
        ids[2 * seed : 2 * seed + 8, 10:20] = 1
        claims = [{"objects": [{"name": "box", "ids": [1]}]}] * len(plain.captions)
        return replace(
            plain, object_ids=ids if seed % 3 else None, meta={**plain.meta, "objects": [], "claims": claims}
        )

    return write_samples(tmp_path_factory.mktemp("named"), [one(seed) for seed in range(12)])


@pytest.fixture(params=["t2i", "forcing"])
def config(request, configs, shards):
    return replace(
        configs[request.param],
        batch=8,
        precision="fp32",
        data=DataConfig(sources=(SourceConfig(str(shards)),)),
        forcing=ForcingConfig(named_weight=WEIGHT, p_i2d=0.25, p_d2i=0.25),
    )


def test_the_image_loss_is_the_mean_by_what_is_named(config, tmp_path):
    trainer = Trainer(config, tmp_path)
    seen = 0.0
    for step in range(4):
        (batch,) = trainer.loader.load(step)
        work = trainer.stage.prepare(batch, step)
        noisy = (work.t_rgb > 0).float()[:, None]
        weight = noisy * (1 + WEIGHT * batch.named.flatten(1))
        torch.testing.assert_close(work.rgb_weight[..., 0], weight)
        torch.testing.assert_close(work.counts["rgb"], weight.sum(dim=1) * work.rgb0.shape[2])
        inputs = [work.rgb_t, None, work.text, work.rope, work.t_rgb]
        if config.stage == "forcing":
            inputs = [work.rgb_t, work.depth_t, work.text, work.rope, work.t_rgb, work.t_depth]
        with torch.no_grad():
            velocity = trainer.model(*inputs)[0]
        error = (velocity - (work.rgb_noise - work.rgb0)).square().mean(dim=2)
        wanted = float((weight * error).sum() / weight.sum())
        assert trainer.losses([batch], step).means["rgb"] == pytest.approx(wanted, rel=1e-5)
        seen += float(batch.named.sum())
    assert seen > 4


def test_micro_batches_of_named_things_change_nothing(config, tmp_path):
    whole = Trainer(config, tmp_path / "whole")
    split = Trainer(replace(config, parallel=ParallelConfig(accumulate=4)), tmp_path / "split")
    one, four = whole.train_step(), split.train_step()
    assert four.loss == pytest.approx(one.loss, rel=1e-5)
    assert four.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)


def test_without_a_weight_nobody_looks_for_things(configs, tmp_path):
    (batch,) = Trainer(configs["forcing"], tmp_path).loader.load(0)
    assert batch.named is None


def test_a_negative_weight_is_refused():
    with pytest.raises(UserError, match=r"forcing\.named_weight"):
        ForcingConfig(named_weight=-1.0)
