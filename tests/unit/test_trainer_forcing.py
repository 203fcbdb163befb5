"""What modality forcing trains on: tasks, levels, holes, the teacher, what the losses are means over."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from trainers import differing, measured

from modality_forcing.config import ForcingConfig
from modality_forcing.errors import UserError
from modality_forcing.training.trainer import Trainer, load_weights


def test_only_measured_depth_matters(configs, tmp_path):
    trainer = Trainer(configs["forcing"], tmp_path)
    batches = trainer.loader.load(0)
    plain = trainer.losses(batches, 0)
    for batch in batches:
        assert (~batch.measured).any()
        batch.depth = torch.where(batch.measured, batch.depth, 1e6)
    changed = trainer.losses(batches, 0)
    assert plain.means["depth"] > 0
    assert plain == changed


@pytest.mark.parametrize(("forcing", "silent"), [({"p_i2d": 1.0, "p_d2i": 0.0}, "rgb"),
                                                 ({"p_i2d": 0.0, "p_d2i": 1.0}, "depth")])  # fmt: skip
def test_a_given_modality_is_exactly_clean_and_not_in_the_loss(forcing, silent, configs, tmp_path):
    config = replace(configs["forcing"], forcing=ForcingConfig(**forcing), precision="fp32")
    trainer = Trainer(config, tmp_path)
    numbers = measured(trainer)
    other = {"rgb": "depth", "depth": "rgb"}[silent]
    assert numbers.counts[silent] == 0
    assert numbers.loss == pytest.approx(numbers.means[other])
    assert ("i2d_mae" in numbers.means) == (silent == "rgb")
    work = trainer.stage.prepare(trainer.loader.load(0)[0], 0)
    if silent == "rgb":
        assert torch.equal(work.rgb_t, work.rgb0)
    else:
        assert torch.equal(work.depth_t[work.valid], work.depth0[work.valid])


def test_a_sample_without_depth_trains_the_image_alone(configs, tmp_path):
    """Its depth is pure noise and says so: level 1. It is never asked for depth, nor to follow it."""
    config = replace(configs["forcing"], forcing=ForcingConfig(p_i2d=0.5, p_d2i=0.5), precision="fp32")
    trainer = Trainer(config, tmp_path)
    batches = trainer.loader.load(0)
    for batch in batches:
        batch.measured[:2] = False
    work = trainer.stage.prepare(batches[0], 0)
    assert (work.t_depth[:2] == 1).all()
    assert (work.t_rgb[:2] > 0).all()
    assert torch.equal(work.depth_t[:2], work.depth_noise[:2])
    assert work.tasks["joint"].tolist() == [True, True, False, False]
    assert work.counts["depth"][:2].tolist() == [0, 0]
    assert trainer.losses(batches, 0).means["rgb"] > 0


def test_self_distillation_adds_the_teacher(configs, tmp_path):
    forcing = ForcingConfig(distill_high=1.0, distill_low=0.1)
    trainer = Trainer(replace(configs["forcing"], forcing=forcing, precision="fp32"), tmp_path)
    numbers = measured(trainer)
    means = numbers.means
    assert means["distill"] > 0
    assert numbers.loss == pytest.approx(means["rgb"] + means["depth"] + means["distill"])
    teacher = trainer.stage.teach.model
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    trainer.train_step()
    assert not differing(dict(teacher.state_dict()), before)
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_teacher_asked_at_every_second_step_weighs_twice_there(configs, tmp_path):
    def trainer(every, name):
        forcing = ForcingConfig(distill_high=1.0, distill_low=0.1, distill_every=every)
        return Trainer(replace(configs["forcing"], forcing=forcing, precision="fp32"), tmp_path / name)

    always, seldom = trainer(1, "a"), trainer(2, "b")
    batches = always.loader.load(0)
    every, asked = always.losses(batches, 0).means, seldom.losses(batches, 0)
    assert asked.means["distill"] == pytest.approx(every["distill"])
    assert asked.loss == pytest.approx(every["rgb"] + every["depth"] + 2 * every["distill"])
    alone = seldom.losses(seldom.loader.load(1), 1)
    assert "distill" not in alone.means
    assert alone.loss == pytest.approx(alone.means["rgb"] + alone.means["depth"])


def test_a_run_that_goes_on_from_depth_names_its_teacher(configs, tmp_path):
    """The teacher is the named model's text-to-image part, whether or not that model has depth."""
    first = Trainer(replace(configs["forcing"], steps=1, precision="fp32"), tmp_path / "first")
    first.train_step()
    first.save()
    depth = str(tmp_path / "first")
    forcing = ForcingConfig(distill_high=1.0, distill_low=0.1)
    onward = replace(configs["forcing"], init=depth, precision="fp32")
    with pytest.raises(UserError, match=r"forcing\.teacher=FOLDER"):
        Trainer(replace(onward, forcing=forcing), tmp_path / "none")
    for source in (configs["forcing"].init, depth):
        config = replace(onward, forcing=replace(forcing, teacher=source))
        trainer = Trainer(config, tmp_path / f"onward{len(source)}")
        taught = dict(trainer.stage.teach.model.state_dict())
        weights = load_weights(source)
        assert not differing(taught, {name: weights[name] for name in taught})
        assert not any(name.startswith("depth") for name in taught)
        assert measured(trainer).means["distill"] > 0


def test_images_of_given_depth_can_be_noisier(configs, tmp_path):
    def levels(density):
        forcing = ForcingConfig(p_i2d=0.0, p_d2i=0.5, d2i_density=density)
        config = replace(configs["forcing"], batch=12, forcing=forcing)
        trainer = Trainer(config, tmp_path / density)
        works = [trainer.stage.prepare(trainer.loader.load(step)[0], step) for step in range(8)]
        t_rgb = torch.cat([work.t_rgb for work in works])
        return t_rgb, torch.cat([work.t_depth for work in works]) == 0

    usual, given = levels("logit_normal")
    high, same = levels("plateau")
    assert torch.equal(given, same)
    assert given.any()
    assert torch.equal(usual[~given], high[~given])
    assert high[given].mean() > usual[given].mean()


def test_depth_of_given_images_can_start_as_pure_noise(configs, tmp_path):
    def levels(pure):
        forcing = ForcingConfig(p_i2d=0.5, p_d2i=0.2, i2d_pure=pure)
        trainer = Trainer(replace(configs["forcing"], batch=12, forcing=forcing), tmp_path / str(pure))
        works = [trainer.stage.prepare(trainer.loader.load(step)[0], step) for step in range(8)]
        return torch.cat([work.t_depth for work in works]), torch.cat([work.t_rgb for work in works]) == 0

    usual, given = levels(0.0)
    half, same = levels(0.5)
    assert torch.equal(given, same)
    assert torch.equal(usual[~given], half[~given])
    pure = half[given] == 1
    assert 0.3 < pure.float().mean() < 0.7
    assert torch.equal(usual[given][~pure], half[given][~pure])


def test_the_relative_loss_judges_given_images_alone(configs, tmp_path):
    """Joint samples keep the square, whatever the weight; those with the image given follow it."""
    found = {}
    for weight in (0.0, 0.5, 1.0):
        forcing = ForcingConfig(p_i2d=0.5, p_d2i=0.0, i2d_relative=weight)
        config = replace(configs["forcing"], forcing=forcing, precision="fp32")
        trainer = Trainer(config, tmp_path / str(weight))
        work = trainer.stage.prepare(trainer.loader.load(0)[0], 0)
        with torch.no_grad():
            found[weight] = trainer.stage.terms(trainer.model, work)["depth"]
    given = work.t_rgb == 0
    assert given.any()
    assert not given.all()
    for weight in (0.5, 1.0):
        assert torch.equal(found[weight][~given], found[0.0][~given])
        assert (found[weight][given] != found[0.0][given]).all()
    torch.testing.assert_close(found[0.5][given] * 2, found[1.0][given])


def test_the_relative_loss_is_the_same_for_both_kinds_of_prediction(configs, tmp_path):
    """A velocity head that says the same depth costs the same, where the image is given."""
    config = replace(configs["forcing"], forcing=ForcingConfig(p_i2d=1.0, p_d2i=0.0, i2d_relative=1.0))
    flow = replace(config.model.flow, depth_prediction="velocity")
    velocity = replace(config, model=replace(config.model, flow=flow))
    stages = [Trainer(c, tmp_path / c.model.flow.depth_prediction).stage for c in (config, velocity)]
    trainer = Trainer(config, tmp_path / "loader")
    work = trainer.stage.prepare(trainer.loader.load(0)[0], 0)
    x0 = (work.depth0 + 0.1).clamp(max=1.9)
    t = work.t_depth[:, None, None]
    found = [
        stage._depth_loss(answer, work)[0]
        for stage, answer in zip(stages, (x0, (work.depth_t - x0) / t), strict=True)
    ]
    assert (found[0] > 0).all()
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)


def test_a_frozen_image_model_is_its_own_teacher(configs, tmp_path):
    """No second copy: the student without its depth stream is the text-to-image model, to the bit."""
    rgb = tuple(name.split(".")[0] for name in load_weights(configs["forcing"].init))
    freeze = tuple(sorted({"rgb_double_blocks" if name == "double_blocks" else name for name in rgb}))
    forcing = ForcingConfig(distill_high=1.0, distill_low=0.1)
    own = Trainer(
        replace(configs["forcing"], forcing=forcing, freeze=freeze, precision="fp32"), tmp_path / "a"
    )
    copy = Trainer(replace(configs["forcing"], forcing=forcing, precision="fp32"), tmp_path / "b")
    assert not hasattr(own.stage.teach, "model")
    own.train_step()
    work = own.stage.prepare(own.loader.load(1)[0], 1)
    assert torch.equal(own.stage.teach(own.model, work), copy.stage.teach(copy.model, work))


def test_depth_is_a_mean_over_pixels_or_over_samples(configs, tmp_path):
    """Two samples with the same error, one with few measured pixels: by samples both count the same."""
    found = {}
    for average in ("pixels", "samples"):
        forcing = ForcingConfig(p_i2d=0.0, p_d2i=0.0, depth_average=average)
        config = replace(configs["forcing"], forcing=forcing, precision="fp32")
        trainer = Trainer(config, tmp_path / average)
        work = trainer.stage.prepare(trainer.loader.load(0)[0], 0)
        with torch.no_grad():
            sums = trainer.stage.terms(trainer.model, work)["depth"]
        found[average] = sums, work.counts["depth"]
        pixels = work.valid.flatten(1).sum(dim=1).float()
    assert len(set(pixels.tolist())) > 1
    assert torch.equal(found["pixels"][1], pixels)
    assert torch.equal(found["samples"][1], torch.ones_like(pixels))
    torch.testing.assert_close(found["samples"][0], found["pixels"][0] / pixels)


def test_holes_of_given_depth_are_filled_from_the_nearest_measurement(configs, tmp_path):
    forcing = ForcingConfig(p_i2d=0.2, p_d2i=0.5, d2i_fill="nearest")
    trainer = Trainer(replace(configs["forcing"], forcing=forcing, precision="fp32"), tmp_path)
    for step in range(4):
        work = trainer.stage.prepare(trainer.loader.load(step)[0], step)
        for item, given in enumerate(work.t_depth == 0):
            valid, clean = work.valid[item], work.depth0[item]
            holes = work.depth_t[item][~valid]
            if given:
                assert torch.equal(work.depth_t[item][valid], clean[valid])
                assert set(holes.tolist()) <= set(clean[valid].tolist())
            else:
                assert torch.equal(holes, work.depth_noise[item][~valid])


def test_pictures_whose_depth_is_asked_for_may_lose_their_words_more_often(configs, tmp_path):
    forcing = ForcingConfig(text_dropout=0.0, i2d_text_dropout=1.0, p_i2d=0.5, p_d2i=0.2)
    trainer = Trainer(replace(configs["forcing"], forcing=forcing, precision="fp32"), tmp_path)
    work = trainer.stage.prepare(trainer.loader.load(0)[0], 0)
    empty = (work.text == trainer.encoders.empty_text).flatten(1).all(dim=1).cpu()
    assert work.tasks["i2d"].any() and not work.tasks["i2d"].all()
    assert torch.equal(empty, work.tasks["i2d"])


def test_how_far_depth_tokens_move_the_image_is_measured(configs, tmp_path):
    trainer = Trainer(configs["forcing"], tmp_path)
    shift = trainer.rgb_shift()
    assert 0 < shift < 1
    grown, source = trainer.model.state_dict(), load_weights(configs["forcing"].init)
    assert all(torch.equal(grown[name], value) for name, value in source.items())
