"""Reading pictures: whatever Pillow opens becomes uint8 sRGB, or one clear line says why not."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from modality_forcing.errors import UserError
from modality_forcing.io.checks import MAX_PIXELS, check_size, existing_file

FULL_FRAME_DIAGONAL = math.hypot(36.0, 24.0)  # mm
_EXIF_IFD, _FOCAL_35MM, _ORIENTATION = 0x8769, 0xA405, 0x0112
_TURNS = {  # EXIF orientation -> what makes it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class LoadedImage:
    """A picture as read.

    Attributes:
        pixels: uint8 (H, W, 3), sRGB, upright.
        notices: what was changed on the way in, one short line each, for the user to read.
    """

    pixels: np.ndarray
    notices: list[str] = field(default_factory=list)


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> LoadedImage:
    """Read a picture.

    Handled: grayscale, palette, CMYK, 16 bit (reduced to 8), alpha (laid over white), EXIF rotation,
    embedded colour profiles (converted to sRGB), several frames or pages (the first).

    Args:
        path: any format Pillow reads.
        max_pixels: refused above, before decoding.

    Raises:
        UserError: missing, a folder, empty, not an image, damaged or truncated, floating point, or a size
            outside the limits of :mod:`modality_forcing.io.checks`.
    """
    path = existing_file(path, "image")
    with _opened(path, "image", max_pixels) as image:
        notices = []
        frames = _frame_count(image)
        if frames > 1 and image.format != "MPO":  # MPO: a photograph with a preview behind it
            kind = "pages" if image.format == "TIFF" else "frames (an animation)"
            notices.append(f"{path.name} has {frames} {kind}; the first is used")
        profile = image.info.get("icc_profile")
        turn = _TURNS.get(_exif_tags(image)[0])
        if turn is not None:
            image = image.transpose(turn)
            notices.append(f"{path.name} was turned upright as its EXIF data says")
        if image.mode == "F":
            raise UserError(f"image {path} holds floating point values; right is an 8 or 16 bit picture")
        if image.mode.startswith("I"):
            image = _from_integers(image, path)
            notices.append(f"{path.name} has 16 bits per channel; reduced to 8")
        if profile:
            converted = _to_srgb(image, profile)
            if converted is not None:
                image = converted
                notices.append(f"{path.name} was converted from its colour profile to sRGB")
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            if np.asarray(rgba)[..., 3].min() < 255:
                notices.append(f"{path.name} has transparent pixels; laid over white")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        pixels = np.array(image.convert("RGB"))
    return LoadedImage(pixels, notices)


def read_mask(path: str | Path, shape: tuple[int, int]) -> np.ndarray:
    """Read a black and white picture as bool (H, W): True where it is brighter than half.

    Args:
        path: any picture; transparent pixels count as black.
        shape: (H, W) it must have.

    Raises:
        UserError: unreadable, another size, or black everywhere.
    """
    path = existing_file(path, "mask")
    with _opened(path, "mask", MAX_PIXELS) as image:
        turn = _TURNS.get(_exif_tags(image)[0])
        image = image if turn is None else image.transpose(turn)
        if image.mode == "F":
            raise UserError(f"mask {path} holds floating point values; right is a black and white picture")
        if image.mode.startswith("I"):
            image = _from_integers(image, path)
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba)
        mask = np.array(image.convert("L")) > 127
    if mask.shape != tuple(shape):
        raise UserError(
            f"mask {path} is {mask.shape[1]}x{mask.shape[0]} pixels; its image is {shape[1]}x{shape[0]}"
        )
    if not mask.any():
        raise UserError(f"mask {path} is black everywhere; white marks the pixels that are meant")
    return mask


def exif_fov(path: str | Path) -> float | None:
    """Horizontal field of view in degrees from the EXIF focal length, None where there is none.

    The "35 mm equivalent" focal length f compares diagonals (CIPA DCG-001): with d = 43.3 mm,
    fov_x = 2 atan(d * w / hypot(w, h) / (2 f)) for the upright w x h image. Wrong for a cropped photograph.

    Raises:
        UserError: the file is no readable image.
    """
    path = existing_file(path, "image")
    with _opened(path, "image", MAX_PIXELS) as image:
        orientation, focal = _exif_tags(image)
        width, height = image.size
        if orientation in (5, 6, 7, 8):
            width, height = height, width
    if not 1.0 <= focal <= 10_000.0:  # 0 means unknown
        return None
    film_width = FULL_FRAME_DIAGONAL * width / math.hypot(width, height)
    return math.degrees(2.0 * math.atan(film_width / (2.0 * focal)))


@contextlib.contextmanager
def _opened(path: Path, what: str, max_pixels: int) -> Iterator[Image.Image]:
    """The first frame of an image file, size checked before a pixel is decoded."""
    with contextlib.ExitStack() as stack:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow warns of large files; check_size decides
                image = stack.enter_context(Image.open(path))
        except Image.DecompressionBombError:
            raise UserError(
                f"{what} {path} has more than {max_pixels / 1e6:.0f} million pixels; make it smaller"
            ) from None
        except UnidentifiedImageError:
            raise UserError(
                f"{what} {path} {_what_it_is(path)}; right is a PNG, JPEG, WebP or TIFF"
            ) from None
        except Exception as error:  # format plugins raise nearly anything on damaged headers
            raise UserError(f"{what} {path} is damaged: {_line(error)}") from None
        check_size(image.width, image.height, f"{what} {path}", max_pixels=max_pixels)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image.load()
        except Exception as error:  # as above: OSError, SyntaxError, zlib.error, struct.error, ...
            raise UserError(f"{what} {path} is damaged or cut short: {_line(error)}") from None
        yield image


def _frame_count(image: Image.Image) -> int:
    """Frames or pages; one when what follows the first is damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(image, "n_frames", 1)
    except Exception:  # Pillow's readers raise whatever they stumble over; the first frame was read already
        return 1


def _exif_tags(image: Image.Image) -> tuple[int, float]:
    """Orientation (1 when unknown) and 35 mm focal length (0 when unknown); damaged EXIF data is no data."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exif = image.getexif()
            return int(exif.get(_ORIENTATION, 1)), float(exif.get_ifd(_EXIF_IFD).get(_FOCAL_35MM) or 0.0)
    except Exception:  # Pillow's parser raises whatever the damaged bytes lead to
        return 1, 0.0


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _what_it_is(path: Path) -> str:
    with path.open("rb") as stream:
        head = stream.read(512)
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypheif"):
        return "is a HEIC photograph, which cannot be read here"
    if b"<svg" in head:
        return "is an SVG drawing, not pixels"
    if all(byte in b"\t\n\r\f" or byte >= 32 for byte in head):
        return "is text, not an image"
    return "is not an image in a known format"


def _from_integers(image: Image.Image, path: Path) -> Image.Image:
    """16-bit gray (Pillow modes I;16*, or I with values up to 65535) to 8-bit gray, rounded."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UserError(f"image {path} has 32-bit values; right is an 8 or 16 bit picture")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image | None:
    """The image in sRGB, or None when it already is, or its profile cannot be used."""
    if image.mode not in ("RGB", "CMYK"):
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
