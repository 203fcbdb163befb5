import io
import math
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from modality_forcing.errors import UserError
from modality_forcing.io.images import exif_fov, read_image, read_mask


def picture(height=24, width=32):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def save(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def test_png_is_read_exactly_and_without_notices(tmp_path):
    loaded = read_image(save(tmp_path / "a.png", picture()))
    np.testing.assert_array_equal(loaded.pixels, picture())
    assert loaded.pixels.dtype == np.uint8
    assert loaded.pixels.flags.writeable
    assert loaded.notices == []


@pytest.mark.parametrize(
    ("mode", "ending"), [("L", "png"), ("LA", "png"), ("CMYK", "jpg"), ("CMYK", "tif"), ("YCbCr", "jpg")]
)
def test_modes(tmp_path, mode, ending):
    flat = np.full((24, 32, 3), 200, np.uint8)
    flat[:, 16:] = 40
    loaded = read_image(save(tmp_path / f"a.{ending}", flat, mode))
    np.testing.assert_allclose(loaded.pixels.astype(int), flat.astype(int), atol=6)


def test_palette_and_one_bit(tmp_path):
    flat = np.zeros((24, 32), np.uint8)
    flat[:, 16:] = 1
    image = Image.fromarray(flat, mode="P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png").pixels[0, [0, 31]].tolist() == [[10, 20, 30], [200, 100, 50]]
    Image.fromarray(flat.astype(bool)).save(tmp_path / "1.png")
    assert read_image(tmp_path / "1.png").pixels[0, [0, 31]].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_16_bit_gray_is_reduced_by_257(tmp_path):
    values = np.linspace(0, 65535, 24 * 32).reshape(24, 32).astype(np.uint16)
    loaded = read_image(save(tmp_path / "a.png", values))
    np.testing.assert_array_equal(loaded.pixels[..., 0], np.rint(values / 257).astype(np.uint8))
    assert "16 bits" in loaded.notices[0]


def test_16_bit_colour(tmp_path):
    import imagecodecs

    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(picture().astype(np.uint16) * 257))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").pixels, picture())


def test_alpha_is_laid_over_white(tmp_path):
    rgba = np.dstack([picture(), np.full((24, 32), 255, np.uint8)])
    assert read_image(save(tmp_path / "opaque.png", rgba)).notices == []
    rgba[3, 4, 3] = 0
    loaded = read_image(save(tmp_path / "a.png", rgba))
    assert loaded.pixels[3, 4].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(loaded.pixels[5:], picture()[5:])
    assert "transparent" in loaded.notices[0]


def test_palette_transparency(tmp_path):
    image = Image.fromarray(np.tile(np.arange(32, dtype=np.uint8) % 2, (24, 1)), mode="P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "a.png", transparency=0)
    loaded = read_image(tmp_path / "a.png")
    assert loaded.pixels[0, :2].tolist() == [[255, 255, 255], [0, 0, 255]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", picture(), exif=exif)
    loaded = read_image(path)
    with Image.open(path) as image:
        np.testing.assert_array_equal(loaded.pixels, np.array(ImageOps.exif_transpose(image)))
    assert len(loaded.notices) == (orientation != 1)
    if orientation == 6:  # a quarter clockwise
        np.testing.assert_array_equal(loaded.pixels, np.rot90(picture(), -1))


def test_damaged_exif_is_ignored(tmp_path):
    exif = with_focal(tmp_path / "a.jpg", 18).read_bytes()
    (tmp_path / "b.jpg").write_bytes(exif.replace(b"MM\0*\0\0\0\x08", b"MM\0*\0\0\xff\x08"))
    assert read_image(tmp_path / "b.jpg").pixels.shape == (24, 36, 3)
    assert exif_fov(tmp_path / "b.jpg") is None


def test_animation_gives_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (32, 24), color) for color in ("red", "green", "blue")]
    for name in ("a.gif", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        loaded = read_image(tmp_path / name)
        assert loaded.pixels[0, 0].argmax() == 0
        assert "3 frames (an animation); the first is used" in loaded.notices[0]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    assert "3 pages" in read_image(tmp_path / "a.tif").notices[0]


def test_colour_profile_is_converted(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert read_image(save(tmp_path / "a.png", picture(), icc_profile=srgb)).notices == []
    assert read_image(save(tmp_path / "b.png", picture(), icc_profile=b"junk")).notices == []
    # sRGB under another name, with its red and green primaries exchanged
    other = srgb.replace("sRGB".encode("utf-16-be"), "xyzw".encode("utf-16-be"))
    other = other.replace(b"rXYZ", b"TEMP").replace(b"gXYZ", b"rXYZ").replace(b"TEMP", b"gXYZ")
    red = np.full((24, 32, 3), [255, 0, 0], np.uint8)
    loaded = read_image(save(tmp_path / "c.png", red, icc_profile=other))
    np.testing.assert_allclose(loaded.pixels[0, 0].astype(int), [0, 255, 0], atol=2)
    assert "colour profile" in loaded.notices[0]


def png_header(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def jpeg():
    buffer = io.BytesIO()
    Image.fromarray(picture(200, 300)).save(buffer, "JPEG")
    return buffer.getvalue()


def tiff_float():
    buffer = io.BytesIO()
    Image.fromarray(np.ones((24, 32), np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


BAD = {
    "empty.png": (b"", "is empty"),
    "text.png": (b"this is no picture at all\n" * 5, "is text, not an image"),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "SVG"),
    "phone.heic": (b"\0\0\0\x18ftypheic" + bytes(100), "HEIC"),
    "noise.png": (bytes(range(200, 256)) + bytes(50), "not an image in a known format"),
    "cut.jpg": (jpeg()[:4000], "damaged or cut short"),
    "cut.png": (png_header(64, 64), "damaged or cut short"),
    "header.png": (b"\x89PNG\r\n\x1a\n" + b"\0\0\0\x0dIHDR", "image"),
    "bomb.png": (png_header(20_000, 20_000), "million pixels"),
    "bomb2.png": (png_header(12_500, 12_500), "the limit is 134 million"),
    "zero.png": (png_header(0, 64), "image"),
    "small.png": (png_header(15, 64), "at least 16"),
    "long.png": (png_header(64, 1000), "10:1"),
    "float.tif": (tiff_float(), "floating point"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_image(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_paths_refused(tmp_path):
    for path, message in (
        (tmp_path / "none.png", "does not exist"),
        (tmp_path, "is a folder"),
        ("/dev/null", "device or pipe"),
        ("a\0b.png", "null|does not exist"),
        ("x" * 5000 + ".png", "name too long|does not exist"),
    ):
        with pytest.raises(UserError, match=f"(?i){message}"):
            read_image(path)


def test_a_lower_limit_can_be_asked_for(tmp_path):
    save(tmp_path / "a.png", picture())
    with pytest.raises(UserError, match="32x24"):
        read_image(tmp_path / "a.png", max_pixels=700)


def with_focal(path, focal, size=(36, 24), orientation=1):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8769)[0xA405] = focal
    Image.new("RGB", size).save(path, exif=exif)
    return path


def test_exif_field_of_view(tmp_path):
    wide = with_focal(tmp_path / "a.jpg", 18)
    assert exif_fov(wide) == pytest.approx(90.0)  # 36 mm of film at 18 mm
    turned = with_focal(tmp_path / "b.jpg", 12, orientation=6)
    assert exif_fov(turned) == pytest.approx(90.0)  # upright: 24 mm wide
    # Diagonals are what is equivalent: 4:3 is narrower than 36 mm.
    expected = 2 * math.degrees(math.atan(0.8 * math.hypot(36, 24) / 2 / 26))
    assert exif_fov(with_focal(tmp_path / "c.jpg", 26, size=(40, 30))) == pytest.approx(expected)


def test_no_field_of_view(tmp_path):
    (tmp_path / "cut.png").write_bytes(png_header(64, 64))
    with pytest.raises(UserError, match="damaged"):
        exif_fov(tmp_path / "cut.png")
    assert exif_fov(with_focal(tmp_path / "a.jpg", 0)) is None
    assert exif_fov(save(tmp_path / "b.png", picture())) is None
    with pytest.raises(UserError, match="does not exist"):
        exif_fov(tmp_path / "none.jpg")


def test_mask(tmp_path):
    expected = np.random.default_rng(0).random((24, 32)) < 0.5
    for mode in (None, "RGB", "1"):
        path = save(tmp_path / "a.png", expected.astype(np.uint8) * 255, mode)
        np.testing.assert_array_equal(read_mask(path, (24, 32)), expected)
    save(tmp_path / "b.png", expected.astype(np.uint16) * 65535)
    np.testing.assert_array_equal(read_mask(tmp_path / "b.png", (24, 32)), expected)
    painted = np.full((24, 32, 4), 255, np.uint8)
    painted[..., 3] = expected * 255
    np.testing.assert_array_equal(read_mask(save(tmp_path / "c.png", painted), (24, 32)), expected)


def test_mask_refused(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((24, 32), np.uint8))
    with pytest.raises(UserError, match="black everywhere"):
        read_mask(path, (24, 32))
    with pytest.raises(UserError, match="32x24 pixels; its image is 40x24"):
        read_mask(path, (24, 40))
    with pytest.raises(UserError, match=r"mask .*none\.png does not exist"):
        read_mask(tmp_path / "none.png", (24, 32))
