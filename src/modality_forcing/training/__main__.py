"""``python -m modality_forcing.training CONFIG.json RUN [--resume] [key=value ...]``: without the CLI."""

from __future__ import annotations

import sys
from pathlib import Path

from modality_forcing.config import override
from modality_forcing.training.trainer import Trainer, finish_autoencoder, read_config


def main(arguments: list[str]) -> None:
    """Train one stage; the autoencoder's latent statistics are measured at its end."""
    resume = "--resume" in arguments
    config_path, run, *assignments = [a for a in arguments if a != "--resume"]
    config = override(read_config(Path(config_path)), assignments)
    trainer = Trainer(config, Path(run), resume=resume)
    trainer.run(lambda row: print(" ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True))
    if config.stage == "autoencoder" and trainer.step >= config.steps:
        finish_autoencoder(config, Path(run))


if __name__ == "__main__":
    main(sys.argv[1:])
