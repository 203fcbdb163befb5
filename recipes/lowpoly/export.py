"""``python recipes/lowpoly/export.py AE_RUN FORCING_RUN FOLDER``: averaged weights as a model folder.

The transformer's matrices are stored in bfloat16 (rounding is far below the model's own error and halves the
file); the depth head, the autoencoder and every vector stay float32.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from modality_forcing.checkpoint.writing import save_model
from modality_forcing.training.trainer import load_weights, read_config

NOTE = "Trained from scratch by recipes/lowpoly on the procedural lowpoly world; see docs/experiments.md."


def main(autoencoder_run: str, forcing_run: str, folder: str) -> None:
    """Write ``folder`` in the project's own layout."""
    config = read_config(Path(forcing_run) / "config.json").model
    state = {
        name: tensor.bfloat16() if tensor.dim() == 2 and "depth_final_layer" not in name else tensor.float()
        for name, tensor in load_weights(Path(forcing_run)).items()
    }
    autoencoder = load_file(Path(autoencoder_run) / "autoencoder.safetensors")
    from dataclasses import replace

    save_model(folder, replace(config, note=NOTE), transformer=state, autoencoder=autoencoder)
    size = sum(f.stat().st_size for f in Path(folder).iterdir()) / 1e6
    print(f"{folder}: {size:.1f} MB, {sum(t.numel() for t in state.values()):,} transformer parameters")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
