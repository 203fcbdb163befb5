"""The rules of each sensor family against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from modality_forcing.config.training import SensorConfig
from modality_forcing.data.sensors import measure
from modality_forcing.data.sensors.common import View
from modality_forcing.data.sensors.lidar import _angles, return_chance
from modality_forcing.geometry.camera import unproject
from modality_forcing.types import Camera

SIZE = 200
CAMERA = Camera.from_fov(SIZE, SIZE, fov_x=60)


def textured(grey: int = 128, size: int = SIZE) -> np.ndarray:
    noise = np.random.default_rng(3).integers(-25, 26, (size, size, 1))
    return np.broadcast_to(grey + noise, (size, size, 3)).astype(np.uint8)


def flat(z: float) -> np.ndarray:
    return np.full((SIZE, SIZE), z, np.float32)


def see(
    depth: np.ndarray, kind: str, noise: float = 0.0, seed: int = 0, rgb: np.ndarray | None = None,
    share: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    rgb = textured() if rgb is None else rgb
    sensor = SensorConfig(kind, 1.0, share, share, noise)
    return measure(depth, rgb, CAMERA, sensor, np.random.default_rng(seed))


def box_before_wall(near: float, far: float) -> np.ndarray:
    depth = flat(far)
    depth[60:140, 80:120] = near
    return depth


def test_normals_of_a_plane_from_its_depth() -> None:
    """n . X = c: z follows, and the normal comes back."""
    normal = np.array([0.3, -0.5, -0.8])
    normal /= np.linalg.norm(normal)
    rays = unproject(flat(1.0), CAMERA)
    depth = (-2.0 / (rays @ normal)).astype(np.float32)
    assert (depth > 0).all()
    view = View(depth, textured(), CAMERA)
    np.testing.assert_allclose(view.normals, np.broadcast_to(normal, view.normals.shape), atol=2e-3)
    direction = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    np.testing.assert_allclose(view.cosine, -(direction @ normal), atol=2e-3)
    given = replace(view, given_normals=np.tile(np.float32([0, 0, -1]), (SIZE, SIZE, 1)))
    np.testing.assert_allclose(given.cosine, direction[..., 2], atol=1e-6)


def test_edges_are_jumps_and_not_slopes() -> None:
    rows = np.arange(SIZE)[:, None] + 0.5
    floor = np.broadcast_to(150.0 / rows[::-1], (SIZE, SIZE)).astype(np.float32)  # 1/z is linear in the row
    assert not View(floor, textured(), CAMERA).edges.any()
    edges = View(box_before_wall(2, 4), textured(), CAMERA).edges
    np.testing.assert_array_equal(np.flatnonzero(edges[100]), [79, 80, 119, 120])
    np.testing.assert_array_equal(np.flatnonzero(edges[:, 100]), [59, 60, 139, 140])
    unknown = flat(3.0)
    unknown[:, 50:60] = 0
    assert not View(unknown, textured(), CAMERA).edges.any()
    unknown[:, 50:60] = np.inf
    np.testing.assert_array_equal(
        np.flatnonzero(View(unknown, textured(), CAMERA).edges[9]), [49, 50, 59, 60]
    )


@pytest.mark.parametrize("baseline", [0.1, 0.3])
def test_what_the_other_view_does_not_see(baseline: float) -> None:
    """A band as wide as the difference of the disparities, left of what stands in front for a view to the
    right; and the border of the picture, as wide as the disparity of the background."""
    near, far = 1.0, 4.0
    shift_near, shift_far = (CAMERA.fx * baseline / z for z in (near, far))
    view = View(box_before_wall(near, far), textured(), CAMERA)
    for sign in (1, -1):
        hidden = view.hidden(sign * baseline)
        row = hidden[100] if sign > 0 else hidden[100, ::-1]
        border, band = round(shift_far), shift_near - shift_far
        assert row[: border - 1].all()
        start = 80 - band  # the box begins at column 80, mirrored too: 200 - 120
        assert row[math.ceil(start) + 1 : 79].all()
        assert not row[80:].any()
        assert not row[border + 1 : math.floor(start) - 1].any()
        assert not hidden[50, border + 1 : SIZE - border - 1].any()


def test_behind_a_thin_pole_the_background_is_seen_again() -> None:
    depth = flat(4.0)
    depth[:, 150:153] = 0.5
    shift_near, shift_far = (CAMERA.fx * 0.2 / z for z in (0.5, 4.0))
    row = View(depth, textured(), CAMERA).hidden(0.2)[100]
    covered = np.flatnonzero(row[20:150]) + 20
    expected = 150 - shift_near + shift_far
    assert 2 <= covered.size <= 6
    assert abs(covered.mean() - (expected + 1)) < 2


def test_structured_light_holes() -> None:
    depth = box_before_wall(1.5, 4.0)
    rgb = textured()
    rgb[10:20, 10:190] = 2  # black
    rgb[30:40, 10:190] = 255  # dazzling
    sides = set()
    shadow = CAMERA.fx * 0.075 * (1 / 1.5 - 1 / 4.0)
    for seed in range(8):
        mask = see(depth, "structured_light", rgb=rgb, seed=seed)[1]
        assert not mask[10:20, 10:190].any() and not mask[30:40, 10:190].any()
        assert not mask[60:140, [79, 80, 119, 120]].any() and not mask[[59, 60, 139, 140], 80:120].any()
        missing_left = 80 - np.flatnonzero(mask[100, :79])[-1] - 1
        missing_right = np.flatnonzero(mask[100, 121:])[0] + 1
        wide, narrow = max(missing_left, missing_right), min(missing_left, missing_right)
        assert wide == pytest.approx(shadow, abs=1.5) and narrow <= 1
        sides.add("left" if missing_left > missing_right else "right")
        assert mask[150:, 40:160].mean() > 0.95
    assert sides == {"left", "right"}
    assert not see(flat(9.0), "structured_light")[1].any()
    assert not see(flat(0.35), "structured_light")[1].any()
    assert see(flat(0.45), "structured_light")[1].mean() > 0.5


def test_dark_surfaces_vanish_with_distance() -> None:
    for kind in ("structured_light", "tof"):
        shares = [
            np.mean([see(flat(z), kind, seed=i, rgb=textured(40))[1].mean() for i in range(10)])
            for z in (1.0, 3.0, 5.5)
        ]
        assert shares[0] > 0.9 > shares[2] and shares[0] > shares[1] >= shares[2], (kind, shares)


def test_stereo_needs_texture_and_both_views() -> None:
    rgb = textured()
    rgb[:, 120:] = 100
    rgb[:, 140, 0] = 101  # a third of a grey level in five columns: too weak
    mask = see(flat(3.0), "stereo", rgb=rgb)[1]
    assert mask[:, 60:118].mean() > 0.9
    assert not mask[:, 124:].any()
    assert not see(flat(3.0), "stereo", rgb=np.full_like(rgb, 100))[1].any()
    mask = see(box_before_wall(1.5, 5.0), "stereo", seed=1)[1]
    assert mask[100, 120:].all() and not mask[100, 76:80].any() and not mask[100, :2].any()
    assert see(flat(0.3), "stereo")[1].mean() > 0.5  # the rig shrinks with the scene


def test_stereo_error_grows_with_the_square_of_depth() -> None:
    depth = flat(2.0)
    depth[:, 100:] = 8.0
    ratios = []
    for seed in range(6):
        measured, mask = see(depth, "stereo", 1.0, seed)
        left, right = (measured[:, c][mask[:, c]] for c in (slice(0, 96), slice(104, 200)))
        assert len(np.unique(left)) < 40  # disparities come in eighths of a pixel
        ratios.append((right.std() / 64) / (left.std() / 4))
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.15)


def spread(kind: str, z: float, noise: float = 1.0) -> float:
    """Standard deviation in metres around the centre of a frontal wall."""
    measured, mask = see(flat(z), kind, noise)
    centre = (slice(80, 120), slice(80, 120))
    values = measured[centre][mask[centre]]
    assert values.size > 400
    return float(values.std())


def test_noise_is_what_the_formulas_say() -> None:
    for strength in (1.0, 2.0):
        assert spread("random", 3.0, strength) == pytest.approx(strength * 0.03, rel=0.08)
        assert spread("dense", 3.0, strength) == pytest.approx(strength * 0.03, rel=0.08)
        for z in (3.0, 30.0):
            assert spread("lidar", z, strength) == pytest.approx(strength * 0.02, rel=0.08)
    for z in (1.0, 2.0, 4.0):
        axial = 0.0012 + 0.0019 * (z - 0.4) ** 2
        rounding = 0.00285 * z * z / math.sqrt(12)
        assert spread("structured_light", z) == pytest.approx(math.hypot(axial, rounding), rel=0.15)
    light = float(View(flat(2.0), textured(), CAMERA).reflectance.mean())
    assert spread("tof", 2.0) == pytest.approx(0.002 * 2.0 / math.sqrt(light), rel=0.15)


def test_structured_light_comes_in_steps() -> None:
    measured, mask = see(flat(3.0), "structured_light", 1.0)
    steps = 1.0 / measured[mask] / 0.00285
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)


def test_keypoints_triangulate_and_some_are_wrong() -> None:
    depth = flat(4.0)
    measured, mask = see(depth, "keypoints", 1.0)
    error = np.log(measured[mask] / 4.0)
    sigma = 0.5 / (CAMERA.fx * 640 / SIZE * 0.1)  # z = median depth
    assert np.median(np.abs(error)) == pytest.approx(0.6745 * sigma, rel=0.15)
    assert np.mean(np.abs(error) > 0.25) == pytest.approx(0.05 * 0.617, abs=0.01)  # P(|n| > 1/2)


def test_flying_pixels_lie_between_both_sides_of_an_edge() -> None:
    depth = box_before_wall(2.0, 4.0)
    measured, mask = see(depth, "tof", 1.0)
    edge = View(depth, textured(), CAMERA).edges & mask
    flying = (measured > 2.3) & (measured < 3.7)
    assert 0.2 < flying[edge].mean() < 0.5
    assert not flying[~edge].any()


def test_lidar_elevation_of_a_level_scanner() -> None:
    azimuth, elevation = _angles(View(flat(3.0), textured(), CAMERA), 0.0, 0.0)
    assert azimuth.shape == (SIZE, SIZE + 1) and elevation.shape == (SIZE + 1, SIZE)
    assert azimuth[100, 0] == pytest.approx(-math.radians(30), abs=1e-3)
    assert elevation[0, 100] == pytest.approx(math.radians(30), abs=1e-3)
    # A ring of constant elevation bends towards the horizon's row less at the sides: tan(el) = y cos(az) / f.
    assert math.tan(elevation[0, 0]) == pytest.approx(
        math.tan(math.radians(30)) * math.cos(math.radians(30)), abs=3e-3
    )
    pitched = _angles(View(flat(3.0), textured(), CAMERA), math.radians(2), 0.0)[1]
    assert abs(pitched[100, 100] - elevation[100, 100]) == pytest.approx(math.radians(2), abs=1e-3)


def test_lidar_measures_rows() -> None:
    """In a narrow strip, where the rows are level, few image rows hold all points; random points fill
    them."""
    share = []
    for kind in ("lidar", "random"):
        rows = [see(flat(4.0), kind, seed=i, share=0.05)[1][100:, 90:110].any(1).mean() for i in range(12)]
        share.append(np.mean(rows))
    assert share[0] < 0.6 * share[1]


def test_lidar_sees_nothing_high_up() -> None:
    for seed in range(10):
        mask = see(flat(4.0), "lidar", seed=seed)[1]
        assert not mask[: round(100 - CAMERA.fy * math.tan(math.radians(29)))].any()
        assert mask[110:].mean() > 0.9


def test_lidar_returns() -> None:
    def chance(
        z: float, grey: int = 128, colour: tuple[int, int, int] | None = None, normal: object = (0, 0, -1)
    ):
        rgb = np.full((SIZE, SIZE, 3), colour or (grey,) * 3, np.uint8)
        normals = np.tile(np.float32(normal), (SIZE, SIZE, 1))
        return float(return_chance(View(flat(z), rgb, CAMERA, normals))[100, 100])

    albedo = ((128 / 255 + 0.055) / 1.055) ** 2.4
    signal = albedo * (200 / 50) ** 2
    assert chance(50) == pytest.approx(0.98 * signal / (signal + 1), rel=1e-3)
    assert chance(10) > chance(50) > chance(110)
    assert chance(50, 30) < 0.5 * chance(50, 200)
    grazing = (0.0, -math.sqrt(1 - 0.01), -0.1)
    assert chance(50, normal=grazing) < 0.5 * chance(50)
    meadow, lake = (60, 120, 40), (40, 90, 160)
    assert chance(20, colour=lake, normal=grazing) < 0.3 * chance(20, colour=meadow, normal=grazing)
    assert chance(20, colour=lake) == pytest.approx(chance(20, colour=meadow), rel=0.1)  # a blue wall
