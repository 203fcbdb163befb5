"""Everything the user typed, checked before a model is loaded.

Each function returns what the next stage needs, or raises one clear line (UserError).
"""

from __future__ import annotations

import math
import re
import secrets
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from modality_forcing.errors import UserError
from modality_forcing.inputs import (
    MAX_ALPHA,
    MAX_EDGE_RADIUS,
    MAX_GUIDANCE,
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    check_prompt,
)

if TYPE_CHECKING:
    from modality_forcing.io.depth_files import DepthMap
    from modality_forcing.io.images import LoadedImage

MAX_PROMPTS_FILE = 10_000_000  # bytes
MAX_RESULTS = 10_000
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif")
DEPTH_ENDINGS = (".npy", ".npz", ".png", ".tif", ".tiff", ".exr")
DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Run:
    """The options that all three modes share, checked."""

    seeds: list[int]
    out: Path
    sampling: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the pipeline's methods, without those that were not given."""
    camera: dict[str, Any] = field(default_factory=dict)
    """fov_x, fov_y, intrinsics: those that were given."""
    model: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of ``Pipeline.from_pretrained``."""
    cloud: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of ``RGBD.save``."""


def check_run(
    *,
    out: str,
    seed: int | None,
    num_images: int,
    steps: int | None,
    guidance: float | None,
    size: str | None,
    fov_x: float | None,
    fov_y: float | None,
    intrinsics: str | None,
    edge_rtol: float | None,
    sor: bool | None,
    max_points: int | None,
    model: str,
    text_encoder: str | None,
    device: str,
    dtype: str | None,
    compile: bool,
    edge_radius: int | None = None,
) -> Run:
    """Check and gather the shared options.

    Raises:
        UserError: a value out of range, a file that cannot be read, a folder that cannot be written.
    """
    if steps is not None:
        whole_number("--steps", steps, 1, MAX_STEPS)
    in_range("--guidance", guidance, 0.0, MAX_GUIDANCE)
    if edge_radius is not None:
        whole_number("--edge-radius", edge_radius, 0, MAX_EDGE_RADIUS)
    in_range("--edge-rtol", edge_rtol, 0.0, 1e6)
    if max_points is not None:
        whole_number("--max-points", max_points, 1, 10**9)
    sampling = {
        "steps": steps,
        "guidance": guidance,
        "size": None if size is None else parse_size(size),
        "edge_radius": edge_radius,
    }
    cloud = {"edge_rtol": edge_rtol, "sor": sor, "max_points": max_points}
    return Run(
        seeds=seeds(seed, num_images),
        camera=camera_options(fov_x, fov_y, intrinsics),
        model=model_options(model, text_encoder, device, dtype, compile),
        sampling={key: value for key, value in sampling.items() if value is not None},
        cloud={key: value for key, value in cloud.items() if value is not None},
        out=writable_folder(out),
    )


def in_range(name: str, value: float | None, low: float, high: float) -> None:
    """Refuse NaN, infinity and values outside [low, high]; None passes."""
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        raise UserError(f"{name} is {value:g}; right is {low:g} to {high:g}")


def seeds(seed: int | None, count: int) -> list[int]:
    """seed, seed + 1, ...: one for each result of an input. Without a seed a short one is drawn."""
    whole_number("--num-images", count, 1, MAX_RESULTS)
    first = secrets.randbelow(10**6) if seed is None else seed
    whole_number("--seed", first, 0, MAX_SEED - count)
    return list(range(first, first + count))


def parse_size(text: str) -> tuple[int, int]:
    """ "512x384" -> (512, 384): width, height."""
    from modality_forcing.io.checks import check_size

    match = re.fullmatch(r"\s*(\d{1,9})\s*[xX×*]\s*(\d{1,9})\s*", text)
    if match is None:
        raise UserError(f"--size is {text[:40]!r}; right is WIDTHxHEIGHT in pixels, for example 512x384")
    width, height = int(match[1]), int(match[2])
    check_size(width, height, "--size")
    if max(width, height) > MAX_SIDE:
        raise UserError(f"--size is {width}x{height}; each side may have at most {MAX_SIDE} pixels")
    return width, height


def parse_log2_alpha(text: str | None) -> dict[str, Any]:
    """ "none" or a number -> the keyword argument; nothing given -> no argument."""
    if text is None:
        return {}
    if text.strip().lower() == "none":
        return {"log2_alpha": None}
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"--log2-alpha is {text[:40]!r}; right is a number or 'none'") from None
    in_range("--log2-alpha", value, -MAX_ALPHA, MAX_ALPHA)
    return {"log2_alpha": value}


def prompts(given: Sequence[str] | None, file: str | None) -> list[str]:
    """Every prompt of ``--prompt`` and of ``--prompt-file`` (one per line; blank lines are skipped)."""
    found = list(given or [])
    if file is not None:
        from modality_forcing.io.checks import existing_file

        path = existing_file(file, "prompt file")
        if path.stat().st_size > MAX_PROMPTS_FILE:
            raise UserError(f"prompt file {path} is larger than {MAX_PROMPTS_FILE // 10**6} MB")
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise UserError(f"prompt file {path} is not UTF-8 text") from None
        lines = [line.strip() for line in lines if line.strip()]
        if not lines:
            raise UserError(f"prompt file {path} holds no prompt; right is one per line")
        found += lines
    return [check_prompt(text) for text in found]


def pair(names: Sequence[str], inputs: Sequence[Any], what: str) -> list[tuple[str, Any]]:
    """Prompts beside inputs: as many as inputs, or one of either for all of the other."""
    if len(names) == 1:
        return [(names[0], item) for item in inputs]
    if len(inputs) == 1:
        return [(name, inputs[0]) for name in names]
    if len(names) != len(inputs):
        raise UserError(
            f"{len(names)} prompts for {len(inputs)} {what}; give one prompt, or one for each in order"
        )
    return list(zip(names, inputs, strict=True))


def files(given: Sequence[str], endings: Sequence[str], option: str) -> list[Path]:
    """The files named, a folder standing for the files in it with one of ``endings``, in order of name."""
    if not given:
        raise UserError(f"{option} is missing; right is a file, several, or a folder of them")
    found: list[Path] = []
    for text in given:
        if not text or "\0" in text:
            raise UserError(f"{option} is {text!r}; right is the name of a file")
        path = Path(text).expanduser()
        try:
            if path.is_dir():
                inside = sorted(
                    p
                    for p in path.iterdir()
                    if p.suffix.lower() in endings and p.name[0] != "." and p.is_file()
                )
                if not inside:
                    raise UserError(f"{option} {path} is a folder without {', '.join(endings)} files")
                found += inside
            else:
                found.append(path)
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"{option} {path} cannot be read: {error.strerror or error}") from None
    return found


def read_images(paths: Sequence[Path]) -> list[tuple[Path, LoadedImage]]:
    """All pictures, in order."""
    from modality_forcing.io.images import read_image

    return [(path, read_image(path)) for path in paths]


def read_depths(
    paths: Sequence[Path], kind: str | None, scale: float | None, masks: Sequence[str]
) -> list[tuple[Path, DepthMap]]:
    """All depth maps, in order; one mask for all, or one for each."""
    from modality_forcing.io.depth_files import DepthKind, read_depth
    from modality_forcing.io.images import read_mask

    if kind not in (None, "depth", "disparity"):
        raise UserError(f"--depth-kind is {kind!r}; right is 'depth' or 'disparity'")
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise UserError(f"--depth-scale is {scale:g}; right is a positive number, 0.001 for millimetres")
    if len(masks) > 1 and len(masks) != len(paths):
        raise UserError(f"{len(masks)} masks for {len(paths)} depth maps; give one, or one for each")
    result = []
    for index, path in enumerate(paths):
        depth = read_depth(path, kind=cast("DepthKind | None", kind), scale=scale)
        if masks:
            mask = read_mask(masks[index % len(masks)], cast("tuple[int, int]", depth.depth.shape))
            depth = read_depth(path, kind=cast("DepthKind | None", kind), scale=scale, mask=mask)
        result.append((path, depth))
    return result


def camera_options(fov_x: float | None, fov_y: float | None, intrinsics: str | None) -> dict[str, Any]:
    """What was given about the camera, files read. Sizes are checked by :func:`check_camera`."""
    for name, value in (("--fov-x", fov_x), ("--fov-y", fov_y)):
        if value is not None and not 0.0 < value < 180.0:
            raise UserError(f"{name} is {value:g}; a field of view lies between 0 and 180 degrees")
    if intrinsics is not None and (fov_x is not None or fov_y is not None):
        raise UserError("give either a field of view or --intrinsics, not both")
    options: dict[str, Any] = {"fov_x": fov_x, "fov_y": fov_y}
    if intrinsics is not None:
        from modality_forcing.io.intrinsics import read_intrinsics

        options["intrinsics"] = read_intrinsics(intrinsics)
    return {key: value for key, value in options.items() if value is not None}


def check_camera(options: dict[str, Any], width: int, height: int) -> None:
    """Refuse a camera that does not fit an image of this size."""
    if options:
        from modality_forcing.geometry.camera import resolve_camera

        resolve_camera(width, height, **options)


def whole_number(name: str, value: int, low: int, high: int) -> None:
    """Refuse numbers outside [low, high]."""
    if not low <= value <= high:
        raise UserError(f"{name} is {value}; right is {low} to {high}")


def writable_folder(text: str, option: str = "--out") -> Path:
    """A folder's name as a path, after a trial that it can be written to; makes nothing that stays."""
    from modality_forcing.io.atomic import write_errors

    if not text or "\0" in text:
        raise UserError(f"{option} is {text!r}; right is the name of a folder")
    out = Path(text).expanduser()
    with write_errors(out):
        nearest = out
        while not nearest.exists() and nearest != nearest.parent:
            nearest = nearest.parent
        if not nearest.is_dir():
            raise UserError(f"{option} {out}: {nearest} is a file, not a folder")
        with tempfile.TemporaryFile(dir=nearest):
            pass
    return out


def model_options(
    model: str, text_encoder: str | None, device: str, dtype: str | None, compile: bool
) -> dict[str, Any]:
    """The options that choose a model, checked, as arguments of ``Pipeline.from_pretrained``."""
    if not model or "\0" in model:
        raise UserError(f"--model is {model!r}; right is a name, a folder or a Hub id")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", device):
        raise UserError(f"--device is {device[:40]!r}; right is auto, cpu, cuda, cuda:N or mps")
    if dtype is not None and dtype not in DTYPES:
        reason = " (its largest number is too small for this model)" if dtype in ("float16", "fp16") else ""
        raise UserError(f"--dtype is {dtype[:40]!r}{reason}; right is {', '.join(DTYPES)}")
    options = {
        "source": model,
        "device": device,
        "dtype": None if dtype == "auto" else dtype,
        "text_encoder": text_encoder,
        "compile": compile or None,
    }
    return {key: value for key, value in options.items() if value is not None}


def exif_camera(path: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """The field of view of a photograph that knows its focal length, else nothing."""
    from modality_forcing.io.images import exif_fov

    fov = exif_fov(path)
    if fov is None:
        return {}
    tell(f"{path.name}: horizontal field of view {fov:.1f} degrees, from its EXIF focal length")
    return {"fov_x": fov}
