import errno
import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.errors import UserError
from modality_forcing.io import atomic, run_folder
from modality_forcing.io.atomic import atomic_file, atomic_folder, slug
from modality_forcing.io.depth_files import read_depth
from modality_forcing.io.images import read_image, read_mask
from modality_forcing.io.intrinsics import read_intrinsics
from modality_forcing.io.run_folder import depth_statistics, save_run
from modality_forcing.types import RGBD, Camera


def result(masked=True):
    rng = np.random.default_rng(0)
    depth = np.tile(np.linspace(1, 1.5, 40, dtype=np.float32), (30, 1))
    mask = np.ones((30, 40), bool)
    if masked:
        mask[:4] = False
        depth[:4] = np.nan
    rgb = rng.integers(0, 256, (30, 40, 3)).astype(np.uint8)
    provenance = {
        "prompt": "ä chair",
        "seed": 7,
        "where": Path("a"),
        "score": np.float32(0.5),
        "nan": float("nan"),
    }
    camera = Camera.from_fov(40, 30, fov_x=60.0)
    return RGBD(rgb, depth, mask, camera, "m", provenance, {"depth_std": depth * 0.1})


def test_everything_reads_back(tmp_path):
    rgbd = result()
    folder = rgbd.save(tmp_path / "new" / "run")
    assert folder == tmp_path / "new" / "run"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "rgb.png", "depth.npy", "depth.png", "depth_magma.png", "mask.png", "cloud.glb", "cloud.ply",
        "metadata.json", "depth_std.npy",
    }  # fmt: skip
    np.testing.assert_array_equal(read_image(folder / "rgb.png").pixels, rgbd.rgb)
    np.testing.assert_array_equal(read_mask(folder / "mask.png", (30, 40)), rgbd.mask)
    exact = read_depth(folder / "depth.npy")
    np.testing.assert_array_equal(exact.depth[rgbd.mask], rgbd.depth[rgbd.mask])
    np.testing.assert_array_equal(exact.valid, rgbd.mask)
    png = read_depth(folder / "depth.png")
    assert png.unit == "m"
    np.testing.assert_allclose(png.depth[rgbd.mask], rgbd.depth[rgbd.mask], atol=0.00051)
    assert read_intrinsics(folder / "metadata.json") == rgbd.camera
    np.testing.assert_array_equal(np.load(folder / "depth_std.npy"), rgbd.extras["depth_std"])
    magma = np.array(Image.open(folder / "depth_magma.png"))
    assert magma[10, 0].sum() > magma[10, -1].sum()  # near is bright

    metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    assert set(metadata["files"]) == names
    assert metadata["size"] == {"width": 40, "height": 30}
    assert metadata["provenance"] == {"prompt": "ä chair", "seed": 7, "where": "a", "score": 0.5, "nan": None}
    assert metadata["depth"]["unit"] == "m"
    assert metadata["depth"]["median"] == pytest.approx(1.25)
    assert metadata["depth"]["valid_fraction"] == pytest.approx(26 / 30)
    assert metadata["cloud"]["points"] == 25 * 40
    assert metadata["cloud"]["edge_rtol"] == 0.2  # a small image


def test_no_mask_file_when_all_is_valid(tmp_path):
    assert not (save_run(result(masked=False), tmp_path / "run") / "mask.png").exists()


def test_options_reach_the_cloud(tmp_path):
    folder = result().save(tmp_path / "run", edge_rtol=0.0, max_points=50)
    cloud = json.loads((folder / "metadata.json").read_text())["cloud"]
    assert (cloud["edge_rtol"], cloud["points"]) == (0.0, 50)


def test_an_empty_cloud_does_not_lose_the_run(tmp_path):
    rgbd = result()
    rgbd.mask[:] = False
    folder = save_run(rgbd, tmp_path / "run")
    metadata = json.loads((folder / "metadata.json").read_text())
    assert "no pixel has a valid depth" in metadata["cloud"]["missing"]
    assert metadata["depth"]["median"] is None
    assert not (folder / "cloud.ply").exists()
    assert "cloud.ply" not in metadata["files"]
    assert (folder / "rgb.png").exists()


def test_statistics_ignore_the_mask(tmp_path):
    statistics = depth_statistics(result())
    assert statistics["min"] == 1.0
    assert statistics["max"] == 1.5
    assert statistics["mean"] == pytest.approx(1.25)


def test_a_taken_folder_is_never_overwritten(tmp_path):
    first = save_run(result(), tmp_path / "run")
    before = (first / "metadata.json").stat().st_mtime_ns
    second = save_run(result(), tmp_path / "run")
    assert (first.name, second.name) == ("run", "run-2")
    assert (first / "metadata.json").stat().st_mtime_ns == before
    (tmp_path / "file").write_text("precious")
    assert save_run(result(), tmp_path / "file").name == "file-2"
    assert (tmp_path / "file").read_text() == "precious"


def test_an_empty_folder_is_filled(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    assert save_run(result(), folder) == folder
    assert (folder / "rgb.png").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_nothing_is_left_after_an_interruption(tmp_path, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(run_folder, "write_ply", fail)
    expected = UserError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        save_run(result(), tmp_path / "run")
    if expected is UserError:
        assert "the disk is full" in str(caught.value)
        assert "run" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted():
        with atomic_file(path) as aside:
            aside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    with atomic_file(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [item.name for item in tmp_path.iterdir()] == ["a.txt"]


def test_writing_into_a_folder_or_below_a_file_is_told(tmp_path):
    def write(path):
        with atomic_file(path) as aside:
            aside.write_text("x")

    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"could not write .*sub/a\.txt: a part of the path is a file"):
        write(tmp_path / "file" / "sub" / "a.txt")
    with pytest.raises(UserError, match="it is a folder"):
        write(tmp_path)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_permission_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="permission denied"):
        save_run(result(), tmp_path / "a")


@pytest.mark.parametrize(("code", "words"), [(errno.EACCES, "permission denied"), (errno.EIO, "error")])
def test_other_failures_are_one_line(tmp_path, monkeypatch, code, words):
    def fail(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(atomic.os, "replace", fail)
    with pytest.raises(UserError, match=words), atomic_file(tmp_path / "a") as aside:
        aside.write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_any_text_makes_a_safe_file_name():
    assert [slug(text) for text in ("A red chair!", "../..", "", "ein Stuhl 椅子")] == [
        "a-red-chair", "run", "run", "ein-stuhl",
    ]  # fmt: skip
    assert slug("x" * 500) == "x" * 48


def test_no_two_runs_share_a_folder(tmp_path):
    made: list[Path] = []
    start = threading.Barrier(8)

    def work():
        start.wait()
        for _ in range(10):
            with atomic_folder(tmp_path / "b" / "same") as folder:
                (folder.aside / "x").write_text("x")
            made.append(folder.path)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == len(set(made)) == 80
    assert not list((tmp_path / "b").glob(".*"))
