import json

import numpy as np
import pytest

from modality_forcing.errors import UserError
from modality_forcing.geometry.camera import DEFAULT_FOV_X, project, resolve_camera, unproject
from modality_forcing.io.intrinsics import read_intrinsics
from modality_forcing.types import Camera

CAMERA = Camera(50.0, 40.0, 16.3, 11.0, 32, 24)


def test_unproject_uses_pixel_centres_and_opencv_axes():
    depth = np.full((24, 32), 2.0, dtype=np.float32)
    points = unproject(depth, CAMERA)
    assert points.shape == (24, 32, 3)
    assert points.dtype == np.float32
    np.testing.assert_allclose(points[0, 0], [2 * (0.5 - 16.3) / 50, 2 * (0.5 - 11) / 40, 2.0], rtol=1e-6)
    assert points[-1, -1, 0] > 0  # right
    assert points[-1, -1, 1] > 0  # down


def test_project_inverts_unproject():
    depth = np.random.default_rng(0).uniform(0.5, 9.0, (24, 32)).astype(np.float32)
    uv = project(unproject(depth, CAMERA), CAMERA)
    np.testing.assert_allclose(uv[..., 0], np.tile(np.arange(32) + 0.5, (24, 1)), atol=1e-4)
    np.testing.assert_allclose(uv[..., 1], np.tile(np.arange(24)[:, None] + 0.5, (1, 32)), atol=1e-4)


def test_points_behind_the_camera_have_no_image():
    uv = project(np.array([[1.0, 1.0, -2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), CAMERA)
    assert np.isnan(uv[:2]).all()
    np.testing.assert_array_equal(uv[2], [16.3, 11.0])


def test_unproject_refuses_another_size():
    with pytest.raises(UserError, match="32x24"):
        unproject(np.ones((24, 31), np.float32), CAMERA)


def test_a_resized_camera_sees_the_same_rays():
    small = unproject(np.ones((24, 32), np.float32), CAMERA)
    large = unproject(np.ones((48, 64), np.float32), CAMERA.resized(64, 48))
    np.testing.assert_allclose(large.reshape(24, 2, 32, 2, 3).mean(axis=(1, 3)), small, atol=1e-6)


def test_resolve_defaults_and_fields_of_view():
    camera = resolve_camera(640, 480)
    assert camera.fov_x == pytest.approx(DEFAULT_FOV_X)
    assert camera.fx == camera.fy
    assert (camera.cx, camera.cy) == (320, 240)
    assert resolve_camera(640, 480, fov_y=40.0).fov_y == pytest.approx(40.0)
    both = resolve_camera(640, 480, fov_x=70.0, fov_y=40.0)
    assert (both.fov_x, both.fov_y) == (pytest.approx(70.0), pytest.approx(40.0))


def test_resolve_intrinsics():
    expected = Camera(500.0, 510.0, 310.0, 250.0, 640, 480)
    assert resolve_camera(640, 480, intrinsics=(500, 510, 310, 250)) == expected
    assert resolve_camera(640, 480, intrinsics=expected.matrix()) == expected
    assert resolve_camera(640, 480, intrinsics=expected.matrix() * 2) == expected
    assert resolve_camera(320, 240, intrinsics=expected) == expected.resized(320, 240)


SKEW = [[500, 3, 320], [0, 500, 240], [0, 0, 1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fov_x": 0.0}, "fov_x is 0"),
        ({"fov_x": 180.0}, "between 0 and 180"),
        ({"fov_y": float("nan")}, "fov_y is nan"),
        ({"fov_x": 60.0, "intrinsics": (500, 500, 320, 240)}, "not both"),
        ({"intrinsics": (-500, 500, 320, 240)}, "fx is -500"),
        ({"intrinsics": (500, float("inf"), 320, 240)}, "fy is inf"),
        ({"intrinsics": (500, 500, float("nan"), 240)}, "cx is nan"),
        ({"intrinsics": (500, 500, 320)}, "shape"),
        ({"intrinsics": ("a", "b", "c", "d")}, "must be numbers"),
        ({"intrinsics": SKEW}, "skew"),
        ({"intrinsics": np.zeros((3, 3))}, "last row"),
        ({"intrinsics": (0.9, 1.2, 0.5, 0.5)}, "normalised"),
        ({"intrinsics": Camera(500, 500, 240, 240, 480, 480)}, "another shape"),
    ],
)
def test_resolve_refuses(options, message):
    with pytest.raises(UserError, match=message) as caught:
        resolve_camera(640, 480, **options)
    assert "\n" not in str(caught.value)


K = [[500.0, 0.0, 310.0], [0.0, 510.0, 250.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("k.json", json.dumps(K)),
        ("k.json", json.dumps({"K": K})),
        ("k.json", json.dumps({"intrinsics": {"fx": 500, "fy": 510, "cx": 310, "cy": 250}})),
        ("metadata.json", json.dumps({"camera": Camera(500, 510, 310, 250, 640, 480).to_dict()})),
        ("k.txt", "500 0 310\n0 510 250\n0 0 1\n"),
        ("k.csv", "500,510,310,250"),
    ],
)
def test_intrinsics_files(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    camera = resolve_camera(640, 480, intrinsics=read_intrinsics(tmp_path / name))
    assert camera == Camera(500.0, 510.0, 310.0, 250.0, 640, 480)


def test_intrinsics_text():
    np.testing.assert_array_equal(read_intrinsics("500, 510,310, 250"), [500, 510, 310, 250])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("k.json", "{", "not valid JSON"),
        ("k.json", '{"focal": 3}', "holds no camera"),
        ("k.json", '{"fx": "wide", "fy": 1, "cx": 1, "cy": 1}', "holds no camera"),
        ("k.json", "[1, 2, 3]", "holds no camera"),
        ("k.txt", "one two", "holds no camera"),
        ("k.txt", "1 2 3 4 5", "holds no camera"),
        ("k.txt", b"\xff\xfe\x00", "not text"),
        ("k.txt", b"1 " * 600_000, "larger than a megabyte"),
        ("k.txt", b"", "empty"),
    ],
)
def test_intrinsics_files_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_intrinsics(path)


def test_intrinsics_numbers_refused():
    with pytest.raises(UserError, match="3 numbers"):
        read_intrinsics("1,2,3")
    with pytest.raises(UserError, match="does not exist"):
        read_intrinsics("no-such-file.json")
