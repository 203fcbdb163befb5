"""Low-rank adapters (LoRA, Hu et al. 2021) on a pretrained model, through peft.

y = W x + (alpha / rank) B A x: W is frozen, A and B train. The parts of the depth stream that start from
scratch train whole. With adapters switched off and without depth tokens the model is the text-to-image model
it came from, to the bit: the teacher of self-distillation costs no second copy.

Names: a layer ``X.weight`` is ``X.base_layer.weight``, ``X.lora_A.default.weight`` and
``X.lora_B.default.weight`` with adapters; :func:`merge_lora` and :func:`merge_state` lead back to ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modality_forcing.checkpoint.weights import open_weights, save_weights
from modality_forcing.config import LoraConfig, from_dict, to_dict
from modality_forcing.errors import UserError
from modality_forcing.model.adapted import choose_trainable

FORMAT = "modality-forcing-lora"
ADAPTER = "default"  # peft's name for the only adapter


def _peft() -> Any:
    """The package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import peft
    except ImportError:
        raise UserError("lora.rank > 0 needs peft: pip install modality-forcing[train]") from None
    return peft


def scaling(config: LoraConfig) -> float:
    """alpha / rank; alpha 0 stands for the rank."""
    return (config.alpha or config.rank) / config.rank


def add_lora(
    model: nn.Module,
    config: LoraConfig,
    *,
    freeze: Iterable[str] = (),
    base_dtype: torch.dtype | None = None,
) -> list[str]:
    """Put adapters into a model, in place; freeze everything else but the fresh depth parts.

    A starts at random (from torch's global generator), B at zero: at first nothing changes, to the bit.

    Args:
        model: a transformer with its pretrained weights, not sharded yet.
        freeze: names that get neither training nor adapters (``model.warm_start.freeze``).
        base_dtype: data type of the frozen weights, bfloat16 to halve them; what trains is float32.

    Returns:
        Names of the adapted layers.

    Raises:
        UserError: peft is missing, or a target or frozen name fits nothing.
    """
    peft = _peft()
    layers = choose_trainable(model, freeze, config)
    keep = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha or config.rank,
        lora_dropout=config.dropout,
        target_modules=layers,
        bias="none",
    )
    peft.inject_adapter_in_model(settings, model, adapter_name=ADAPTER)
    for name, parameter in model.named_parameters():
        trains = name in keep or ".lora_" in name
        parameter.requires_grad_(trains)
        dtype = torch.float32 if trains else base_dtype
        if dtype is not None and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return layers


def lora_modules(model: nn.Module) -> dict[str, Any]:
    """The adapted layers by name; empty without adapters, and without importing peft then."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The model without its adapters: the pretrained weights. What trains stays what it was."""
    modules = lora_modules(model)
    _switch(modules.values(), False)
    try:
        yield
    finally:
        _switch(modules.values(), True)


def _switch(modules: Iterable[Any], on: bool) -> None:
    """Adapters on or off. peft also freezes those it switches off; FSDP2, which looks once at what trains (in
    the first forward pass, which may be the teacher's), would then leave their gradients in bfloat16."""
    for module in modules:
        trains = {parameter: parameter.requires_grad for parameter in module.parameters()}
        module.enable_adapters(on)
        for parameter, flag in trains.items():
            parameter.requires_grad_(flag)


@torch.no_grad()
def merge_lora(model: nn.Module) -> nn.Module:
    """Add every adapter to its layer, in place; the model then has our names and layers again.

    Frozen weights become float32 first, so that the sum is not rounded to bfloat16.
    """
    for name, module in lora_modules(model).items():
        base = module.get_base_layer()
        base.weight.data = base.weight.data.float()
        module.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, base)
    return model


def merge_state(state: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """What :func:`merge_lora` does, on tensors: adapters added, all under our names. Without peft.

    Args:
        state: of a model with adapters, or a plain state with the tensors of :func:`save_adapters` beside it.

    Raises:
        UserError: half of an adapter, or one whose layer is missing.
    """
    plain = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in state.items()
        if ".lora_A." not in name and ".lora_B." not in name
    }
    halves = {
        name.replace(f".{ADAPTER}.", "."): tensor
        for name, tensor in state.items()
        if ".lora_A." in name or ".lora_B." in name
    }
    for layer in sorted({name.rpartition(".lora_")[0] for name in halves}):
        parts = [halves.get(f"{layer}.lora_{half}.weight") for half in "AB"]
        weight = plain.get(f"{layer}.weight")
        if weight is None or parts[0] is None or parts[1] is None:
            raise UserError(f"the adapter of {layer} is not whole, or its layer is missing")
        a, b = parts[0].float(), parts[1].float()
        plain[f"{layer}.weight"] = weight.float() + scaling(config) * (b @ a)
    return plain


def save_adapters(path: str | Path, state: Mapping[str, Tensor], config: LoraConfig) -> Path:
    """Write what LoRA training changed: the adapters and the parts that trained whole.

    Args:
        state: name -> tensor of everything that trained. Frozen weights of adapted layers may be there, too,
            and are left out.

    Raises:
        UserError: the file cannot be written.
    """
    tensors = {
        name.replace(f".{ADAPTER}.", "."): tensor
        for name, tensor in state.items()
        if ".base_layer." not in name
    }
    return save_weights(path, tensors, {"format": FORMAT, "lora": json.dumps(to_dict(config))})


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Names and values of everything that trains: the adapters and the fresh parts."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def read_adapters(path: str | Path) -> tuple[dict[str, Tensor], LoraConfig]:
    """The tensors of :func:`save_adapters` and the settings they were trained with.

    Raises:
        UserError: missing, damaged, or no such file.
    """
    weights = open_weights(path)
    if weights.metadata.get("format") != FORMAT:
        raise UserError(f"{path} is no adapter file; right is one written by training with lora.rank > 0")
    try:
        config = from_dict(LoraConfig, json.loads(weights.metadata["lora"]), f"{path}: lora")
    except (KeyError, ValueError):
        raise UserError(f"{path} does not say its LoRA settings") from None
    return dict(weights.read()), config


@torch.no_grad()
def load_adapters(model: nn.Module, path: str | Path) -> None:
    """Fill the adapters and fresh parts of a model that :func:`add_lora` prepared, strictly.

    Raises:
        UserError: the file does not hold exactly what trains in this model.
    """
    tensors, _ = read_adapters(path)
    own = {name.replace(f".{ADAPTER}.", "."): p for name, p in trained_state(model).items()}
    wrong = sorted(
        name for name in {*own, *tensors}
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape
    )  # fmt: skip
    if wrong:
        raise UserError(f"{path} does not fit this model's adapters: {', '.join(wrong[:3])}")
    for name, parameter in own.items():
        parameter.copy_(tensors[name])
