"""Kills, signals, full disks and bad numbers: what was trained is never lost, and all processes agree."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import training_runs as runs
from processes import Crew, together
from safetensors.torch import load_file

from modality_forcing.config import CheckpointConfig, TrainConfig
from modality_forcing.training import state

pytestmark = pytest.mark.slow

KILLS = 30


def checkpoint(config: TrainConfig, **settings) -> TrainConfig:
    return replace(config, checkpoint=CheckpointConfig(**settings))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Everything a checkpoint holds."""
    files = [folder / state.EMA_FILE, *sorted((folder / state.SHARDS).iterdir())]
    return {f"{path.name}:{name}": value for path in files for name, value in load_file(path).items()}


def wait_for(condition, crew: Crew, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, crew.texts()
        assert all(process.is_alive() for process in crew.processes), crew.texts()
        time.sleep(0.002)


def steps_told(run: Path) -> list[str]:
    path = run / "steps"
    return path.read_text().splitlines() if path.exists() else []


def test_thirty_kills_change_nothing(toy, tmp_path):
    """``kill -9`` at random moments, some while a checkpoint is being written; then the run goes on."""
    run, straight = tmp_path / "killed", tmp_path / "straight"
    dice = random.Random(0)
    torn = 0
    for life in range(KILLS):
        config = checkpoint(toy["t2i"], every=1, background=life % 2 == 1)
        crew = Crew(0, runs.run, config, run, True)
        told = len(steps_told(run))
        if life % 5:
            goal = told + dice.randint(1, 4)
            wait_for(lambda goal=goal: len(steps_told(run)) >= goal, crew)
            if life % 5 == 1:  # writing is under way while the folder beside the final one is there
                wait_for(lambda: any(run.glob("checkpoints/.step_*")), crew)
            else:
                time.sleep(dice.uniform(0, 0.1))
        else:  # while it is being built, or just started
            time.sleep(dice.uniform(0, 0.5))
        crew.processes[0].kill()
        assert crew.wait() == [-signal.SIGKILL]
        torn += any(run.glob("checkpoints/.*_*"))
    assert torn >= 3  # of six aimed ones; some renames win the race
    last = state.list_steps(run)[-1]
    assert last > KILLS // 2
    config = checkpoint(replace(toy["t2i"], steps=last + 2), every=1000)
    assert together(0, runs.run, config, run, True)["step"] == last + 2
    assert not list(run.glob("checkpoints/.*"))  # what lay about half written is gone
    assert together(0, runs.run, config, straight)["step"] == last + 2
    killed, whole = (tensors(state.latest(folder)) for folder in (run, straight))
    assert killed.keys() == whole.keys()
    assert [name for name in whole if not torch.equal(killed[name], whole[name])] == []


def test_sigterm_to_one_process_ends_all_after_the_same_step(toy, tmp_path):
    crew = Crew(2, runs.run, toy["t2i"], tmp_path)
    wait_for(lambda: len(steps_told(tmp_path)) > 4, crew)
    os.kill(crew.processes[1].pid, signal.SIGTERM)
    first, second = crew.results()
    assert first == second
    assert state.list_steps(tmp_path) == [first["step"]]
    assert first["step"] < 1000


def test_a_killed_process_ends_the_others_with_a_message(toy, tmp_path):
    crew = Crew(2, runs.run, checkpoint(toy["t2i"], every=2), tmp_path)
    wait_for(lambda: len(state.list_steps(tmp_path)) > 0, crew)
    crew.processes[1].kill()
    assert crew.wait(60) == [1, -signal.SIGKILL]
    assert "LostProcess" in crew.texts()[0]
    assert "--resume goes on from the newest checkpoint" in crew.texts()[0]
    assert state.read_note(state.latest(tmp_path))["step"] == state.list_steps(tmp_path)[-1]


@pytest.mark.parametrize(
    ("size", "background", "where"),
    [
        (0, False, "_write_synced"),
        (0, True, "create_stream"),
        (2, False, "create_stream"),
        (2, True, "create_stream"),
    ],
)
def test_a_full_disk_pauses_and_loses_nothing(size, background, where, toy, tmp_path):
    config = checkpoint(replace(toy["t2i"], steps=6), every=2, keep=9, background=background)
    result = together(size, runs.run_on_a_full_disk, config, tmp_path / "run", 3, where)
    assert any("the disk is full: training waits at step" in text for text in result["said"])
    assert result["steps"][-1] == 6
    assert len(result["steps"]) >= 3 - background  # a background one that failed is made up for a step later
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    straight = together(size, runs.run, config, tmp_path / "straight")
    assert straight["step"] == 6
    mine, other = (tensors(state.latest(tmp_path / name)) for name in ("run", "straight"))
    assert [name for name in other if not torch.equal(mine[name], other[name])] == []


@pytest.mark.parametrize("size", [0, 2])
def test_a_bad_sample_is_skipped_everywhere_and_named(size, toy, tmp_path):
    config = replace(toy["t2i"], optim=replace(toy["t2i"].optim, max_bad_steps=2))
    result = together(size, runs.poisoned, config, tmp_path, "000003", 12)
    assert any(result["skipped"])
    assert result["finite"]
    for skipped, suspects in zip(result["skipped"], result["suspects"], strict=True):
        assert [name.endswith("000003") for name in suspects] == [True] * (1 if skipped else 0)
    if result["error"]:
        assert "2 non-finite steps in a row" in result["error"]
        assert "000003" in result["error"]
        assert "000004" not in result["error"]
