"""Where numbers go: JSON lines survive kills and resumes; the optional sinks get every row or are refused."""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import pytest

from modality_forcing.config import LogConfig, TrainConfig
from modality_forcing.errors import UserError
from modality_forcing.training.sinks import JsonLines, check_sinks, open_sinks, read_log


def test_rows_are_on_disk_at_once(tmp_path):
    sink = JsonLines(tmp_path / "run" / "log.jsonl")
    sink.row(1, {"loss": 0.5})
    sink.row(2, {"loss": float("nan"), "grad_norm": float("inf")})
    text = (tmp_path / "run" / "log.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == [
        {"loss": 0.5, "step": 1},
        {"loss": None, "grad_norm": None, "step": 2},
    ]
    assert "NaN" not in text


def test_a_resumed_log_has_every_step_once(tmp_path):
    path = tmp_path / "log.jsonl"
    first = JsonLines(path)
    for step in (1, 2, 3, 4):
        first.row(step, {"loss": float(step)})
    first.close()
    with path.open("a") as file:
        file.write('{"loss": 5.0, "st')  # killed while it wrote
    second = JsonLines(path, step=2)
    second.row(3, {"loss": 30.0})
    assert [(row["step"], row["loss"]) for row in read_log(path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_first(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"log.{package} is on, but the package {package} is missing"):
        check_sinks(LogConfig(**{package: True}))
    check_sinks(LogConfig())


def test_tensorboard_gets_rows_and_pictures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TrainConfig(log=LogConfig(tensorboard=True))
    sinks = open_sinks(tmp_path, config, 0)
    for step in (1, 2, 3):
        sinks.row(step, {"step": step, "loss": 0.5 * step})
    sinks.picture(2, "samples", np.zeros((8, 12, 3), np.uint8))
    sinks.close()
    sinks = open_sinks(tmp_path, config, 2)
    sinks.row(3, {"step": 3, "loss": 9.0})
    sinks.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5), (2, 1.0), (3, 9.0)]
    (picture,) = events.Images("samples")
    assert (picture.step, picture.width, picture.height) == (2, 12, 8)
    assert [row["loss"] for row in read_log(tmp_path / "log.jsonl")] == [0.5, 1.0, 9.0]


class FakeRun:
    """Stands in for a run of the wandb package: notes what it is told."""

    def __init__(self, **settings):
        self.settings, self.logged, self.finished = settings, [], False

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


def test_weights_and_biases_keeps_the_identity_of_a_run(tmp_path, monkeypatch):
    runs: list[FakeRun] = []

    def init(**settings):
        runs.append(FakeRun(**settings))
        return runs[-1]

    package = types.ModuleType("wandb")
    package.init, package.Image = init, lambda pixels: pixels.shape
    package.__spec__ = types.SimpleNamespace(name="wandb")
    monkeypatch.setitem(sys.modules, "wandb", package)
    config = TrainConfig(steps=7, log=LogConfig(wandb=True))
    for step in (0, 1):
        sinks = open_sinks(tmp_path / "run" / "forcing", config, step)
        sinks.row(step + 1, {"loss": 1.0})
        sinks.picture(step + 1, "samples", np.zeros((8, 12, 3), np.uint8))
        sinks.close()
    assert [run.logged for run in runs] == [
        [(n, {"loss": 1.0}), (n, {"samples": (8, 12, 3)})] for n in (1, 2)
    ]
    assert all(run.finished for run in runs)
    assert runs[0].settings["id"] == runs[1].settings["id"]
    assert runs[0].settings["config"]["steps"] == 7
    assert runs[0].settings["name"] == "run/forcing"
    # Offline or not is the user's choice through that package's own variable.
    assert "mode" not in runs[0].settings
