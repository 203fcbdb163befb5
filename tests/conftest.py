"""What several test folders share: a tiny model on disk and pictures to feed it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

# One thread each: the suite runs its files in parallel, and thread pools on few cores wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest


@pytest.fixture(scope="session")
def recipe_script() -> Callable[[str], ModuleType]:
    """A script beside the recipes as a module, by its path there: "lowpoly/average.py"."""

    def load(path: str) -> ModuleType:
        script = Path(__file__).resolve().parents[1] / "recipes" / path
        spec = importlib.util.spec_from_file_location(script.stem, script)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder in our layout: preset "tiny", random weights, the same every time."""
    import torch

    from modality_forcing.checkpoint.writing import save_model
    from modality_forcing.model.autoencoder import Autoencoder
    from modality_forcing.model.transformer import Transformer
    from modality_forcing.presets import TINY

    with torch.device("meta"):
        states = {
            "transformer": Transformer(TINY.transformer).state_dict(),
            "autoencoder": Autoencoder(TINY.autoencoder).state_dict(),
        }
    generator = torch.Generator().manual_seed(0)

    def fill(name: str, meta: torch.Tensor) -> torch.Tensor:
        if not meta.is_floating_point():
            return torch.zeros(meta.shape, dtype=meta.dtype)
        if meta.ndim < 2:  # norms and statistics: around 1 is plausible for all of them, biases included
            return torch.ones(meta.shape, dtype=meta.dtype)
        fan_in = meta[0].numel()
        return torch.randn(meta.shape, generator=generator) * fan_in**-0.5

    filled = {
        part: {name: fill(name, tensor) for name, tensor in state.items()} for part, state in states.items()
    }
    return save_model(tmp_path_factory.mktemp("models") / "tiny", TINY, **filled)


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two shards with twelve 32 x 32 samples (see ``shard_folders.toy_sample``)."""
    from shard_folders import toy_sample, write_samples

    return write_samples(tmp_path_factory.mktemp("shards"), [toy_sample(i) for i in range(12)])


@pytest.fixture(scope="session")
def picture() -> np.ndarray:
    """uint8 (48, 64, 3): a gradient with a bright square, wider than high so that a turn shows."""
    rows, columns = np.mgrid[0:48, 0:64]
    image = np.stack([columns * 4, rows * 5, 255 - columns * 3], axis=-1).astype(np.uint8)
    image[8:16, 8:16] = (250, 240, 30)
    return image


@pytest.fixture(scope="session")
def ramp() -> np.ndarray:
    """float32 (48, 64): depth from 1 to 4, a floor seen from above."""
    return np.repeat(np.linspace(4.0, 1.0, 48, dtype=np.float32)[:, None], 64, axis=1)
