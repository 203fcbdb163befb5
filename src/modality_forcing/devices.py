"""Where a model runs, in what precision, and what to do when the memory is full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from modality_forcing.errors import OutOfMemoryError, UserError


def resolve_device(name: str) -> torch.device:
    """A device that is there.

    Raises:
        UserError: unknown name, or the machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}; known: auto, cpu, cuda, cuda:N, mps") from None
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise UserError(
            f"device {name!r}: PyTorch sees {torch.cuda.device_count()} CUDA devices here; "
            "use --device cpu, or see mf doctor"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device 'mps' is not available here; use --device cpu, or see mf doctor")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"device {name!r} is not supported; known: auto, cpu, cuda, cuda:N, mps")
    return device


def resolve_dtype(name: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Data type of the transformer's body.

    Raises:
        UserError: anything but float32 and bfloat16.
    """
    if name is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    text = str(name).removeprefix("torch.")
    if text not in known:
        raise UserError(
            f"dtype {text!r} is not supported; known: float32, bfloat16 (float16 overflows in this model)"
        )
    return known[text]


def emulates_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` is a CPU known to have no bfloat16 instructions, on which float32 is faster.

    False when PyTorch cannot tell.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # newer than the oldest PyTorch we run on
    if device.type != "cpu" or capabilities is None:
        return False
    known = capabilities()
    names = [name for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16") if name in known]
    return bool(names) and not any(known[name] for name in names)


@contextmanager
def memory_advice() -> Iterator[None]:
    """Turn running out of memory, on whatever device, into advice.

    Raises:
        OutOfMemoryError: instead of the device's own error.
    """
    try:
        yield
    except RuntimeError as error:
        # CUDA has a class for it; CPU and MPS raise a plain RuntimeError with one of these phrases.
        text = str(error).lower()
        full = isinstance(error, torch.OutOfMemoryError) or any(
            phrase in text for phrase in ("out of memory", "can't allocate memory", "not enough memory")
        )
        if not full:
            raise
        raise OutOfMemoryError(
            "the device ran out of memory; lower --size or --num-images, use --dtype bfloat16, "
            "or use --device cpu"
        ) from error
