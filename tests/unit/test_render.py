"""The renderer: two ray casters with equal pictures, batches, determinism, errors, patterns."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from modality_forcing.data.lowpoly import PLACES, render
from modality_forcing.data.lowpoly.geometry import Geometry
from modality_forcing.data.lowpoly.places import make_scene
from modality_forcing.data.lowpoly.raycast import EmbreeCaster, choose
from modality_forcing.data.lowpoly.raycast_torch import TorchCaster
from modality_forcing.data.lowpoly.render import Picture, render_batch
from modality_forcing.data.lowpoly.scene import PATTERNS, Light, Material, PointLight, Primitive, Scene, View
from modality_forcing.data.lowpoly.shading import pattern_mix
from modality_forcing.errors import UserError

needs_embree = pytest.mark.skipif(importlib.util.find_spec("embreex") is None, reason="embreex is missing")


def assert_same(a: Picture, b: Picture) -> None:
    for name in ("rgb", "depth", "normals", "object_ids"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert a.camera == b.camera


def small_scene() -> Scene:
    """A box and a ball on a floor, sun, one lamp with a shadow, fog: every kind of ray."""
    red, tiled = Material((0.8, 0.2, 0.1), shininess=0.6), Material((0.9, 0.9, 0.9), (0.3,) * 3, "tiles", 0.5)
    parts = [
        Primitive("plane", (0.0, 0.0, 0.0), (30.0, 30.0, 1.0), tiled),
        Primitive("box", (-0.8, 4.0, 0.0), (1.0, 1.0, 1.5), red, yaw=0.4, object_id=1),
        Primitive("sphere", (0.9, 3.5, 0.0), (1.2, 1.2, 1.2), Material((0.1, 0.3, 0.8)), object_id=2),
        Primitive("plane", (0.0, 12.0, 0.02), (30.0, 8.0, 1.0), Material((0.1, 0.3, 0.5), pattern="water")),
    ]
    light = Light(fog=0.01, lamps=[PointLight((0.0, 3.0, 2.5), (1.0, 0.8, 0.5), shadow=True)])
    return Scene("test", parts, [], light, View(fov_x=60.0))


@needs_embree
def test_pictures_of_embree_and_torch_are_equal() -> None:
    scenes = [make_scene(40 + k, place) for k, place in enumerate(PLACES)]
    size = 64
    ours = render_batch(scenes, size, size, backend="torch")
    theirs = render_batch(scenes, size, size, backend="embree")
    wrong = {"depth": [], "colour": [], "object_ids": [], "normals": []}
    for a, b in zip(theirs, ours, strict=True):
        near = np.isclose(b.depth, a.depth, rtol=1e-4, atol=0)
        wrong["depth"].append(1 - near.mean())
        wrong["colour"].append((np.abs(a.rgb.astype(int) - b.rgb).max(-1) > 1).mean())
        wrong["object_ids"].append((a.object_ids != b.object_ids).mean())
        wrong["normals"].append((np.abs(a.normals - b.normals).max(-1) > 1e-3).mean())
    # What differs are rays along an edge. An occlusion ray counts sixteenfold:
    # its answer is gathered over 4 x 4 pixels.
    limits = {
        "depth": (1e-4, 1e-3), "colour": (5e-4, 4e-3), "object_ids": (2e-4, 2e-3), "normals": (2e-4, 2e-3),
    }  # fmt: skip
    for name, (overall, worst) in limits.items():
        assert np.mean(wrong[name]) < overall, (name, wrong[name])
        assert np.max(wrong[name]) < worst, (name, wrong[name])


@pytest.mark.parametrize("backend", ["torch", pytest.param("embree", marks=needs_embree)])
def test_a_batch_is_its_pictures_one_by_one(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Lamps, stars, fog and water stand in some of these scenes only.
    scenes = [make_scene(seed) for seed in range(9)]
    together = render_batch(scenes, 27, 21, backend=backend)
    monkeypatch.setattr(render, "TOGETHER", {"cpu": 1})
    for scene, picture in zip(scenes, together, strict=True):
        assert_same(render_batch([scene], 27, 21, backend=backend)[0], picture)


# Work is split among threads from 32,768 numbers on: pixels with Embree, ray-triangle tests with torch.
SIZES = [("torch", 24, 17), pytest.param("embree", 211, 173, marks=needs_embree)]


@pytest.mark.parametrize(("backend", "width", "height"), SIZES)
def test_threads_do_not_matter(backend: str, width: int, height: int) -> None:
    scene, threads, pictures = small_scene(), torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            pictures.append(render_batch([scene], width, height, backend=backend)[0])
    finally:
        torch.set_num_threads(threads)
    assert_same(*pictures)


def test_the_torch_picture_is_right() -> None:
    scene = small_scene()
    picture = render_batch([scene], 64, 48, backend="torch")[0]
    assert {0, 1, 2} == set(np.unique(picture.object_ids))
    v = np.arange(48) + 0.5 - picture.camera.cy
    u = np.arange(64) + 0.5 - picture.camera.cx
    # The floor is 1.6 m below the camera, which looks down by 0.1 rad.
    x, y = np.meshgrid(u / picture.camera.fx, v / picture.camera.fy)
    depth = 1.6 / (np.sin(0.1) + np.cos(0.1) * y)
    far = depth * (np.cos(0.1) - np.sin(0.1) * y)
    floor = (picture.object_ids == 0) & np.isfinite(picture.depth) & (far < 7.5)
    assert floor.mean() > 0.2
    np.testing.assert_allclose(picture.depth[floor], depth[floor], rtol=1e-4)
    # The ball is 0.6 m around its middle.
    ball = picture.object_ids == 2
    z = picture.depth[ball]
    side, below = x[ball] * z, y[ball] * z
    ahead, up = z * np.cos(0.1) - below * np.sin(0.1), 1.6 - z * np.sin(0.1) - below * np.cos(0.1)
    radius = np.sqrt((side - 0.9) ** 2 + (ahead - 3.5) ** 2 + (up - 0.6) ** 2)
    assert ball.sum() > 50 and radius.max() < 0.601 and radius.min() > 0.56
    assert np.isinf(picture.depth[0]).all()


def test_casters_find_the_nearest_and_respect_the_reach() -> None:
    geometry = Geometry([small_scene(), small_scene()], torch.device("cpu"))
    caster = TorchCaster(geometry, budget=4096)  # small enough for several steps
    rng = np.random.default_rng(0)
    count = 700
    o = rng.uniform((-2, 1, 0.05), (2, 6, 3), (count, 3)).astype(np.float32)
    d = rng.normal(size=(count, 3)).astype(np.float32)
    scene = (torch.arange(count) >= 300).int()
    vector = [tuple(torch.from_numpy(x[:, k].copy()) for k in range(3)) for x in (o, d)]
    found = caster.closest(vector[0], vector[1], scene).numpy()
    # Every ray against every triangle of its scene, in float64.
    half = len(geometry.corners) // 2
    a, b, c = (geometry.corners[:half, k] for k in range(3))
    n = np.cross(b - a, c - a)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = ((n * a).sum(1) - o @ n.T) / (d @ n.T)
        p = o[:, None] + t[..., None] * d[:, None]
        inside = np.ones(t.shape, bool)
        for q, r in ((a, b), (b, c), (c, a)):
            inside &= (np.cross(r - q, p - q) * n).sum(-1) >= 0
    t = np.where(inside & (t > 1e-6), t, np.inf)
    best = t.min(1)
    expected = np.where(np.isinf(best), -1, t.argmin(1) + half * scene.numpy())
    assert (expected >= 0).mean() > 0.3 and (expected < 0).any()
    assert (found != expected).mean() < 0.005
    reach = torch.full((count,), 0.8)
    free = caster.free(vector[0], vector[1], reach, scene).numpy()
    assert (free != (best > 0.8)).mean() < 0.005 and 0.02 < (~free).mean() < 0.9
    none = tuple(x[:0] for x in vector[0])
    assert len(caster.closest(none, none, None)) == 0
    toward_the_sun = tuple(x[:1] for x in vector[1])  # common to all rays, even to none
    assert len(caster.free(none, toward_the_sun, None, None)) == 0
    if importlib.util.find_spec("embreex"):
        one = EmbreeCaster(Geometry([small_scene()], torch.device("cpu")))
        np.testing.assert_array_equal(one.free(*vector, reach, None).numpy(), free)
        assert len(one.free(none, toward_the_sun, None, None)) == 0


@pytest.mark.parametrize("backend", ["torch", pytest.param("embree", marks=needs_embree)])
def test_faces_in_each_other_show_one_of_them(backend: str) -> None:
    # Turned and far from round numbers, so that rounding alone would decide pixel by pixel.
    c, s = np.cos(0.3), np.sin(0.3)
    grey = Material((0.5, 0.5, 0.5))
    parts = [
        Primitive("box", (k * c / 3, 3.0 + k * s / 3, 0.0), (2.0, 1.0, 1.0), grey, yaw=0.3, object_id=k + 1)
        for k in range(3)
    ]
    picture = render_batch([Scene("test", parts, [], Light(), View())], 48, 32, backend=backend)[0]
    ids = picture.object_ids
    assert set(np.unique(ids)) == {0, 1, 2, 3}
    # No pixel shows another box than both of its neighbours do.
    alone = (ids[:, 1:-1] != ids[:, :-2]) & (ids[:, 1:-1] != ids[:, 2:])
    assert not alone.any()


def test_extra_rays_only_where_colours_change(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = small_scene()
    adaptive = render_batch([scene], 96, 72, backend="torch")[0]
    single = render_batch([scene], 96, 72, backend="torch", supersample=1)[0]
    monkeypatch.setattr(render, "EDGE", -1.0)
    full = render_batch([scene], 96, 72, backend="torch")[0]
    difference = np.abs(full.rgb.astype(int) - adaptive.rgb).max(-1)
    assert (difference > 8).mean() < 0.002 and difference.mean() < 0.3
    assert (np.abs(full.rgb.astype(int) - single.rgb).max(-1) > 8).mean() > 0.02
    np.testing.assert_array_equal(single.depth, full.depth)


def test_backend_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = small_scene()
    with pytest.raises(UserError, match=r"unknown render backend 'optix'.*embree"):
        render_batch([scene], 8, 8, backend="optix")
    with pytest.raises(UserError, match="'tpu9' is no device"):
        render_batch([scene], 8, 8, device="tpu9")
    with pytest.raises(UserError, match="not on 'meta'"):
        render_batch([scene], 8, 8, device="meta")
    with pytest.raises(UserError, match="width is 0"):
        render_batch([scene], 0, 8)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="'cuda:0' is not here"):
            render_batch([scene], 8, 8, device="cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="runs on the CPU"):
        choose("embree", "cuda")
    assert choose("auto", "cuda") == ("torch", torch.device("cuda"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        choose("embree", None)
    assert choose("auto", None) == ("torch", torch.device("cpu"))


@pytest.mark.parametrize("name", [name for name in PATTERNS if name not in ("plain", "water")])
def test_patterns(name: str) -> None:
    a, b = (x.ravel() * 6.0 - 3.0 for x in torch.meshgrid(*[torch.linspace(0, 1, 80)] * 2, indexing="ij"))
    upright = torch.ones_like(a, dtype=torch.bool)
    share, bright, glow = pattern_mix(name, a, b, upright, (b + 3) / 6, torch.tensor([True]))
    assert share.min() >= 0 and share.max() <= 1
    assert share.std() > 0.05  # it is a pattern
    assert bright is None or (bright.min() > 0.4 and bright.max() < 1.5)
    assert (glow is not None) == (name == "facade")
    if name == "tiles":  # thin lines of grout, tiles of 1
        assert 0.08 < share.mean() < 0.2
    if name == "stripes":
        assert share.mean() == pytest.approx(0.5, abs=0.05)
        assert (share.reshape(80, 80).std(1) == 0).all()  # upright: the same along b


def test_an_unknown_pattern_is_an_error() -> None:
    with pytest.raises(KeyError, match="the patterns are"):
        pattern_mix("tartan", *[torch.zeros(1)] * 2, torch.zeros(1, dtype=torch.bool), *[torch.zeros(1)] * 2)
