"""From a training run to a model that samples: averaged weights, adapters merged, with its autoencoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from modality_forcing.checkpoint.writing import save_model
from modality_forcing.config import TrainConfig, from_dict
from modality_forcing.errors import UserError
from modality_forcing.model.adapted import is_fresh
from modality_forcing.training import state
from modality_forcing.training.build import config_of, load_weights
from modality_forcing.training.encoding import load_autoencoder
from modality_forcing.training.lora import save_adapters

ADAPTERS_FILE = "adapters.safetensors"


def is_run(source: str | Path) -> bool:
    """Whether this is the folder of a training stage: one with checkpoints."""
    return (Path(source).expanduser() / "checkpoints").is_dir()


def export_run(
    run: str | Path, folder: str | Path, *, autoencoder: str | Path | None = None, origin: str = ""
) -> Path:
    """Write the newest averaged weights of a run as a model folder in our own layout.

    With LoRA the adapters are merged, and the folder also gets ``adapters.safetensors``: what changed.

    Args:
        run: folder of one stage, not the autoencoder's. A refiner comes with
            the transformer it learned behind.
        autoencoder: where to take it from; None: where the run took it from.
        origin: what made the run, for a model without a note of its own.

    Returns:
        The folder.

    Raises:
        UserError: no finished checkpoint, a stage without a transformer, or no autoencoder of its sizes.
    """
    run, folder = Path(run).expanduser(), Path(folder)
    newest = state.latest(run)
    note = state.read_note(newest)
    config = from_dict(TrainConfig, note["config"], str(newest / state.NOTE))
    if config.stage == "autoencoder":
        raise UserError(f"{run} is an autoencoder run; right is a run of a later stage")
    model, refiner = config.model, None
    if config.stage == "t2i":
        model = replace(model, transformer=model.transformer.backbone())
    if config.stage == "refiner":
        refiner = load_file(newest / state.EMA_FILE)
    else:
        model = replace(model, refiner=None)
    weights = load_autoencoder(autoencoder or config.autoencoder, config)
    made = f"Trained with {origin}: averaged" if origin else "Averaged"
    text = model.note or f"{made} weights after {note['step']:,} steps of stage {config.stage}."
    save_model(
        folder,
        replace(model, note=text),
        # Frozen weights may have trained in bfloat16: a model has one type throughout.
        transformer={name: tensor.float() for name, tensor in load_weights(run).items()},
        autoencoder=weights.state_dict(),
        refiner=refiner,
    )
    if config.lora.rank > 0:
        save_adapters(folder / ADAPTERS_FILE, _changed(load_file(newest / state.EMA_FILE)), config.lora)
    return folder


def export_autoencoder(run: str | Path, folder: str | Path) -> Path:
    """Write what an autoencoder's run made as a model folder of that part alone, for another model to take it
    from (``autoencoder`` of :func:`~modality_forcing.checkpoint.writing.convert`).

    Returns:
        The folder.

    Raises:
        UserError: no finished run of stage autoencoder.
    """
    folder, config = Path(folder), config_of(run)
    if config.stage != "autoencoder":
        raise UserError(
            f"{run} is a run of stage {config.stage}; right is one of stage autoencoder, or a model"
        )
    save_model(
        folder, replace(config.model, refiner=None), autoencoder=load_autoencoder(run, config).state_dict()
    )
    return folder


def _changed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adapters and the parts that started from scratch."""
    return {name: tensor for name, tensor in tensors.items() if ".lora_" in name or is_fresh(name)}
