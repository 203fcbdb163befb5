"""recipes/lowpoly/average.py: the mean of two models' weights."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from modality_forcing.checkpoint.layouts import open_checkpoint
from modality_forcing.checkpoint.weights import open_weights
from modality_forcing.checkpoint.writing import save_model
from modality_forcing.config import RefinerConfig
from modality_forcing.errors import UserError
from modality_forcing.model.autoencoder import Autoencoder
from modality_forcing.model.build import build_transformer
from modality_forcing.model.refiner import DepthRefiner
from modality_forcing.pipeline import EMBEDDED
from modality_forcing.presets import TINY

REFINER = RefinerConfig(widths=(8, 8), blocks=(1, 1), norm_groups=4)


@pytest.fixture(scope="module")
def script(recipe_script):
    return recipe_script("lowpoly/average.py")


@pytest.fixture
def models(tmp_path) -> tuple[Path, Path]:
    """Two models that share their autoencoder."""
    config = replace(TINY, refiner=REFINER)
    torch.manual_seed(0)
    autoencoder = Autoencoder(config.autoencoder).state_dict()
    folders = []
    for name in ("before", "after"):
        transformer, refiner = build_transformer(config.transformer), DepthRefiner(REFINER)
        for p in (*transformer.parameters(), *refiner.parameters()):
            torch.nn.init.normal_(p)
        states = {"transformer": transformer.state_dict(), "refiner": refiner.state_dict()}
        note = replace(config, note=name)
        folders.append(save_model(tmp_path / name, note, autoencoder=autoencoder, **states))
    return folders[0], folders[1]


def test_every_tensor_is_the_mean(script, models, tmp_path):
    before, after = models
    out = script.average(str(before), str(after), 0.75, tmp_path / "out")
    assert open_checkpoint(out).config == open_checkpoint(after).config
    for part in ("transformer", "autoencoder", "refiner"):
        old, new, found = (
            dict(open_weights(folder / f"{part}.safetensors").read()) for folder in (before, after, out)
        )
        assert old.keys() == found.keys()
        for name, tensor in found.items():
            if part == "autoencoder":
                assert torch.equal(tensor, old[name])
            else:
                torch.testing.assert_close(tensor, 0.25 * old[name] + 0.75 * new[name])
                assert not torch.equal(tensor, old[name])


def test_one_part_alone(script, models, tmp_path):
    out = script.average(*map(str, models), 0.5, tmp_path / "out", only="refiner")
    for part in ("transformer", "refiner"):
        old, new, found = (
            dict(open_weights(folder / f"{part}.safetensors").read()) for folder in (*models, out)
        )
        for name, tensor in found.items():
            wanted = new[name] if part == "transformer" else 0.5 * (old[name] + new[name])
            torch.testing.assert_close(tensor, wanted)
    (models[0] / "refiner.safetensors").unlink()
    note = json.loads((models[0] / "config.json").read_text())
    (models[0] / "config.json").write_text(json.dumps({**note, "refiner": None}))
    with pytest.raises(UserError, match=r"--only refiner: .* do not both have one"):
        script.average(*map(str, models), 0.5, tmp_path / "again", only="refiner")


@pytest.mark.parametrize("with_refiner", [0, 1])
def test_a_refiner_that_one_has_stays(script, models, tmp_path, with_refiner):
    full, bare = models[with_refiner], models[1 - with_refiner]
    note = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps({**note, "refiner": None}))
    (bare / "refiner.safetensors").unlink()
    out = script.average(str(models[0]), str(models[1]), 0.5, tmp_path / "out")
    old, found = (dict(open_weights(folder / "refiner.safetensors").read()) for folder in (full, out))
    assert all(torch.equal(tensor, old[name]) for name, tensor in found.items())
    assert open_checkpoint(out).config.refiner == REFINER
    old, new, found = (
        dict(open_weights(folder / "transformer.safetensors").read()) for folder in (*models, out)
    )
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, 0.5 * (old[name] + new[name]))


def test_what_does_not_fit_is_said(script, models, tmp_path):
    before, after = map(str, models)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="--share"):
            script.average(before, after, share, tmp_path / "out")
    with pytest.raises(UserError, match="already exists"):
        script.average(before, after, 0.5, Path(after))
    with pytest.raises(UserError, match="transformer of"):
        script.average(before, str(EMBEDDED["lowpoly"]), 0.5, tmp_path / "out")
    result = subprocess.run(
        [sys.executable, script.__file__, before, after, "--share", "2", "--out", tmp_path / "out"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert "--share is 2.0" in result.stderr and "Traceback" not in result.stderr
