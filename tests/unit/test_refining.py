"""The stage that trains the refiner: what it is given, what stays as it is, what comes out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_monitor import sample
from trainers import everything

from modality_forcing.checkpoint.layouts import open_checkpoint
from modality_forcing.cli.monitor import Monitor, Parts
from modality_forcing.config import LogConfig, RefineConfig, TrainConfig
from modality_forcing.errors import UserError
from modality_forcing.pipeline import Pipeline
from modality_forcing.training import state
from modality_forcing.training.build import load_weights
from modality_forcing.training.estimate import estimate
from modality_forcing.training.export import export_run
from modality_forcing.training.trainer import Trainer


@pytest.fixture(scope="module")
def config(configs) -> TrainConfig:
    return replace(configs["refiner"], precision="fp32", batch=8)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> Path:
    """A run of four steps."""
    run = tmp_path_factory.mktemp("refiner") / "run"
    Trainer(config, run).run()
    return run


def prepared(config: TrainConfig, run: Path, step: int):
    trainer = Trainer(config, run)
    return trainer, trainer.stage.prepare(trainer.loader.load(step // 2)[0], step)


def test_a_batch_serves_two_steps_the_second_mirrored(config, tmp_path):
    trainer, first = prepared(config, tmp_path, 2)
    calls = []
    trainer.estimator.register_forward_hook(lambda *_: calls.append(1))
    second = trainer.stage.prepare(first.batch, 3)
    assert not calls  # the estimate is kept
    for name in ("depth_t", "rgb0"):
        assert torch.equal(getattr(second, name), getattr(first, name).flip(-1))
    assert first.valid.any()
    assert not torch.equal(second.depth0, first.depth0)
    # A mirrored estimate is as far off as it was.
    off = [trainer.stage.terms(trainer.model, work)["unrefined"] for work in (first, second)]
    torch.testing.assert_close(off[0], off[1])
    third = trainer.stage.prepare(trainer.loader.load(2)[0], 4)
    assert calls == [1]
    assert not torch.equal(third.depth_t, first.depth_t)
    batches = [trainer._next_batches()[0] for trainer.step in range(4)]
    assert batches[0] is batches[1]
    assert batches[2] is batches[3]
    assert batches[0].ids != batches[2].ids


def test_what_the_transformer_and_the_refiner_see(config, tmp_path):
    """The caption or none; the image clean or noisy, and as it is or as the autoencoder returns it."""
    refine = RefineConfig(wordless=1.0, decoded=0.0, unclean=0.0)
    trainer, work = prepared(replace(config, refine=refine), tmp_path, 0)
    torch.testing.assert_close(work.rgb0, work.batch.images)
    words = replace(refine, wordless=0.0)
    _, with_words = prepared(replace(config, refine=words), tmp_path / "words", 0)
    assert not torch.equal(with_words.depth_t, work.depth_t)
    _, noisy = prepared(replace(config, refine=replace(refine, unclean=1.0)), tmp_path / "noisy", 0)
    assert not torch.equal(noisy.depth_t, work.depth_t)
    _, decoded = prepared(replace(config, refine=replace(refine, decoded=1.0)), tmp_path / "decoded", 0)
    assert torch.equal(decoded.depth_t, work.depth_t)
    assert not torch.equal(decoded.rgb0, work.rgb0)
    assert decoded.rgb0.abs().max() <= 1
    model = load_weights(config.init)
    for name, value in trainer.estimator.state_dict().items():
        assert torch.equal(value, model[name])


def test_a_velocity_becomes_depth(config, tmp_path):
    _, clean = prepared(config, tmp_path / "x0", 0)
    flow = replace(config.model.flow, depth_prediction="velocity")
    _, moved = prepared(replace(config, model=replace(config.model, flow=flow)), tmp_path / "v", 0)
    noise = clean.depth_t + moved.depth_t  # noise - prediction + prediction
    assert abs(float(noise.mean())) < 0.1
    assert float(noise.std()) == pytest.approx(1, abs=0.1)


def test_only_the_refiner_learns(config, tmp_path):
    trainer = Trainer(config, tmp_path)
    before = {name: value.clone() for name, value in trainer.estimator.state_dict().items()}
    begin = everything(trainer)
    rows = [trainer.train_step() for _ in range(5)]
    assert rows[0].means["depth"] == pytest.approx(rows[0].means["unrefined"])  # it begins as the identity
    assert rows[1].means["depth"] != pytest.approx(rows[1].means["unrefined"])
    for name, value in trainer.model.state_dict().items():
        assert not torch.equal(value, begin[f"model.{name}"])
    for name, value in trainer.estimator.state_dict().items():
        assert torch.equal(value, before[name])


def test_its_model_has_both_and_is_a_start(config, finished, tmp_path):
    folder = export_run(finished, tmp_path / "model")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config.refiner == config.model.refiner
    weights = load_file(state.latest(finished) / state.EMA_FILE)
    for name, value in checkpoint.load_refiner().state_dict().items():
        assert torch.equal(value, weights[name])
    transformer = load_weights(config.init)
    for source in (folder, finished):  # a refiner's run stands for its transformer
        for name, value in load_weights(source).items():
            assert torch.equal(value, transformer[name])
    assert Pipeline.from_pretrained(folder).refiner is not None
    deeper = replace(config.model.refiner, blocks=(1, 2, 1, 2))
    onward = replace(config, model=replace(config.model, refiner=deeper))
    for number, source in enumerate((folder, finished)):
        trainer = Trainer(replace(onward, refine=RefineConfig(start=str(source))), tmp_path / str(number))
        mine = trainer.model.state_dict()
        assert all(torch.equal(mine[name], value) for name, value in weights.items())
    shallow = replace(config.model.refiner, blocks=(1, 1, 1, 1))
    less = replace(
        config, model=replace(config.model, refiner=shallow), refine=RefineConfig(start=str(folder))
    )
    with pytest.raises(UserError, match=r"refine\.start=.*right is as wide and no deeper"):
        Trainer(less, tmp_path / "less")
    # What trains on from such a model is a model without one.
    forcing = replace(config, stage="forcing", init=str(folder), steps=1)
    Trainer(forcing, tmp_path / "forcing").run()
    assert open_checkpoint(export_run(tmp_path / "forcing", tmp_path / "plain")).config.refiner is None


def test_a_start_without_a_refiner_is_refused(config, tmp_path):
    for source in (config.init, export_run(config.init, tmp_path / "plain")):
        with pytest.raises(UserError, match="has no refiner"):
            Trainer(replace(config, refine=RefineConfig(start=str(source))), tmp_path / "run")


def test_a_transformer_of_other_sizes_is_refused(config, tmp_path):
    less = replace(config.model.transformer, num_single_blocks=config.model.transformer.num_single_blocks - 1)
    with pytest.raises(UserError, match=r"init=.* does not fit the model"):
        Trainer(replace(config, model=replace(config.model, transformer=less)), tmp_path)


def test_validation_refines(config, finished):
    log = LogConfig(validate_every=1, validation="somewhere", sample_steps=1)
    trainer = Trainer(replace(config, steps=5), finished, resume=True)
    with torch.no_grad():  # as after longer training
        torch.nn.init.normal_(trainer.model.conv_out.weight, std=0.05)
    monitor = Monitor(replace(config, log=log), [sample(i) for i in range(2)])
    encoders = trainer.encoders
    both = Parts(trainer.model, encoders.autoencoder, encoders.text, trainer.estimator)
    alone = Parts(trainer.estimator, encoders.autoencoder, encoders.text)
    refined, plain = monitor.validate(both), monitor.validate(alone)
    assert refined.keys() == plain.keys()
    assert refined["val_abs_rel"] != pytest.approx(plain["val_abs_rel"])
    assert np.isfinite(list(refined.values())).all()
    assert monitor.draw(both).shape == monitor.draw(alone).shape


def test_what_it_takes_is_known_before(config, tmp_path):
    found = estimate(config)
    trainer = Trainer(config, tmp_path)
    assert found.total.trainable == sum(p.numel() for p in trainer.model.parameters())
    numbers = sum(p.numel() for p in trainer.estimator.parameters())
    assert found.memory.teacher == 4 * numbers
    half = estimate(replace(config, batch=4))
    assert half.step_flops == pytest.approx(found.step_flops / 2)
    assert half.memory.activations == pytest.approx(found.memory.activations / 2)
    kept = []
    work = trainer.stage.prepare(trainer.loader.load(0)[0], 0)
    own = {p.data_ptr() for p in trainer.model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trainer.model(work.depth_t, work.rgb0)
    assert found.memory.activations == pytest.approx(sum(kept), rel=0.1)
