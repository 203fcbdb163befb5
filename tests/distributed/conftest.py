"""Toy runs small enough to be trained many times by several processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from modality_forcing.config import DataConfig, OptimConfig, SourceConfig, TrainConfig
from modality_forcing.presets import TINY
from shard_folders import toy_sample, write_samples

TOY = replace(
    TINY,
    transformer=replace(TINY.transformer, hidden=32, rope_axes=(4, 4, 4, 4), num_single_blocks=1),
)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, TrainConfig]:
    """A configuration of every stage, float32, 8 samples per step, constant learning rate; "forcing" is grown
    from a T2I run of two steps, and what the frozen encoders say is on disk already."""
    from modality_forcing.training.trainer import Trainer

    folder = tmp_path_factory.mktemp("toy")
    shards = write_samples(folder / "shards", [toy_sample(i) for i in range(12)])
    data = DataConfig(sources=(SourceConfig(str(shards)),), cache=str(folder / "cache"))
    base = TrainConfig(
        stage="t2i", steps=1000, batch=8, image_size=32, data=data, autoencoder=str(tiny_model), threads=1,
        precision="fp32", model=TOY, optim=OptimConfig(lr=1e-3, warmup=1, decay=0.0),
    )  # fmt: skip
    first = Trainer(base, folder / "t2i")
    for step in range(20):  # every sample, caption and mirror image is met
        first.stage.prepare(first.loader.load(step)[0], step)
    first.train_step()
    first.train_step()
    first.save()
    first.encoders.flush()
    autoencoder = replace(base, stage="autoencoder", autoencoder="", crop=16)
    return {"autoencoder": autoencoder, "t2i": base,
            "forcing": replace(base, stage="forcing", init=str(folder / "t2i"))}  # fmt: skip
