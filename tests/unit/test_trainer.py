"""The training loop at toy size: every stage, resuming to the bit, crashes, bad steps, refusals."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modality_forcing.config import ForcingConfig, OptimConfig, TrainConfig, from_dict
from modality_forcing.errors import UserError
from modality_forcing.presets import TINY
from modality_forcing.training import state
from modality_forcing.training.trainer import MAX_BAD_STEPS, Trainer, finish_autoencoder

STAGES = ["autoencoder", "t2i", "forcing"]


@pytest.fixture(autouse=True)
def _restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(small_cache) -> TrainConfig:
    return TrainConfig(
        stage="autoencoder", steps=4, batch=4, image_size=32, data=str(small_cache), threads=1, log_every=1,
        save_every=100, model=TINY, optim=OptimConfig(warmup=1, decay=0.0, lr=3e-3),
    )  # fmt: skip


@pytest.fixture(scope="module")
def configs(base, tmp_path_factory) -> dict[str, TrainConfig]:
    """A configuration per stage; the later ones start from short runs of the earlier ones."""
    runs = tmp_path_factory.mktemp("runs")
    autoencoder, t2i = runs / "ae", runs / "t2i"
    Trainer(replace(base, steps=2), autoencoder).run()
    finish_autoencoder(base, autoencoder, num_batches=3)
    t2i_config = replace(base, stage="t2i", autoencoder=str(autoencoder))
    Trainer(replace(t2i_config, steps=2), t2i).run()
    return {
        "autoencoder": base,
        "t2i": t2i_config,
        "forcing": replace(t2i_config, stage="forcing", init=str(t2i)),
    }


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Weights, averages and optimizer state."""
    tensors = {f"model.{k}": v.detach().clone() for k, v in trainer.model.state_dict().items()}
    tensors |= {f"ema.{k}": v.clone() for k, v in trainer.ema.shadow.items()}
    for number, optimizer in enumerate(trainer.optimizers):
        for index, entry in optimizer.state_dict()["state"].items():
            tensors |= {f"{number}.{index}.{k}": torch.as_tensor(v).clone() for k, v in entry.items()}
    return tensors


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


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
    config = replace(configs[stage], batch=12, steps=1000, precision="fp32")
    trainer = Trainer(config, tmp_path)
    with torch.no_grad():
        before = trainer.losses(0)["loss"].item()
    for _ in range(25):
        trainer.train_step()
    with torch.no_grad():
        after = trainer.losses(0)["loss"].item()
    assert after < 0.8 * before


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_and_leaves_a_run_folder(stage, configs, tmp_path):
    run = tmp_path / "run"
    rows = []
    last = Trainer(configs[stage], run).run(rows.append)
    assert last == state.latest(run) == run / "checkpoints" / "step_00000004"
    assert from_dict(TrainConfig, json.loads((run / "config.json").read_text())) == configs[stage]
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged] == [1, 2, 3, 4]
    assert logged == rows
    assert all(row["loss"] > 0 and row["lr"] == pytest.approx(3e-3) for row in rows[:3])
    saved = load_file(last / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in saved.values())


def test_latent_statistics_are_measured(configs):
    """With them the latents of the data have mean 0 and variance 1."""
    from modality_forcing.training.trainer import load_autoencoder

    config = configs["t2i"]
    model = load_autoencoder(Path(config.autoencoder), config)
    trainer = Trainer(configs["autoencoder"], Path(config.autoencoder), resume=True)
    with torch.no_grad():
        latents = torch.cat([model.encode(trainer.loader.load(step).images) for step in range(3)])
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(32), atol=1e-4, rtol=0)
    variance = latents.var(dim=(0, 2, 3), correction=0)
    # The eps of the normalisation (1e-4) shows where a channel hardly varies.
    raw = model.encoder.bn.running_var
    torch.testing.assert_close(variance, raw / (raw + 1e-4), atol=1e-3, rtol=0)


def test_only_measured_depth_matters(configs, tmp_path):
    trainer = Trainer(configs["forcing"], tmp_path)
    load = trainer.loader.load

    def corrupted(step: int, kinds: tuple[str, ...] = ()):
        batch = load(step, kinds)
        assert (~batch.measured).any()
        batch.depth = torch.where(batch.measured, batch.depth, 1e6)
        return batch

    with torch.no_grad():
        plain = trainer.losses(0)
        trainer.loader.load = corrupted
        changed = trainer.losses(0)
    assert plain["depth"] > 0
    assert all(torch.equal(plain[name], changed[name]) for name in plain)


@pytest.mark.parametrize(("forcing", "silent"), [({"p_i2d": 1.0, "p_d2i": 0.0}, "rgb"),
                                                 ({"p_i2d": 0.0, "p_d2i": 1.0}, "depth")])  # fmt: skip
def test_a_given_modality_is_not_in_the_loss(forcing, silent, configs, tmp_path):
    config = replace(configs["forcing"], forcing=ForcingConfig(**forcing), precision="fp32")
    losses = Trainer(config, tmp_path).losses(0)
    other = {"rgb": "depth", "depth": "rgb"}[silent]
    assert losses[silent] == 0
    assert losses[other] > 0
    assert torch.equal(losses["loss"].detach(), losses[other])
    assert (losses["i2d_mae"] > 0) == (silent == "rgb")


def test_self_distillation_adds_the_teacher(configs, tmp_path):
    forcing = ForcingConfig(distill_high=1.0, distill_low=0.1)
    trainer = Trainer(replace(configs["forcing"], forcing=forcing, precision="fp32"), tmp_path)
    with torch.no_grad():
        losses = trainer.losses(0)
    assert losses["distill"] > 0
    torch.testing.assert_close(losses["loss"], losses["rgb"] + losses["depth"] + losses["distill"])
    teacher = {k: v.clone() for k, v in trainer.teacher.state_dict().items()}
    trainer.train_step()
    assert not differing(dict(trainer.teacher.state_dict()), teacher)


def test_text_is_dropped_to_the_empty_prompt(configs, tmp_path):
    config = replace(configs["t2i"], forcing=ForcingConfig(text_dropout=1.0))
    text = Trainer(config, tmp_path).text
    tokens = text(["a red ball", "a blue house"], torch.Generator().manual_seed(0))
    assert torch.equal(tokens, text.encode(["", ""]))


class Crash(BaseException):
    """The process dies here: nothing but the operating system runs afterwards."""


def whole(folder: Path) -> bool:
    names = {"model.safetensors", "ema.safetensors", "optimizer_0.safetensors", "state.json"}
    return names <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("survived", [0, 1, 2])
def test_a_crash_while_saving_leaves_the_older_checkpoint(survived, configs, tmp_path, monkeypatch):
    trainer = Trainer(configs["autoencoder"], tmp_path)
    trainer.train_step()
    trainer.save()
    trainer.train_step()
    calls = []

    def dying(tensors, path):
        calls.append(path)
        Path(path).write_bytes(b"half")
        if len(calls) > survived:
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(state, "save_file", dying)
        with pytest.raises(Crash):
            trainer.save()
    assert state.list_steps(tmp_path) == [1]
    assert Trainer(configs["autoencoder"], tmp_path, resume=True).step == 1
    trainer.save()
    assert state.list_steps(tmp_path) == [1, 2]
    assert Trainer(configs["autoencoder"], tmp_path, resume=True).step == 2


def dying_rmtree(path, *args, **kwargs) -> None:
    """Removes one file of a folder, then the process dies."""
    files = sorted(Path(path).glob("*.safetensors"))
    if files:
        files[0].unlink()
        raise Crash


def test_a_crash_while_dropping_an_old_checkpoint_leaves_no_half_one(configs, tmp_path, monkeypatch):
    trainer = Trainer(replace(configs["autoencoder"], keep=1), tmp_path)
    trainer.train_step()
    trainer.save()
    trainer.train_step()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", dying_rmtree)
        with pytest.raises(Crash):
            trainer.save()
    assert all(whole(tmp_path / "checkpoints" / f"step_{step:08d}") for step in state.list_steps(tmp_path))
    assert Trainer(configs["autoencoder"], tmp_path, resume=True).step == 2


def test_saving_a_step_again_never_endangers_it(configs, tmp_path, monkeypatch):
    """A run whose last step is also a multiple of save_every saves it twice."""
    trainer = Trainer(configs["autoencoder"], tmp_path)
    trainer.train_step()
    trainer.save()
    for broken in ("rmtree", "rename"):
        with monkeypatch.context() as patch, contextlib.suppress(Crash):
            if broken == "rmtree":
                patch.setattr(shutil, "rmtree", dying_rmtree)
            else:
                patch.setattr(Path, "rename", lambda *args: (_ for _ in ()).throw(Crash))
            trainer.save()
        assert state.list_steps(tmp_path) == [1]
        assert whole(state.latest(tmp_path))


def test_old_checkpoints_go(configs, tmp_path):
    Trainer(replace(configs["autoencoder"], save_every=1, keep=2), tmp_path).run()
    assert state.list_steps(tmp_path) == [3, 4]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_but_is_counted(where, configs, tmp_path, monkeypatch):
    trainer = Trainer(configs["autoencoder"], tmp_path)
    trainer.train_step()
    before = everything(trainer)
    losses = trainer.losses

    def poisoned(step: int):
        out = losses(step)
        weight = next(trainer.model.parameters()).sum()
        # The second has the value 0 and no gradient there.
        poison = weight * float("nan") if where == "loss" else (weight - weight.detach()).abs().sqrt()
        return out | {"loss": out["loss"] + poison}

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "losses", poisoned)
        trainer.train_step()
        trainer.train_step()
    assert not differing(everything(trainer), before)
    assert (trainer.step, trainer.bad_steps) == (3, 2)
    trainer.train_step()
    assert trainer.bad_steps == 0
    assert differing(everything(trainer), before)
    assert all(torch.isfinite(value).all() for value in everything(trainer).values())


def test_too_many_bad_steps_stop_the_run_and_name_the_samples(configs, tmp_path, monkeypatch):
    trainer = Trainer(replace(configs["autoencoder"], steps=100), tmp_path)
    monkeypatch.setattr(
        trainer, "losses", lambda step: {"loss": next(trainer.model.parameters()).sum() * float("nan")}
    )
    samples = trainer.loader.indices(MAX_BAD_STEPS - 1).tolist()
    with pytest.raises(RuntimeError) as error:
        trainer.run()
    assert str(samples) in str(error.value)
    assert f"step {MAX_BAD_STEPS - 1}" in str(error.value)
    assert not state.list_steps(tmp_path)  # nothing broken is saved


def test_a_bad_step_does_not_spoil_the_log(configs, tmp_path, monkeypatch):
    trainer = Trainer(replace(configs["autoencoder"], log_every=4), tmp_path)
    losses = trainer.losses
    monkeypatch.setattr(
        trainer, "losses",
        lambda step: losses(step) if step != 1 else {k: v * float("nan") for k, v in losses(step).items()},
    )  # fmt: skip
    trainer.run()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    row = json.loads(line, parse_constant=refuse)
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
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(UserError, match="already holds a run"):
        Trainer(configs["autoencoder"], tmp_path)


def test_sigterm_finishes_the_step_and_saves(configs, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    trainer = Trainer(replace(configs["autoencoder"], steps=50), tmp_path)
    trainer.run(lambda row: os.kill(os.getpid(), signal.SIGTERM) if row["step"] == 2 else None)
    assert state.list_steps(tmp_path) == [2]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"autoencoder": ""}, "autoencoder=FOLDER"),
        ({"autoencoder": "nowhere"}, "finish the autoencoder run first"),
        ({"init": "nowhere"}, "no checkpoint"),
        ({"data": "nowhere"}, "no finished chunk"),
        ({"optim": OptimConfig(optimizer="sgd")}, "sgd"),
        ({"init": "", "forcing": ForcingConfig(distill_high=1.0)}, "distill"),
    ],
)
def test_what_cannot_work_is_said_before_training(changes, message, configs, tmp_path):
    with pytest.raises(UserError, match=message):
        Trainer(replace(configs["forcing"], **changes), tmp_path)
