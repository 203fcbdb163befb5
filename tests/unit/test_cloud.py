import json
import struct

import numpy as np
import pytest
import trimesh

from modality_forcing.errors import UserError
from modality_forcing.geometry.cloud import (
    MAX_POINTS,
    PointCloud,
    default_edge_rtol,
    edge_mask,
    outlier_mask,
    point_cloud,
)
from modality_forcing.io.exports import to_gltf_axes, write_glb, write_ply
from modality_forcing.types import RGBD, Camera


def plane(depth=2.0, height=20, width=30):
    rng = np.random.default_rng(0)
    return RGBD(
        rng.integers(0, 256, (height, width, 3)).astype(np.uint8),
        np.full((height, width), depth, np.float32),
        np.ones((height, width), bool),
        Camera.from_fov(width, height, fov_x=60.0),
        "m",
    )


def test_values_under_the_mask_are_never_read():
    first, second = plane(), plane()
    first.mask[5:8, 5:9] = second.mask[5:8, 5:9] = False
    first.depth[5:8, 5:9], second.depth[5:8, 5:9] = np.nan, 2.0  # 2.0 would be no edge
    a, b = point_cloud(first), point_cloud(second)
    np.testing.assert_array_equal(a.points, b.points)
    assert len(a) == 20 * 30 - 5 * 6  # the hole and the pixels beside it
    assert len(point_cloud(first, edge_rtol=0)) == 20 * 30 - 3 * 4
    assert a.unit == "m"


def test_invalid_values_inside_the_mask_are_dropped():
    rgbd = plane()
    rgbd.depth[0, :4] = [np.nan, np.inf, 0.0, -1.0]
    cloud = point_cloud(rgbd, edge_rtol=0)
    assert len(cloud) == 596
    assert np.isfinite(cloud.points).all()


def test_step_is_an_edge_and_slope_is_not():
    depth = np.tile(np.linspace(1.0, 1.3, 30, dtype=np.float32), (20, 1))
    assert not edge_mask(depth, 0.04).any()
    depth[:, 15:] += 1.0
    np.testing.assert_array_equal(np.flatnonzero(edge_mask(depth, 0.04)[3]), [14, 15])


def test_edges_with_a_valid_mask_ignore_holes():
    depth = np.full((9, 9), 2.0, np.float32)
    valid = np.ones((9, 9), bool)
    depth[4, 4], valid[4, 4] = 0.0, False
    assert edge_mask(depth, 0.04).sum() == 9
    assert not edge_mask(depth, 0.04, valid=valid).any()
    depth[:, 6:] = 3.0
    assert edge_mask(depth, 0.04, valid=valid)[:, 5:7].all()


def test_subset_is_the_same_every_time():
    a, b = point_cloud(plane(), max_points=100), point_cloud(plane(), max_points=100)
    assert len(a) == 100
    np.testing.assert_array_equal(a.points, b.points)
    assert len(point_cloud(plane(), max_points=600)) == 600
    assert MAX_POINTS == 1_200_000


def test_outliers():
    points = np.random.default_rng(1).normal(size=(500, 3)).astype(np.float32)
    points[7] = 40.0
    inliers = outlier_mask(points, k=5, std_ratio=3.0)
    assert not inliers[7]
    assert inliers.mean() > 0.95
    assert outlier_mask(points[:3]).all()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda r: r.mask.fill(False), {}, "no pixel has a valid depth"),
        (lambda r: r.depth.fill(np.nan), {}, "no pixel has a valid depth"),
        (
            lambda r: r.depth.__setitem__((slice(None), slice(None, None, 2)), 5.0),
            {"edge_rtol": 0.04},
            "raise edge_rtol",
        ),
        (lambda r: setattr(r, "rgb", r.rgb[1:]), {}, "sizes differ"),
        (lambda r: setattr(r, "camera", Camera.from_fov(9, 9, fov_x=60)), {}, "camera is for a 9x9"),
        (lambda r: None, {"edge_rtol": -0.1}, "edge_rtol is -0.1"),
        (lambda r: None, {"edge_rtol": float("nan")}, "edge_rtol is nan"),
        (lambda r: None, {"max_points": 0}, "max_points is 0"),
    ],
)
def test_refused(change, options, message):
    rgbd = plane()
    change(rgbd)
    with pytest.raises(UserError, match=message):
        point_cloud(rgbd, **options)


@pytest.mark.parametrize(
    ("shape", "expected"), [((512, 512), 0.04), ((2000, 300), 0.04), ((96, 128), 0.16), ((16, 16), 0.2)]
)
def test_small_images_have_steeper_pixels(shape, expected):
    assert default_edge_rtol(shape) == pytest.approx(expected)


def test_a_floor_of_a_small_image_is_no_row_of_edges():
    height, width = 128, 128
    camera = Camera.from_fov(width, height, fov_x=65.0)
    below = np.arange(height)[:, None] + 0.5 - camera.cy
    depth = np.where(below > 10, camera.fy / np.maximum(below, 1), np.nan).astype(np.float32) * np.ones(
        (1, width)
    )
    rgbd = RGBD(np.zeros((height, width, 3), np.uint8), depth.astype(np.float32), np.isfinite(depth), camera)
    kept = len(point_cloud(rgbd, hole_edges=False)) / rgbd.mask.sum()
    assert kept > 0.9
    assert len(point_cloud(rgbd, hole_edges=False, edge_rtol=0.04)) < 0.5 * kept * rgbd.mask.sum()


def test_gltf_axes():
    np.testing.assert_array_equal(to_gltf_axes(np.array([[1.0, 2.0, 3.0]])), [[1.0, -2.0, -3.0]])


def test_ply(tmp_path):
    cloud = point_cloud(plane())
    write_ply(tmp_path / "a.ply", cloud)
    assert b"unit: m\n" in (tmp_path / "a.ply").read_bytes()[:300]
    loaded = trimesh.load(tmp_path / "a.ply")
    np.testing.assert_array_equal(loaded.vertices, to_gltf_axes(cloud.points))
    np.testing.assert_array_equal(loaded.colors[:, :3], cloud.colors)


def test_glb_is_valid_and_linear(tmp_path):
    colors = np.array([[0, 10, 188], [255, 255, 255], [128, 64, 32]], dtype=np.uint8)
    cloud = PointCloud(np.arange(9, dtype=np.float32).reshape(3, 3), colors)
    path = tmp_path / "a.glb"
    write_glb(path, cloud)
    data = path.read_bytes()
    magic, version, length, json_length = struct.unpack("<4sIII", data[:16])
    assert (magic, version, length) == (b"glTF", 2, len(data))
    assert len(data) % 4 == json_length % 4 == 0
    document = json.loads(data[20 : 20 + json_length])
    assert document["accessors"][0]["min"] == [0.0, -7.0, -8.0]
    stored = np.frombuffer(data[-36:], "<f4").reshape(3, 3)
    # the inverse of the sRGB curve, written out independently
    srgb = np.where(stored <= 0.0031308, stored * 12.92, 1.055 * stored ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(srgb * 255, colors, atol=1e-3)
    geometry = next(iter(trimesh.load(path).geometry.values()))
    np.testing.assert_array_equal(geometry.vertices, to_gltf_axes(cloud.points))
