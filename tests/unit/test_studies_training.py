"""The training options that studies compare: off by default; each changes what it says, nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from modality_forcing.codecs.depth import encode_depth, unpatchify
from modality_forcing.codecs.depth_latent import decode_latent_depth, encode_latent_depth
from modality_forcing.codecs.filling import fill_nearest
from modality_forcing.config import (
    AugmentConfig,
    DataConfig,
    ForcingConfig,
    OptimConfig,
    SensorConfig,
    SourceConfig,
    TrainConfig,
)
from modality_forcing.errors import UserError
from modality_forcing.flow.path import interpolate
from modality_forcing.pipeline import EMBEDDED
from modality_forcing.presets import LOWPOLY, TINY
from modality_forcing.training.encoding import load_autoencoder
from modality_forcing.training.trainer import Trainer

MODEL = replace(TINY, autoencoder=LOWPOLY.autoencoder)


@pytest.fixture(scope="module")
def base(small_shards) -> TrainConfig:
    return TrainConfig(
        stage="forcing", steps=3, batch=12, image_size=32, threads=1, precision="fp32", model=MODEL,
        autoencoder=str(EMBEDDED["lowpoly"]), optim=OptimConfig(warmup=1, lr=3e-3),
        data=DataConfig(
            sources=(SourceConfig(str(small_shards)),), sensors=(SensorConfig("random", 1.0, 0.1, 0.1),),
            augment=AugmentConfig(mirror=0.0),
        ),
    )  # fmt: skip


@pytest.fixture
def prepare(base, tmp_path):
    """ForcingConfig -> the first micro-batch made ready."""
    made = []

    def run(forcing: ForcingConfig):
        trainer = Trainer(replace(base, forcing=forcing), tmp_path / str(len(made)))
        made.append(trainer)
        return trainer.stage.prepare(trainer.loader.load(0)[0], 0)

    return run


def test_by_default_nothing_changes(prepare):
    work = prepare(ForcingConfig())
    batch = work.batch
    tokens, valid, _ = encode_depth(batch.depth, batch.measured, 16, "far")
    assert torch.equal(work.depth0, tokens) and torch.equal(work.valid, valid)
    mixed = interpolate(tokens, work.depth_noise, work.t_depth)
    assert torch.equal(work.depth_t, torch.where(valid, mixed, work.depth_noise))
    assert (work.t_rgb != work.t_depth).all()
    assert (work.t_rgb == 0).any() and (work.t_depth == 0).any()


def test_a_shared_level_is_one_level_and_never_clean(prepare):
    apart = prepare(ForcingConfig(p_i2d=0.0, p_d2i=0.0))
    shared = prepare(ForcingConfig(p_i2d=0.0, p_d2i=0.0, shared_level=True))
    assert torch.equal(shared.t_rgb, shared.t_depth)
    assert torch.equal(shared.t_depth, apart.t_depth)
    assert not torch.equal(shared.t_rgb, apart.t_rgb)
    assert (shared.t_rgb > 0).all()
    assert torch.equal(shared.rgb_t, interpolate(shared.rgb0, shared.rgb_noise, shared.t_depth))
    assert shared.tasks["joint"].all()


def test_the_density_of_depth_levels_may_be_that_of_the_image(prepare):
    mix = {"p_i2d": 0.0, "p_d2i": 0.0}
    plateau, plain = (
        prepare(ForcingConfig(**mix)),
        prepare(ForcingConfig(**mix, depth_density="logit_normal")),
    )
    assert torch.equal(plateau.t_rgb, plain.t_rgb)
    # The plateau adds weight near 1: by rank every level is lower without it.
    assert (plain.t_depth.sort().values < plateau.t_depth.sort().values).float().mean() > 0.8


def test_zero_fill_changes_only_what_was_not_measured(prepare):
    noise, zero = prepare(ForcingConfig()), prepare(ForcingConfig(fill="zero"))
    assert (zero.depth_t[~zero.valid] == 0).all()
    assert (noise.depth_t[~noise.valid] != 0).all()
    assert torch.equal(zero.depth_t[zero.valid], noise.depth_t[noise.valid])


def test_depth_as_latents(prepare, base):
    work = prepare(ForcingConfig(depth_coding="latent"))
    used = LOWPOLY.autoencoder.latent_channels
    assert work.valid[..., :used].all() and not work.valid[..., used:].any()
    assert (work.depth0[..., used:] == 0).all()
    autoencoder = load_autoencoder(base.autoencoder, base)
    again, _ = encode_latent_depth(work.batch.depth, work.batch.measured, autoencoder, 16, "far")
    torch.testing.assert_close(work.depth0, again)
    # No hole in a code: its noisy version is a mixture everywhere, in the unused channels noise at its level.
    torch.testing.assert_close(work.depth_t, interpolate(work.depth0, work.depth_noise, work.t_depth))
    assert work.counts["depth"].max() == 4 * used  # 2 x 2 tokens


def test_unused_channels_of_latents_are_predicted_as_zero_after_training(base, tmp_path):
    """So the sampler, which starts from noise there, sees what training showed."""
    config = replace(base, forcing=ForcingConfig(depth_coding="latent"))
    trainer = Trainer(config, tmp_path)
    before = trainer.model.depth_final_layer.linear.weight.detach().clone()
    for _ in range(3):
        trainer.train_step()
    after = trainer.model.depth_final_layer.linear.weight.detach()
    used = LOWPOLY.autoencoder.latent_channels
    assert not torch.equal(after[:used], before[:used])
    assert (after[used:] == 0).all()


def test_latent_depth_comes_back():
    autoencoder = load_autoencoder(EMBEDDED["lowpoly"], replace(TrainConfig(), model=MODEL))
    rows, columns = torch.meshgrid(torch.linspace(1, 3, 64), torch.linspace(1, 2, 64), indexing="ij")
    depth = (rows * columns)[None]
    tokens, counts = encode_latent_depth(depth, None, autoencoder)
    assert counts.shape == tokens.shape == (1, 16, 256)
    found = decode_latent_depth(tokens, 4, 4, autoencoder)
    wanted = unpatchify(encode_depth(depth)[0], 4, 4)
    assert found.shape == wanted.shape == (1, 64, 64)
    assert (found - wanted).abs().mean() < 0.1


def test_holes_are_filled_from_the_nearest_measurement():
    maps = torch.tensor([[[1.0, 0.0, 0.0, 5.0]], [[0.0, 0.0, 0.0, 0.0]]])
    known = torch.tensor([[[True, False, False, True]], [[False] * 4]])
    filled = fill_nearest(maps, known)
    assert filled[0].tolist() == [[1.0, 1.0, 5.0, 5.0]]
    assert filled[1].tolist() == [[1.0] * 4]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"shared_level": True}, "forcing.p_i2d"),
        ({"fill": "mean"}, "forcing.fill"),
        ({"depth_density": "flat"}, "forcing.depth_density"),
        ({"depth_coding": "vae"}, "forcing.depth_coding"),
        ({"depth_coding": "latent", "smooth_head": True}, "forcing.smooth_head"),
        ({"depth_coding": "latent", "fill": "zero"}, "forcing.fill"),
    ],
)
def test_contradictions_are_refused(values, named):
    with pytest.raises(UserError, match=named):
        ForcingConfig(**values)
