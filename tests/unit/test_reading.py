"""A frozen model that reads depth from pictures: whole maps to be given, and what a painted picture shows."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from trainers import differing, measured, small_refiner

from modality_forcing.codecs.depth import patchify, unpatchify
from modality_forcing.codecs.image import decode_image
from modality_forcing.config import DepthConfig, ForcingConfig, ParallelConfig, from_dict
from modality_forcing.errors import UserError
from modality_forcing.flow.schedule import depth_to_image_schedule
from modality_forcing.presets import TINY
from modality_forcing.training.painting import expected_pictures
from modality_forcing.training.reading import Reader
from modality_forcing.training.trainer import Trainer


@pytest.fixture(scope="module")
def config(configs):
    """Depth is given in every sample; the short run of the fixture reads."""
    run = configs["refiner"].init
    forcing = ForcingConfig(
        p_i2d=0.0, p_d2i=1.0, reader=run, d2i_read=1.0, cycle_weight=2.0, cycle_below=1.0, text_dropout=0.0
    )
    return replace(configs["forcing"], init=run, forcing=forcing, precision="fp32")


def with_forcing(config, **changes):
    return replace(config, forcing=replace(config.forcing, **changes))


def painting(config, **changes):
    return with_forcing(config, **{"painted": 1.0, "painted_steps": 4, **changes})


def prepared(trainer, step=0):
    return trainer.stage.prepare(trainer.loader.load(step)[0], step)


def read_by(trainer, work, rgb):
    text = trainer.encoders.empty_text.expand(len(rgb), -1, -1)
    zeros = torch.zeros(len(rgb))
    reader = trainer.stage.cycle.reader.transformer
    with torch.no_grad():
        return reader(rgb, work.depth_noise, text, work.rope, zeros, torch.ones_like(zeros))[1].float()


def test_given_depth_is_the_whole_map_that_the_reader_makes(config, tmp_path):
    trainer = Trainer(config, tmp_path)
    work = prepared(trainer)
    assert work.valid.all()
    maps = trainer.stage.cycle.reader.maps(read_by(trainer, work, work.rgb0), work.batch.images)
    surfaces = torch.isfinite(maps)
    again = trainer.stage._depth_tokens(maps, torch.ones_like(surfaces))[0]
    torch.testing.assert_close(work.depth_t, again)
    sparse = prepared(Trainer(with_forcing(config, d2i_read=0.0), tmp_path / "sparse"))
    assert not sparse.valid.all()
    assert torch.equal(sparse.depth_t[~sparse.valid], sparse.depth_noise[~sparse.valid])


def test_only_samples_with_given_depth_are_read(config, tmp_path):
    """The others keep their measurements: nothing but those ever trains depth."""
    mixed = with_forcing(config, p_i2d=0.3, p_d2i=0.4, d2i_read=0.5, cycle_below=0.9)
    trainer, bare = Trainer(mixed, tmp_path), Trainer(with_forcing(mixed, d2i_read=0.0), tmp_path / "bare")
    read = cycled = 0
    for step in range(8):
        work, plain = prepared(trainer, step), prepared(bare, step)
        given = work.t_depth == 0
        assert torch.equal(work.depth0[~given], plain.depth0[~given])
        assert torch.equal(work.valid[~given], plain.valid[~given])
        assert torch.equal(work.counts["cycle"], (given & (work.t_rgb <= 0.9)).float())
        read += int((work.valid.flatten(1).all(dim=1) & given).sum())
        cycled += int(work.counts["cycle"].sum())
        assert trainer.losses([work.batch], step).counts["depth"] == plain.counts["depth"].sum()
    assert 0 < read < 16 and cycled > 0


def test_the_cycle_compares_what_is_read_in_both_pictures(config, tmp_path):
    trainer = Trainer(config, tmp_path)
    work = prepared(trainer)
    with torch.no_grad():
        inputs = [work.rgb_t, work.depth_t, work.text, work.rope, work.t_rgb, work.t_depth]
        clean = work.rgb_t - work.t_rgb[:, None, None] * trainer.model(*inputs)[0]
    wanted = trainer.stage.cycle.reader.difference(
        read_by(trainer, work, clean), read_by(trainer, work, work.rgb0)
    )
    numbers = measured(trainer)
    assert numbers.means["cycle"] == pytest.approx(float(wanted.mean()), rel=1e-4)
    assert numbers.means["cycle"] > 0
    assert numbers.loss == pytest.approx(numbers.means["rgb"] + 2 * numbers.means["cycle"], rel=1e-5)


def test_the_cycle_teaches_the_painter_and_never_the_reader(config, tmp_path):
    trainer = Trainer(with_forcing(config, rgb_weight=0.0), tmp_path)
    before = {k: v.clone() for k, v in trainer.stage.cycle.reader.transformer.state_dict().items()}
    painter = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    first = measured(trainer).means["cycle"]
    for _ in range(4):
        trainer.train_step()
    assert not differing(dict(trainer.stage.cycle.reader.transformer.state_dict()), before)
    assert differing(dict(trainer.model.state_dict()), painter)
    assert measured(trainer).means["cycle"] < first


@pytest.mark.parametrize("painted", [0.0, 0.5])
def test_micro_batches_change_nothing(config, tmp_path, painted):
    mixed = painting(config, painted=painted, p_i2d=0.3, p_d2i=0.4, cycle_below=0.9)
    whole = Trainer(mixed, tmp_path / "whole")
    split = Trainer(replace(mixed, parallel=ParallelConfig(accumulate=4)), tmp_path / "split")
    one, four = whole.train_step(), split.train_step()
    assert four.loss == pytest.approx(one.loss, rel=1e-5)
    for name, mean in one.means.items():
        assert four.means[name] == pytest.approx(mean, rel=1e-4, abs=1e-6), name


def test_what_is_read_has_units_sky_and_the_refiners_outlines():
    model = replace(TINY, depth=DepthConfig(sky="far", far_threshold=1.9))
    read = torch.full((1, 4, model.transformer.patch_size**2), 0.5)
    read[:, 1] = 1.5
    read[:, 2] = 1.95
    side = 2 * model.transformer.patch_size
    images = torch.rand(1, 3, side, side) * 2 - 1
    (depth,) = Reader(torch.nn.Identity(), None, model).maps(read, images)
    half = side // 2
    assert torch.isinf(depth[half:, :half]).all() and torch.isfinite(depth[:half]).all()
    assert float(depth[0, 0]) == 0.5 and float(depth[0, -1]) == pytest.approx(2.0)
    (sharper,) = Reader(torch.nn.Identity(), small_refiner(), model).maps(read, images)
    assert not torch.equal(sharper, depth)


def test_two_equal_readings_differ_by_nothing_and_the_scale_is_half_the_matter():
    model = replace(TINY, depth=DepthConfig(sky="far", far_threshold=1.9))
    reader = Reader(torch.nn.Identity(), None, model)
    read = 0.2 + 0.6 * torch.rand(2, 4, 64)
    read[1, 0] = 2.0
    torch.testing.assert_close(reader.difference(read, read), torch.zeros(2))
    off = reader.difference(read[:1] * 0.8, read[:1])
    assert 0 < float(off) < 0.2 * float(read[:1].mean())
    assert float(reader.difference(read[:1].flip(-1), read[:1])) > float(off)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"cycle_weight": 1.0}, r"forcing\.reader"),
        ({"d2i_read": 0.5}, r"forcing\.reader"),
        ({"reader": "x", "cycle_weight": -1.0}, r"forcing\.cycle_weight"),
        ({"reader": "x", "d2i_read": 1.5}, r"forcing\.d2i_read"),
        ({"reader": "x", "cycle_below": 2.0}, r"forcing\.cycle_below"),
        ({"reader": "x", "painted": 0.5, "cycle_weight": 1.0}, r"forcing\.painted"),
        ({"reader": "x", "painted": 0.5, "d2i_read": 1.0}, r"forcing\.painted"),
        ({"keep_rgb": 0.5}, r"forcing\.keep_rgb"),
        ({"reader": "x", "keep_painted": 0.5}, r"forcing\.keep_painted"),
        ({"reader": "x", "keep_painted": -0.5}, r"forcing\.keep_painted"),
        ({"reader": "x", "painted_steps": 1}, r"forcing\.painted_steps"),
        ({"reader": "x", "depth_coding": "latent"}, r"forcing\.reader"),
    ],
)
def test_bad_settings_are_named(changes, named):
    with pytest.raises(UserError, match=named):
        from_dict(ForcingConfig, changes)


def test_a_reader_without_depth_is_refused(config, configs, tmp_path):
    with pytest.raises(UserError, match=r"forcing\.reader=.* does not fit the model"):
        Trainer(with_forcing(config, reader=configs["forcing"].init), tmp_path)


# -- pictures that the model paints itself ---------------------------------------------------------------


def test_a_painted_sample_is_the_samplers_state_at_the_node(config, tmp_path):
    sampler = replace(config.model.sampler, guidance=3.0, guidance_d2i=2.0, guidance_depth=4.0)
    config = painting(replace(config, model=replace(config.model, sampler=sampler)))
    trainer = Trainer(config, tmp_path)
    work = prepared(trainer)
    assert 1 <= work.node < 4 and len(work.painted) == len(work.rgb0)
    before = work.rgb_t.clone()
    trainer.stage.cycle.paint(trainer.model, work)
    assert not torch.equal(work.rgb_t, before)
    nodes = depth_to_image_schedule(4, config.model.flow).rgb
    assert torch.equal(work.t_rgb, nodes[work.node].expand(len(before)))
    x, null = work.rgb_noise, trainer.encoders.empty_text.expand_as(work.text)
    zeros, ones = torch.zeros(len(x)), torch.ones(len(x))
    with torch.no_grad():
        for t, s in pairwise(nodes[: work.node + 1]):
            at = t.expand(len(x))
            full = trainer.model(x, work.depth_t, work.text, work.rope, at, zeros)[0]
            wordless = trainer.model(x, work.depth_t, null, work.rope, at, zeros)[0]
            shapeless = trainer.model(x, work.depth_noise, work.text, work.rope, at, ones)[0]
            x = x + (s - t) * (full + (full - wordless) + 3 * (full - shapeless))
    torch.testing.assert_close(work.rgb_t, x, rtol=1e-3, atol=1e-4)


def test_of_a_painted_sample_only_the_cycle_counts(config, tmp_path):
    trainer = Trainer(painting(config), tmp_path)
    numbers = measured(trainer)
    assert numbers.means["cycle"] > 0 and numbers.means.get("rgb", 0.0) == 0.0
    assert numbers.loss == pytest.approx(2 * numbers.means["cycle"], rel=1e-5)
    mixed = painting(config, painted=0.5, p_i2d=0.3, p_d2i=0.5, cycle_below=0.9)
    trainer, seen = Trainer(mixed, tmp_path / "mixed"), 0
    for step in range(8):
        work = prepared(trainer, step)
        painted = torch.zeros(len(work.rgb0)).bool().index_fill(0, work.painted, True)
        assert torch.equal(work.counts["rgb"] > 0, (work.t_rgb > 0) & ~painted)
        assert not set(work.painted.tolist()) & set(work.cycled.tolist())
        assert torch.all(work.t_depth[work.painted] == 0) and work.valid[work.painted].all()
        seen += int(painted.sum())
    assert 0 < seen < 8 * len(painted)


def test_a_painted_picture_is_read_as_a_users_would_be(config, tmp_path):
    trainer = Trainer(painting(config), tmp_path)
    cycle = trainer.stage.cycle
    cycle.reader.refiner = small_refiner()
    patch = config.model.transformer.patch_size
    work = prepared(trainer)
    cycle.paint(trainer.model, work)
    with torch.no_grad():
        inputs = [work.rgb_t, work.depth_t, work.text, work.rope, work.t_rgb, work.t_depth]
        clean = work.rgb_t - work.t_rgb[:, None, None] * trainer.model(*inputs)[0]
        side = work.batch.images.shape[-1] // trainer.encoders.autoencoder.config.downscale
        images = decode_image(trainer.encoders.autoencoder, clean, side, side)
        coarse = unpatchify(read_by(trainer, work, clean), side, side, patch)[:, None]
        sharp = patchify(cycle.reader.refiner(coarse, images)[:, 0], patch)
        wanted = cycle.reader.difference(sharp, work.depth0)
        velocity = trainer.stage._velocity(trainer.model(*inputs)[0], work)
        pictures = expected_pictures(velocity, work, trainer.encoders.autoencoder)
        found = cycle.loss(velocity, pictures, work)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_painting_teaches_the_painter(config, tmp_path):
    trainer = Trainer(painting(config), tmp_path)
    first = measured(trainer).means["cycle"]
    for _ in range(6):
        trainer.train_step()
    assert measured(trainer).means["cycle"] < first


# -- what is kept of the reader's answers ------------------------------------------------------------------


KEEPS = {"keep_rgb": 0.7, "keep_depth": 0.4, "keep_painted": 3.0}


def test_what_equals_the_reader_pays_nothing(config, tmp_path):
    mixed = painting(config, painted=0.5, p_i2d=0.3, p_d2i=0.5, **KEEPS)
    trainer = Trainer(mixed, tmp_path)
    found = [measured(trainer, step).means for step in range(4)]
    for name in KEEPS:
        assert {means[name] for means in found if name in means} == {0.0}
    assert not set(KEEPS) & set(measured(Trainer(painting(config), tmp_path / "bare")).means)


def test_the_way_from_the_readers_velocities_is_paid(config, tmp_path):
    mixed = painting(config, painted=0.5, p_i2d=0.3, p_d2i=0.5, **KEEPS)
    trainer = Trainer(mixed, tmp_path)
    for p in trainer.model.parameters():
        p.data.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    seen = set()
    for step in range(4):
        work, squares = prepared(trainer, step), {name: [] for name in KEEPS}
        trainer.stage.cycle.paint(trainer.model, work)
        inputs = [work.rgb_t, work.depth_t, work.text, work.rope, work.t_rgb, work.t_depth]
        with torch.no_grad():
            now, before = trainer.model(*inputs), trainer.stage.cycle.reader.transformer(*inputs)
        image, depth = ((a.float() - b.float()) for a, b in zip(now, before, strict=True))
        if config.model.flow.depth_prediction == "x0":
            depth = depth / work.t_depth.clamp_min(config.model.flow.t_min)[:, None, None]
        painted = work.painted.tolist()
        for i in range(len(image)):
            if i in painted:
                squares["keep_painted"].append(image[i].square().mean())
            elif work.t_rgb[i] > 0:
                squares["keep_rgb"].append(image[i].square().mean())
            if work.t_depth[i] > 0:
                squares["keep_depth"].append(depth[i].square().mean())
        found = measured(trainer, step).means
        for name, parts in squares.items():
            if parts:
                assert found[name] == pytest.approx(float(torch.stack(parts).mean()), rel=1e-3), name
                seen.add(name)
    assert seen == set(KEEPS)
