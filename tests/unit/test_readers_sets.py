"""Readers of published data sets, on small files in their layouts, with depth worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import reader_sources as sources
from modality_forcing.data.readers import colmap
from modality_forcing.data.readers.base import Item, Loaded, Options, quaternion_matrix
from modality_forcing.data.readers.formats import FORMATS
from modality_forcing.data.readers.resample import see_depth_with
from modality_forcing.errors import UserError
from modality_forcing.types import Camera
from reader_sources import HEIGHT, WIDTH, ramp
from sending import sent


def load_all(
    name: str, source: Path, options: Options | None = None
) -> tuple[dict[str, Loaded], dict[str, str], dict[str, str]]:
    """What a reader gives: samples by name, reasons of those that failed, problems that ``find`` saw."""
    if name in sources.NEEDS:
        pytest.importorskip(sources.NEEDS[name])
    options = options or Options()
    found = FORMATS[name].find(source, options)
    assert len({item.name for item in found.items}) == len(found.items)
    good, bad = {}, {}
    for item in found.items:
        item = sent(item)
        try:
            good[item.name] = FORMATS[name].load(item, options)
        except UserError as error:
            bad[item.name] = str(error)
    return good, bad, dict(found.problems)


@pytest.fixture
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A source of the format that the test's parameter names."""
    if request.param in sources.NEEDS:
        pytest.importorskip(sources.NEEDS[request.param])
    sources.MAKERS[request.param](tmp_path)
    return tmp_path


@pytest.mark.parametrize("made", ["arkitscenes"], indirect=True)
def test_arkitscenes(made: Path) -> None:
    good, bad, problems = load_all("arkitscenes", made)
    assert not bad and not problems
    laser = good["raw/Training/41069021/wide/41069021_305.244"]
    np.testing.assert_allclose(laser.depth, ramp(), atol=5.1e-4)
    assert laser.unit == "m" and laser.camera == Camera(30, 31, 15, 11, WIDTH, HEIGHT)
    # No camera file is near in time, and the phone's own depth is not taken where the laser's is there.
    assert good["raw/Training/41069021/wide/41069021_307.343"].camera_from == "assumed"
    assert not any("41069021/lowres" in name for name in good)
    phone = good["raw/Validation/47333462/lowres_wide/47333462_1.000"]
    assert (phone.depth[:, :5] == 0).all() and (phone.depth[:, 5:] == 2.5).all()


@pytest.mark.parametrize(("sky", "top"), [("Up", "first row"), ("Left", "first column"),
                                          ("Down", "last row"), ("Right", "last column")])  # fmt: skip
def test_arkitscenes_is_turned_upright(tmp_path: Path, sky: str, top: str) -> None:
    sources.make_arkitscenes(tmp_path, sky=sky)
    sample = load_all("arkitscenes", tmp_path)[0]["raw/Training/41069021/wide/41069021_305.244"]
    before = ramp()
    edge = {"first row": before[0], "first column": before[:, 0][::-1], "last row": before[-1][::-1],
            "last column": before[:, -1]}[top]  # fmt: skip
    np.testing.assert_allclose(sample.depth[0], edge, atol=5.1e-4)
    assert sample.rgb.shape[:2] == sample.depth.shape == (sample.camera.height, sample.camera.width)
    # 15 from the left, 11 from the top of 32 x 24.
    centre = {"Up": (15, 11), "Left": (24 - 11, 15), "Down": (32 - 15, 24 - 11), "Right": (11, 32 - 15)}[sky]
    assert (sample.camera.cx, sample.camera.cy) == centre
    assert sample.camera.fx == (30 if sky in ("Up", "Down") else 31)


@pytest.mark.parametrize("made", ["hypersim"], indirect=True)
def test_hypersim(made: Path) -> None:
    good, bad, problems = load_all("hypersim", made)
    assert not bad and not problems
    first = good["ai_001_001/images/scene_cam_00_geometry_hdf5/frame.0000"]
    # 60 degrees: f = 16 / tan 30 = 27.7128. The first ray, (-15.5 / f, -11.5 / f, 1), is 1.218616 long.
    assert first.camera.fx == pytest.approx(27.7128, abs=1e-4) and first.camera.cx == 16
    assert first.depth[0, 0] == pytest.approx(2.0 / 1.218616, rel=1e-5)
    assert first.depth[11, 15] == pytest.approx(2.0, rel=1e-3) and first.depth[5, 6] == 0
    # The 90th percentile, 3, becomes 0.8 of 255; twice the light 0.8 * 2^(1/2.2) > 1.
    assert (first.rgb[1:] == 204).all() and (first.rgb[0, 0] == 255).all()
    second = good["ai_001_001/images/scene_cam_00_geometry_hdf5/frame.0001"]
    assert second.jpeg is not None and second.jpeg.name == "frame.0001.tonemap.jpg"


def test_hypersim_cameras(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    shifted = {"M_cam_from_uv_00": 0.5, "M_cam_from_uv_02": 0.05, "M_cam_from_uv_11": 0.4,
               "M_cam_from_uv_12": 0.02, "M_cam_from_uv_22": -1.0}  # fmt: skip
    sources.make_hypersim(tmp_path / "a", matrix=shifted)
    sample = load_all("hypersim", tmp_path / "a")[0][
        "ai_001_001/images/scene_cam_00_geometry_hdf5/frame.0000"
    ]
    # The ray (0, 0, -1) has u = -0.1, v = -0.05: column (1 + u) 16 = 14.4, row (1 - v) 12 = 12.6.
    assert sample.camera == Camera(32.0, 30.0, pytest.approx(14.4), pytest.approx(12.6), WIDTH, HEIGHT)
    ray = np.array([(20.5 - 14.4) / 32, (3.5 - 12.6) / 30, 1])
    assert sample.depth[3, 20] == pytest.approx(2.0 / np.linalg.norm(ray), rel=1e-5)
    sources.make_hypersim(tmp_path / "b", matrix=shifted | {"M_cam_from_uv_21": 0.1})
    good, bad, _ = load_all("hypersim", tmp_path / "b")
    assert not good and all("tilted lens" in reason for reason in bad.values())


@pytest.mark.parametrize("made", ["tartanair"], indirect=True)
def test_tartanair(made: Path) -> None:
    good, bad, problems = load_all("tartanair", made)
    assert not bad and problems == {"House/Data_easy/P000/image_lcam_fish": "no pinhole camera"}
    assert sorted(good) == [
        "House/Data_easy/P000/image_lcam_front/000000_lcam_front",
        "hospital/Easy/P001/image_left/000000_left",
    ]
    for sample in good.values():
        assert np.isposinf(sample.depth[0]).all() and (sample.depth[1:] == 2.5).all()
        assert sample.camera.fov_x == pytest.approx(90.0) and sample.camera.fx == sample.camera.fy
    far = load_all("tartanair", made, Options(sky_beyond=20_000.0))[0]
    assert all((sample.depth[0] == 10_000).all() for sample in far.values())


@pytest.mark.parametrize("made", ["megadepth"], indirect=True)
def test_megadepth(made: Path) -> None:
    good, bad, _ = load_all("megadepth", made)
    (sample,) = good.values()
    np.testing.assert_array_equal(sample.depth, ramp(3.0, 9.0))
    assert sample.unit == "relative" and sample.camera_from == "given"
    assert sample.camera == Camera(30, 31, 15, 12, WIDTH, HEIGHT)  # the model's image is twice as large
    assert list(bad.values()) == ["its file holds marks of nearer and farther, not depth"]


@pytest.mark.parametrize("made", ["blendedmvs"], indirect=True)
def test_blendedmvs(made: Path) -> None:
    good, bad, problems = load_all("blendedmvs", made)
    assert not bad and not problems
    (sample,) = good.values()  # not the masked copy
    np.testing.assert_array_equal(sample.depth, ramp(5.0, 7.0))
    assert sample.unit == "relative" and sample.camera == Camera(30, 31, 15, 12, WIDTH, HEIGHT)


@pytest.mark.parametrize("made", ["scannet"], indirect=True)
def test_scannet(made: Path) -> None:
    good, bad, problems = load_all("scannet", made)
    assert not bad and not problems
    assert list(good) == [
        "scene0000_00/color/0",
        "scene0001_00/scene0001_00/0",
        "scene0001_00/scene0001_00/1",
    ]
    for sample in good.values():
        np.testing.assert_allclose(sample.depth, ramp(), atol=5.1e-4)
        # 31.5 of 64 pixels is 32 in our pixels, and 16 of 32.
        assert sample.camera == Camera(25, 25, 16, 12, WIDTH, HEIGHT) and sample.rgb.shape == (24, 32, 3)
    stream = made / "scene0001_00" / "scene0001_00.sens"
    stream.write_bytes(stream.read_bytes()[:-10])
    good, _, problems = load_all("scannet", made)
    assert len(good) == 2 and problems == {"scene0001_00.sens": "it ends after 1 of 2 frames"}


def test_depth_of_a_camera_beside_in_pixels() -> None:
    depth = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    matrix = np.array([[2.0, 0, 2], [0, 2, 1.5], [0, 0, 1]])
    moved = matrix + np.array(
        [[0, 0, 1.0], [0, 0, 0], [0, 0, 0]]
    )  # its principal point one pixel farther right
    seen = see_depth_with(depth, matrix, moved, 4, 3)
    np.testing.assert_array_equal(seen, np.pad(depth, ((0, 0), (1, 0)))[:, :4])


@pytest.mark.parametrize("made", ["argoverse2"], indirect=True)
def test_argoverse2(made: Path) -> None:
    good, bad, problems = load_all("argoverse2", made)
    assert not bad and not problems
    ((name, sample),) = good.items()
    assert name == f"train/{sources.AV2_LOG}/sensors/cameras/ring_front_center/{sources.AV2_PICTURE}"
    # 12 m ahead of the car at the sweep; it moved 1 m, the camera stands 1 m before its middle and 1 m up.
    points = {(row, column): sample.depth[row, column] for row, column in np.argwhere(sample.depth > 0)}
    assert points == {(48, 64): pytest.approx(10.0), (48, 84): pytest.approx(10.0)}
    assert sample.unit == "m" and sample.meta["sparse"]


@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
def test_colmap(tmp_path: Path, binary: bool) -> None:
    sources.make_colmap(tmp_path, binary=binary)
    good, bad, problems = load_all("colmap", tmp_path)
    assert not bad and set(problems) == (set() if binary else {"lost.jpg"})
    sample = good["one"]
    expected = np.zeros((HEIGHT, WIDTH), np.float32)
    for number, (_, _, z, track, error) in sorted(sources.COLMAP_POINTS.items(), reverse=True):
        if track >= colmap.MIN_TRACK and error <= colmap.MAX_ERROR:
            x, y = sources.colmap_seen(number)
            expected[int(y), int(x)] = (
                z + 1
            )  # points are numbered from near to far: the nearest is written last
    np.testing.assert_allclose(sample.depth, expected, rtol=1e-6)
    assert (expected > 0).sum() > 8 and sample.unit == "relative"
    assert sample.camera == Camera(20, 20, 16, 12, WIDTH, HEIGHT)
    metric = load_all("colmap", tmp_path, Options(depth_scale=2.0))[0]["one"]
    np.testing.assert_allclose(metric.depth, 2 * expected, rtol=1e-6)
    assert metric.unit == "m"


def test_colmap_turned_camera() -> None:
    half = 0.5**0.5
    np.testing.assert_allclose(
        quaternion_matrix(half, 0, half, 0), [[0, 0, 1], [0, 1, 0], [-1, 0, 0]], atol=1e-15
    )
    points = colmap.Points(np.array([5]), np.array([[-3.0, 1.0, 2.0]]), np.array([3.0]), np.array([0.1]))
    seen = np.array([(4.0, 5.0, 5), (6.0, 7.0, 8)], colmap._SEEN)
    image = colmap.ModelImage("a", 1, (half, 0.0, half, 0.0), (0.0, 0.0, 0.5), seen)
    uv, z = colmap.depths_of(image, points, np.array([True]))
    assert uv.tolist() == [[4.0, 5.0]] and z == pytest.approx(3.5)  # -x + 0.5


def test_colmap_says_what_it_cannot_do(tmp_path: Path) -> None:
    sources.make_colmap(tmp_path / "bent", model="SIMPLE_RADIAL", binary=True)
    (sample,) = load_all("colmap", tmp_path / "bent")[0].values()
    assert sample.notes == ["lens distortion is left out of the camera"]
    sources.make_colmap(tmp_path / "fish", model="OPENCV_FISHEYE")
    good, _, problems = load_all("colmap", tmp_path / "fish")
    assert not good and "OPENCV_FISHEYE" in problems["one.jpg"]
    cut = tmp_path / "bent" / "sparse" / "0" / "images.bin"
    cut.write_bytes(cut.read_bytes()[:-5])
    with pytest.raises(UserError, match="damaged or cut short"):
        load_all("colmap", tmp_path / "bent")


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_damaged_files_are_one_line(name: str, tmp_path: Path) -> None:
    """Every file of every source cut in half, and emptied: nothing but a UserError of one line follows."""
    if name in sources.NEEDS:
        pytest.importorskip(sources.NEEDS[name])
    sources.MAKERS[name](tmp_path)
    source = tmp_path / "table.csv" if name == "csv" else tmp_path
    refused: list[str] = []
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for part in (whole[: len(whole) // 2], b""):
            path.write_bytes(part)
            items: list[Item] = []
            try:
                items = FORMATS[name].find(source, Options()).items
            except UserError as error:
                refused.append(str(error))
            for item in items:
                try:
                    FORMATS[name].load(item, Options())
                except UserError as error:
                    refused.append(str(error))
        path.write_bytes(whole)
    assert refused and not [text for text in refused if "\n" in text or len(text) > 1000]
