"""A picture of any size on the grid of tokens: never stretched, always restored."""

from __future__ import annotations

import pytest
import torch

from modality_forcing.codecs.frame import Frame

SIZES = [(w, h) for w in (1, 2, 15, 16, 17, 33, 100, 257, 499, 500) for h in (1, 7, 16, 31, 32, 240, 500)]
AREA = 128 * 128


@pytest.mark.parametrize("cell", [8, 16])
def test_every_size_up_to_500_fits_the_grid_unstretched(cell):
    for width in range(1, 501, 3):
        for height in range(1, 501, 7):
            frame = Frame.fitted(width, height, AREA, cell)
            # One scale for both axes: the long side is exact, the short one rounded to a pixel.
            scale = max(frame.scaled_width, frame.scaled_height) / max(width, height)
            assert abs(frame.scaled_width - width * scale) <= 0.5 or frame.scaled_width == 1
            assert abs(frame.scaled_height - height * scale) <= 0.5 or frame.scaled_height == 1
            assert min(frame.scaled_width, frame.scaled_height) >= 1
            for grid, scaled in (
                (frame.grid_width, frame.scaled_width),
                (frame.grid_height, frame.scaled_height),
            ):
                assert grid % cell == 0
                assert 0 <= grid - scaled < cell
            assert frame.rows * cell == frame.grid_height
            assert frame.cols * cell == frame.grid_width


def test_the_area_is_about_what_was_asked():
    for width, height in ((128, 128), (640, 480), (480, 640), (1920, 1080), (300, 100), (40, 30)):
        frame = Frame.fitted(width, height, AREA)
        assert 0.8 * AREA < frame.scaled_width * frame.scaled_height < 1.2 * AREA
        assert (frame.scaled_width > frame.scaled_height) == (width > height)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_shapes_on_the_way_there_and_back(width, height):
    frame = Frame.fitted(width, height, AREA)
    image = torch.rand(1, 3, height, width)
    scaled = frame.scale_image(image)
    assert scaled.shape == (1, 3, frame.grid_height, frame.grid_width)
    assert torch.isfinite(scaled).all()
    assert frame.restore(scaled).shape == image.shape
    depth = frame.scale_depth(image[:, :1])
    assert depth.shape == (1, 1, frame.grid_height, frame.grid_width)
    assert frame.restore(depth, "nearest").isnan().sum() == 0  # padding never comes back


@pytest.mark.parametrize("size", [(16, 16), (48, 32), (50, 33), (1, 1), (17, 16)])
def test_exact_is_the_identity(size):
    width, height = size
    frame = Frame.exact(width, height)
    image = torch.rand(1, 3, height, width)
    assert torch.equal(frame.restore(frame.scale_image(image)), image)
    depth = torch.rand(1, 1, height, width)
    depth[0, 0, 0, 0] = float("nan")
    back = frame.restore(frame.scale_depth(depth))
    assert torch.equal(back.nan_to_num(-1.0), depth.nan_to_num(-1.0))


@pytest.mark.parametrize(("width", "height"), [(60, 45), (64, 64), (100, 37), (31, 97), (5, 3)])
def test_measurements_survive_enlarging(width, height):
    """Nearest pixel up and down again is the identity, holes included."""
    frame = Frame.fitted(width, height, AREA)
    assert frame.scaled_width > width
    depth = torch.rand(1, 1, height, width)
    depth[0, 0, ::2, 1::3] = float("nan")
    back = frame.restore(frame.scale_depth(depth), "nearest")
    assert torch.equal(back.nan_to_num(-1.0), depth.nan_to_num(-1.0))


@pytest.mark.parametrize(("width", "height"), [(60, 45), (200, 150), (333, 500)])
def test_a_smooth_picture_is_restored_without_a_shift(width, height):
    frame = Frame.fitted(width, height, AREA)
    x = torch.linspace(-1, 1, width).expand(height, width)
    y = torch.linspace(-1, 1, height)[:, None].expand(height, width)
    image = torch.stack([x, y, x + y])[None]
    back = frame.restore(frame.scale_image(image))
    margin = 8
    inner = (slice(None), slice(None), slice(margin, -margin), slice(margin, -margin))
    # A shift of half a pixel would be 1 / width.
    assert (back - image)[inner].abs().max().item() < 0.2 / max(width, height)


def test_depth_is_never_mixed():
    depth = torch.where(torch.rand(1, 1, 200, 300) < 0.5, 1.0, 9.0)
    scaled = Frame.fitted(300, 200, AREA).scale_depth(depth)
    values = scaled[~scaled.isnan()]
    assert set(values.tolist()) == {1.0, 9.0}


def test_padding_repeats_the_image_and_leaves_depth_unmeasured():
    frame = Frame.exact(20, 10)
    image = torch.rand(1, 3, 10, 20)
    scaled = frame.scale_image(image)
    assert torch.equal(scaled[..., :10, 20:], image[..., 19:].expand(-1, -1, -1, 12))
    assert torch.equal(scaled[..., 10:, :20], image[..., 9:, :].expand(-1, -1, 6, -1))
    depth = frame.scale_depth(image[:, :1])
    assert not depth[..., :10, :20].isnan().any()
    assert depth[..., 10:, :].isnan().all()
    assert depth[..., 20:].isnan().all()


def test_shrinking_is_antialiased():
    stripes = (torch.arange(512) % 2).float().expand(1, 3, 512, 512)
    scaled = Frame.fitted(512, 512, AREA).scale_image(stripes)
    assert (scaled[..., 8:-8] - 0.5).abs().max() < 0.05
