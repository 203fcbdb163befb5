import subprocess
import sys

import numpy as np
import pytest

from modality_forcing.errors import UserError
from modality_forcing.types import RGBD, Camera
from modality_forcing.viz import (
    BACKGROUND,
    COLOR_MAPS,
    INVALID_GRAY,
    colorize,
    contact_sheet,
    normals_picture,
    render_cloud,
    text_picture,
)


def test_magma_is_magma():
    colormaps = pytest.importorskip("matplotlib").colormaps
    reference = np.rint(np.array(colormaps["magma"].colors) * 255)
    assert np.abs(COLOR_MAPS["magma"].astype(int) - reference).max() <= 3


def test_near_is_bright_and_invalid_is_gray():
    depth = np.array([[1.0, 2.0, 4.0, np.nan, 0.0, np.inf]], dtype=np.float32)
    image = colorize(depth, percentiles=(0, 100))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image[0, 0], COLOR_MAPS["magma"][255])
    np.testing.assert_array_equal(image[0, 1], COLOR_MAPS["magma"][85])  # disparity .5 between .25 and 1
    np.testing.assert_array_equal(image[0, 2], COLOR_MAPS["magma"][0])
    np.testing.assert_array_equal(image[0, 3:], [INVALID_GRAY] * 3)


def test_mask_scale_and_outliers():
    depth = np.random.default_rng(0).uniform(1, 5, (40, 40)).astype(np.float32)
    mask = np.ones((40, 40), bool)
    mask[:10] = False
    hidden = depth.copy()
    hidden[:10] = 1e-6
    image = colorize(depth, mask)
    np.testing.assert_array_equal(image, colorize(hidden, mask))  # masked values change nothing
    np.testing.assert_array_equal(image[:10], np.broadcast_to(INVALID_GRAY, (10, 40, 3)))
    np.testing.assert_array_equal(image, colorize(depth * 4, mask))
    hidden = depth.copy()
    hidden[20, 20] = 1e-4
    assert np.abs(colorize(hidden, mask)[11:20].astype(int) - image[11:20]).max() < 10


def test_limits_make_maps_comparable():
    depth = np.array([[1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(
        colorize(depth, limits=(1, 5))[0, 1], colorize(depth[:, 1:], limits=(1, 5))[0, 0]
    )


def test_flat_and_empty():
    flat = colorize(np.full((3, 3), 2.0))
    assert (flat == COLOR_MAPS["magma"][128]).all()
    assert (colorize(np.zeros((3, 3))) == INVALID_GRAY).all()


@pytest.mark.parametrize("options", [{"cmap": "jet"}, {"limits": (2, 1)}, {"limits": (0, 1)}])
def test_refused(options):
    with pytest.raises(UserError):
        colorize(np.ones((2, 2)), **options)


def scene():
    """A red square before a blue wall."""
    rgb = np.full((60, 80, 3), [0, 0, 255], np.uint8)
    depth = np.full((60, 80), 4.0, np.float32)
    rgb[20:40, 30:50], depth[20:40, 30:50] = [255, 0, 0], 2.0
    return RGBD(rgb, depth, np.ones((60, 80), bool), Camera.from_fov(80, 60, fov_x=60.0))


def red(image):
    rows, columns = np.nonzero((image == [255, 0, 0]).all(-1))
    return rows.mean(), columns.mean()


def test_render_without_motion_is_the_picture():
    rgbd = scene()
    image = render_cloud(rgbd, yaw=0, pitch=0, edge_rtol=0)
    assert (image == rgbd.rgb).all(-1).mean() > 0.95


def test_render_shows_parallax_and_hides_what_is_behind():
    rgbd = scene()
    rows, columns = red(rgbd.rgb)
    right = render_cloud(rgbd, yaw=15, pitch=0)
    assert red(right)[1] < columns - 2  # from the right, near things move left
    assert red(render_cloud(rgbd, yaw=-15, pitch=0))[1] > columns + 2
    assert red(render_cloud(rgbd, yaw=0, pitch=10))[0] > rows + 2  # from above, near things move down
    row, column = (round(v) for v in red(right))
    assert (right[row - 3 : row + 4, column - 3 : column + 4] == [255, 0, 0]).all()
    assert (right == BACKGROUND).all(-1).any()


def test_render_sizes_and_nothing_to_see():
    rgbd = scene()
    large = render_cloud(rgbd, yaw=0, pitch=0, size=(180, 240), edge_rtol=0)
    assert large.shape == (180, 240, 3)
    assert (large == BACKGROUND).all(-1).mean() < 0.02  # no gaps between splats
    rgbd.mask[:] = False
    assert (render_cloud(rgbd) == BACKGROUND).all()


def test_contact_sheet():
    tall, wide = np.full((60, 30, 3), 10, np.uint8), np.full((30, 60, 3), 20, np.uint8)
    sheet = contact_sheet([[tall, wide], [wide]], tile=40, gap=5)
    assert sheet.shape == (5 + 2 * 45, 5 + 25 + 85, 3)
    assert sheet[20, 15].tolist() == [10] * 3
    assert sheet[20, 60].tolist() == [20] * 3
    written = contact_sheet([[tall, wide]], [["a caption that is much too long", "b"]], tile=40)
    assert written.shape[0] > 52
    assert (written[46:] < 100).any()  # there is text
    for rows, captions in (([[]], None), ([[tall]], [["a", "b"]]), ([[tall]], [])):
        with pytest.raises(UserError):
            contact_sheet(rows, captions)


def test_normals_have_the_usual_colours():
    normals = np.array([[[0, 0, -1], [0, -1, 0], [1, 0, 0], [0, 0, 0]]], np.float32)
    assert normals_picture(normals).tolist() == [
        [[128, 128, 255], [128, 255, 128], [255, 128, 128], [128, 128, 128]]
    ]  # towards the camera: blue; up: green; right: red; nothing: gray


def test_text_is_wrapped_and_stays_inside():
    short = text_picture("a room", width=200, height=120)
    assert short.shape == (120, 200, 3) and (short < 100).any()
    rows = np.flatnonzero((short < 100).any((1, 2)))
    assert rows.max() < 20  # one line
    full = text_picture("a word and " * 200, width=200, height=120)
    dark = (full < 100).any(2)
    assert np.flatnonzero(dark.any(1)).max() > 95 and not dark[:, -1].any()
    assert (text_picture("", width=20, height=20) == 255).all()


def test_nothing_here_imports_matplotlib_or_torch():
    code = (
        "import sys, modality_forcing.viz, modality_forcing.io.run_folder;"
        "import modality_forcing.geometry.alignment;"
        "assert not {'matplotlib', 'torch', 'trimesh'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
