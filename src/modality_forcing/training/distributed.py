"""The processes of a run: who they are, what they agree on, how the weights lie over them.

A run is one plain process, or was started by torchrun, which sets RANK, WORLD_SIZE and LOCAL_RANK. Small
agreements (counts, flags, numbers of the log) go through a process group on the CPU, so that none of them
waits for an accelerator.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from modality_forcing.config import ParallelConfig
from modality_forcing.errors import TrainingError, UserError


class LostProcess(TrainingError):
    """Another process of the run is gone, or the connection to it."""


@dataclass(frozen=True)
class World:
    """This process among the others.

    Attributes:
        rank, size: number of this process and how many there are.
        device: where this process computes.
        control: group on the CPU for small agreements; None in a plain single process.
        saving: the same for the thread that writes checkpoints: two threads may not share a group.
    """

    rank: int
    size: int
    device: torch.device
    control: Any = None
    saving: Any = None

    @property
    def grouped(self) -> bool:
        """Whether torchrun started this run (with one process or more)."""
        return self.control is not None

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def total(self, values: Sequence[float]) -> list[float]:
        """Elementwise sum over the processes, in float64; the same bits everywhere."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def largest(self, values: Sequence[float]) -> list[float]:
        """Elementwise maximum over the processes."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def _reduce(self, values: Sequence[float], operation: Any) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            with lost_processes():
                dist.all_reduce(tensor, op=operation, group=self.control)
        return tensor.tolist()

    def gather(self, texts: list[str]) -> list[str]:
        """The lists of all processes, one after the other."""
        if self.size == 1:
            return texts
        parts: list[list[str]] = [[] for _ in range(self.size)]
        with lost_processes():
            dist.all_gather_object(parts, texts, group=self.control)
        return [text for part in parts for text in part]

    def wait(self) -> None:
        """Until every process is here."""
        self.total([0.0])


@contextlib.contextmanager
def lost_processes() -> Iterator[None]:
    """Say plainly when a collective fails because another process has died.

    Raises:
        LostProcess: instead of the library's own error.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        gone = isinstance(error, dist.DistError) or any(
            phrase in text
            for phrase in ("connection closed", "connection reset", "gloo", "nccl", "broken pipe")
        )
        if isinstance(error, TrainingError) or not gone:
            raise
        raise LostProcess(
            f"process {os.environ.get('RANK', '?')} lost another process of this run and ends; "
            "--resume goes on from the newest checkpoint"
        ) from error


_world: World | None = None


def current_world() -> World:
    """This process' world; under torchrun the first call connects the processes.

    Raises:
        UserError: the variables of torchrun are incomplete, or there are fewer accelerators than processes.
    """
    global _world
    if _world is None:
        _world = _connect() if "RANK" in os.environ and "WORLD_SIZE" in os.environ else _alone()
    return _world


def leave_world() -> None:
    """Disconnect; the next :func:`current_world` looks again. Called by itself when the process ends."""
    global _world
    if _world is not None and _world.grouped and dist.is_initialized():
        dist.destroy_process_group()
    _world = None


def end_process(code: int) -> NoReturn:
    """End this process of torchrun, its work done: disconnect, write out what is buffered, and go.

    The ordinary way out races with threads of the communication library: about one run in fifteen aborted
    ("terminate called without an active exception") after everything was written, and torchrun called the
    whole run failed.
    """
    leave_world()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads it any more
            stream.flush()
    os._exit(code)


def _alone() -> World:
    return World(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _connect() -> World:
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local = int(os.environ.get("LOCAL_RANK", "0"))
    except ValueError:
        raise UserError("RANK, WORLD_SIZE or LOCAL_RANK is no number; start the run with torchrun") from None
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise UserError(f"{' and '.join(missing)} not set; start the run with torchrun")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise UserError(
                f"process {local} of this machine has no accelerator, PyTorch sees "
                f"{torch.cuda.device_count()}; lower --nproc-per-node"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    atexit.register(leave_world)
    return World(rank, size, device, dist.new_group(backend="gloo"), dist.new_group(backend="gloo"))


def plan_mesh(parallel: ParallelConfig, batch: int, world: World) -> tuple[int, int]:
    """(copies of the weights, processes that share one copy), checked.

    Raises:
        UserError: the product is not the number of processes, or the batch does not split evenly.
    """
    size = world.size
    shard = parallel.shard or max(1, size // parallel.replicate)
    if parallel.replicate * shard != size:
        start = "" if world.grouped else f"; start {parallel.replicate * shard} with torchrun"
        raise UserError(
            f"parallel.replicate={parallel.replicate} times parallel.shard={shard} is not the number of "
            f"processes, {size}{start}"
        )
    pieces = size * parallel.accumulate
    if batch % pieces:
        raise UserError(
            f"batch={batch} does not split over {size} processes x "
            f"parallel.accumulate={parallel.accumulate}; right is a multiple of {pieces}"
        )
    return parallel.replicate, shard


def make_mesh(replicate: int, shard: int, device: torch.device) -> DeviceMesh:
    """One axis (shard), or two (replicate, shard) where several copies of the weights are kept."""
    if replicate > 1:
        return init_device_mesh(device.type, (replicate, shard), mesh_dim_names=("replicate", "shard"))
    return init_device_mesh(device.type, (shard,), mesh_dim_names=("shard",))


def local(tensor: Tensor) -> Tensor:
    """This process' part of a sharded tensor (shared memory); any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, gathered; any other tensor itself. All processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
