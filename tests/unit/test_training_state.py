"""Checkpoints of a run: whole or not there, kept as asked, refused when they do not fit, plain to read."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modality_forcing.config import (
    CheckpointConfig,
    DataConfig,
    LogConfig,
    LoraConfig,
    OptimConfig,
    SourceConfig,
    TrainConfig,
)
from modality_forcing.errors import UserError
from modality_forcing.presets import TINY
from modality_forcing.training import saver, state
from modality_forcing.training.build import load_weights, weight_names
from modality_forcing.training.signals import Signals
from modality_forcing.training.trainer import Trainer


@pytest.fixture(scope="module")
def config(small_shards) -> TrainConfig:
    """The autoencoder stage: convolutions in channels-last order, buffers, two optimizers."""
    return TrainConfig(
        stage="autoencoder", steps=4, batch=2, image_size=32, crop=16, threads=1, model=TINY,
        data=DataConfig(sources=(SourceConfig(str(small_shards)),)), log=LogConfig(every=1),
        checkpoint=CheckpointConfig(every=100), optim=OptimConfig(warmup=1, decay=0.0, lr=1e-3),
    )  # fmt: skip


def kept(config: TrainConfig, **settings) -> TrainConfig:
    return replace(config, checkpoint=CheckpointConfig(**settings))


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    tensors = state.state_tensors(trainer.model, trainer.ema, trainer.optimizers)
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def stepped(config: TrainConfig, run: Path, steps: int = 1) -> Trainer:
    trainer = Trainer(config, run)
    for _ in range(steps):
        trainer.train_step()
    return trainer


class Crash(BaseException):
    """The process dies here: nothing but the operating system runs afterwards."""


@pytest.mark.parametrize("where", ["_save_shards", "_gather_averages", "_write_synced", "_sync_folder"])
def test_a_crash_while_saving_leaves_the_older_checkpoint(where, config, tmp_path, monkeypatch):
    trainer = stepped(config, tmp_path)
    trainer.save()
    trainer.train_step()

    def dying(*args):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(state, where, dying)
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)  # a dead process does not tidy up
        with pytest.raises(Crash):
            trainer.save()
    assert state.list_steps(tmp_path) == [1]
    assert (tmp_path / "checkpoints" / ".step_00000002").exists() == (where != "_save_shards")
    again = Trainer(config, tmp_path, resume=True)
    assert again.step == 1
    trainer.save()
    assert state.list_steps(tmp_path) == [1, 2]
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_crash_while_dropping_an_old_checkpoint_leaves_no_half_one(config, tmp_path, monkeypatch):
    trainer = stepped(kept(config, keep=1), tmp_path)
    trainer.save()
    trainer.train_step()
    rmtree = shutil.rmtree

    def dying(path, *args, **kwargs):
        if Path(path).is_dir() and ".old_" in str(path):
            (Path(path) / state.EMA_FILE).unlink()
            raise Crash
        rmtree(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", dying)
        with pytest.raises(Crash):
            trainer.save()
    assert state.list_steps(tmp_path) == [2]
    assert Trainer(config, tmp_path, resume=True).step == 2
    state.clean(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000002"]


def test_the_newest_and_every_so_many_stay(config, tmp_path):
    Trainer(kept(replace(config, steps=7), every=1, keep=2, keep_every=3), tmp_path).run()
    assert state.list_steps(tmp_path) == [3, 6, 7]


def test_saving_a_step_again_never_endangers_it(config, tmp_path, monkeypatch):
    """A run whose last step is also one that is due saves it twice."""
    trainer = stepped(config, tmp_path)
    first = trainer.save()
    written = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    monkeypatch.setattr(state, "write", lambda *args: pytest.fail("written again"))
    assert trainer.save() == first
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == written


def test_a_background_checkpoint_is_of_its_own_step(config, tmp_path, monkeypatch):
    """What trains on while a thread writes does not reach the file."""
    trainer = stepped(kept(config, background=True), tmp_path)
    go = threading.Event()
    write = state.write
    monkeypatch.setattr(state, "write", lambda *args: go.wait(30) and write(*args))
    mine = saver.Saver(tmp_path, trainer.config.checkpoint, trainer.world, print)
    before = everything(trainer)
    mine.begin(1, trainer._tensors, trainer.note())
    trainer.train_step()
    assert mine.running
    assert mine.pending
    go.set()
    assert mine.settle()
    resumed = Trainer(config, tmp_path, resume=True)
    assert resumed.step == 1
    after = everything(resumed)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not all(torch.equal(value, before[name]) for name, value in everything(trainer).items())


def test_large_states_are_split_into_files(config, tmp_path, monkeypatch):
    monkeypatch.setattr(state, "LARGEST_FILE", 50_000)
    trainer = stepped(config, tmp_path)
    before = everything(trainer)
    folder = trainer.save()
    assert len(list((folder / state.SHARDS).iterdir())) > 5
    after = everything(Trainer(config, tmp_path, resume=True))
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_averages_are_a_plain_file(config, tmp_path):
    trainer = stepped(config, tmp_path, 2)
    folder = trainer.save()
    plain = load_file(folder / state.EMA_FILE)
    assert plain.keys() == trainer.ema.shadow.keys()
    assert all(torch.equal(plain[name], value) for name, value in trainer.ema.shadow.items())
    assert not any(torch.equal(value, dict(trainer.model.named_parameters())[name].detach())
                   for name, value in list(plain.items())[:3])  # fmt: skip
    assert load_weights(tmp_path).keys() == plain.keys() == weight_names(tmp_path)


def test_frozen_weights_are_stored_once_and_come_back(config, tmp_path):
    config = replace(config, freeze=("encoder.conv_in",))
    trainer = stepped(config, tmp_path)
    frozen = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    assert len(frozen) == 2
    folder = trainer.save()
    stored = [name for path in (folder / state.SHARDS).iterdir() for name in load_file(path)]
    assert not any(name in entry for name in frozen for entry in stored)
    resumed = Trainer(config, tmp_path, resume=True).model
    assert all(torch.equal(resumed.state_dict()[name], value) for name, value in frozen.items())


def disk_full(*args) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "disk")


def test_a_full_disk_is_waited_for_until_the_end_is_asked_for(config, tmp_path, monkeypatch):
    monkeypatch.setattr(saver, "RETRY_SECONDS", 0.01)
    trainer = stepped(config, tmp_path)
    trainer.save()
    trainer.train_step()
    signals, said = Signals(), []

    def notice(text: str) -> None:
        said.append(text)
        signals.stopped = len(said) == 3

    monkeypatch.setattr(state, "_write_synced", disk_full)
    with pytest.raises(UserError, match=r"the disk is full: step 2 .* the newest checkpoint is of step 1"):
        trainer.save(signals, notice)
    assert len(said) == 3
    assert "training waits at step 2" in said[0]
    assert "SIGUSR1" in said[0]
    assert state.list_steps(tmp_path) == [1]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]


def test_another_fault_of_the_disk_is_not_waited_for(config, tmp_path, monkeypatch):
    trainer = stepped(config, tmp_path)

    def refuse(*args) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "disk")

    monkeypatch.setattr(state, "_write_synced", refuse)
    with pytest.raises(RuntimeError, match="could not be written: Read-only file system"):
        trainer.save()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optim": OptimConfig(optimizer="adamw")}, "optim.optimizer was 'muon' and is 'adamw'"),
        ({"lora": LoraConfig(rank=2)}, "lora.rank was 0 and is 2"),
        ({"freeze": ("encoder",)}, "freeze was"),
        ({"stage": "t2i"}, "stage was 'autoencoder' and is 't2i'"),
        ({"model": replace(TINY, autoencoder=replace(TINY.autoencoder, z_channels=4))}, "z_channels was 8"),
    ],
)
def test_other_settings_are_refused_by_name(changes, named, config, tmp_path):
    stepped(config, tmp_path).save()
    with pytest.raises(UserError, match="made with other settings") as error:
        Trainer(replace(config, **changes), tmp_path, resume=True)
    assert named in str(error.value)


def test_what_may_change_may_change(config, tmp_path):
    stepped(config, tmp_path).save()
    other = replace(
        config, steps=99, batch=4, optim=replace(config.optim, lr=1.0, warmup=50), log=LogConfig(every=7)
    )
    assert Trainer(other, tmp_path, resume=True).step == 1


@pytest.mark.parametrize("damage", ["shard", "averages", "note", "missing"])
def test_a_damaged_checkpoint_is_named(damage, config, tmp_path):
    folder = stepped(config, tmp_path).save()
    (shard,) = (folder / state.SHARDS).iterdir()
    path = {
        "shard": shard,
        "averages": folder / state.EMA_FILE,
        "note": folder / state.NOTE,
        "missing": shard,
    }[damage]
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match="step_00000001"):
        Trainer(config, tmp_path, resume=True)


def test_weights_of_the_first_layout_are_still_read(tmp_path):
    """Runs of version 0.1 kept whole files; they serve as ``init``."""
    folder = tmp_path / "checkpoints" / "step_00000003"
    folder.mkdir(parents=True)
    weights = {"img_in.weight": torch.arange(6.0).reshape(2, 3)}
    save_file(weights, folder / "ema.safetensors")
    (folder / "state.json").write_text(json.dumps({"step": 3, "config": {"stage": "t2i"}}))
    assert weight_names(tmp_path) == {"img_in.weight"}
    assert torch.equal(load_weights(tmp_path)["img_in.weight"], weights["img_in.weight"])


def test_a_model_folder_serves_as_init(tiny_model):
    assert weight_names(tiny_model) == set(load_weights(tiny_model))
    assert all(value.dtype == torch.float32 for value in load_weights(tiny_model).values())


def test_nothing_there_is_said():
    with pytest.raises(UserError, match="no checkpoint"):
        weight_names("./nowhere")
