"""A model spread over processes: sharded weights (FSDP2), recomputed activations, compiled blocks.

What a model class must offer: ``wrap_units()``, the list of its blocks in the order they run (a model without
it is wrapped as one piece). A head that must stay in float32 is named in ``FLOAT32_PARTS``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from modality_forcing.config import ParallelConfig
from modality_forcing.training.distributed import World, make_mesh, plan_mesh

FLOAT32_PARTS = ("depth_final_layer",)
"""Modules that compute in float32 whatever the rest does: bf16 in the depth head causes banding."""


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The units that are sharded, recomputed and compiled one by one."""
    units: Callable[[], list[nn.Module]] | None = getattr(model, "wrap_units", None)
    return units() if units is not None else []


def prepare_blocks(model: nn.Module, parallel: ParallelConfig, *, has_dropout: bool = False) -> None:
    """Compile each block and recompute its activations in the backward pass, as ``parallel`` says.

    Only ``forward`` is replaced: names of modules and weights stay.
    """
    for block in blocks_of(model):
        forward: Callable[..., Any] = block.forward
        if parallel.compile:
            forward = torch.compile(forward)
        if parallel.checkpointing:
            forward = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=has_dropout)
        block.forward = forward  # type: ignore[method-assign]


def compute_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """bfloat16 where sharded weights are gathered in it; None: as they are (float32, maybe autocast)."""
    return torch.bfloat16 if precision == "bf16" and device.type == "cuda" else None


def autocasts(precision: str, device: torch.device) -> bool:
    """Whether a model that is asked and does not train computes in bfloat16 under autocast: CPUs ask theirs
    in float32."""
    return precision == "bf16" and device.type != "cpu"


def shard(model: nn.Module, parallel: ParallelConfig, batch: int, precision: str, world: World) -> None:
    """FSDP2 on every block, on the float32 parts and on the rest; gradients are reduced in float32."""
    mesh = make_mesh(*plan_mesh(parallel, batch, world), world.device)
    # Inputs are not cast as a whole: noise levels and rotations must stay float32; layers cast their own.
    body = MixedPrecisionPolicy(
        param_dtype=compute_dtype(precision, world.device),
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    plain = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh, mp_policy=body)
    for name in FLOAT32_PARTS:
        if hasattr(model, name):
            fully_shard(getattr(model, name), mesh=mesh, mp_policy=plain)
    fully_shard(model, mesh=mesh, mp_policy=body)


def place(model: nn.Module, parallel: ParallelConfig, batch: int, precision: str, world: World) -> nn.Module:
    """Put a finished model where it trains. Only the first process needs its values: the others may have
    built it on the meta device and get their shards from the first.
    """
    if not world.grouped:
        return model.to(world.device)
    # The module becomes empty before it is sharded; the values wait here until they are sent.
    values = dict(model.state_dict()) if world.first else {}
    model.to("meta")
    shard(model, parallel, batch, precision, world)
    model.to_empty(device=world.device)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=True)
    set_model_state_dict(model, values, options=options)
    return model


def sync_gradients(model: nn.Module, on: bool) -> None:
    """Whether the next backward pass reduces gradients over the processes: only a step's last one does."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(on)
