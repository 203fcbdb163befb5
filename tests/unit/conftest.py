"""Toy training runs that several files start from, and what they must not leave behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from modality_forcing.config import (
    CheckpointConfig,
    DataConfig,
    LogConfig,
    OptimConfig,
    RefinerConfig,
    SourceConfig,
    TrainConfig,
)
from modality_forcing.presets import TINY
from modality_forcing.training.trainer import Trainer, finish_autoencoder


@pytest.fixture(autouse=True)
def _restore_threads():
    """A trainer sets PyTorch's number of threads for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(small_shards) -> TrainConfig:
    return TrainConfig(
        stage="autoencoder", steps=4, batch=4, image_size=32, threads=1, model=TINY,
        data=DataConfig(sources=(SourceConfig(str(small_shards)),)), log=LogConfig(every=1),
        checkpoint=CheckpointConfig(every=100), optim=OptimConfig(warmup=1, decay=0.0, lr=3e-3),
    )  # fmt: skip


@pytest.fixture(scope="module")
def configs(base, tmp_path_factory) -> dict[str, TrainConfig]:
    """A configuration per stage; the later ones start from short runs of the earlier ones."""
    runs = tmp_path_factory.mktemp("runs")
    autoencoder, t2i = runs / "ae", runs / "t2i"
    Trainer(replace(base, steps=2), autoencoder).run()
    finish_autoencoder(base, autoencoder, num_batches=3)
    t2i_config = replace(base, stage="t2i", autoencoder=str(autoencoder))
    Trainer(replace(t2i_config, steps=2), t2i).run()
    forcing_config = replace(t2i_config, stage="forcing", init=str(t2i))
    forcing = runs / "forcing"
    Trainer(replace(forcing_config, steps=2), forcing).run()
    sizes = RefinerConfig(widths=(8, 16, 16, 24), blocks=(1, 1, 1, 2), norm_groups=4)
    return {
        "autoencoder": base,
        "t2i": t2i_config,
        "forcing": forcing_config,
        "refiner": replace(
            t2i_config, stage="refiner", init=str(forcing), model=replace(TINY, refiner=sizes)
        ),
    }
