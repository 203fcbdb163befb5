"""``mf train``: three stages in a row and what comes out, resuming, refusals, dry runs, several processes."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_running import Result, tree
from PIL import Image

from modality_forcing.training.recipes import find_recipe, read_recipe, recipe_folders, recipe_names
from modality_forcing.training.sinks import JsonLines, read_log
from shard_folders import toy_sample, write_samples

Run = Callable[..., Result]
STAGES = ("autoencoder", "t2i", "forcing")
ROOT = Path(__file__).resolve().parents[2]
KNOWN = sorted(path for path in (ROOT / "recipes").rglob("*.json"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve toy samples of 32 x 32."""
    return write_samples(tmp_path_factory.mktemp("shards") / "toy", [toy_sample(i) for i in range(12)])


def recipe(folder: Path, shards: Path, **values: object) -> Path:
    """Three stages of three steps on the toy samples."""
    base = {
        "model": "tiny", "image_size": 32, "batch": 4, "steps": 3, "precision": "fp32", "remember": True,
        "data": str(shards), "log": {"every": 1}, "stages": [{"stage": stage} for stage in STAGES],
    }  # fmt: skip
    path = folder / "three.json"
    path.write_text(json.dumps({**base, **values}))
    return path


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("embreex") is None, reason="the renderer is not installed")
def test_tiny_goes_from_nothing_to_a_model(mf: Run, work: Path) -> None:
    steps = ["autoencoder.steps=30", "t2i.steps=30", "forcing.steps=40", "batch=8", "log.every=10"]
    make = ["make.train.count=16", "make.val.count=3", "log.validation_count=3", "log.sample_steps=2"]
    result = mf("train", "tiny", "--out", "run", *steps, *make)
    assert result.code == 0, result.err
    assert result.out == "run/model\n"
    for stage in STAGES:
        rows = [row for row in read_log(work / "run" / stage / "log.jsonl") if "loss" in row]
        assert [row["step"] for row in rows] == [10, 20, 30, 40][: len(rows)]
        assert rows[-1]["loss"] < 0.9 * rows[0]["loss"], stage
        assert all(
            row["samples_per_s"] > 0 and row["tokens_per_s"] > 0 and row["skipped"] == 0 for row in rows
        )
        grid = np.asarray(Image.open(work / "run" / stage / "samples" / f"step_{rows[-1]['step']:08d}.png"))
        assert grid.std() > 10
        assert f"{stage} {rows[-1]['step']}/{rows[-1]['step']}  loss" in result.err
    (validated,) = [row for row in read_log(work / "run" / "forcing" / "log.jsonl") if "val_abs_rel" in row]
    assert 0 < validated["val_abs_rel"] < 2
    assert 0 <= validated["val_delta1"] <= 1
    # What came out is a model like any other.
    assert mf("joint", "--model", "run/model", "--prompt", "a house", "--out", "joint").code == 0
    picture = next((work / "joint").glob("*/rgb.png"))
    assert mf("i2d", "--model", "run/model", "--image", picture, "--out", "i2d").code == 0
    assert len(list((work / "i2d").glob("*/depth*.npy"))) >= 1
    # Everything is there: the same command has nothing to do, and without --resume it is refused.
    again = mf("train", "tiny", "--out", "run", "--resume", *steps, *make)
    assert again.code == 0
    assert [f"{stage}: finished before" in again.err for stage in STAGES] == [True] * 3
    refused = mf("train", "tiny", "--out", "run", *steps, *make)
    assert (refused.code, len(refused.errors)) == (2, 1)
    assert "--resume" in refused.err


def test_a_refiner_is_the_last_stage_of_a_recipe(mf: Run, work: Path, shards: Path) -> None:
    refiner = {"stage": "refiner", "model": {"refiner": {"widths": [8, 16], "blocks": [1, 2]}}}
    log = {
        "every": 1,
        "sample_every": 3,
        "validate_every": 3,
        "validation": str(shards),
        "validation_count": 2,
    }
    path = recipe(work, shards, stages=[{"stage": stage} for stage in STAGES] + [{**refiner, "log": log}])
    result = mf("train", path, "--out", "run")
    assert result.code == 0, result.err
    assert result.out == "run/model\n"
    rows = read_log(work / "run" / "refiner" / "log.jsonl")
    assert [row["step"] for row in rows if "unrefined" in row] == [1, 2, 3]
    assert rows[0]["depth"] == pytest.approx(rows[0]["unrefined"])
    assert any(0 < row.get("val_abs_rel", 0) < 2 for row in rows)
    config = json.loads((work / "run" / "model" / "config.json").read_text())
    assert config["refiner"] == {"widths": [8, 16], "blocks": [1, 2], "norm_groups": 8}
    grid = work / "run" / "refiner" / "samples" / "step_00000003.png"
    assert mf("i2d", "--model", "run/model", "--image", grid, "--out", "i2d").code == 0
    again = mf("train", path, "--out", "run", "--resume", "refiner.steps=5")
    assert again.code == 0, again.err
    assert "forcing: finished before" in again.err
    assert [row["step"] for row in read_log(work / "run" / "refiner" / "log.jsonl") if "loss" in row][-1] == 5


@pytest.mark.parametrize(("precision", "told"), [("bf16", 1), ("fp32", 0)])
def test_bfloat16_on_a_cpu_without_it_is_pointed_out(
    precision: str, told: int, mf: Run, work: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modality_forcing.cli.train_run.emulates_bfloat16", lambda device: True)
    stages = [{"stage": "autoencoder"}, {"stage": "t2i"}]  # autoencoders compute in float32 on CPUs anyhow
    result = mf("train", recipe(work, shards, stages=stages, steps=1, precision=precision), "--out", "run")
    assert result.code == 0, result.err
    assert result.err.count("t2i: this CPU has no bfloat16 instructions; precision=fp32 is faster") == told
    assert result.err.count("bfloat16") == told


@pytest.mark.slow
def test_a_stopped_run_goes_on_in_its_stage(
    mf: Run, work: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(work, shards)
    row = JsonLines.row

    def stop_in_t2i(self: JsonLines, step: int, values: dict[str, float]) -> None:
        row(self, step, values)
        if step == 2 and self.path.parent.name == "t2i":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(JsonLines, "row", stop_in_t2i)
    stopped = mf("train", path, "--out", "run")
    assert stopped.code == 130
    assert "t2i stopped and saved; the same command with --resume goes on" in stopped.err
    assert not (work / "run" / "forcing").exists()
    assert not (work / "run" / "model").exists()
    monkeypatch.setattr(JsonLines, "row", row)
    resumed = mf("train", path, "--out", "run", "--resume")
    assert resumed.code == 0, resumed.err
    assert "autoencoder: finished before" in resumed.err
    assert "t2i: 1 steps after 2" in resumed.err
    assert [r["step"] for r in read_log(work / "run" / "t2i" / "log.jsonl")] == [1, 2, 3]
    # The run that was never stopped is the same run.
    assert mf("train", path, "--out", "whole").code == 0
    for stage in ("t2i", "forcing"):
        logs = [read_log(work / run / stage / "log.jsonl") for run in ("run", "whole")]
        assert [r["loss"] for r in logs[0]] == pytest.approx([r["loss"] for r in logs[1]], rel=1e-3)


def test_one_stage_runs_in_the_folder_itself(mf: Run, work: Path, shards: Path) -> None:
    path = work / "one.json"
    one = {
        "stage": "autoencoder", "model": "tiny", "image_size": 32, "batch": 4, "steps": 2,
        "data": str(shards), "log": {"sample_every": 1, "validate_every": 2, "validation": str(shards),
                                        "validation_count": 3},
    }  # fmt: skip
    path.write_text(json.dumps(one))
    result = mf("train", path, "--out", "run")
    assert (result.code, result.out) == (0, "run/checkpoints/step_00000002\n")
    assert {"autoencoder.safetensors", "config.json", "log.jsonl"} <= tree(work / "run")
    assert sorted(p.name for p in (work / "run" / "samples").iterdir()) == [
        "step_00000001.png",
        "step_00000002.png",
    ]
    assert [r["step"] for r in read_log(work / "run" / "log.jsonl") if "val_psnr" in r] == [2]


@pytest.mark.parametrize(
    ("values", "assignments", "message"),
    [
        ({"stages": [{"stage": "forcing"}]}, [], "stage forcing: stage forcing needs autoencoder=FOLDER"),
        ({}, ["forcing.stepz=3"], "unknown key forcing.stepz"),
        ({}, ["data=nowhere"], "nowhere is no folder of shards"),
        ({}, ["image_size=40"], "image_size 40"),
        ({}, ["parallel.replicate=2"], "is not the number of processes, 1"),
        ({}, ["t2i.batch=6", "t2i.parallel.accumulate=4"], "it must be a multiple of parallel.accumulate=4"),
        ({}, ["log.validate_every=2"], "log.validation is empty"),
        ({}, ["log.wandb=true"], "the package wandb is missing"),
        ({"make": {"count": 4, "size": 32}}, ["data={run}/data"], "the renderer embreex is missing"),
        ({}, ["autoencoder=./gone"], "autoencoder=./gone does not exist"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_first(
    mf: Run, work: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, values, assignments, message
) -> None:
    for package in ("wandb", "embreex"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("modality_forcing.training.trainer.build", None)  # whoever builds a model fails
    path = recipe(work, shards, **values)
    result = mf("train", path, "--out", "run", *assignments)
    assert result.code == 2
    assert len(result.errors) == 1
    assert message in result.errors[0]
    assert not (work / "run").exists()


def test_wrong_settings_are_refused_without_torch(work: Path, shards: Path) -> None:
    path = recipe(work, shards)
    code = (
        "import sys; from modality_forcing.cli.main import main\n"
        f"code = main(['train', {str(path)!r}, 'forcing.stepz=3'])\n"
        "assert code == 2 and 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_run_that_cannot_go_on_says_why(mf: Run, work: Path) -> None:
    folder = write_samples(work / "bad", [toy_sample(i) for i in range(6)])
    tar = folder / "toy-000000.tar"
    data = bytearray(tar.read_bytes())
    for place in range(len(data) - 8):  # every picture is damaged, the tar is whole
        if data[place : place + 8] == b"\x89PNG\r\n\x1a\n":
            data[place + 1] = 0
    tar.write_bytes(bytes(data))
    path = recipe(work, folder, stages=[{"stage": "autoencoder"}])
    result = mf("train", path, "--out", "run", "data.max_bad=2")
    assert result.code == 1
    assert "samples cannot be read" in result.err.splitlines()[-1]
    assert "Traceback" not in result.err


@pytest.mark.parametrize("path", KNOWN, ids=lambda path: path.relative_to(ROOT / "recipes").as_posix())
def test_dry_run_of_every_recipe(path: Path, mf: Run, work: Path) -> None:
    before = tree(work)
    result = mf("train", path, "--dry-run")
    assert result.code == 0, result.err
    assert tree(work) == before
    plan = read_recipe(path, f"runs/{read_recipe(path, 'x').name}")
    (work / "again.json").write_text(result.out)
    again = read_recipe(work / "again.json", plan.run)
    assert (again.stages, again.make) == (plan.stages, plan.make)
    for stage in plan.stages:
        assert f"{stage.name}: stage {stage.config.stage}, {stage.config.steps:,} steps" in result.err
    for what in ("parameters", "trainable", "tokens per step", "operations per step", "memory per process"):
        assert result.err.count(what) >= len(plan.stages), what


def test_dry_run_says_what_is_missing_and_how_much_there_is(mf: Run, work: Path, shards: Path) -> None:
    path = recipe(work, shards)
    result = mf("train", path, "--dry-run", "forcing.init=./gone")
    assert result.code == 0
    assert f"{shards}: 12 samples" in result.err
    assert "missing here:\n  init=./gone does not exist" in result.err
    assert "nothing is missing here" in mf("train", path, "--dry-run").err


def test_dry_run_counts_for_the_processes_that_are_asked_for(mf: Run, work: Path, shards: Path) -> None:
    def memory(*assignments: str) -> list[float]:
        path = recipe(work, shards, batch=256, image_size=128)
        lines = mf("train", path, "--dry-run", *assignments).err.splitlines()
        return [float(line.split()[3]) for line in lines if "memory per process" in line]

    one, two = memory(), memory("parallel.shard=2")
    assert len(one) == len(two) == 3
    assert all(0.3 * a < b < 0.7 * a for a, b in zip(one, two, strict=True))
    text = mf("train", recipe(work, shards), "--dry-run", "parallel.shard=2").err
    assert "2 (1 x 2: copies x processes per copy), micro-batches of 2; here 1: start with torchrun" in text


def test_dry_run_refuses_an_impossible_mesh(mf: Run, work: Path, shards: Path) -> None:
    result = mf("train", recipe(work, shards), "--dry-run", "parallel.shard=3")
    assert result.code == 2
    assert "stage autoencoder: batch=4 does not split over 3 processes" in result.errors[0]


def test_every_recipe_has_a_name() -> None:
    assert {"tiny", "lowpoly/forcing"} <= set(recipe_names())
    assert all(find_recipe(name).is_file() for name in recipe_names())
    assert ROOT / "recipes" in [folder.resolve() for folder in recipe_folders()]


@pytest.mark.slow
def test_two_processes_make_one_run(mf: Run, work: Path, shards: Path) -> None:
    assert mf("train", recipe(work, shards), "--out", "alone").code == 0
    looking = {"sample_every": 1, "validate_every": 3, "sample_steps": 1, "validation_count": 2}
    path = recipe(work, shards, log={"every": 1, "validation": str(shards), **looking})
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "modality_forcing", "train", str(path), "--out", "run",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "run/model\n"
    assert done.stderr.count("forcing 3/3  loss") == 1
    assert "Warning: FSDP" not in done.stderr
    for stage in STAGES:
        rows, alone = (
            [row for row in read_log(work / run / stage / "log.jsonl") if "loss" in row]
            for run in ("run", "alone")
        )
        assert [row["step"] for row in rows] == [1, 2, 3]
        # Looking at itself after every step, and being two, changed nothing of what was learned.
        assert [r["loss"] for r in rows] == pytest.approx([r["loss"] for r in alone], rel=1e-3)
        assert len(list((work / "run" / stage / "samples").glob("*.png"))) == 3
    assert json.loads((work / "run" / "model" / "config.json").read_text())["name"] == "tiny"
