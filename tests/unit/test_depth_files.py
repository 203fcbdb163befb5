import numpy as np
import OpenEXR
import pytest
import tifffile
from PIL import Image

from modality_forcing.errors import UserError
from modality_forcing.io.depth_files import (
    quantise_depth,
    read_depth,
    write_depth_exr,
    write_depth_npy,
    write_depth_png16,
)

SHAPE = (20, 30)


def ramp():
    return np.linspace(0.5, 9.0, 600, dtype=np.float32).reshape(SHAPE)


def write_exr(path, **channels):
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    named = {name.replace("__", "."): values.astype(np.float32) for name, values in channels.items()}
    with OpenEXR.File(header, named) as file:
        file.write(str(path))


def test_npy_is_exact_and_says_what_it_assumed(tmp_path):
    np.save(tmp_path / "d.npy", ramp())
    read = read_depth(tmp_path / "d.npy")
    np.testing.assert_array_equal(read.depth, ramp())
    assert read.depth.dtype == np.float32
    assert read.valid.all()
    assert read.unit == "relative"
    assert "read as depth" in read.notices[0]
    assert read_depth(tmp_path / "d.npy", kind="depth").notices == []
    assert read_depth(tmp_path / "d.npy", scale=1.0).unit == "m"


def test_invalid_values_are_never_averaged_or_kept(tmp_path):
    depth = ramp().astype(np.float64)
    depth[0, :6] = [np.nan, np.inf, -np.inf, 0.0, -3.0, 1e10]
    np.save(tmp_path / "d.npy", depth)
    for kind in ("depth", "disparity"):
        read = read_depth(tmp_path / "d.npy", kind=kind)
        assert not read.valid[0, :6].any()
        assert read.valid.sum() == 594
        np.testing.assert_array_equal(read.depth[0, :6], 0)
        assert np.isfinite(read.depth).all()
        # Larger than any depth is sky; larger than any disparity is nonsense.
        sky = [False, True, False, False, False, True] if kind == "depth" else [False] * 6
        assert read.infinite[0, :6].tolist() == sky
        assert not read.infinite[1:].any()
        lost = "0.7 %" if kind == "depth" else "1.0 %"
        assert any(f"{lost} of the pixels have no depth" in notice for notice in read.notices)
        given = read.with_sky()
        assert np.isposinf(given[0, :6]).tolist() == sky
        assert np.isnan(given[0, :6]).sum() == 6 - sum(sky)


def test_disparity_becomes_depth(tmp_path):
    np.save(tmp_path / "d.npy", ramp())
    np.testing.assert_allclose(read_depth(tmp_path / "d.npy", kind="disparity").depth, 1 / ramp(), rtol=1e-6)
    scaled = read_depth(tmp_path / "d.npy", kind="disparity", scale=0.5)
    np.testing.assert_allclose(scaled.depth, 2 / ramp(), rtol=1e-6)


def test_disparity_beyond_float32_is_infinity(tmp_path):
    disparity = 1 / ramp().astype(np.float64)
    disparity[0, :2] = [1e-300, 1e-10]
    np.save(tmp_path / "d.npy", disparity)
    read = read_depth(tmp_path / "d.npy", kind="disparity")
    assert not read.valid[0, :2].any()
    assert read.valid.sum() == 598


def test_mask_narrows(tmp_path):
    np.save(tmp_path / "d.npy", ramp())
    mask = np.zeros(SHAPE, bool)
    mask[3, 4] = True
    read = read_depth(tmp_path / "d.npy", mask=mask)
    np.testing.assert_array_equal(read.valid, mask)
    assert read.depth.sum() == ramp()[3, 4]


def test_npz_keys(tmp_path):
    np.savez(tmp_path / "one.npz", anything=ramp())
    np.savez_compressed(tmp_path / "two.npz", depth=ramp(), rgb=np.zeros((20, 30, 3)))
    np.savez(tmp_path / "disparity.npz", disparity=1 / ramp(), k=np.eye(3))
    assert "read as depth" in read_depth(tmp_path / "one.npz").notices[0]
    for name in ("two", "disparity"):
        read = read_depth(tmp_path / f"{name}.npz")
        np.testing.assert_allclose(read.depth, ramp(), rtol=1e-6)
        assert read.notices == []


@pytest.mark.parametrize("unit", ["relative", "m"])
@pytest.mark.parametrize("far", [9.0, 3000.0])
def test_png16_returns_the_quantised_values_bit_for_bit(tmp_path, unit, far):
    depth = ramp() / 9.0 * far
    mask = np.ones(SHAPE, bool)
    mask[2, 3:9] = False
    depth[2, 3:9] = np.nan
    write_depth_png16(tmp_path / "d.png", depth, mask, unit=unit)
    steps, scale = quantise_depth(depth, mask, unit)
    read = read_depth(tmp_path / "d.png")
    np.testing.assert_array_equal(read.depth, (steps.astype(np.float64) * scale).astype(np.float32))
    np.testing.assert_array_equal(read.valid, mask)
    assert read.unit == unit
    assert np.abs(read.depth[mask] - depth[mask]).max() <= scale * 0.501
    assert (scale == 0.001) == (unit == "m" and far == 9.0)
    assert Image.open(tmp_path / "d.png").text == {
        "depth_kind": "depth", "depth_scale": repr(scale), "depth_unit": unit,
    }  # fmt: skip


def test_png16_never_makes_a_valid_pixel_invalid(tmp_path):
    depth = ramp()
    depth[0, 0], depth[0, 1] = 1e-7, 1e6
    write_depth_png16(tmp_path / "d.png", depth, np.ones(SHAPE, bool))
    assert read_depth(tmp_path / "d.png").valid.all()


def test_npy_and_exr_writers_are_exact(tmp_path):
    mask = np.ones(SHAPE, bool)
    mask[1, 1] = False
    depth = ramp()
    depth[1, 1] = np.inf
    write_depth_npy(tmp_path / "d.npy", depth, mask)
    write_depth_exr(tmp_path / "d.exr", depth, mask)
    plain = np.load(tmp_path / "d.npy")
    assert plain.dtype == np.float32
    assert plain[1, 1] == 0
    for name in ("d.npy", "d.exr"):
        read = read_depth(tmp_path / name)
        np.testing.assert_array_equal(read.depth[mask], depth[mask])
        np.testing.assert_array_equal(read.valid, mask)


def test_foreign_16_bit_png_and_tiff_need_the_kind(tmp_path):
    values = (ramp() * 1000).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "d.png")
    tifffile.imwrite(tmp_path / "d.tif", values)
    for name in ("d.png", "d.tif"):
        with pytest.raises(UserError, match=r"--depth-kind depth .*--depth-kind disparity"):
            read_depth(tmp_path / name)
        read = read_depth(tmp_path / name, kind="depth", scale=0.001)
        np.testing.assert_allclose(read.depth, values / 1000, rtol=1e-6)
        assert (read.unit, read.notices) == ("m", [])
        assert read_depth(tmp_path / name, kind="disparity").depth[0, 0] == np.float32(1 / values[0, 0])


def test_float_tiff(tmp_path):
    tifffile.imwrite(tmp_path / "d.tiff", ramp(), compression="zlib")
    np.testing.assert_array_equal(read_depth(tmp_path / "d.tiff").depth, ramp())
    tifffile.imwrite(
        tmp_path / "p.tiff", np.stack([ramp(), ramp() * 2, ramp() * 3]), photometric="minisblack"
    )
    assert "3 pages" in " ".join(read_depth(tmp_path / "p.tiff").notices)


def test_eight_bits_are_read_with_a_notice(tmp_path):
    values = np.linspace(1, 255, 600).reshape(SHAPE).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "d.png")
    Image.fromarray(values).convert("RGB").save(tmp_path / "rgb.png")
    for name in ("d.png", "rgb.png"):
        read = read_depth(tmp_path / name, kind="disparity")
        np.testing.assert_allclose(read.depth, 1 / values, rtol=1e-6)
        assert "8 bits" in read.notices[0]


def test_exr_channels(tmp_path):
    other = np.full(SHAPE, 3.0)
    write_exr(tmp_path / "z.exr", Z=ramp(), R=other, G=other, B=other)
    write_exr(tmp_path / "layer.exr", ViewLayer__Depth__Z=ramp(), ViewLayer__Combined__R=other)
    write_exr(tmp_path / "v.exr", ViewLayer__Depth__V=ramp())
    for name in ("z", "layer", "v"):
        read = read_depth(tmp_path / f"{name}.exr")
        np.testing.assert_array_equal(read.depth, ramp())
        assert read.notices == []
    write_exr(tmp_path / "y.exr", Y=ramp())
    write_exr(tmp_path / "gray.exr", R=ramp(), G=ramp(), B=ramp())
    for name in ("y", "gray"):
        read = read_depth(tmp_path / f"{name}.exr")
        np.testing.assert_array_equal(read.depth, ramp())
        assert "read as depth" in read.notices[0]


def test_kind_that_contradicts_the_file_is_told(tmp_path):
    write_depth_png16(tmp_path / "d.png", ramp(), np.ones(SHAPE, bool))
    assert "but is read as disparity" in read_depth(tmp_path / "d.png", kind="disparity").notices[0]


def test_a_wrong_scale_is_told(tmp_path):
    Image.fromarray((ramp() * 1000).astype(np.uint16)).save(tmp_path / "d.png")
    notices = read_depth(tmp_path / "d.png", kind="depth", scale=1000.0).notices
    assert any("is the scale right" in notice for notice in notices)


def colours(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)).save(path)


def palette(path):
    Image.fromarray(np.zeros(SHAPE, np.uint8)).convert("P").save(path)


def bad_tag(path):
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("depth_kind", "depth")
    text.add_text("depth_scale", "-1")
    Image.fromarray(np.ones(SHAPE, np.uint16)).save(path, pnginfo=text)


def cut(path):
    write_depth_png16(path.with_suffix(".x.png"), ramp(), np.ones(SHAPE, bool))
    path.write_bytes(path.with_suffix(".x.png").read_bytes()[:200])


def cut_npy(path):
    np.save(path, ramp())
    path.write_bytes(path.read_bytes()[:900])


def huge_npy(path):
    np.save(path, ramp())
    path.write_bytes(path.read_bytes().replace(b"(20, 30), }", b"(90000,90000), }"))


BAD = {
    "colours.png": (colours, "colour picture"),
    "palette.png": (palette, "palette"),
    "tag.png": (bad_tag, "no valid 'depth_scale'"),
    "cut.png": (cut, "no valid PNG"),
    "cut.npy": (cut_npy, "no valid .npy"),
    "huge.npy": (huge_npy, "no valid .npy|million"),
    "jpeg.png": (lambda p: Image.new("RGB", (30, 20)).save(p, "JPEG"), "no valid PNG"),
    "rank.npy": (lambda p: np.save(p, np.ones((5, 20, 30))), r"shape \(5, 20, 30\)"),
    "flat.npy": (lambda p: np.save(p, np.ones(600)), r"shape \(600,\)"),
    "rgb.npy": (lambda p: np.save(p, np.random.default_rng(0).random((20, 30, 3))), "colour picture"),
    "object.npy": (lambda p: np.save(p, np.array([{"a": 1}]), allow_pickle=True), "no valid .npy"),
    "text.npy": (lambda p: np.save(p, np.array([["a"] * 30] * 20)), "holds <U1 values"),
    "complex.npy": (lambda p: np.save(p, np.ones(SHAPE, complex)), "complex128"),
    "bool.npy": (lambda p: np.save(p, np.ones(SHAPE, bool)), "bool"),
    "nothing.npy": (lambda p: np.save(p, np.zeros(SHAPE)), "no valid pixel"),
    "nan.npy": (lambda p: np.save(p, np.full(SHAPE, np.nan)), "no valid pixel"),
    "tiny.npy": (lambda p: np.save(p, np.ones((3, 30))), "at least 16"),
    "words.npy": (lambda p: p.write_text("depth"), "no valid .npy"),
    "many.npz": (lambda p: np.savez(p, a=ramp(), b=ramp()), "2 arrays .a, b."),
    "both.npz": (lambda p: np.savez(p, depth=ramp(), disparity=ramp()), "2 arrays"),
    "words.npz": (lambda p: p.write_text("depth"), "no valid .npz"),
    "words.tif": (lambda p: p.write_text("depth"), "no valid TIFF"),
    "rgb.tif": (
        lambda p: tifffile.imwrite(p, ramp()[..., None] ** [1, 2, 3], photometric="rgb"),
        "colour picture",
    ),
    "words.exr": (lambda p: p.write_text("depth"), "no valid EXR"),
    "rgb.exr": (lambda p: write_exr(p, R=ramp(), G=ramp() * 2, B=ramp()), "colour picture"),
    "a.exr": (lambda p: write_exr(p, A=ramp()), "channels A"),
    "d.jpg": (lambda p: Image.new("L", (30, 20)).save(p), "unknown ending"),
    "empty.npy": (lambda p: p.write_bytes(b""), "is empty"),
    "folder.npy": (lambda p: p.mkdir(), "is a folder"),
    "none.npy": (lambda p: None, "does not exist"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(tmp_path, name):
    make, message = BAD[name]
    make(tmp_path / name)
    with pytest.raises(UserError, match=message) as caught:
        read_depth(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "height"}, "'height' is unknown"),
        ({"scale": 0.0}, "scale is 0"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"mask": np.ones((20, 31), bool)}, "mask is 31x20"),
        ({"mask": np.zeros(SHAPE, bool)}, "no valid pixel"),
    ],
)
def test_options_refused(tmp_path, options, message):
    np.save(tmp_path / "d.npy", ramp())
    with pytest.raises(UserError, match=message):
        read_depth(tmp_path / "d.npy", **options)
