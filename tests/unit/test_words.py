"""A judge of colours says of pictures of the model's own whether they show what their captions name."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from trainers import differing, everything, measured, small_refiner

from modality_forcing.codecs.image import decode_image
from modality_forcing.config import DataConfig, ForcingConfig, ParallelConfig, SourceConfig
from modality_forcing.data.lowpoly.colours import OBJECTS, SIDE, ColourClassifier, save_colours
from modality_forcing.data.lowpoly.networks import EMBEDDED
from modality_forcing.data.lowpoly.scene import COLOUR_NAMES
from modality_forcing.errors import UserError
from modality_forcing.flow.schedule import joint_schedule
from modality_forcing.training.painting import expected_pictures
from modality_forcing.training.trainer import Trainer
from modality_forcing.training.words import FEW_CELLS, UNLIKELY, named_once, unlikeliness
from shard_folders import toy_sample, write_samples

NAMED = "a red chair and a blue sofa"


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("judge")
    save_colours(ColourClassifier(), folder, {})
    return folder


@pytest.fixture(scope="module")
def config(configs, judge, tmp_path_factory):
    """Text alone is given; half of the captions name colours, and their pictures are the model's own."""
    captions = [(NAMED,) if i % 2 else (f"sample {i}",) for i in range(12)]
    samples = [replace(toy_sample(i), captions=texts) for i, texts in enumerate(captions)]
    shards = write_samples(tmp_path_factory.mktemp("words"), samples)
    run = configs["refiner"].init
    forcing = ForcingConfig(
        p_i2d=0.0, p_d2i=0.0, text_dropout=0.0, judge=str(judge), worded=1.0, word_weight=0.5, painted_steps=4
    )
    data = DataConfig(sources=(SourceConfig(str(shards)),))
    return replace(configs["forcing"], init=run, data=data, forcing=forcing, precision="fp32")


def with_forcing(config, **changes):
    return replace(config, forcing=replace(config.forcing, **changes))


def prepared(trainer, step=0):
    return trainer.stage.prepare(trainer.loader.load(step)[0], step)


def asked(trainer, work):
    inputs = [work.rgb_t, work.depth_t, work.text, work.rope, work.t_rgb, work.t_depth]
    return trainer.model(*inputs)


# -- what is named, and how unlikely it is -----------------------------------------------------------------


def test_things_of_several_colours_are_left_out():
    assert named_once("a red chair, a green chair, a blue couch") == [("sofa", "blue")]
    assert named_once("a red chair beside a red chair") == [("chair", "red")]
    assert named_once("") == []


def test_a_thing_that_shows_in_its_colour_is_likely():
    things, hues = torch.zeros(1 + len(OBJECTS), 8, 8), torch.zeros(len(COLOUR_NAMES), 8, 8)
    things[0] = 6.0
    chair, red, blue = 1 + OBJECTS.index("chair"), COLOUR_NAMES.index("red"), COLOUR_NAMES.index("blue")
    things[chair, :4, :4], hues[red, :4, :4] = 12.0, 9.0
    wanted = unlikeliness(things, hues, [("chair", "red")])
    assert 0 <= wanted < 0.1
    assert unlikeliness(things, hues, [("chair", "blue")]) > 5
    missing = unlikeliness(things, hues, [("boat", "red")])
    assert 3 < missing < 0.5 - math.log(UNLIKELY)  # not there at all: bounded
    both = unlikeliness(things, hues, [("chair", "red"), ("boat", "red")])
    torch.testing.assert_close(both, (wanted + missing) / 2)
    hues[blue, :4, :2] = 20.0  # half of it is blue
    assert wanted < unlikeliness(things, hues, [("chair", "red")])


def test_how_unlikely_by_hand():
    draws = torch.Generator().manual_seed(1)
    things = torch.randn(1 + len(OBJECTS), 6, 6, generator=draws)
    hues = torch.randn(len(COLOUR_NAMES), 6, 6, generator=draws)
    chance, tint = torch.softmax(things, 0)[1 + OBJECTS.index("rug")], torch.softmax(hues, 0)
    most = sorted(chance.flatten().tolist())[-FEW_CELLS:]
    colour = (chance * tint[COLOUR_NAMES.index("teal")].log()).sum() / (1 + chance.sum())
    expected = -torch.tensor(sum(most) / len(most) + UNLIKELY).log() - colour
    torch.testing.assert_close(unlikeliness(things, hues, [("rug", "teal")]), expected)


# -- pictures that the model paints of text alone ----------------------------------------------------------


def test_a_worded_sample_is_the_samplers_state_at_the_node(config, tmp_path):
    sampler = replace(
        config.model.sampler, guidance=3.0, guidance_d2i=7.0, guidance_depth=4.0, guide_image_only=True,
        log2_alpha=3.0,
    )  # fmt: skip
    trainer = Trainer(replace(config, model=replace(config.model, sampler=sampler)), tmp_path)
    work = prepared(trainer)
    items = work.worded
    assert 1 <= work.word_node < 4 and 0 < len(items) < len(work.rgb0)
    assert [bool(work.pairs[i]) for i in range(4)] == [i in items.tolist() for i in range(4)]
    others = torch.tensor([i for i in range(4) if i not in items.tolist()])
    before = work.rgb_t.clone(), work.depth_t.clone()
    trainer.stage.words.paint(trainer.model, work)
    torch.testing.assert_close(work.rgb_t[others], before[0][others], rtol=0, atol=0)
    torch.testing.assert_close(work.depth_t[others], before[1][others], rtol=0, atol=0)
    nodes = joint_schedule(4, config.model.flow, log2_alpha=3.0)
    assert torch.equal(work.t_rgb[items], nodes.rgb[work.word_node].expand(len(items)))
    assert torch.equal(work.t_depth[items], nodes.depth[work.word_node].expand(len(items)))
    x, y = work.rgb_noise[items], work.depth_noise[items]
    text, null = work.text[items], trainer.encoders.empty_text.expand(len(items), -1, -1)
    kind, flow = config.model.flow.depth_prediction, config.model.flow
    with torch.no_grad():
        path = list(zip(nodes.rgb, nodes.depth, strict=True))[: work.word_node + 1]
        for (t, u), (s, v) in pairwise(path):
            at = [level.expand(len(x)) for level in (t, u)]
            full, depth = trainer.model(x, y, text, work.rope, *at)
            wordless = trainer.model(x, y, null, work.rope, *at)[0]
            x = x + (s - t) * (wordless + 3 * (full - wordless))
            speed = depth if kind == "velocity" else (y - depth) / u.clamp_min(flow.t_min)
            y = y + (v - u) * speed
    torch.testing.assert_close(work.rgb_t[items], x, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(work.depth_t[items], y, rtol=1e-3, atol=1e-4)


def test_of_a_worded_sample_only_the_words_count(config, tmp_path):
    trainer, seen = Trainer(with_forcing(config, worded=0.5, p_i2d=0.3, p_d2i=0.3), tmp_path), 0
    for step in range(8):
        work = prepared(trainer, step)
        worded = torch.zeros(4).bool().index_fill(0, work.worded, True)
        assert torch.equal(work.counts["words"] > 0, worded)
        assert torch.equal(work.counts["rgb"] > 0, (work.t_rgb > 0) & ~worded)
        assert not (work.counts["depth"][worded] > 0).any() and not work.valid[worded].any()
        assert not (worded & ((work.t_rgb == 0) | (work.t_depth == 0))).any()
        assert all(work.captions[i] == NAMED for i in work.worded.tolist())
        seen += int(worded.sum())
    assert 0 < seen < 12
    numbers = measured(Trainer(config, tmp_path / "all"))
    rest = 0.5 * numbers.means["words"] + numbers.means["rgb"] + numbers.means["depth"]
    assert numbers.loss == pytest.approx(rest, rel=1e-5)


def test_what_lost_its_caption_is_not_judged(config, tmp_path):
    work = prepared(Trainer(with_forcing(config, text_dropout=1.0), tmp_path))
    assert not len(work.worded) and not work.counts["words"].any()


def test_the_judge_sees_the_decoded_picture(config, tmp_path):
    trainer = Trainer(config, tmp_path)
    work = prepared(trainer)
    words = trainer.stage.words
    words.paint(trainer.model, work)
    with torch.no_grad():
        velocity = asked(trainer, work)[0].float()
        found = words.loss(expected_pictures(velocity, work, trainer.encoders.autoencoder), work)
        clean = work.rgb_t - work.t_rgb[:, None, None] * velocity
        side = work.batch.images.shape[-1] // trainer.encoders.autoencoder.config.downscale
        images = decode_image(trainer.encoders.autoencoder, clean, side, side)
        grown = images.repeat_interleave(SIDE // 32, -1).repeat_interleave(SIDE // 32, -2)
        answers = zip(*words.judge(grown), strict=True)
    for i, (things, hues) in enumerate(answers):
        expected = unlikeliness(things, hues, work.pairs[i]) if i in work.worded.tolist() else 0.0
        torch.testing.assert_close(found[i], torch.as_tensor(expected), rtol=1e-3, atol=1e-4)


def test_pictures_of_given_depth_are_judged_too(config, tmp_path):
    reading = {"reader": config.init, "d2i_read": 1.0, "cycle_weight": 1.0, "painted": 1.0}
    trainer = Trainer(with_forcing(config, p_d2i=1.0, worded=0.0, **reading), tmp_path)
    work = prepared(trainer)
    assert len(work.painted) == 4 and not len(work.worded)
    assert (work.counts["words"] > 0).tolist() == [bool(pairs) for pairs in work.pairs]
    assert measured(trainer).means["words"] > 0


def test_both_judges_see_the_pictures_of_their_samples(config, tmp_path):
    """Given depth and text alone in one batch: each sample's losses are those of its own decoded picture."""
    reading = {"reader": config.init, "d2i_read": 1.0, "cycle_weight": 1.0, "painted": 1.0}
    trainer = Trainer(with_forcing(config, p_d2i=0.5, **reading), tmp_path)
    words, cycle = trainer.stage.words, trainer.stage.cycle
    cycle.reader.refiner = small_refiner()
    works = (prepared(trainer, step) for step in range(20))
    work = next(w for w in works if len(w.painted) > 1 and len(w.worded) and w.painted.max() > w.worded.min())
    with torch.no_grad():
        velocity = torch.randn(work.rgb_t.shape, generator=torch.Generator().manual_seed(2))
        pictures = expected_pictures(velocity, work, trainer.encoders.autoencoder)
        named, drawn = words.loss(pictures, work), cycle.loss(velocity, pictures, work)
        for i in range(len(velocity)):
            clean = work.rgb_t[[i]] - work.t_rgb[i] * velocity[[i]]
            side = work.batch.images.shape[-1] // trainer.encoders.autoencoder.config.downscale
            image = decode_image(trainer.encoders.autoencoder, clean, side, side)
            things, hues = words.judge(
                image.repeat_interleave(SIDE // 32, -1).repeat_interleave(SIDE // 32, -2)
            )
            expected = unlikeliness(things[0], hues[0], work.pairs[i]) if work.pairs[i] else torch.zeros(())
            torch.testing.assert_close(named[i], expected, rtol=1e-3, atol=1e-4)
            sharp = cycle.reader.refined(cycle._ask(clean, work, torch.tensor([i])), image)
            expected = cycle.reader.difference(sharp, work.depth0[[i]])[0]
            expected = expected if i in work.painted.tolist() else torch.zeros(())
            torch.testing.assert_close(drawn[i], expected, rtol=1e-3, atol=1e-4)


def test_the_pull_leads_to_what_is_named(config, tmp_path):
    """Followed by the velocity itself: an untrained model promises nothing."""
    trainer = Trainer(with_forcing(config, judge=str(EMBEDDED)), tmp_path)
    words, work = trainer.stage.words, prepared(trainer)
    velocity = torch.zeros_like(work.rgb_t).requires_grad_()
    optimizer, found = torch.optim.Adam([velocity], lr=0.1), []
    for _ in range(20):
        optimizer.zero_grad()
        pictures = expected_pictures(velocity, work, trainer.encoders.autoencoder)
        loss = words.loss(pictures, work).sum()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    assert found[-1] < found[0] - 0.02, found
    others = [i for i in range(4) if i not in work.worded.tolist()]
    assert velocity.grad is not None and not velocity.grad[others].any()


def test_words_change_the_painter_and_never_the_judge(config, tmp_path):
    alone = with_forcing(config, judge=str(EMBEDDED), rgb_weight=0.0, depth_weight=0.0)
    trainer = Trainer(alone, tmp_path)
    judge = {name: value.clone() for name, value in trainer.stage.words.judge.state_dict().items()}
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert trainer.train_step().grad_norm > 0
    assert differing(before, trainer.model.state_dict())
    assert not differing(judge, trainer.stage.words.judge.state_dict())


def test_micro_batches_change_nothing(config, tmp_path):
    mixed = with_forcing(config, worded=0.7, p_d2i=0.2)
    whole = Trainer(mixed, tmp_path / "whole")
    parts = Trainer(replace(mixed, parallel=ParallelConfig(accumulate=2)), tmp_path / "parts")
    for _ in range(3):
        a, b = whole.train_step(), parts.train_step()
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
    for name, value in everything(whole).items():
        if name.startswith("model."):
            torch.testing.assert_close(value, everything(parts)[name], rtol=1e-3, atol=1e-4)


# -- wrong input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"word_weight": 1.0, "worded": 0.5}, r"forcing\.word_weight"),
        ({"word_weight": 1.0, "judge": "x"}, r"forcing\.word_weight"),
        ({"word_weight": -1.0, "worded": 0.5, "judge": "x"}, r"forcing\.word_weight is -1\.0; it may not"),
        ({"worded": 0.5}, r"forcing\.worded is 0\.5; it needs forcing\.word_weight"),
        ({"judge": "x"}, r"forcing\.judge is 'x'; it needs forcing\.word_weight"),
        ({"worded": 1.5, "word_weight": 1.0, "judge": "x"}, r"forcing\.worded is 1\.5; right is 0\.\.1"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(UserError, match=message):
        ForcingConfig(**changes)


def test_a_folder_without_a_judge_is_refused(config, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"forcing\.judge is .*empty, which has no colours\.safetensors"):
        Trainer(with_forcing(config, judge=str(tmp_path / "empty")), tmp_path / "run")
