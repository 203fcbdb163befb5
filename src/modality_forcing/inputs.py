"""Checks of what callers give the pipeline: a refusal names the input, the fault and what would be right."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from modality_forcing.errors import UserError

MAX_SEED = 2**63 - 1
MAX_STEPS = 1000
MAX_GUIDANCE = 100.0
MAX_ALPHA = 20.0  # log2
MAX_PROMPT = 10_000  # characters; the longest text encoder hears about 2 500 of them
BLENDS = ("exact", "smooth")  # what completion returns at known pixels
MIN_SIDE, MAX_SIDE = 16, 4096  # pixels
MAX_EDGE_RADIUS = 64  # pixels inside the model: four patches


def check_number(name: str, value: float, low: float, high: float) -> None:
    """Refuse what is no number, NaN and anything outside [low, high]."""
    if not isinstance(value, Real):
        raise UserError(f"{name} is {value!r}; a number from {low:g} to {high:g} is needed")
    if not low <= value <= high:
        raise UserError(f"{name} is {value}; it must lie between {low:g} and {high:g}")


def check_whole(name: str, value: float, low: int, high: int) -> int:
    """``value`` as int; refuse what :func:`check_number` refuses, and fractions."""
    check_number(name, value, low, high)
    if value != int(value):
        raise UserError(f"{name} is {value}; a whole number from {low} to {high} is needed")
    return int(value)


def listed(name: str, given: Any, dimensions: int) -> list:
    """One input or several as a list: an array of no more than ``dimensions`` is one, as is any single thing.

    Nothing is said yet of what they are.

    Raises:
        UserError: none is given.
    """
    several = [given] if _is_one(given, dimensions) else list(given)
    if not several:
        raise UserError(f"no {name} is given; give one or several")
    return several


def one_each(names: str, given: Any, num: int, items: str = "images") -> list:
    """A map (H, W) for each of ``num`` items: a single one serves all, and None is none for each.

    Nothing is said yet of what they are.

    Raises:
        UserError: several, but not as many as items.
    """
    several = [given] * num if _is_one(given, 2) else list(given)
    if len(several) != num:
        raise UserError(f"{len(several)} {names} for {num} {items}; give one, or one for each")
    return several


def _is_one(given: object, dimensions: int) -> bool:
    small = isinstance(given, np.ndarray) and given.ndim <= dimensions
    return small or isinstance(given, str) or not isinstance(given, Iterable)


def check_prompt(text: str) -> str:
    """The prompt itself, when a text encoder can read it. The empty prompt is fine."""
    if len(text) > MAX_PROMPT:
        raise UserError(f"the prompt has {len(text)} characters; the limit is {MAX_PROMPT}")
    for character in text:
        kind = unicodedata.category(character)
        if kind == "Cs":
            raise UserError("the prompt is not valid UTF-8 text")
        if kind == "Cc" and character not in "\t\n\r":
            raise UserError(
                f"the prompt holds the control character U+{ord(character):04X}; right is plain text"
            )
    return text


def check_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height), each ``MIN_SIDE`` to ``MAX_SIDE`` pixels."""
    if not isinstance(size, Sequence) or len(size) != 2:
        raise UserError(f"size is {size!r}; (width, height) in pixels is needed")
    width, height = size
    return check_whole("width", width, MIN_SIDE, MAX_SIDE), check_whole("height", height, MIN_SIDE, MAX_SIDE)


def check_image(image: np.ndarray) -> None:
    """uint8 (H, W, 3)."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(f"an image is {what}; a uint8 array (H, W, 3) is needed{_hint(image)}")


def _hint(image: object) -> str:
    return ", as np.asarray(image.convert('RGB'))" if hasattr(image, "convert") else ""


def check_depth(
    depth: np.ndarray, mask: np.ndarray | None, sky: str = "missing"
) -> tuple[np.ndarray, np.ndarray]:
    """float32 depth with NaN where unknown (+inf kept for a model that knows the sky), and its mask."""
    if not isinstance(depth, np.ndarray) or depth.ndim != 2:
        what = f"an array of shape {depth.shape}" if isinstance(depth, np.ndarray) else type(depth).__name__
        raise UserError(f"a depth map is {what}; an array (H, W) is needed")
    if depth.dtype.kind not in "fiub":
        raise UserError(f"a depth map is {depth.dtype}; real numbers are needed")
    if mask is not None and not isinstance(mask, np.ndarray):
        raise UserError(f"the mask is {type(mask).__name__}; an array (H, W) is needed")
    if mask is not None and mask.shape != depth.shape:
        raise UserError(f"the mask is {mask.shape}, the depth map {depth.shape}; sizes must agree")
    with np.errstate(over="ignore"):  # what float32 cannot hold is at infinity
        values = depth.astype(np.float32)
    usable = np.ones(depth.shape, bool) if mask is None else mask.astype(bool)
    valid = np.isfinite(values) & (values > 0) & usable
    if not valid.any():
        raise UserError("the depth map has no valid pixel: all are NaN, infinite, zero, negative or masked")
    known = valid | (np.isposinf(values) & usable) if sky == "far" else valid
    return np.where(known, values, np.nan).astype(np.float32), valid


def check_mask(name: str, mask: np.ndarray) -> None:
    """bool (H, W)."""
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.ndim != 2:
        what = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise UserError(f"{name} is {what}; a bool array (H, W) is needed")


def check_same_size(name: str, values: np.ndarray, image: np.ndarray) -> None:
    """Refuse a map or mask (H, W) that is not of its image's size; call it after both were checked."""
    if values.shape != image.shape[:2]:
        raise UserError(
            f"{name} is {values.shape[1]}x{values.shape[0]} pixels, its image "
            f"{image.shape[1]}x{image.shape[0]}; sizes must agree"
        )


def pair_up(
    prompt: str | Sequence[str], seed: int | Sequence[int] | None, count: int | None = None
) -> tuple[list[str], list[int]]:
    """Prompts and seeds of equal number: one prompt serves all items; one seed counts up from item to item.

    Raises:
        UserError: numbers that do not fit, or a seed outside 0 .. 2^63 - 1.
    """
    prompts = listed("prompt", prompt, 0)
    for text in prompts:
        if not isinstance(text, str):
            raise UserError(f"a prompt is {type(text).__name__}; text is needed")
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1, np.uint32)[0])
    first = seed if isinstance(seed, Integral) else None
    given = [] if first is not None else listed("seed", seed, 0)
    num = count or (len(given) if given and len(prompts) == 1 else len(prompts))
    if len(prompts) == 1:
        prompts *= num
    if len(prompts) != num:
        raise UserError(f"{len(prompts)} prompts for {num} items; give one, or one for each")
    seeds = given if first is None else [first + i for i in range(num)]
    if len(seeds) != num:
        raise UserError(f"{len(seeds)} seeds for {num} items; give one, or one for each")
    for value in seeds:
        if not isinstance(value, Integral) or not 0 <= value <= MAX_SEED:
            raise UserError(f"seed is {value}; a seed is a whole number from 0 to 2^63 - 1")
    return prompts, [int(value) for value in seeds]


def area_of(size: tuple[int, int]) -> int:
    """Pixels of a checked (width, height)."""
    width, height = check_size(size)
    return width * height


def chunks(kinds: Sequence[object], size: int) -> list[slice]:
    """Slices of neighbours of one kind, at most ``size`` long, that cover all items."""
    size = check_whole("batch_size", size, 1, 10_000)
    slices: list[slice] = []
    for i, kind in enumerate(kinds):
        if slices and i - slices[-1].start < size and kinds[slices[-1].start] == kind:
            slices[-1] = slice(slices[-1].start, i + 1)
        else:
            slices.append(slice(i, i + 1))
    return slices
