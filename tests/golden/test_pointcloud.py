"""The released exporter's masks, points, colours and files.

The release centres every cloud on its median and stores glTF axes; ours stay in the camera frame, so the
test turns and centres. Its pixel centres are integers around (W - 1) / 2, ours +0.5 around W / 2: the same.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from safetensors.numpy import load_file

from modality_forcing.geometry.cloud import EDGE_RTOL, edge_mask, outlier_mask, point_cloud
from modality_forcing.io.exports import to_gltf_axes, write_glb, write_ply
from modality_forcing.types import RGBD, Camera

DATA = Path(__file__).parent / "data"
GOLDEN = load_file(DATA / "pointcloud.safetensors")
RUNS = json.loads((DATA / "pointcloud.json").read_text())["runs"]


def scene(depth: np.ndarray, fov: float) -> RGBD:
    mask = np.isfinite(depth) & (depth > 0)
    return RGBD(GOLDEN["in.rgb"], depth, mask, Camera.from_fov(64, 48, fov_x=fov))


@pytest.mark.parametrize(
    ("name", "rtol", "kernel"),
    [("rtol0.02", 0.02, 3), ("rtol0.04", 0.04, 3), ("rtol0.04.k5", 0.04, 5)],
)
def test_edge_mask(name, rtol, kernel):
    np.testing.assert_array_equal(edge_mask(GOLDEN["in.depth"], rtol, kernel), GOLDEN[f"edge_mask.{name}"])


@pytest.mark.parametrize(("k", "std"), [(5, 1.0), (8, 2.0)])
def test_outlier_mask(k, std):
    inliers = outlier_mask(GOLDEN["sor.points_uncentred"], k, std)
    np.testing.assert_array_equal(inliers, GOLDEN[f"sor.inliers.k{k}_std{std:.0f}"])


@pytest.mark.parametrize("name", RUNS)
def test_cloud(name):
    run = RUNS[name]
    cloud = point_cloud(
        scene(GOLDEN[run["depth"]], run["fov_deg"]),
        edge_rtol=run["edge_rtol"],
        sor=run["sor"],
        max_points=run["max_points"],
    )
    assert len(cloud) == run["num_points"]
    points = to_gltf_axes(cloud.points)
    np.testing.assert_allclose(
        points - np.median(points, axis=0), GOLDEN[f"{name}.points"], rtol=0, atol=1e-5
    )
    np.testing.assert_array_equal(cloud.colors, GOLDEN[f"{name}.colors"])


def test_the_other_defaults_are_the_released_ones():
    cloud = point_cloud(scene(GOLDEN["in.depth"], 65.0), edge_rtol=EDGE_RTOL)
    assert len(cloud) == RUNS["rtol0.04.sor0"]["num_points"]


@pytest.mark.parametrize("ending", ["ply", "glb"])
def test_files_hold_the_same_cloud(tmp_path, ending):
    def read(path):
        loaded = trimesh.load(path)
        return next(iter(loaded.geometry.values())) if isinstance(loaded, trimesh.Scene) else loaded

    cloud = point_cloud(scene(GOLDEN["in.depth"], 65.0), edge_rtol=EDGE_RTOL)
    path = tmp_path / f"cloud.{ending}"
    (write_ply if ending == "ply" else write_glb)(path, cloud)
    ours, theirs = read(path), read(DATA / f"pointcloud_rtol0.04.sor0.{ending}")
    points = ours.vertices - np.median(ours.vertices, axis=0)
    np.testing.assert_allclose(points, theirs.vertices, rtol=0, atol=1e-5)
    if ending == "ply":  # our GLB holds linear light, as glTF asks; see test_cloud in tests/unit
        np.testing.assert_array_equal(ours.colors[:, :3], theirs.colors[:, :3])
