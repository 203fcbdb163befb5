"""What a run needs to go on: sharded tensors and a JSON note in one folder per step.

    checkpoints/step_00000200/
        state.json          finished steps, configuration, what was skipped so far
        ema.safetensors     averaged weights, whole, with the frozen ones: all that later stages need
        shards/*.safetensors   weights that train, buffers, optimizers: every process wrote its part

The shards are PyTorch's distributed checkpoint (DCP) in its safetensors form, which holds no pickle and can
be read back by any number of processes. Tensors go by parameter name, optimizer state too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.tensor import DTensor

from modality_forcing.config import TrainConfig, to_dict
from modality_forcing.errors import UserError
from modality_forcing.io.atomic import write_errors
from modality_forcing.training.distributed import World, local
from modality_forcing.training.optim import EMA

STEP_FOLDER = re.compile(r"^step_(\d{8})$")
LEFTOVER = re.compile(r"^\.(step|old)_\d{8}")
SHARDS, EMA_FILE, NOTE = "shards", "ema.safetensors", "state.json"
FIXED = ("stage", "model", "freeze", "lora", "optim.optimizer")
"""Settings that a resumed run may not change; everything else may."""
LARGEST_FILE = 2**31
"""Bytes after which a process begins another file: each is put together in memory."""

Tensors = dict[str, Tensor]


# -- folders ------------------------------------------------------------------------------------------


def list_steps(run: Path) -> list[int]:
    """Steps of the complete checkpoints of a run, oldest first."""
    root = run / "checkpoints"
    if not root.is_dir():
        return []
    return sorted(int(m.group(1)) for p in root.iterdir() if (m := STEP_FOLDER.match(p.name)))


def step_folder(run: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps stands, once complete."""
    return run / "checkpoints" / f"step_{step:08d}"


def latest(run: Path) -> Path:
    """Folder of a run's newest checkpoint.

    Raises:
        UserError: there is none.
    """
    steps = list_steps(run)
    if not steps:
        raise UserError(f"{run} has no checkpoint; a folder made by training is needed")
    return step_folder(run, steps[-1])


def clean(run: Path) -> None:
    """Remove what a killed process left behind half written or half deleted."""
    root = run / "checkpoints"
    if root.is_dir():
        for path in root.iterdir():
            if LEFTOVER.match(path.name):
                shutil.rmtree(path, ignore_errors=True)


def prune(run: Path, keep: int, keep_every: int) -> None:
    """Delete checkpoints except the newest ``keep`` and those of every ``keep_every``-th step."""
    root = run / "checkpoints"
    for step in list_steps(run)[:-keep]:
        if keep_every and step % keep_every == 0:
            continue
        # Out of sight in one move, so that no half-deleted folder looks like a checkpoint.
        doomed = root / f".old_{step:08d}"
        shutil.rmtree(doomed, ignore_errors=True)
        step_folder(run, step).rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


@contextmanager
def hold(run: Path, world: World) -> Iterator[None]:
    """Keep a run's folder for this run alone; a killed process lets go by itself.

    Raises:
        UserError: another process trains there.
    """
    if not world.first:
        yield
        return
    with write_errors(run):
        run.mkdir(parents=True, exist_ok=True)
        lock = (run / ".lock").open("w")
    with lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            pass
        except BlockingIOError:
            raise UserError(f"another process trains in {run}; wait for it or name another folder") from None
        except OSError:  # a file system without locks
            pass
        yield


# -- what is kept ----------------------------------------------------------------------------------------


def state_tensors(model: nn.Module, ema: EMA, optimizers: list[torch.optim.Optimizer]) -> Tensors:
    """Everything that changes in training, by name, and the frozen weights (as "ema.NAME": they are their own
    average)."""
    names = {id(p): name for name, p in model.named_parameters()}
    tensors: Tensors = {}
    frozen = set(names.values()) - set(ema.shadow)
    for name, value in model.state_dict().items():
        tensors[f"{'ema' if name in frozen else 'model'}.{name}"] = value.detach()
    tensors |= {f"ema.{name}": value for name, value in ema.shadow.items()}
    for optimizer in optimizers:
        for p, entry in optimizer.state.items():
            for key, value in entry.items():
                tensors[f"optim.{names[id(p)]}.{key}"] = value
    return tensors


def staged(tensors: Tensors) -> Tensors:
    """A copy on the CPU, for a thread to write while training goes on."""
    return BlockingAsyncStager().stage(tensors)


def _file_numbers(tensors: Tensors) -> dict[str, int]:
    """Tensor name -> number of the file it goes to; averages apart from the rest."""
    numbers: dict[str, int] = {}
    number = 0
    for averages in (False, True):
        size = LARGEST_FILE
        for name in sorted(name for name in tensors if name.startswith("ema.") == averages):
            if size >= LARGEST_FILE:
                number, size = number + 1, 0
            # By the whole tensor's size, which all processes agree on.
            size += tensors[name].numel() * tensors[name].element_size()
            numbers[name] = number
    return numbers


# -- writing ----------------------------------------------------------------------------------------------


def write(folder: Path, tensors: Tensors, note: Mapping[str, Any], world: World, group: Any) -> None:
    """Write a checkpoint whole or not at all; every process calls it, the first one finishes it.

    Args:
        folder: its final place; until then it is ``.step_N`` beside it.
        tensors: from :func:`state_tensors`, or a staged copy.
        note: what ``state.json`` says.
        group: process group on the CPU for this thread's agreements.

    Raises:
        OSError: the disk is full, or refuses otherwise; nothing of the new checkpoint is left.
    """
    aside = folder.with_name(f".{folder.name}")
    try:
        if world.first:
            shutil.rmtree(aside, ignore_errors=True)
        _save_shards(aside / SHARDS, tensors, world, group)
        if world.first:
            _gather_averages(aside)
            _write_synced(aside / NOTE, json.dumps(note, indent=1).encode())
            _sync_folder(aside)
            aside.rename(folder)
            _sync_folder(folder.parent)
    except BaseException:
        if world.first:
            shutil.rmtree(aside, ignore_errors=True)
        raise


def _save_shards(folder: Path, tensors: Tensors, world: World, group: Any) -> None:
    # Safetensors hold contiguous tensors only; convolutions in channels-last order are not.
    tensors = {name: t if isinstance(t, DTensor) else t.contiguous() for name, t in tensors.items()}
    writer = dcp.HuggingFaceStorageWriter(
        str(folder), fqn_to_index_mapping=_file_numbers(tensors), save_distributed=True
    )
    try:
        with _quiet():
            dcp.save(tensors, storage_writer=writer, process_group=group, no_dist=not world.grouped)
    except CheckpointException as failed:
        causes = [cause for cause, _ in failed.failures.values()]
        # The same on every process: a full disk first, since that is what training can wait for.
        causes.sort(key=lambda cause: not isinstance(cause, OSError))
        raise causes[0] from failed


def _gather_averages(folder: Path) -> None:
    """Put the averages together from the processes' shards, tensor by tensor, and drop those shards."""
    pieces: dict[str, list[tuple[Path, list[int], list[int], str]]] = {}
    for path in sorted((folder / SHARDS).glob("*.safetensors")):
        for name, offsets, shape, kind in _pieces(path):
            if name.startswith("ema."):
                pieces.setdefault(name, []).append((path, offsets, shape, kind))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, parts in sorted(pieces.items()):
        shape = [max(p[1][d] + p[2][d] for p in parts) for d in range(len(parts[0][2]))]
        start, end = end, end + _BYTES[parts[0][3]] * _volume(shape)
        header[name.removeprefix("ema.")] = {
            "dtype": parts[0][3], "shape": shape, "data_offsets": [start, end],
        }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / EMA_FILE).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, parts in sorted(pieces.items()):
            # Weights are sharded by rows, so their pieces in order are the tensor.
            for path, *_ in sorted(parts, key=lambda part: part[1]):
                with safe_open(path, framework="pt") as shard:
                    piece = shard.get_tensor(name).contiguous()
                file.write(memoryview(piece.flatten().view(torch.uint8).numpy()))
        file.flush()
        os.fsync(file.fileno())
    for path in {part[0] for parts in pieces.values() for part in parts}:
        path.unlink()


_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def _volume(shape: list[int]) -> int:
    volume = 1
    for side in shape:
        volume *= side
    return volume


def _pieces(path: Path) -> Iterator[tuple[str, list[int], list[int], str]]:
    """Name, offsets, shape and type of every piece in a shard."""
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    offsets = json.loads(header.pop("__metadata__")["DCP_SHARDING_INFO"])
    for name, info in header.items():
        yield name, list(offsets[name]["saved_offsets"]), info["shape"], info["dtype"]


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """A rename survives a power cut only when its folder was synced."""
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _quiet() -> Iterator[None]:
    """DCP warns that a single process is a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


# -- reading ----------------------------------------------------------------------------------------------


def read_note(folder: Path) -> dict[str, Any]:
    """``state.json`` of a checkpoint.

    Raises:
        UserError: it is missing, damaged or of another version of this program.
    """
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        int(note["step"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder} holds no readable {NOTE}; name a run made by this version") from None
    return note


def check_same(note: Mapping[str, Any], config: TrainConfig, folder: Path) -> None:
    """Refuse to go on with another model, stage or optimizer.

    Raises:
        UserError: names every setting that differs, with both values.
    """
    now, then = _flat(to_dict(config)), _flat(note.get("config", {}))
    differing = [
        f"{key} was {then.get(key, 'not there')!r} and is {now.get(key, 'not there')!r}"
        for key in sorted(now.keys() | then.keys())
        if any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED)
        and now.get(key) != then.get(key)
    ]
    if differing:
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UserError(f"{folder} was made with other settings: {'; '.join(differing[:5])}{more}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def read(
    folder: Path, model: nn.Module, ema: EMA, optimizers: list[torch.optim.Optimizer], world: World
) -> None:
    """Restore everything in place, whatever number of processes wrote it.

    Raises:
        UserError: the tensors are not those of this model, or a file is damaged.
    """
    try:
        _read(folder, model, ema, optimizers, world)
    except (OSError, ValueError, SafetensorError, CheckpointException) as error:
        text = " ".join(str(error).split())[:300]
        raise UserError(
            f"{folder} is damaged ({text}); move it away and --resume goes on from an older one"
        ) from error


def _read(
    folder: Path, model: nn.Module, ema: EMA, optimizers: list[torch.optim.Optimizer], world: World
) -> None:
    reader = dcp.HuggingFaceStorageReader(str(folder / SHARDS))
    saved = reader.read_metadata().state_dict_metadata
    parameters = dict(model.named_parameters())
    present = state_tensors(model, ema, [])
    averages = {name.removeprefix("ema."): t for name, t in present.items() if name.startswith("ema.")}
    shards = {name: t for name, t in present.items() if name.startswith("model.")}
    with safe_open(folder / EMA_FILE, framework="pt") as file:
        surplus = set(file.keys()) ^ set(averages)
    surplus |= {name for name in saved if name.startswith("model.")} ^ set(shards)
    owners = {
        id(p): optimizer for optimizer in optimizers for g in optimizer.param_groups for p in g["params"]
    }
    for name in [name for name in saved if name.startswith("optim.")]:
        owner, key = name.removeprefix("optim.").rsplit(".", 1)
        p = parameters.get(owner)
        optimizer = owners.get(id(p))
        if p is None or optimizer is None:
            surplus.add(name)
            continue
        matrix = len(saved[name].size) > 0
        optimizer.state[p][key] = shards[name] = torch.zeros_like(p) if matrix else _count(optimizer, p)
    if surplus:
        some = ", ".join(sorted(surplus)[:5])
        raise UserError(f"{folder} does not belong to this model; only one of the two has {some}")
    shapes = {name: (tuple(t.shape), tuple(saved[name].size)) for name, t in shards.items()}
    if wrong := [f"{name} {now} and {then}" for name, (now, then) in shapes.items() if now != then]:
        raise UserError(f"{folder} does not belong to this model; shapes differ: {', '.join(wrong[:3])}")
    common = {"process_group": world.control, "no_dist": not world.grouped}
    with _quiet():
        dcp.load(shards, storage_reader=reader, **common)
        dcp.load(averages, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), **common)


def _count(optimizer: torch.optim.Optimizer, p: nn.Parameter) -> Tensor:
    """A place for an optimizer's count of steps: on the device where it wants it."""
    fused = any(group.get("fused") for group in optimizer.param_groups)
    return torch.zeros((), device=local(p).device if fused else "cpu")
