"""Which weights of a model train: whole, through low-rank adapters, or not at all."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from modality_forcing.config import LoraConfig
from modality_forcing.errors import UserError
from modality_forcing.model.warm_start import FRESH_PREFIXES, freeze


def is_fresh(name: str) -> bool:
    """Whether a weight belongs to the parts of the depth stream that start from scratch."""
    return name.startswith(FRESH_PREFIXES)


def adapted_layers(model: nn.Module, config: LoraConfig) -> list[str]:
    """Names of the linear layers that get adapters: those that ``config.targets`` names a part of.

    Fresh layers of the depth stream get none, they train whole; nor do layers whose weight is frozen already.

    Raises:
        UserError: a target fits no layer (the default targets serve both families, so each of them may miss).
    """
    linear = [
        name for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not is_fresh(name + ".")
    ]  # fmt: skip
    for target in config.targets:
        if target not in LoraConfig().targets and not any(target in name for name in linear):
            raise UserError(
                f"lora.targets names {target!r}, which is part of no layer's name; "
                f"known for example: {', '.join(linear[:1] + linear[-2:])}"
            )
    chosen = [name for name in linear if any(target in name for target in config.targets)]
    chosen = [name for name in chosen if model.get_submodule(name).weight.requires_grad]
    if not chosen:
        raise UserError(f"lora.targets={','.join(config.targets)} leaves no layer to adapt")
    return chosen


def choose_trainable(model: nn.Module, names: Iterable[str], lora: LoraConfig) -> list[str]:
    """Freeze what a run does not train and name the layers that get adapters (none without LoRA).

    Args:
        names: the freeze list; see :func:`~modality_forcing.model.warm_start.freeze`. It stands above LoRA:
            what it names gets no adapters either.

    Raises:
        UserError: a name or target that fits nothing.
    """
    freeze(model, names)
    if lora.rank == 0:
        return []
    layers = adapted_layers(model, lora)
    for name, parameter in model.named_parameters():
        if not is_fresh(name):
            parameter.requires_grad_(False)
    return layers
