"""``mf complete`` and ``mf inpaint`` with a tiny random model: what they write and what they refuse."""

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
def tiny(tiny_model: Path) -> list[object]:
    """Options that make every run short."""
    return ["--model", tiny_model, "--device", "cpu", "--steps", 2, "--seed", 1]


@pytest.fixture
def inputs(tmp_path: Path, picture: np.ndarray, ramp: np.ndarray) -> Path:
    """A folder with a.png, points of its depth in several formats, masks and the depth itself."""
    Image.fromarray(picture).save(tmp_path / "a.png")
    known = np.random.default_rng(0).random(ramp.shape) < 0.05
    sparse = np.where(known, ramp, 0.0).astype(np.float32)
    np.save(tmp_path / "sparse.npy", sparse)
    Image.fromarray(np.rint(sparse * 1000).astype(np.uint16)).save(tmp_path / "sparse.png")
    rows, columns = np.nonzero(known)
    lines = [f"{x + 0.5},{y + 0.5},{ramp[y, x]}" for y, x in zip(rows, columns, strict=True)]
    (tmp_path / "sparse.csv").write_text("\n".join(["x,y,z", *lines]) + "\n")
    np.save(tmp_path / "depth.npy", ramp)
    mask = np.zeros(ramp.shape, np.uint8)
    mask[10:30, 16:40] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(mask[:, ::-1]).save(tmp_path / "depth_mask.png")
    Image.fromarray(mask[:20]).save(tmp_path / "small.png")
    return tmp_path


def folders(result: Result) -> list[Path]:
    """The run folders that a good run printed."""
    assert result.code == 0, result.err
    found = [Path(line) for line in result.out.splitlines()]
    assert found
    for folder in found:
        metadata = json.loads((folder / "metadata.json").read_text())
        assert sorted(metadata["files"]) == sorted(p.name for p in folder.iterdir())
    return found


@pytest.mark.parametrize(
    ("name", "options"), [("sparse.npy", []), ("sparse.csv", []), ("sparse.png", ["--depth-scale", 0.001])]
)
def test_sparse_depth_in_any_format_becomes_dense_metres(
    name: str, options: list[object], mf: Run, work: Path, inputs: Path, tiny: list[object], ramp: np.ndarray
) -> None:
    result = mf("complete", inputs / "a.png", "--depth", inputs / name, *options, *tiny)
    (folder,) = folders(result)
    depth = np.load(folder / "depth.npy")
    known = np.load(inputs / "sparse.npy") > 0
    metadata = json.loads((folder / "metadata.json").read_text())
    note = metadata["provenance"]["completion"]
    assert metadata["depth"]["unit"] == "m"
    assert note["points"] == known.sum()
    agree = np.abs(depth[known] - ramp[known]) < 0.0006  # a millimetre's half in the PNG
    # Points that were dropped (the model is random) are not honoured; there are few of them.
    assert agree.mean() > 0.8
    assert (depth > 0).mean() > 0.5
    assert any("metres" in line for line in result.notices) == (not options)


def test_kept_outliers_are_honoured(mf: Run, work: Path, inputs: Path, tiny: list[object]) -> None:
    sparse = np.load(inputs / "sparse.npy")
    rows, columns = np.nonzero(sparse)
    sparse[rows[7], columns[7]] *= 20
    np.save(inputs / "wrong.npy", sparse)
    arguments = ["complete", inputs / "a.png", "--depth", inputs / "wrong.npy", "--keep-outliers", *tiny]
    (folder,) = folders(mf(*arguments))
    assert np.load(folder / "depth.npy")[rows[7], columns[7]] == sparse[rows[7], columns[7]]
    (folder,) = folders(mf(*arguments, "--blend", "smooth"))
    assert np.load(folder / "depth.npy")[rows[7], columns[7]] != sparse[rows[7], columns[7]]


def test_inpaint_with_an_estimated_and_a_given_depth(
    mf: Run, work: Path, inputs: Path, tiny: list[object], picture: np.ndarray, ramp: np.ndarray
) -> None:
    base = ["inpaint", inputs / "a.png", "--mask", inputs / "mask.png", "--prompt", "a box", "--feather", 0]
    mask = np.asarray(Image.open(inputs / "mask.png")) > 0
    (folder,) = folders(mf(*base, *tiny))
    assert folder.name == "a-box-seed1"
    rgb = np.asarray(Image.open(folder / "rgb.png"))
    np.testing.assert_array_equal(rgb[~mask], picture[~mask])
    assert (rgb[mask] != picture[mask]).any()
    given = ["--depth", inputs / "depth.npy", "--depth-mask", inputs / "depth_mask.png", "--depth-scale", 1]
    (folder,) = folders(mf(*base, *given, *tiny))
    depth = np.load(folder / "depth.npy")
    new_depth = np.asarray(Image.open(inputs / "depth_mask.png")) > 0
    np.testing.assert_array_equal(depth[~new_depth], ramp[~new_depth])
    assert (depth[new_depth] != ramp[new_depth]).all()
    assert json.loads((folder / "metadata.json").read_text())["depth"]["unit"] == "m"


COMPLETE, INPAINT = ["complete", "a.png"], ["inpaint", "a.png", "--prompt", "a", "--mask", "mask.png"]
BAD = {
    "no depth": (COMPLETE, "--depth is missing"),
    "no image": (["complete", "--depth", "sparse.npy"], "--image is missing"),
    "two maps": ([*COMPLETE, "--depth", "sparse.npy", "--depth", "sparse.npy"], "2 depth files for 1 images"),
    "wrong size": (["complete", "small.png", "--depth", "sparse.npy"], "sizes must agree"),
    "no table": ([*COMPLETE, "--depth", "bad.csv"], "right is x,y,z"),
    "point outside": ([*COMPLETE, "--depth", "far.csv"], "outside the 64x48 image"),
    "scale": ([*COMPLETE, "--depth", "sparse.csv", "--depth-scale", "0"], "--depth-scale is 0"),
    "blend": ([*COMPLETE, "--depth", "sparse.npy", "--blend", "soft"], "exact or smooth"),
    "missing": ([*COMPLETE, "--depth", "nowhere.npy"], "does not exist"),
    "no mask": (["inpaint", "a.png", "--prompt", "a"], "--mask is missing"),
    "no prompt": (["inpaint", "a.png", "--mask", "mask.png"], "--prompt is missing"),
    "mask size": (["inpaint", "a.png", "--prompt", "a", "--mask", "small.png"], "small.png"),
    "masks": ([*INPAINT, "--mask", "mask.png"], "2 files after --mask"),
    "depth size": ([*INPAINT, "--depth", "small.npy"], "sizes must agree"),
    "kind alone": ([*INPAINT, "--depth-kind", "depth"], "need --depth"),
    "feather": ([*INPAINT, "--feather", "-1"], "--feather is -1"),
    "tilt": ([*INPAINT, "--log2-alpha", "x"], "--log2-alpha"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_before_a_model_is_loaded(
    case: str, mf: Run, work: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (inputs / "bad.csv").write_text("1,2\n")
    (inputs / "far.csv").write_text("100,2,3\n")
    np.save(inputs / "small.npy", np.ones((20, 64), np.float32))
    arguments, says = BAD[case]
    monkeypatch.chdir(inputs)
    before = tree(inputs)
    # A model that does not exist: had it been looked for, the message would speak of it.
    result = mf(*arguments, "--model", "no/such-model-folder", "--out", work / "out")
    assert result.code == 2
    assert len(result.errors) == 1, result.err
    assert says in result.err
    assert "Traceback" not in result.err
    assert tree(inputs) == before
    assert not tree(work)
