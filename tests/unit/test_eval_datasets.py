"""Readers of evaluation data on small files in the published layouts, and the protocols' rules on them."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from modality_forcing.errors import UserError
from modality_forcing.evaluation.datasets import open_data
from modality_forcing.evaluation.datasets.common import EvalItem
from modality_forcing.evaluation.protocols import PROTOCOLS, find_protocol, nearest_depth, resized_view
from modality_forcing.types import Camera


def picture(path: Path, width: int, height: int) -> np.ndarray:
    """A gradient, written as the ending says; returned as written (JPEG: as read back)."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([columns % 256, rows % 256, (rows + columns) % 256], -1).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG" if path.suffix == ".png" else "JPEG", quality=95)
    return np.array(Image.open(path))


def depth16(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint16)).save(path)


@pytest.fixture
def nyu(tmp_path: Path) -> Path:
    root = tmp_path / "nyu"
    values = np.full((480, 640), 2500)
    values[0:50] = 0
    for name in ("0001", "0002"):
        picture(root / f"test/kitchen_0004/rgb_{name}.png", 640, 480)
        depth16(root / f"test/kitchen_0004/depth_{name}.png", values)
        depth16(root / f"test/kitchen_0004/filled_{name}.png", values + 9)
    picture(root / "test/kitchen_0004/rgb_0003.png", 640, 480)  # no depth: not of the split
    return root


def test_nyu_of_marigold(nyu: Path, tmp_path: Path) -> None:
    data = open_data(f"nyuv2:{nyu}")
    assert data.kind == "nyuv2" and data.layout == "marigold"
    assert data.names == [f"test/kitchen_0004/rgb_000{i}.png" for i in (1, 2)]
    item = data.read(0)
    assert item.rgb.shape == (480, 640, 3) and item.depth.dtype == np.float32
    assert item.depth[0, 0] == 0.0 and item.depth[100, 100] == pytest.approx(2.5)
    protocol = PROTOCOLS["marigold"]
    found = protocol.prepare(item, protocol.rules_for("nyuv2"))
    expected = np.zeros((480, 640), bool)
    expected[50:471, 41:601] = True
    np.testing.assert_array_equal(found.mask, expected)
    assert found.clip == (1e-3, 10.0) and found.rgb.shape == (480, 640, 3)

    split = tmp_path / "list.txt"
    split.write_text(
        "test/kitchen_0004/rgb_0002.png test/kitchen_0004/depth_0002.png test/kitchen_0004/filled_0002.png\n"
    )
    assert open_data(f"nyuv2:{nyu}", split=split).names == ["test/kitchen_0004/rgb_0002.png"]
    split.write_text("elsewhere/rgb_0002.png elsewhere/depth_0002.png\n")
    with pytest.raises(UserError, match="does not belong to"):
        open_data(f"nyuv2:{nyu}", split=split)


def test_an_archive_reads_like_its_folder(nyu: Path, tmp_path: Path) -> None:
    packed = tmp_path / "nyu.tar"
    with tarfile.open(packed, "w") as archive:
        archive.add(nyu, arcname=".")  # members are "./test/..."
    folder, tar = open_data(f"nyuv2:{nyu}"), open_data(f"nyuv2:{packed}")
    assert folder.names == tar.names
    np.testing.assert_array_equal(folder.read(1).depth, tar.read(1).depth)
    np.testing.assert_array_equal(folder.read(1).rgb, tar.read(1).rgb)


def test_kitti_of_marigold_with_both_windows(tmp_path: Path) -> None:
    drive = "2011_09_26_drive_0002_sync"
    picture(tmp_path / f"2011_09_26/{drive}/image_02/data/0000000069.png", 1242, 375)
    values = np.full((375, 1242), 256 * 20)
    values[:, 600:] = 256 * 90  # beyond the cap
    values[300, 300] = 0
    depth16(tmp_path / f"{drive}/proj_depth/groundtruth/image_02/0000000069.png", values)
    picture(tmp_path / f"2011_09_26/{drive}/image_02/data/0000000070.png", 1242, 375)
    data = open_data(f"kitti:{tmp_path}")
    assert len(data.names) == 1
    item = data.read(0)
    assert item.depth[200, 10] == pytest.approx(20.0)
    protocol = PROTOCOLS["marigold"]
    for window, (top, bottom) in {"eigen": (117, 321), "garg": (143, 349)}.items():
        found = protocol.prepare(item, protocol.rules_for("kitti", window=window))
        assert found.rgb.shape == (352, 1216, 3)
        np.testing.assert_array_equal(found.rgb, item.rgb[23:, 13:1229])
        rows, columns = np.nonzero(found.mask)
        assert (rows.min(), rows.max() + 1) == (top, bottom)
        assert (columns.min(), columns.max() + 1) == (43, 587)  # 600 - 13: the rest lies beyond 80 m
        assert not found.mask[300 - 23, 300 - 13]
    assert protocol.prepare(item, protocol.rules_for("kitti", window="all")).mask[0, 0]
    with pytest.raises(UserError, match="eigen, garg or all"):
        protocol.rules_for("kitti", window="middle")
    with pytest.raises(UserError, match="does not fit"):
        protocol.rules_for("nyuv2", window="garg")


def test_eth3d_of_marigold(tmp_path: Path) -> None:
    picture(tmp_path / "rgb/courtyard/images/dslr_images/DSC_0286.JPG", 60, 40)
    raw = tmp_path / "depth/courtyard_dslr_depth/courtyard/ground_truth_depth/dslr_images/DSC_0286.JPG"
    raw.parent.mkdir(parents=True)
    values = np.full((40, 60), np.inf, dtype="<f4")
    values[10, 20] = 7.5
    raw.write_bytes(values.tobytes())
    item = open_data(f"eth3d:{tmp_path}").read(0)
    assert item.depth[10, 20] == 7.5 and np.count_nonzero(item.depth) == 1
    raw.write_bytes(values.tobytes()[:-4])
    with pytest.raises(UserError, match="9596 bytes"):
        open_data(f"eth3d:{tmp_path}").read(0)


def test_scannet_and_diode_of_marigold(tmp_path: Path) -> None:
    scannet, diode = tmp_path / "scannet", tmp_path / "diode"
    picture(scannet / "scene0378_01/color/000300.jpg", 64, 48)
    depth16(scannet / "scene0378_01/depth/000300.png", np.full((48, 64), 1234))
    item = open_data(f"scannet:{scannet}").read(0)
    assert item.name == "scene0378_01/color/000300.jpg" and item.depth[0, 0] == pytest.approx(1.234)

    stem = diode / "indoors/scene_00019/scan_00183/00019_00183_indoors_000_010"
    picture(stem.with_suffix(".png"), 64, 48)
    values = np.full((48, 64, 1), 3.0, np.float32)
    values[0] = 0.5
    np.save(f"{stem}_depth.npy", values)
    mask = np.ones((48, 64), np.float32)
    mask[5] = 0
    np.save(f"{stem}_depth_mask.npy", mask)
    data = open_data(f"diode:{diode}")
    item = data.read(0)
    assert len(data.names) == 1 and (item.depth[5] == 0).all() and item.depth[6, 0] == 3.0
    protocol = PROTOCOLS["marigold"]
    found = protocol.prepare(item, protocol.rules_for("diode"))
    assert not found.mask[0].any() and not found.mask[5].any() and found.mask[6].all()
    assert found.clip == (0.6, 350.0)


@pytest.fixture
def moge(tmp_path: Path) -> Path:
    """Two samples; of the first, the left half is unknown and the top right pixel infinite."""
    root = tmp_path / "moge"
    for name in ("a/0001", "a/0002"):
        picture(root / name / "image.jpg", 80, 60)
        codes = np.full((60, 80), 1 + 65533 // 2, np.uint16)
        codes[:, :40] = 0
        codes[0, 79] = 65535
        codes[10, 50], codes[10, 51] = 1, 65534
        text = PngImagePlugin.PngInfo()
        text.add_text("near", "0.5")
        text.add_text("far", "8.0")
        Image.fromarray(codes).save(root / name / "depth.png", pnginfo=text)
        (root / name / "meta.json").write_text(
            json.dumps({"intrinsics": [[0.9, 0.0, 0.5], [0.0, 1.2, 0.5], [0.0, 0.0, 1.0]]})
        )
    (root / ".index.txt").write_text("a/0001\na/0002\n")
    return root


@pytest.mark.parametrize("kind", ["nyuv2", "kitti", "eth3d", "scannet", "diode", ""])
def test_moge_layout_of_every_set(moge: Path, kind: str) -> None:
    data = open_data(f"{kind}:{moge}" if kind else str(moge))
    assert data.kind == (kind or "folder") and data.layout == "moge" and data.names == ["a/0001", "a/0002"]
    item = data.read(0)
    assert (item.depth[:, :40] == 0).all() and np.isposinf(item.depth[0, 79])
    assert item.depth[10, 50] == pytest.approx(0.5) and item.depth[10, 51] == pytest.approx(8.0)
    assert item.depth[30, 60] == pytest.approx(2.0, rel=1e-4)  # half way between near and far, in log
    assert item.camera == Camera(72.0, 72.0, 40.0, 30.0, 80, 60)
    protocol = PROTOCOLS["moge"]
    rules = protocol.rules_for(data.kind)
    found = protocol.prepare(item, rules)
    if rules.size:
        assert found.rgb.shape == (rules.size[1], rules.size[0], 3) == (*found.depth.shape, 3)
    assert found.mask.any() and not found.mask[:, : found.mask.shape[1] // 2 - 8].any() and found.clip is None
    with tarfile.open(moge.with_suffix(".tar"), "w") as archive:
        archive.add(moge, arcname=".")
    if kind:
        packed = open_data(f"{kind}:{moge.with_suffix('.tar')}")
        np.testing.assert_array_equal(packed.read(1).depth, item.depth)
    (moge / "a/0002/depth.png").unlink()
    with pytest.raises(UserError, match=r"depth\.png"):
        data.read(1)


def test_moge_drops_what_is_absurdly_far(moge: Path) -> None:
    depth = np.full((20, 20), 1.0, np.float32)
    depth[0, 0], depth[0, 1] = 1001.0, 999.0
    item = EvalItem("x", np.zeros((20, 20, 3), np.uint8), depth)
    protocol = find_protocol("moge")
    mask = protocol.prepare(item, protocol.default).mask
    assert not mask[0, 0] and mask[0, 1] and mask.sum() == 399
    with pytest.raises(UserError, match="no pixel"):
        protocol.prepare(EvalItem("x", item.rgb, 0 * depth), protocol.default)
    with pytest.raises(UserError, match="moge, marigold"):
        find_protocol("own")


def test_a_resized_view_keeps_picture_and_depth_together() -> None:
    columns = np.tile(np.arange(90), (60, 1))
    rgb = np.repeat((2 * columns)[..., None], 3, axis=2).astype(np.uint8)
    item = EvalItem("x", rgb, (1.0 + columns).astype(np.float32), camera=Camera(80, 80, 55.0, 30.0, 90, 60))
    small = resized_view(item, 30, 30)
    # The largest square around x = 55: columns 25..85, then every second pixel.
    assert small.camera is not None and small.camera.cx == pytest.approx(15.0)
    assert small.camera.fx == pytest.approx(40.0)
    assert abs(float(small.depth[15, 0]) - 26.5) <= 0.5 and abs(float(small.depth[15, 29]) - 84.5) <= 0.5
    assert abs(int(small.rgb[15, 10, 0]) - 2 * (float(small.depth[15, 10]) - 1)) <= 3


def test_nearest_depth_skips_the_unknown() -> None:
    depth = np.zeros((6, 6), np.float32)
    depth[0, 1], depth[3, 3] = 5.0, np.inf
    small = nearest_depth(depth, 2, 2)
    np.testing.assert_array_equal(small, [[5.0, 0.0], [0.0, np.inf]])
    np.testing.assert_array_equal(nearest_depth(small, 4, 4)[:2, :2], np.full((2, 2), 5.0))


def test_generic_folder(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", 40, 30)
    depth16(tmp_path / "a.depth.png", np.where(np.arange(1200).reshape(30, 40) % 7, 15000, 0))
    np.save(tmp_path / "b.npy", np.full((30, 40), 3.0, np.float32))
    entries = [
        {"rgb": "a.jpg", "depth": "a.depth.png", "depth_scale": 10000, "caption": "a desk",
         "K": [[50, 0, 20], [0, 51, 15], [0, 0, 1]]},
        {"name": "other", "rgb": "a.jpg", "depth": "b.npy"},
    ]  # fmt: skip
    (tmp_path / "index.json").write_text(json.dumps(entries))
    data = open_data(str(tmp_path))
    assert data.kind == "folder" and data.names == ["a", "other"]
    item = data.read(0)
    assert item.caption == "a desk" and item.camera == Camera(50, 51, 20, 15, 40, 30)
    assert item.depth[0, 0] == 0 and item.depth[0, 1] == pytest.approx(1.5)
    assert (data.read(1).depth == 3.0).all()
    for wrong, message in (
        ([], "no list"), ([{"rgb": "a.jpg"}], "entry 0"), ([entries[0], entries[0]], "more than once"),
    ):  # fmt: skip
        (tmp_path / "index.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=message):
            open_data(str(tmp_path))
    (tmp_path / "index.json").write_text(json.dumps([{"rgb": "../a.jpg", "depth": "b.npy"}]))
    with pytest.raises(UserError, match="below the folder"):
        open_data(str(tmp_path)).read(0)


def test_lowpoly_splits_and_shards(small_shards: Path) -> None:
    pytest.importorskip("embreex")
    for split in ("test", "combination"):
        data = open_data(f"lowpoly:{split}", limit=2, size=16)
        assert data.kind == "lowpoly" and data.names == [f"{split}-000000", f"{split}-000001"]
        item = data.read(1)
        assert item.rgb.shape == (16, 16, 3) and item.caption and item.facts["place"]
    shards = open_data(str(small_shards))
    assert len(shards.names) == 12 and shards.read(11).rgb.shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lowpoly:final", "unknown split"),
        ("nyuv2:/nowhere", "is not there"),
        ("nowhere", "is not there"),
        ("kitti:{empty}", "holds no kitti picture"),
        ("{empty}", "for a published set say which"),
        ("\0", "is not there"),
    ],
)
def test_data_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_data(text.format(empty=tmp_path))
