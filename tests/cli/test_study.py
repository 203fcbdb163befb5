"""``mf study``: what it lists, what it refuses at once, a dry run, and a whole study at the smallest size."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_running import Result, tree

Run = Callable[..., Result]
NAMES = ("scaling", "levels", "sparsity", "distillation", "trajectory", "small")
TINY = [
    "scenes=6", "test_scenes=2", "pictures=2", "generated=2", "drift=2", "t2i_steps=2", "forcing_steps=3",
    "seeds=1", "width=8", "batch=2", "image_size=32", "bootstrap=100",
]  # fmt: skip
rendering = pytest.mark.skipif(
    importlib.util.find_spec("embreex") is None, reason="the renderer is not installed"
)


def test_the_list(mf: Run) -> None:
    result = mf("study", "--list")
    assert result.code == 0
    assert tuple(line.split()[0] for line in result.out.splitlines()) == NAMES


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "which study?"),
        (["scalings"], "unknown study"),
        (["scaling"], "--out is missing"),
        (["scaling", "--out", "x", "--scale", "huge"], "--scale"),
        (["scaling", "--out", "x", "colour=1"], "unknown key colour"),
        (["scaling", "--out", "x", "forcing_steps=0"], "forcing_steps"),
        (["scaling", "--out", "x", "--only", "w7*"], "--only"),
        (["scaling", "--out", "x", "--jobs", 0], "--jobs"),
        (["scaling", "--out", "x", "--limit", 0], "--limit"),
        (["scaling", "--out", "x", "--model", "other"], "--model"),
        (["scaling", "--out", "x", "autoencoder=nowhere"], "autoencoder=nowhere"),
        (["trajectory", "--out", "x", "--model", "./nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_refused_in_one_line(words: list[object], reason: str, mf: Run, work: Path) -> None:
    result = mf("study", *words)
    assert (result.code, len(result.errors)) == (2, 1), result.err
    assert reason in result.err
    assert tree(work) == set()


def test_a_dry_run_computes_nothing(mf: Run, work: Path) -> None:
    result = mf("study", "scaling", "--scale", "cpu", "--dry-run", "--jobs", 2)
    assert result.code == 0, result.err
    assert "w32-t2inone-seed0" in result.out and "173,826" in result.out
    assert "25 cells, 9 parts of shared work" in result.out
    assert "estimated for one x86-64 core" in result.out
    assert tree(work) == set()
    few = mf("study", "scaling", "--scale", "cpu", "--dry-run", "--only", "w64*", "--limit", 1)
    assert "1 cells" in few.out


@pytest.mark.slow
@rendering
def test_a_study_goes_on_where_it_was_left_and_computes_nothing_twice(mf: Run, work: Path) -> None:
    words = ["study", "levels", "--out", "it", "--jobs", 1, *TINY]
    first = mf(*words, "--limit", 2)
    assert first.code == 0, first.err
    assert first.out == "it/report.md\n"
    assert "2 of 4 cells" in (work / "it" / "report.md").read_text()
    done = work / "it" / "cells" / "separate-seed0"
    stamp = (done / "result.json").stat().st_mtime_ns
    found = json.loads((done / "result.json").read_text())
    assert found["facts"]["parameters"] == found["facts"]["trainable"] > 0
    assert found["facts"]["forcing_seconds"] > 0 and found["facts"]["text_to_image_seconds"] > 0
    assert found["facts"]["weights_sha256"] and found["versions"]["torch"]
    assert {"depth@1.abs_rel_affine", "control.abs_rel_scale", "joint.fid"} <= found["metrics"].keys()
    assert len(found["pictures"]["depth@2.abs_rel_scale"]) == 2
    by_steps = [found["metrics"][f"depth@{n}.abs_rel_scale"]["mean"] for n in (1, 2)]
    assert by_steps[0] != by_steps[1]
    lines = (work / "it" / "report.md").read_text().splitlines()
    line = next(row for row in lines if row.startswith("| separate-seed0"))
    assert f"| {min(by_steps):.4f} |" in line
    assert str(work) not in json.dumps(found)
    assert not (done / "run" / "checkpoints").exists() and (done / "model" / "config.json").is_file()
    # The rest, then nothing at all.
    assert mf(*words).code == 0
    assert (done / "result.json").stat().st_mtime_ns == stamp
    report = (work / "it" / "report.md").read_text()
    assert "4 of 4 cells" in report and "| claim | rule | seen | verdict |" in report
    rows = json.loads((work / "it" / "rows.json").read_text())
    assert [row["name"] for row in rows["cells"]] == [
        "baseline-mean", "separate-seed0", "shared-seed0", "shared-logit-seed0",
    ]  # fmt: skip
    again = mf(*words)
    assert again.code == 0 and again.errors == []
    refused = mf(*words, "lr=0.1")
    assert (refused.code, len(refused.errors)) == (2, 1)
    assert "lr=0.002" in refused.err


@pytest.mark.slow
@rendering
def test_a_killed_cell_goes_on_from_its_checkpoint(mf: Run, work: Path) -> None:
    """A cell that trained and was not measured is not trained again; neither is a half-trained one."""
    import shutil

    words = ["study", "sparsity", "--out", "it", "--jobs", 1, *TINY, "--only", "*latent-100*"]
    assert mf(*words).code == 0
    cell = work / "it" / "cells" / "random-noise-latent-100-seed0"
    log = (cell / "run" / "log.jsonl").read_bytes()
    weights = (cell / "model" / "transformer.safetensors").read_bytes()
    before = json.loads((cell / "result.json").read_text())
    (cell / "result.json").unlink()
    for rows in cell.glob("depth-*"):
        shutil.rmtree(rows)
    assert mf(*words).code == 0
    assert (cell / "run" / "log.jsonl").read_bytes() == log
    assert (cell / "model" / "transformer.safetensors").read_bytes() == weights
    assert json.loads((cell / "result.json").read_text())["metrics"] == before["metrics"]
