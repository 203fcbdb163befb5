"""``mf eval``: from the command line to tables and files, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_running import Result, tree
from PIL import Image

Run = Callable[..., Result]


@pytest.fixture
def folder(work: Path) -> Path:
    """Three pictures with depth in the generic layout; the second is damaged."""
    root = work / "set"
    root.mkdir()
    entries = []
    for i in range(3):
        rng = np.random.default_rng(i)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(root / f"{i}.png")
        np.save(root / f"{i}.npy", rng.uniform(1, 5, (32, 32)).astype(np.float32))
        entries.append({"name": f"p{i}", "rgb": f"{i}.png", "depth": f"{i}.npy", "caption": "a thing"})
    (root / "1.png").write_bytes(b"no picture")
    (root / "index.json").write_text(json.dumps(entries))
    return root


def test_depth_and_merge(mf: Run, folder: Path, tiny_model: Path) -> None:
    common = ("eval", "depth", "--data", folder, "--model", tiny_model, "--steps", 1, "--device", "cpu")
    done = mf(*common, "--out", "whole", "--alignment", "affine", "--alignment", "scale_lstsq", "--caption")
    assert done.code == 0, done.err
    assert "protocol: moge, data set folder" in done.out and "split: 2 images" in done.out
    assert [line.split()[0] for line in done.out.splitlines()[-3:-1]] == ["affine", "scale_lstsq"]
    (notice,) = done.notices
    assert "p1 could not be measured" in notice and "is text, not an image" in notice
    results = json.loads(Path("whole/results.json").read_text())
    assert (
        results["settings"]["predictor"]["weights_sha256"] and results["settings"]["predictor"]["steps"] == 1
    )
    assert tree(Path("whole")) >= {"rows.jsonl", "report.md", "index.html", "results.json"}

    for i in (1, 2):
        done = mf(*common, "--out", f"part{i}", "--shard", f"{i}/2")
        # The second part holds the damaged picture alone.
        assert done.code == 0 and ("none of the 1 pictures" in done.err) == (i == 2)
    done = mf("eval", "merge", "part1", "part2", "--out", "all")
    assert done.code == 0 and "split: 2 images" in done.out
    assert mf("eval", "merge", "part1", "whole", "--out", "mixed").code == 2
    assert not Path("mixed").exists()


def test_other_predictors_and_protocol(mf: Run, folder: Path) -> None:
    done = mf(
        "eval", "depth", "--data", folder, "--predictor", "constant", "--protocol", "marigold", "--out", "o"
    )
    assert done.code == 0 and "protocol: marigold" in done.out and "affine_lstsq" in done.out
    Path("mine.py").write_text(
        "class Mine:\n    promise = 'disparity'\n    def __call__(self, x): return x[..., 0] + 1.0\n"
    )
    done = mf("eval", "depth", "--data", folder, "--predictor", "mine.py:Mine", "--out", "p")
    assert done.code == 0 and "disparity depth" in done.out
    assert list(json.loads(Path("p/results.json").read_text())["summary"]) == ["disparity"]


def test_parts_on_ray_get_the_options_of_the_whole(
    mf: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modality_forcing.cli import eval_ray

    asked = {}

    def instead(words, parts, out, *, gpus):
        for i in range(1, parts + 1):
            assert eval_ray.run_part([*words, "--shard", f"{i}/{parts}", "--out", str(out / str(i))])[0] == 0
        asked.update(words=words, gpus=gpus)
        return json.loads((out / "1" / "results.json").read_text())

    monkeypatch.setattr(eval_ray, "on_ray", instead)
    Path("mine.py").write_text(
        "class Mine:\n"
        "    def __init__(self, by): self.by = float(by)\n"
        "    def __call__(self, x): return x[..., 0] + self.by\n"
    )
    done = mf(
        "eval", "depth", "-d", folder, "--predictor", "mine.py:Mine", "--predictor-option", "by=3",
        "--caption", "--alignment", "affine", "--alignment", "scale", "--seed", 7, "--ray", 2,
        "--ray-gpus", 0.5, "--out", "r",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert asked["words"] == [
        "--data", str(folder), "--alignment", "affine", "--alignment", "scale", "--caption", "--seed", "7",
        "--predictor", "mine.py:Mine", "--predictor-option", "by=3",
    ]  # fmt: skip
    assert asked["gpus"] == 0.5
    assert json.loads(Path("r/2/settings.json").read_text())["predictor"]["options"] == {"by": "3"}
    common = ("eval", "depth", "--data", folder, "--predictor", "constant", "--ray", 2)
    assert "leave --shard out" in mf(*common, "--shard", "1/2").err


def test_ray_that_is_missing(mf: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    done = mf("eval", "depth", "--data", folder, "--predictor", "constant", "--ray", 2, "--out", "r")
    assert done.code == 2 and "pip install ray" in done.err


def test_joint_and_control(mf: Run, folder: Path, tiny_model: Path) -> None:
    Path("prompts.txt").write_text("a kitchen\na red thing\n")
    common = ("--model", tiny_model, "--device", "cpu", "--steps", 1, "--features", "none", "--size", "32x32")
    done = mf(
        "eval", "joint", "--prompt-file", "prompts.txt", "--log2-alpha", "5", "--log2-alpha", "none", *common,
        "--out", "j",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.out.count("log2_alpha") == 2
    Path("set/1.png").unlink()
    Image.new("RGB", (32, 32), "red").save("set/1.png")
    done = mf("eval", "control", "--data", folder, *common, "--limit", 2, "--out", "c")
    assert done.code == 0, done.err
    assert len(json.loads(Path("c/results.json").read_text())["rows"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "lowpoly:final"), "unknown split"),
        (("--data", "nowhere"), "is not there"),
        (("--data", "SET", "--protocol", "own"), "right is moge, marigold"),
        (("--data", "SET", "--alignment", "median"), "'median' is unknown"),
        (("--data", "SET", "--shard", "3/2"), "right is I/N"),
        (("--data", "SET", "--limit", 0), "--limit is 0"),
        (("--data", "SET", "--ensemble", 0), "--ensemble is 0"),
        (("--data", "SET", "--steps", 0), "--steps is 0"),
        (("--data", "SET", "--kitti-crop", "garg"), "does not fit"),
        (("--data", "SET", "--render-size", 64), "does not fit"),
        (("--data", "SET", "--predictor", "mine"), "FILE.py:NAME"),
        (("--data", "SET", "--predictor", "constant", "--alignment", "none"), "needs metres"),
        (("--data", "SET", "--predictor-option", "x"), "KEY=VALUE"),
        (("--data", "SET", "--split-list", "no.txt"), "does not exist"),
        (("--data", "SET", "--model", "nothing-of-this/name/at/all"), ""),
    ],
)
def test_refusals(mf: Run, folder: Path, options: tuple[object, ...], message: str) -> None:
    done = mf("eval", "depth", *(folder if o == "SET" else o for o in options), "--out", "o")
    assert done.code == 2 and len(done.errors) == 1 and message in done.err
    assert not Path("o").exists() or not Path("o/rows.jsonl").read_text()


def test_features_need_their_weights(mf: Run, folder: Path, work: Path) -> None:
    assert "belong together" in mf("eval", "control", "--data", folder, "--features", "inception").err
    assert "classifier, inception or none" in mf("eval", "joint", "--features", "vgg").err
    done = mf(
        "eval", "control", "--data", "lowpoly:test", "--limit", "1", "--classifier", work, "--render-size", 16
    )
    assert done.code == 2 and "there is no place classifier" in done.err
