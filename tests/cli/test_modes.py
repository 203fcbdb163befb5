"""The three modes through the command line with a tiny random model: what can be read is read rightly."""

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
    return ["--model", tiny_model, "--device", "cpu", "--steps", 2]


def folders(result: Result) -> list[Path]:
    """The run folders that a good run printed."""
    assert result.code == 0, result.err
    found = [Path(line) for line in result.out.splitlines()]
    assert found
    for folder in found:
        metadata = json.loads((folder / "metadata.json").read_text())
        assert sorted(metadata["files"]) == sorted(p.name for p in folder.iterdir())
        assert not [name for name in tree(folder.parent) if ".tmp" in name]
    return found


def pixels(folder: Path) -> np.ndarray:
    """rgb.png."""
    return np.asarray(Image.open(folder / "rgb.png"))


# How a picture is stored, and the notice that must appear ("": none). Each must come out as the same pixels.
def _plain(path: Path, image: np.ndarray) -> Path:
    Image.fromarray(image).save(path / "a.png")
    return path / "a.png"


def _palette(path: Path, image: np.ndarray) -> Path:
    Image.fromarray(image).quantize(256).save(path / "a.png")
    return path / "a.png"


def _alpha(path: Path, image: np.ndarray) -> Path:
    opaque = np.full((*image.shape[:2], 1), 255, np.uint8)
    opaque[:8, :8] = 0
    Image.fromarray(np.concatenate([image, opaque], axis=-1)).save(path / "a.png")
    return path / "a.png"


def _turned(path: Path, image: np.ndarray) -> Path:
    stored = Image.fromarray(image).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to view
    stored.save(path / "a.png", exif=exif)
    return path / "a.png"


def _animation(path: Path, image: np.ndarray) -> Path:
    frames = [Image.fromarray(image), Image.fromarray(255 - image)]
    frames[0].save(path / "a.png", save_all=True, append_images=frames[1:])
    return path / "a.png"


def _cmyk(path: Path, image: np.ndarray) -> Path:
    Image.fromarray(image).convert("CMYK").save(path / "a.tif")
    return path / "a.tif"


def _gray16(path: Path, image: np.ndarray) -> Path:
    Image.fromarray(image[..., 0].astype(np.uint16) * 257).save(path / "a.png")
    return path / "a.png"


def _gray(path: Path, image: np.ndarray) -> Path:
    Image.fromarray(image[..., 0]).save(path / "a.png")
    return path / "a.png"


def _as_it_is(image: np.ndarray) -> np.ndarray:
    return image


def _over_white(image: np.ndarray) -> np.ndarray:
    image = image.copy()
    image[:8, :8] = 255
    return image


def _first_channel(image: np.ndarray) -> np.ndarray:
    return np.repeat(image[..., :1], 3, axis=-1)


PICTURES = {
    "plain": (_plain, "", _as_it_is, 0),
    "palette": (_palette, "", _as_it_is, 24),  # 256 colours are fewer than the picture has
    "alpha": (_alpha, "transparent", _over_white, 0),
    "exif rotation": (_turned, "upright", _as_it_is, 0),
    "animation": (_animation, "2 frames", _as_it_is, 0),
    "cmyk": (_cmyk, "", _as_it_is, 2),
    "16 bit": (_gray16, "16 bits", _first_channel, 0),
    "gray": (_gray, "", _first_channel, 0),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_read_rightly(
    kind: str, mf: Run, work: Path, tmp_path: Path, tiny: list[object], picture: np.ndarray
) -> None:
    write, says, expect, tolerance = PICTURES[kind]
    result = mf("i2d", "--image", write(tmp_path, picture), *tiny)
    (folder,) = folders(result)
    wanted = expect(picture)
    found = pixels(folder)
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).max() <= tolerance
    depth = np.load(folder / "depth.npy")
    assert depth.shape == wanted.shape[:2]
    assert np.isfinite(depth).all()
    notices = [line for line in result.notices if says and says in line]
    assert bool(notices) == bool(says), result.err


def test_exif_focal_length_is_the_camera(
    mf: Run, work: Path, tmp_path: Path, tiny: list[object], picture: np.ndarray
) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 28
    Image.fromarray(picture).save(tmp_path / "a.jpg", exif=exif)
    result = mf("i2d", tmp_path / "a.jpg", *tiny)
    (folder,) = folders(result)
    camera = json.loads((folder / "metadata.json").read_text())["camera"]
    assert camera["fov_x"] == pytest.approx(63.4, abs=0.2)  # 2 atan(43.27 * 0.8 / 56)
    assert "focal length" in result.err
    (folder,) = folders(mf("i2d", tmp_path / "a.jpg", "--fov-x", 50, *tiny))
    assert json.loads((folder / "metadata.json").read_text())["camera"]["fov_x"] == pytest.approx(50)


def test_folder_of_pictures_in_order_with_the_same_seeds(
    mf: Run, work: Path, tmp_path: Path, tiny: list[object], picture: np.ndarray
) -> None:
    for name in ("b", "a"):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    first, second = folders(mf("i2d", "--image", tmp_path, "--seed", 7, "--out", "deep/er", *tiny))
    assert [first.name, second.name] == ["a-seed7", "b-seed7"]
    assert first.parent == Path("deep/er")
    assert (first / "depth.npy").read_bytes() == (second / "depth.npy").read_bytes()


def test_joint_prompts_seeds_and_folders(mf: Run, work: Path, tiny: list[object]) -> None:
    (work / "prompts.txt").write_text("a green tree\n\n  a lake \n", encoding="utf-8")
    options = [
        "--prompt-file",
        "prompts.txt",
        "--prompt",
        "",
        "--num-images",
        2,
        "--seed",
        5,
        "--size",
        "80x48",
    ]
    found = folders(mf("joint", *options, *tiny))
    assert [folder.name for folder in found] == [
        "run-seed5", "run-seed6", "a-green-tree-seed5", "a-green-tree-seed6", "a-lake-seed5", "a-lake-seed6",
    ]  # fmt: skip
    assert pixels(found[0]).shape == (48, 80, 3)
    # The same command makes the same pictures in other folders; one item alone is that item in the list.
    again = folders(mf("joint", *options, *tiny))
    assert not set(found) & set(again)
    assert pixels(found[3]).tobytes() == pixels(again[3]).tobytes()
    (alone,) = folders(mf("joint", "-p", "a green tree", "--seed", 6, "--size", "80x48", *tiny))
    assert np.abs(pixels(alone).astype(int) - pixels(found[3])).max() <= 1
    provenance = json.loads((alone / "metadata.json").read_text())["provenance"]
    assert provenance["seed"] == 6
    assert provenance["prompt"] == "a green tree"


def test_drawn_seed_repeats_the_run(mf: Run, work: Path, tiny: list[object]) -> None:
    (first,) = folders(mf("joint", "-p", "a hill", *tiny))
    seed = json.loads((first / "metadata.json").read_text())["provenance"]["seed"]
    assert first.name == f"a-hill-seed{seed}"
    (second,) = folders(mf("joint", "-p", "a hill", "--seed", seed, *tiny))
    assert second.name == f"a-hill-seed{seed}-2"
    assert pixels(first).tobytes() == pixels(second).tobytes()


def test_every_option_of_joint(mf: Run, work: Path, tiny: list[object]) -> None:
    result = mf(
        "joint", "-p", "a hill", "--guidance", 1, "--log2-alpha", "none", "--refine-depth", "--fov-x", 70,
        "--fov-y", 60, "--edge-rtol", 0, "--sor", "--max-points", 100, "--dtype", "bfloat16", *tiny,
    )  # fmt: skip
    (folder,) = folders(result)
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["camera"]["fov_y"] == pytest.approx(60)
    assert metadata["provenance"]["refine_depth"] is True
    assert metadata["provenance"]["log2_alpha"] is None
    assert metadata["provenance"]["dtype"] == "bfloat16"
    assert metadata["cloud"]["points"] <= 100
    for stage in ("start", "load", "text", "sample", "decode", "save", "in all"):
        assert stage in result.err


def test_intrinsics_of_an_earlier_run(mf: Run, work: Path, tiny: list[object]) -> None:
    (first,) = folders(mf("joint", "-p", "", "--fov-x", 80, *tiny))
    (second,) = folders(mf("joint", "-p", "", "--intrinsics", first / "metadata.json", *tiny))
    cameras = [json.loads((f / "metadata.json").read_text())["camera"] for f in (first, second)]
    assert cameras[0] == cameras[1]


def _constant(path: Path, ramp: np.ndarray) -> tuple[Path, list[object]]:
    np.save(path / "a.npy", np.full_like(ramp, 3.0))
    return path / "a.npy", []


def _holes(path: Path, ramp: np.ndarray) -> tuple[Path, list[object]]:
    ramp = ramp.copy()
    ramp[:4], ramp[4:8], ramp[8:12], ramp[12:16] = np.nan, np.inf, 0.0, -1.0
    np.save(path / "a.npy", ramp)
    return path / "a.npy", []


def _millimetres(path: Path, ramp: np.ndarray) -> tuple[Path, list[object]]:
    Image.fromarray((ramp * 1000).astype(np.uint16)).save(path / "a.png")
    return path / "a.png", ["--depth-kind", "depth", "--depth-scale", 0.001]


def _disparity(path: Path, ramp: np.ndarray) -> tuple[Path, list[object]]:
    np.savez(path / "a.npz", disparity=1.0 / ramp)
    return path / "a.npz", []


def _exr(path: Path, ramp: np.ndarray) -> tuple[Path, list[object]]:
    from modality_forcing.io.depth_files import write_depth_exr

    write_depth_exr(path / "a.exr", ramp, np.ones(ramp.shape, bool))
    return path / "a.exr", []


def _masked(path: Path, ramp: np.ndarray) -> tuple[Path, list[object]]:
    np.save(path / "a.npy", ramp)
    mask = np.zeros(ramp.shape, np.uint8)
    mask[20:] = 255
    Image.fromarray(mask).save(path / "m.png")
    return path / "a.npy", ["--mask", path / "m.png"]


DEPTHS = {
    "constant": (_constant, 0, "relative"),
    "holes": (_holes, 16, "relative"),
    "millimetres": (_millimetres, 0, "m"),
    "disparity": (_disparity, 0, "relative"),
    "exr": (_exr, 0, "relative"),
    "masked": (_masked, 20, "relative"),
}


@pytest.mark.parametrize("kind", DEPTHS)
def test_depths_read_rightly(
    kind: str, mf: Run, work: Path, tmp_path: Path, tiny: list[object], ramp: np.ndarray
) -> None:
    write, first_valid_row, unit = DEPTHS[kind]
    path, options = write(tmp_path, ramp)
    (folder,) = folders(mf("d2i", "--prompt", "", "--depth", path, *options, *tiny))
    assert pixels(folder).shape == (48, 64, 3)
    depth = np.load(folder / "depth.npy")
    wanted = np.full_like(ramp, 3.0) if kind == "constant" else ramp.copy()
    wanted[:first_valid_row] = 0
    np.testing.assert_allclose(depth, wanted, atol=1e-3)
    assert json.loads((folder / "metadata.json").read_text())["depth"]["unit"] == unit


def test_interrupt_leaves_no_half_files(
    mf: Run, work: Path, tiny: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("modality_forcing.io.run_folder.write_glb", interrupt)
    result = mf("joint", "-p", "a hill", *tiny)
    assert result.code == 130
    assert result.errors == ["error: interrupted; nothing half done was left"]
    assert tree(work) == set()


def test_out_of_memory_gives_advice(
    mf: Run, work: Path, tiny: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def exhaust(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("modality_forcing.engine.sample", exhaust)
    result = mf("joint", "-p", "a hill", *tiny)
    assert result.code == 1
    assert len(result.errors) == 1
    assert "--size" in result.errors[0]
    assert tree(work) == set()
