"""Completion: the sparse fit, its outliers, the correction spread out, held values, the task end to end."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modality_forcing import Pipeline
from modality_forcing.codecs.depth import contract
from modality_forcing.editing import completion
from modality_forcing.errors import UserError
from modality_forcing.flow.held import Held
from modality_forcing.flow.schedule import image_to_depth_schedule
from modality_forcing.geometry import completion as sparse
from modality_forcing.geometry.alignment import align_affine_l1
from modality_forcing.io.point_files import read_points


@pytest.fixture(scope="module")
def pipeline(tiny_model) -> Pipeline:
    return Pipeline.from_pretrained(tiny_model, device="cpu")


@pytest.fixture
def scene() -> np.ndarray:
    """float32 (48, 64): a floor, and a wall in the left half that ends at a sharp edge."""
    floor = np.repeat(np.linspace(6.0, 2.0, 48, dtype=np.float32)[:, None], 64, axis=1)
    floor[:, :20] = 1.5
    return floor


def some(depth: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """A random share of the pixels; 0 elsewhere."""
    return np.where(np.random.default_rng(seed).random(depth.shape) < share, depth, 0.0).astype(np.float32)


# -- held values ---------------------------------------------------------------------------------------------


def test_held_values_walk_the_straight_path_and_nothing_else_moves():
    generator = torch.Generator().manual_seed(0)
    clean, noise, x = (torch.randn(2, 5, 4, generator=generator) for _ in range(3))
    known = torch.rand(2, 5, 4, generator=generator) < 0.4
    held = Held(clean, known, noise)
    for t in (0.0, 0.3, 1.0):
        found = held.at(t, x)
        torch.testing.assert_close(found[known], ((1 - t) * clean + t * noise)[known])
        assert torch.equal(found[~known], x[~known])
    assert torch.equal(Held.nothing(clean).at(0.5, x), x)


def test_the_sampler_sees_the_held_values_in_every_step(pipeline, scene, monkeypatch):
    """Each state that reaches the model in the second pass has the known pixels on their path."""
    seen = []
    forward = pipeline.engine._forward

    def watch(rgb, depth, text, rope, t_rgb, t_depth, level):
        seen.append((float(t_depth[0]), depth.clone()))
        return forward(rgb, depth, text, rope, t_rgb, t_depth, level)

    monkeypatch.setattr(pipeline.engine, "_forward", watch)
    held = []
    at = Held.at

    def remember(self, t, x):
        held.append(self)
        return at(self, t, x)

    monkeypatch.setattr(Held, "at", remember)
    image = np.full((*scene.shape, 3), 90, np.uint8)
    pipeline.complete(image, some(scene, 0.1), seed=0, steps=6)
    ours = [h for h in held if h.known.any()]
    second = seen[-len(ours) :]
    assert len(ours) == image_to_depth_schedule(6, pipeline.config.flow, start=0.35).steps >= 1
    for (t, depth), h in zip(second, ours, strict=True):
        wanted = (1 - t) * h.clean + t * h.noise
        torch.testing.assert_close(depth[h.known], wanted[h.known])
        assert (depth[~h.known] - wanted[~h.known]).abs().max() > 1e-3


def test_a_schedule_can_start_below_1():
    whole, late = image_to_depth_schedule(10), image_to_depth_schedule(10, start=0.5)
    assert late.depth[0] == 0.5
    assert late.depth[-1] == 0.0
    assert set(late.depth[1:].tolist()) == {t for t in whole.depth.tolist() if t < 0.5}
    assert (late.depth.diff() < 0).all()


# -- the fit -------------------------------------------------------------------------------------------------


def test_fit_finds_scale_and_shift_among_wrong_points(scene):
    points = some(2.5 * scene + 0.7, 0.1)
    rows, cols = np.nonzero(points)
    points[rows[::5], cols[::5]] *= 8.0
    found = sparse.fit(scene, points, sparse.measured(points))
    assert found.scale == pytest.approx(2.5, rel=1e-4)
    assert found.shift == pytest.approx(0.7, abs=1e-3)


def test_fit_with_few_points_is_a_scale(scene):
    points = np.zeros_like(scene)
    points[40, 40], points[3, 3] = 3.0 * scene[40, 40], 3.0 * scene[3, 3]
    found = sparse.fit(scene, points, sparse.measured(points))
    assert (found.scale, found.shift) == (pytest.approx(3.0), 0.0)


def test_near_points_alone_do_not_bend_the_far_part(scene):
    """A wavy estimate of near things: a shift fits them a little better and squeezes what lies behind."""
    truth = 4.0 * scene
    wavy = scene * (1 + 0.03 * np.sin(2 * np.arange(scene.shape[0]))[:, None])
    near = (scene < 2.6) & (scene > 1.5)
    free = align_affine_l1(wavy[near], truth[near], weights=1 / truth[near])
    assert free.shift > 0.6
    found = sparse.fit(wavy, truth, near)
    assert (found.scale, found.shift) == (pytest.approx(4.0, rel=0.01), pytest.approx(0.0, abs=1e-6))


def test_fit_never_turns_the_scene_inside_out(scene):
    points = some(10.0 - scene, 0.2)
    found = sparse.fit(scene, points, sparse.measured(points))
    assert found.scale > 0
    assert (found.apply(scene) > 0).all()


def test_outliers_are_found_and_edges_are_none(scene):
    points = some(scene, 0.2)
    rows, cols = np.nonzero(points)
    wrong = np.zeros(points.shape, bool)
    wrong[rows[::20], cols[::20]] = True
    points[wrong] *= np.where(np.arange(wrong.sum()) % 2, 3.0, 0.3)
    shifted = np.roll(scene, 2, axis=1)  # the model puts the edge two pixels off
    bad = sparse.outliers(shifted, points, sparse.measured(points))
    assert (bad & wrong).sum() >= 0.9 * wrong.sum()
    assert (bad & ~wrong).sum() <= 0.02 * (points > 0).sum()


def test_spread_meets_the_points_and_stops_at_edges(scene):
    known = np.zeros(scene.shape, bool)
    known[24, 5], known[24, 50] = True, True
    values = np.where(np.arange(64) < 20, 0.4, -0.2) * known
    found = sparse.spread(values, known, scene)
    assert found[24, 5] == pytest.approx(0.4, abs=0.02)
    assert found[24, 50] == pytest.approx(-0.2, abs=0.02)
    assert found[24, 19] > 0.25  # the same side of the edge
    assert found[24, 22] < -0.05  # the other one, three pixels on
    flat = sparse.spread(values, known, np.ones_like(scene))
    assert abs(flat[24, 19] - flat[24, 20]) < 0.1 < found[24, 19] - found[24, 20]
    assert not sparse.spread(values, np.zeros_like(known), scene).any()


def test_points_survive_a_coarser_grid_unmixed():
    points = np.full((200, 100), np.nan, np.float32)
    points[7, 9], points[8, 9], points[9, 9], points[150, 60] = 5.0, 1.0, 2.0, 9.0
    grid = sparse.thinned(points, (20, 10), (32, 16))
    assert grid.shape == (32, 16)
    assert np.count_nonzero(~np.isnan(grid)) == 2
    assert grid[0, 0] == 2.0  # the median of the three
    assert grid[15, 6] == 9.0


# -- the task ------------------------------------------------------------------------------------------------


def images_of(count: int, shape: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for _ in range(count)]


def test_known_pixels_come_back_and_the_rest_is_near(pipeline, scene):
    (image,) = images_of(1, scene.shape)
    points = some(scene, 0.1)
    (result,) = pipeline.complete(image, points, seed=0, drop_outliers=False)
    known = points > 0
    np.testing.assert_array_equal(result.depth[known], points[known])
    np.testing.assert_array_equal(result.rgb, image)
    assert result.depth_unit == "m"
    assert result.mask[known].all()
    assert np.isfinite(result.depth).all()
    assert (result.depth > 0).all()
    (relative,) = pipeline.image_to_depth(image, seed=0)
    plain = sparse.fit(relative.depth, points, known).apply(relative.depth)

    def error(depth: np.ndarray) -> float:
        return float(np.mean(np.abs(depth - scene) / scene))

    # The weights are random: what there is to know is in the points.
    assert error(result.depth) < 0.6 * error(plain)
    note = result.provenance["completion"]
    assert note["points"] == np.count_nonzero(known)
    assert note["dropped_on_grid"] == 0
    assert note["residual"] > 0


def test_flipped_and_read_only_arrays_are_as_good_as_others(pipeline, scene):
    """BGR to RGB is a view with negative strides; Pillow's arrays cannot be written to."""
    (image,) = images_of(1, scene.shape)
    points = some(scene, 0.1)
    (wanted,) = pipeline.complete(image, points, seed=0)
    flipped, frozen = image[..., ::-1].copy()[..., ::-1], points[::-1].copy()[::-1]
    frozen.setflags(write=False)
    (result,) = pipeline.complete(flipped, frozen, seed=0)
    np.testing.assert_array_equal(result.depth, wanted.depth)


def test_smooth_blend_returns_the_map_at_known_pixels_too(pipeline, scene):
    (image,) = images_of(1, scene.shape)
    points = some(scene, 0.3)
    known = points > 0
    exact, smooth = (
        pipeline.complete(image, points, seed=0, blend=blend, drop_outliers=False)[0]
        for blend in ("exact", "smooth")
    )
    np.testing.assert_array_equal(exact.depth[known], points[known])
    assert (smooth.depth[known] != points[known]).mean() > 0.5


def test_a_soft_grip_averages_noise(scene):
    noise = np.random.default_rng(0).normal(0.0, 0.05, scene.shape)
    known, flat = np.ones(scene.shape, bool), np.ones_like(scene)
    firm = sparse.spread(noise, known, flat)
    soft = sparse.spread(noise, known, flat, grip=sparse.SOFT_GRIP)
    assert firm.std() > 0.04 > 0.02 > soft.std()


def test_a_unit_is_a_factor_and_nothing_else(pipeline, scene):
    (image,) = images_of(1, scene.shape)
    points = some(scene, 0.05)
    (metres,) = pipeline.complete(image, points, seed=2)
    (millimetres,) = pipeline.complete(image, 1000 * points, seed=2, depth_unit="relative")
    np.testing.assert_allclose(millimetres.depth, 1000 * metres.depth, rtol=1e-3)
    assert millimetres.depth_unit == "relative"


def test_an_item_is_the_same_alone_and_in_a_batch(pipeline, scene):
    images = [*images_of(2, scene.shape), *images_of(1, (80, 40))]
    maps = [some(scene, 0.1, 0), some(scene, 0.02, 1), some(np.full((80, 40), 3.0, np.float32), 0.05)]
    together = pipeline.complete(images, maps, seed=[5, 6, 7], prompt=["a", "b", "c"])
    for i, prompt in enumerate("abc"):
        (alone,) = pipeline.complete(images[i], maps[i], seed=5 + i, prompt=prompt)
        np.testing.assert_allclose(together[i].depth, alone.depth, rtol=2e-3)
        np.testing.assert_array_equal(together[i].mask, alone.mask)


def test_five_percent_of_wrong_points_do_not_ruin_it(pipeline, scene, monkeypatch):
    """With a stand-in for a trained model: the true shape in another unit, bent by a smooth error."""
    bent = 0.3 * scene * (1 + 0.15 * np.sin(np.arange(64) / 9)).astype(np.float32)
    monkeypatch.setattr(completion, "grid_depth", lambda *_: bent)
    image = np.full((*scene.shape, 3), 128, np.uint8)
    points = some(scene, 0.2)
    spoiled = points.copy()
    rows, cols = np.nonzero(points)
    spoiled[rows[::20], cols[::20]] *= 6.0

    def error(values: np.ndarray, **options: bool) -> float:
        (result,) = pipeline.complete(image, values, seed=0, size=(64, 48), **options)
        return float(np.mean(np.abs(result.depth - scene) / scene))

    clean, dropped, kept = error(points), error(spoiled), error(spoiled, drop_outliers=False)
    assert clean < 0.02
    assert dropped < 0.03
    assert kept > 0.06


def test_one_point_is_enough(pipeline, scene):
    (image,) = images_of(1, scene.shape)
    points = np.full(scene.shape, np.nan, np.float32)
    points[30, 30] = 4.0
    (result,) = pipeline.complete(image, points, seed=0)
    assert result.depth[30, 30] == 4.0
    assert result.provenance["completion"]["shift"] == 0.0


def test_known_sky_is_no_surface(pipeline, scene):
    (image,) = images_of(1, scene.shape)
    points = some(scene, 0.2)
    points[:6] = np.inf
    (result,) = pipeline.complete(image, points, seed=0)
    assert not result.mask[:6].any()
    assert np.isfinite(result.depth).all()


@pytest.mark.parametrize(
    ("depths", "says"),
    [
        (np.zeros((48, 64), np.float32), "no valid pixel"),
        (np.ones((47, 64), np.float32), "sizes must agree"),
        ([np.ones((48, 64), np.float32)] * 2, "2 depth maps for 1 images"),
        (np.ones((48, 64, 2), np.float32)[None], "a depth map is"),
    ],
)
def test_bad_depth_is_refused(pipeline, depths, says):
    with pytest.raises(UserError, match=says):
        pipeline.complete(np.zeros((48, 64, 3), np.uint8), depths)


def test_unknown_blend_is_refused(pipeline, scene):
    with pytest.raises(UserError, match="exact or smooth"):
        pipeline.complete(np.zeros((48, 64, 3), np.uint8), scene, blend="soft")


def test_the_callback_sees_both_passes(pipeline, scene):
    steps = []
    pipeline.complete(np.zeros((48, 64, 3), np.uint8), scene, seed=0, steps=8, on_step=steps.append)
    tail = image_to_depth_schedule(8, pipeline.config.flow, start=0.35).steps
    assert [s.index for s in steps] == [*range(8), *range(tail)]
    assert float(contract(torch.tensor(1.0))) == 1.0


# -- tables of points ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "x,y,z\n0.5,0.5,2\n63.2,47.9,3.5\n",
        "# from a tracker\n\n0.5;0.5;2\n63.2;47.9;3.5",
        "0.5\t0.5\t2\n63.2\t47.9\t3.5\n0.4\t0.2\t7",
        "0.5 0.5 2\n 63.2  47.9 3.5",
    ],
)
def test_points_are_read(tmp_path, text):
    (tmp_path / "p.csv").write_text(text)
    found = read_points(tmp_path / "p.csv", (48, 64))
    assert found[0, 0] == 2.0
    assert found[47, 63] == 3.5
    assert np.count_nonzero(found) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x,y,z\n", "holds no point"),
        ("1,2\n", "line 1"),
        ("x,y,z\na,b,c\n", "line 2"),
        ("1,2,3\n70,2,3\n", "line 2.*outside the 64x48 image"),
        ("1,2,0\n", "depth 0"),
        ("1,nan,3\n", "outside"),
        ("1,2,inf\n", "depth inf"),
    ],
)
def test_bad_points_are_refused(tmp_path, text, says):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(UserError, match=says):
        read_points(tmp_path / "p.csv", (48, 64))
