"""The training loop at toy size in one process: every stage, resuming to the bit, bad steps, refusals."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trainers import differing, everything, measured

from modality_forcing.config import (
    STAGES,
    DataConfig,
    ForcingConfig,
    LogConfig,
    ParallelConfig,
    TrainConfig,
    from_dict,
)
from modality_forcing.errors import UserError
from modality_forcing.training import state
from modality_forcing.training.encoding import load_autoencoder
from modality_forcing.training.trainer import Trainer
from smooth_loss import smooth_refining


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(stage, precision, configs, tmp_path):
    config = replace(configs[stage], precision=precision)
    straight = Trainer(config, tmp_path / "straight")
    rows = [straight.train_step() for _ in range(4)]
    first = Trainer(config, tmp_path / "broken")
    for _ in range(3):
        first.train_step()
    before = everything(first)
    first.save()
    resumed = Trainer(config, tmp_path / "broken", resume=True)
    assert resumed.step == 3
    assert not differing(everything(resumed), before)
    assert resumed.train_step() == rows[3]
    assert not differing(everything(resumed), everything(straight))
    assert differing(everything(resumed), before)


@pytest.mark.parametrize("stage", STAGES)
def test_the_loss_falls_on_one_batch(stage, configs, tmp_path):
    """Twelve samples in one batch; the same noise before and after."""
    config = replace(configs[stage], batch=12, steps=1000, precision="fp32", remember=True)
    trainer = Trainer(config, tmp_path)
    before = measured(trainer).loss
    for _ in range(25):
        trainer.train_step()
    assert measured(trainer).loss < 0.8 * before


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_and_leaves_a_run_folder(stage, configs, tmp_path):
    run = tmp_path / "run"
    rows, calls = [], []
    trainer = Trainer(configs[stage], run)
    last = trainer.run(rows.append, [lambda trainer, step: calls.append((trainer.step, step))])
    assert last == state.latest(run) == run / "checkpoints" / "step_00000004"
    assert from_dict(TrainConfig, json.loads((run / "config.json").read_text())) == configs[stage]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert calls == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert all(row["loss"] > 0 and row["lr"] == pytest.approx(3e-3) for row in rows)
    names = {"grad_norm", "samples_per_s", "tokens_per_s", "eta_s", "skipped", "bad_samples", "seconds"}
    assert all(names <= row.keys() for row in rows)
    assert rows[-1]["eta_s"] == 0
    own = {
        "autoencoder": {"l1", "psnr"},
        "t2i": {"rgb"},
        "forcing": {"rgb", "depth", "rgb_joint", "depth_i2d"},
        "refiner": {"depth", "unrefined"},
    }
    assert own[stage] <= {name for row in rows for name in row}
    assert ("rgb_shift" in rows[0]) == (stage == "forcing")
    saved = load_file(last / state.EMA_FILE)
    assert saved.keys() == dict(trainer.model.named_parameters()).keys()
    assert all(torch.isfinite(value).all() for value in saved.values())
    # Nothing of it is a pickle.
    assert {path.suffix for path in last.rglob("*") if path.is_file()} == {".safetensors", ".json"}


def test_rows_are_means_over_what_counted_since_the_last_one(configs, tmp_path):
    config = replace(configs["forcing"], log=LogConfig(every=4), precision="fp32")
    single = Trainer(config, tmp_path / "a")
    steps = [single.train_step() for _ in range(4)]
    rows = []
    Trainer(config, tmp_path / "b").run(rows.append)
    (row,) = rows
    assert row["loss"] == pytest.approx(sum(step.loss for step in steps) / 4)
    for name in ("rgb", "depth_joint", "depth_i2d"):
        total = sum(step.sums[name] for step in steps) / sum(step.counts[name] for step in steps)
        assert row[name] == pytest.approx(total)
    for name in ("rgb", "depth"):
        parts = [f"{name}_{task}" for task in ("joint", "i2d", "d2i")]
        assert sum(steps[0].sums[part] for part in parts) == pytest.approx(steps[0].sums[name])
        assert sum(steps[0].counts[part] for part in parts) == pytest.approx(steps[0].counts[name])


@pytest.mark.parametrize("stage", STAGES)
def test_micro_batches_change_nothing(stage, configs, tmp_path):
    config = replace(configs[stage], precision="fp32", crop=16 if stage == "autoencoder" else 0)
    whole = Trainer(config, tmp_path / "whole")
    split = Trainer(replace(config, parallel=ParallelConfig(accumulate=4)), tmp_path / "split")
    for _ in range(3):
        with smooth_refining():
            one, four = whole.train_step(), split.train_step()
        assert four.loss == pytest.approx(one.loss, rel=1e-5)
        assert four.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)
        assert four.means == pytest.approx(one.means, rel=1e-4)


def test_latent_statistics_are_measured(configs):
    """With them the latents of the data have mean 0 and variance 1."""
    config = configs["t2i"]
    model = load_autoencoder(Path(config.autoencoder), config)
    trainer = Trainer(configs["autoencoder"], Path(config.autoencoder), resume=True)
    with torch.no_grad():
        latents = torch.cat([model.encode(trainer.loader.load(step)[0].images) for step in range(3)])
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(32), atol=1e-4, rtol=0)
    variance = latents.var(dim=(0, 2, 3), correction=0)
    # The eps of the normalisation (1e-4) shows where a channel hardly varies.
    raw = model.encoder.bn.running_var
    torch.testing.assert_close(variance, raw / (raw + 1e-4), atol=1e-3, rtol=0)


def test_text_is_dropped_to_the_empty_prompt(configs, tmp_path):
    config = replace(configs["t2i"], forcing=ForcingConfig(text_dropout=1.0))
    trainer = Trainer(config, tmp_path)
    text = trainer.stage.prepare(trainer.loader.load(0)[0], 0).text
    assert torch.equal(text, trainer.encoders.empty_text.expand_as(text))


def test_text_dropout_is_as_often_as_asked_for(configs, tmp_path):
    config = replace(configs["t2i"], batch=12, forcing=ForcingConfig(text_dropout=0.25), remember=True)
    trainer = Trainer(config, tmp_path)
    batch = trainer.loader.load(0)[0]
    captions = [trainer.stage.captions(batch, step, torch.ones(len(batch))) for step in range(60)]
    texts = trainer.encoders.text([caption for captions_of_step in captions for caption in captions_of_step])
    dropped = (texts == trainer.encoders.empty_text).flatten(1).all(dim=1).float().mean()
    assert dropped == pytest.approx(0.25, abs=0.06)


def test_averaged_weights_stand_in(configs, tmp_path):
    trainer = Trainer(configs["t2i"], tmp_path)
    trainer.train_step()
    before = everything(trainer)
    with trainer.averaged():
        inside = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        assert all(torch.equal(value, before[f"ema.{name}"]) for name, value in inside.items())
    assert not differing(everything(trainer), before)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_but_is_counted(where, configs, tmp_path, monkeypatch):
    trainer = Trainer(configs["autoencoder"], tmp_path)
    trainer.train_step()
    before = everything(trainer)
    terms = trainer.stage.terms

    def poisoned(model, work):
        out = terms(model, work)
        weight = next(model.parameters()).sum()
        # The second has the value 0 and no gradient there.
        poison = weight * float("nan") if where == "loss" else (weight - weight.detach()).abs().sqrt()
        return out | {"l1": out["l1"] + poison}

    with monkeypatch.context() as patch:
        patch.setattr(trainer.stage, "terms", poisoned)
        assert trainer.train_step().skipped
        assert trainer.train_step().skipped
    assert not differing(everything(trainer), before)
    assert (trainer.step, trainer.skipped, trainer.bad_in_a_row) == (3, 2, 2)
    assert not trainer.train_step().skipped
    assert (trainer.skipped, trainer.bad_in_a_row) == (2, 0)
    assert differing(everything(trainer), before)
    assert all(torch.isfinite(value).all() for value in everything(trainer).values())


@pytest.mark.parametrize("where", ["one sample", "gradient"])
def test_too_many_bad_steps_stop_the_run_and_name_the_samples(where, configs, tmp_path, monkeypatch):
    optim = replace(configs["autoencoder"].optim, max_bad_steps=3)
    trainer = Trainer(replace(configs["autoencoder"], steps=100, optim=optim), tmp_path)
    terms = trainer.stage.terms

    def poisoned(model, work):
        out = terms(model, work)
        weight = next(model.parameters()).sum()
        if where == "gradient":
            return out | {"l1": out["l1"] + (weight - weight.detach()).abs().sqrt()}
        spoilt = torch.tensor([slot == 1 for slot in work.batch.slots])
        return out | {"l1": torch.where(spoilt, float("nan"), out["l1"])}

    monkeypatch.setattr(trainer.stage, "terms", poisoned)
    with pytest.raises(RuntimeError) as error:
        trainer.run()
    text = str(error.value)
    assert "3 non-finite steps in a row, the last at step 2" in text
    ids = [trainer.loader.load(step)[0].ids for step in range(3)]
    named = {sample for sample in [sample for step in ids for sample in step] if sample in text}
    assert named == ({step[1] for step in ids} if where == "one sample" else set(ids[2]))
    assert not state.list_steps(tmp_path)  # nothing broken is saved


def test_a_bad_step_does_not_spoil_the_log(configs, tmp_path, monkeypatch):
    trainer = Trainer(replace(configs["autoencoder"], log=LogConfig(every=4)), tmp_path)
    terms = trainer.stage.terms

    def poisoned(model, work):
        return {k: v * (float("nan") if trainer.step == 1 else 1.0) for k, v in terms(model, work).items()}

    monkeypatch.setattr(trainer.stage, "terms", poisoned)
    rows = []
    trainer.run(rows.append)
    (row,) = rows
    json.dumps(row, allow_nan=False)
    assert row["loss"] > 0
    assert row["skipped"] == 1


def test_an_existing_run_is_not_overwritten(configs, tmp_path):
    config = configs["autoencoder"]
    trainer = Trainer(config, tmp_path)
    trainer.train_step()
    trainer.save()
    with pytest.raises(UserError, match="already holds a run"):
        Trainer(config, tmp_path)
    assert Trainer(config, tmp_path, resume=True).step == 1


def test_a_run_without_a_checkpoint_yet_is_not_overwritten(configs, tmp_path):
    """Another process may be at it."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="already holds a run"):
        Trainer(configs["autoencoder"], tmp_path)


def test_two_runs_do_not_share_a_folder(configs, tmp_path):
    config = configs["autoencoder"]
    second = Trainer(config, tmp_path)

    def intrude(trainer: Trainer, step: int) -> None:
        with pytest.raises(UserError, match="another process trains"):
            second.run()

    Trainer(config, tmp_path).run(callbacks=[intrude])
    second.run()  # and now it may


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves(number, configs, tmp_path):
    before = signal.getsignal(number)
    trainer = Trainer(replace(configs["autoencoder"], steps=50), tmp_path)
    trainer.run(lambda row: os.kill(os.getpid(), number) if row["step"] == 2 else None)
    assert state.list_steps(tmp_path) == [2]
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"autoencoder": ""}, "autoencoder=FOLDER"),
        ({"autoencoder": "nowhere"}, "finish the autoencoder run first"),
        ({"init": "./nowhere"}, "no checkpoint"),
        ({"data": DataConfig.from_text("nowhere")}, "nowhere"),
        ({"freeze": ("wings",)}, "wings"),
        ({"init": "", "forcing": ForcingConfig(distill_high=1.0)}, "distill"),
        ({"parallel": ParallelConfig(replicate=2)}, "number of processes, 1; start 2 with torchrun"),
        ({"parallel": ParallelConfig(shard=4)}, "number of processes, 1; start 4 with torchrun"),
        ({"parallel": ParallelConfig(shard=1)}, None),
    ],
)
def test_what_cannot_work_is_said_before_training(changes, message, configs, tmp_path):
    config = replace(configs["forcing"], **changes)
    if message is None:
        Trainer(config, tmp_path)
        return
    with pytest.raises(UserError, match=message):
        Trainer(config, tmp_path)
