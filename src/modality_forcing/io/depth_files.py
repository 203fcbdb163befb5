"""Depth maps from and to files. What a file does not say, the user is asked for or told."""

from __future__ import annotations

import logging
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import numpy as np
from PIL import Image, PngImagePlugin

from modality_forcing.errors import UserError
from modality_forcing.io.atomic import atomic_file
from modality_forcing.io.checks import MAX_PIXELS, check_size, existing_file
from modality_forcing.io.log_depth import LOG_KIND, depth_of_log_png

DepthKind = Literal["depth", "disparity"]
TEXT_KIND, TEXT_SCALE, TEXT_UNIT = "depth_kind", "depth_scale", "depth_unit"  # PNG text chunks
PNG_LEVELS = 65535
INFINITE = 1e9  # renderers write 1e10 or the largest float for "nothing there"
_KINDS = ("depth", "disparity")
_ASK_KIND = "say which with --depth-kind depth (larger = farther) or --depth-kind disparity (larger = nearer)"
_EXR_DEPTH = ("z", "depth")
_EXR_OTHER = ("y", "v", "r")


@dataclass(frozen=True)
class DepthMap:
    """Depth as read.

    Attributes:
        depth: float32 (H, W) z-depth, positive and finite where ``valid``, 0 elsewhere.
        valid: bool (H, W).
        infinite: bool (H, W), True where the file says "at infinity" (+inf, or beyond 1e9): sky.
        unit: "m" when the file or the given scale says so, else "relative".
        notices: what was assumed or dropped, one short line each, for the user to read.
    """

    depth: np.ndarray
    valid: np.ndarray
    infinite: np.ndarray
    unit: str
    notices: list[str] = field(default_factory=list)

    def with_sky(self) -> np.ndarray:
        """float32 (H, W) for a model: +inf where the sky is, NaN where nothing is known."""
        return np.where(self.valid, self.depth, np.where(self.infinite, np.inf, np.nan)).astype(np.float32)


@dataclass
class _Raw:
    """What a format reader found."""

    values: np.ndarray
    kind: str | None = None  # None: the file does not say
    scale: float | None = None
    unit: str = "relative"
    coarse: bool = False
    notices: list[str] = field(default_factory=list)


def read_depth(
    path: str | Path,
    *,
    kind: DepthKind | None = None,
    scale: float | None = None,
    mask: np.ndarray | None = None,
) -> DepthMap:
    """Read a depth map.

    Formats: ``.npy``; ``.npz`` (one array, or the key ``depth`` or ``disparity``); PNG and TIFF with 8 or 16
    bit integers; floating point TIFF; ``.exr`` (channel Z or depth, else Y, V or R).
    Zero, negative and NaN mean "no depth", infinite and beyond 1e9 "sky"; such values never enter any
    arithmetic.

    Args:
        path: the file.
        kind: "depth" (larger = farther) or "disparity" (1 / depth, larger = nearer). None: what the file
            says; floating point files that do not say are taken as depth, with a notice; integer files that
            do not say are refused, since half of them are disparity.
        scale: value * scale is metres (0.001 for millimetres), or 1/metres for disparity. None: what the
            file says, else the unit is "relative".
        mask: bool (H, W), False where the depth must not be used.

    Raises:
        UserError: missing, damaged, wrong rank, colours instead of depth, kind unknown, no valid pixel, a
            scale that is not positive, or a mask of another size.
    """
    if kind is not None and kind not in _KINDS:
        raise UserError(f"depth kind {kind!r} is unknown; right is 'depth' or 'disparity'")
    if scale is not None and not (np.isfinite(scale) and scale > 0):
        raise UserError(
            f"depth scale is {scale}; right is a positive number, for example 0.001 for millimetres"
        )
    path = existing_file(path, "depth map")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"depth map {path} has an unknown ending; right is {', '.join(_READERS)}")
    raw = reader(path)
    values = _one_channel(raw.values, path)
    check_size(values.shape[1], values.shape[0], f"depth map {path}")
    notices = list(raw.notices)

    integer = values.dtype.kind in "ui" and path.suffix.lower() not in (".npy", ".npz")
    if kind is not None and raw.kind is not None and kind != raw.kind:
        notices.append(f"{path.name} says it holds {raw.kind}, but is read as {kind} as you asked")
    chosen = kind or raw.kind
    if chosen is None:
        if integer:
            raise UserError(f"depth map {path} does not say whether it holds depth or disparity; {_ASK_KIND}")
        chosen = "depth"
        notices.append(f"{path.name} does not say whether it holds depth or disparity; read as depth")
    if raw.coarse:
        notices.append(
            f"{path.name} has 8 bits, at most 255 different depths; 16 bits or floats are smoother"
        )

    with np.errstate(invalid="ignore"):  # a signalling NaN
        values = values.astype(np.float64)
    valid = np.isfinite(values) & (values > 0) & (values < INFINITE)
    infinite = values >= INFINITE if chosen == "depth" else np.zeros(values.shape, bool)
    if mask is not None:
        if mask.shape != values.shape:
            raise UserError(
                f"depth map {path} is {values.shape[1]}x{values.shape[0]} pixels;"
                f" its mask is {mask.shape[1]}x{mask.shape[0]}"
            )
        valid &= np.asarray(mask, dtype=bool)
        infinite &= np.asarray(mask, dtype=bool)
    factor = scale if scale is not None else (raw.scale if raw.scale is not None else 1.0)
    unit = "m" if scale is not None else raw.unit
    measured = np.where(valid, values, 1.0) * factor
    if chosen == "disparity":
        measured = 1.0 / measured
    # Once more: a tiny disparity is farther than infinity, and float32 has a smallest number.
    valid &= (measured < INFINITE) & (measured > np.finfo(np.float32).tiny)
    if not valid.any():
        raise UserError(f"depth map {path} has no valid pixel: all zero, negative, NaN, infinite or masked")
    depth = np.where(valid, measured, 0.0).astype(np.float32)
    median = float(np.median(depth[valid]))
    if unit == "m" and not 1e-3 < median < 1e4:
        notices.append(
            f"{path.name}: the median depth is {median:.3g} m; is the scale right? value * scale = metres"
        )
    missing = 100 * float(np.mean(~valid & ~infinite))
    if missing > 0:
        notices.append(f"{path.name}: {missing:.1f} % of the pixels have no depth")
    if infinite.any():
        notices.append(
            f"{path.name}: {100 * float(infinite.mean()):.1f} % of the pixels lie at infinity: sky"
        )
    return DepthMap(depth, valid, infinite, unit, notices)


def _one_channel(values: np.ndarray, path: Path) -> np.ndarray:
    if values.dtype.kind not in "uif":
        raise UserError(f"depth map {path} holds {values.dtype} values; right is numbers, float32 best")
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim == 3 and values.shape[-1] in (3, 4):
        if (values[..., :1] == values[..., 1:3]).all():  # gray, stored three times
            return values[..., 0]
        raise UserError(
            f"depth map {path} is a colour picture; a colour map cannot be turned back into depth,"
            " right is one channel with the depth values"
        )
    if values.ndim != 2:
        raise UserError(f"depth map {path} has shape {values.shape}; right is (height, width)")
    return values


def _read_npy(path: Path) -> _Raw:
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)  # the shape, before the bytes
        if not isinstance(mapped, np.ndarray):
            raise ValueError("it is an .npz archive")
        _check_count(mapped.size, path)
        return _Raw(np.array(mapped))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"depth map {path} is no valid .npy file: {_line(error)}") from None


def _read_npz(path: Path) -> _Raw:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}
        named = [name for name in ("depth", "disparity") if name in names]
        if len(named) != 1 and len(names) != 1:
            raise UserError(
                f"depth map {path} holds {len(names)} arrays ({', '.join(sorted(names)[:6])});"
                " right is one array, or one named 'depth' or 'disparity'"
            )
        name = named[0] if named else next(iter(names))
        _check_count(names[name] // 8, path)
        with np.load(path, allow_pickle=False) as arrays:
            return _Raw(arrays[name], kind=named[0] if named else None)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"depth map {path} is no valid .npz file: {_line(error)}") from None


def _read_png(path: Path) -> _Raw:
    try:
        with Image.open(path, formats=["PNG"]) as opened:
            image: Image.Image = opened
            check_size(image.width, image.height, f"depth map {path}")
            image.load()
            text = cast(PngImagePlugin.PngImageFile, image).text
            if image.mode == "P":
                raise UserError(f"depth map {path} is a palette picture; right is 16-bit gray")
            if image.mode in ("LA", "RGBA"):
                image = image.convert(image.mode[:-1])
            values = np.array(image)
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(
            f"depth map {path} has more than {MAX_PIXELS / 1e6:.0f} million pixels; make it smaller"
        ) from None
    except Exception as error:
        raise UserError(f"depth map {path} is no valid PNG: {_line(error)}") from None
    raw = _Raw(values, coarse=values.dtype == np.uint8)
    if text.get(TEXT_KIND) == LOG_KIND:  # the depth of a training shard
        try:
            values = depth_of_log_png(values, text)
        except ValueError as error:
            raise UserError(f"depth map {path} is no valid log-coded depth: {error}") from None
        return _Raw(values, kind="depth", scale=1.0, unit="m" if text.get(TEXT_UNIT) == "m" else "relative")
    if text.get(TEXT_KIND) in _KINDS:
        raw.kind = text[TEXT_KIND]
        try:
            raw.scale = float(text[TEXT_SCALE])
        except (KeyError, ValueError):
            raw.scale = float("nan")
        if not (np.isfinite(raw.scale) and raw.scale > 0):
            raise UserError(f"depth map {path} has no valid '{TEXT_SCALE}' in its PNG text; give the scale")
        raw.unit = "m" if text.get(TEXT_UNIT) == "m" else "relative"
    return raw


def _read_tiff(path: Path) -> _Raw:
    import tifffile

    # Without a handler Python prints tifffile's complaints besides our one line.
    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            _check_count(int(np.prod(page.shape)), path)
            raw = _Raw(page.asarray())
            if len(tiff.pages) > 1:
                raw.notices.append(f"{path.name} has {len(tiff.pages)} pages; the first is used")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"depth map {path} is no valid TIFF: {_line(error)}") from None
    raw.coarse = raw.values.dtype == np.uint8
    return raw


def _read_exr(path: Path) -> _Raw:
    import OpenEXR

    try:
        with OpenEXR.File(str(path), header_only=True) as file:
            low, high = file.header()["dataWindow"]
            width, height = (int(high[i]) - int(low[i]) + 1 for i in (0, 1))
        check_size(width, height, f"depth map {path}")
        with OpenEXR.File(str(path), separate_channels=True) as file:
            channels = {name: np.array(channel.pixels) for name, channel in file.channels().items()}
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"depth map {path} is no valid EXR file: {_line(error)}") from None

    def find(wanted: tuple[str, ...]) -> str | None:
        # A layer's channel is "ViewLayer.Depth.Z": any part may say depth, the last part says which channel.
        for want in wanted:
            for name in sorted(channels, key=len):
                if name.lower().split(".")[-1] == want:
                    return name
        return None

    name = find(_EXR_DEPTH) or next((n for n in channels if "depth" in n.lower().split(".")), None)
    if name is not None:
        return _Raw(channels[name], kind="depth")
    name = find(_EXR_OTHER)
    if name is None:
        raise UserError(f"depth map {path} has channels {', '.join(channels)}; right is Z, depth, Y, V or R")
    green, blue = find(("g",)), find(("b",))
    if name.lower().split(".")[-1] == "r" and green and blue:
        return _Raw(np.stack([channels[name], channels[green], channels[blue]], axis=-1))
    return _Raw(channels[name])


_READERS = {
    ".npy": _read_npy, ".npz": _read_npz, ".png": _read_png,
    ".tif": _read_tiff, ".tiff": _read_tiff, ".exr": _read_exr,
}  # fmt: skip


def _check_count(count: int, path: Path) -> None:
    # Four channels are let through: the message about colours is the better one.
    if count > 4 * MAX_PIXELS:
        raise UserError(
            f"depth map {path} has {count / 1e6:.0f} million values; the limit is {MAX_PIXELS / 1e6:.0f}"
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def quantise_depth(depth: np.ndarray, mask: np.ndarray, unit: str = "relative") -> tuple[np.ndarray, float]:
    """16-bit steps of depth: depth ~ steps * scale, 0 = invalid.

    Metres up to 65.535 use millimetres, the common convention; otherwise the largest depth becomes 65535.

    Args:
        depth: (H, W). mask: bool (H, W). unit: "m" or "relative".

    Returns:
        uint16 (H, W) and the scale.
    """
    good = mask & np.isfinite(depth) & (depth > 0)
    far = float(depth[good].max()) if good.any() else 1.0
    scale = 0.001 if unit == "m" and far <= 0.001 * PNG_LEVELS else far / PNG_LEVELS
    steps = np.zeros(depth.shape, dtype=np.uint16)
    # A valid pixel never rounds to 0, which means invalid.
    steps[good] = np.clip(np.rint(depth[good].astype(np.float64) / scale), 1, PNG_LEVELS).astype(np.uint16)
    return steps, scale


def write_depth_png16(
    path: str | Path, depth: np.ndarray, mask: np.ndarray, *, unit: str = "relative"
) -> None:
    """16-bit gray PNG; kind, scale and unit stand in its text chunks, where :func:`read_depth` looks.

    Args:
        path: replaced in one step.
        depth: (H, W) in ``unit``. mask: bool (H, W); invalid pixels become 0. unit: "m" or "relative".

    Raises:
        UserError: it cannot be written.
    """
    steps, scale = quantise_depth(depth, mask, unit)
    text = PngImagePlugin.PngInfo()
    text.add_text(TEXT_KIND, "depth")
    text.add_text(TEXT_SCALE, repr(scale))
    text.add_text(TEXT_UNIT, unit)
    with atomic_file(path) as aside:
        Image.fromarray(steps).save(aside, format="PNG", pnginfo=text, compress_level=3)


def write_depth_npy(path: str | Path, depth: np.ndarray, mask: np.ndarray) -> None:
    """float32 (H, W) ``.npy``, exact; invalid pixels become 0.

    Raises:
        UserError: it cannot be written.
    """
    write_npy(path, np.where(mask, depth, 0.0).astype(np.float32))


def write_npy(path: str | Path, values: np.ndarray) -> None:
    """Any array of numbers as ``.npy``. Like ``np.save``, which loses the reason when the disk is full.

    Raises:
        UserError: it cannot be written.
    """
    values = np.ascontiguousarray(values)
    with atomic_file(path) as aside, aside.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(values))
        stream.write(values.data)


def write_depth_exr(path: str | Path, depth: np.ndarray, mask: np.ndarray) -> None:
    """Float EXR with one channel Z, exact; invalid pixels become 0.

    Raises:
        UserError: it cannot be written.
    """
    import OpenEXR

    values = np.ascontiguousarray(np.where(mask, depth, 0.0), dtype=np.float32)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with atomic_file(path) as aside, OpenEXR.File(header, {"Z": values}) as file:
        try:
            file.write(str(aside))
        except RuntimeError as error:
            raise UserError(f"could not write {path}: {_line(error)}") from error
