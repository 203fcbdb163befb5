"""What is decided before processes meet: the mesh, whose fault a broken connection is; blocks prepared."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from modality_forcing.config import ParallelConfig
from modality_forcing.errors import TrainingError, UserError
from modality_forcing.training import distributed
from modality_forcing.training.distributed import LostProcess, World, current_world, lost_processes, plan_mesh
from modality_forcing.training.parallelize import prepare_blocks


def world(size: int) -> World:
    return World(0, size, torch.device("cpu"), control="a group" if size > 1 else None)


@pytest.mark.parametrize(
    ("size", "parallel", "mesh"),
    [
        (1, ParallelConfig(), (1, 1)),
        (1, ParallelConfig(shard=1), (1, 1)),
        (8, ParallelConfig(), (1, 8)),
        (8, ParallelConfig(shard=8), (1, 8)),
        (8, ParallelConfig(replicate=2), (2, 4)),
        (8, ParallelConfig(replicate=8, shard=1), (8, 1)),
        (8, ParallelConfig(replicate=2, shard=4, accumulate=2), (2, 4)),
    ],
)
def test_meshes_that_fit(size, parallel, mesh):
    assert plan_mesh(parallel, 16, world(size)) == mesh


@pytest.mark.parametrize(
    ("size", "parallel", "message"),
    [
        (8, ParallelConfig(shard=4), r"replicate=1 times parallel.shard=4 .* processes, 8"),
        (8, ParallelConfig(replicate=3), r"replicate=3 times parallel.shard=2 .* processes, 8"),
        (2, ParallelConfig(replicate=4), r"replicate=4 times parallel.shard=1 .* processes, 2"),
        (
            8,
            ParallelConfig(accumulate=4),
            r"batch=16 .* 8 processes x parallel.accumulate=4; .* multiple of 32",
        ),
        (3, ParallelConfig(), r"batch=16 .* 3 processes"),
    ],
)
def test_meshes_that_do_not(size, parallel, message):
    with pytest.raises(UserError, match=message):
        plan_mesh(parallel, 16, world(size))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"RANK": "0", "WORLD_SIZE": "2"},
            "MASTER_ADDR and MASTER_PORT not set; start the run with torchrun",
        ),
        ({"RANK": "first", "WORLD_SIZE": "2"}, "no number; start the run with torchrun"),
    ],
)
def test_half_an_environment_is_said(values, message, monkeypatch):
    monkeypatch.setattr(distributed, "_world", None)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        current_world()


def test_one_process_agrees_with_itself():
    alone = world(1)
    assert alone.total([1.5, 2.0]) == alone.largest([1.5, 2.0]) == [1.5, 2.0]
    assert alone.gather(["a"]) == ["a"]
    assert alone.first
    assert not alone.grouped


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]:1"), LostProcess),
        (torch.distributed.DistBackendError("NCCL communicator was aborted"), LostProcess),
        (RuntimeError("shapes do not match"), RuntimeError),
        (TrainingError("folder gloo cannot be written"), TrainingError),
    ],
)
def test_a_broken_connection_is_told_from_other_faults(error, becomes):
    with pytest.raises(RuntimeError) as caught, lost_processes():
        raise error
    assert type(caught.value) is becomes
    assert (caught.value is error) == (becomes is not LostProcess)


class Stack(nn.Module):
    """Two blocks that count how often they are asked."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.calls = 0

    def wrap_units(self) -> list[nn.Module]:
        return list(self.blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_prepared_blocks_compute_the_same_under_the_same_names(checkpointing, compiled, monkeypatch):
    # The default backend would call a C++ compiler for a minute.
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward: compile_(forward, backend="aot_eager"))
    torch.manual_seed(0)
    model, x = Stack(), torch.randn(4, 3)
    names = list(model.state_dict())
    model(x).square().sum().backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    calls = []
    for block in model.blocks:
        forward = block.forward
        monkeypatch.setattr(block, "forward", lambda x, forward=forward: calls.append(1) or forward(x))
    prepare_blocks(model, ParallelConfig(checkpointing=checkpointing, compile=compiled))
    model(x).square().sum().backward()
    assert all(torch.allclose(p.grad, g) for p, g in zip(model.parameters(), plain, strict=True))
    assert list(model.state_dict()) == names
    if not compiled:  # a compiled block runs its own code
        assert len(calls) == (4 if checkpointing else 2)


def test_a_finished_process_leaves_with_its_code_and_its_words():
    program = (
        "import atexit; from modality_forcing.training.distributed import end_process\n"
        "atexit.register(lambda: print('the long way out'))\n"
        "print('written', end=''); end_process(3)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "written", "")
