"""The network that sharpens depth: what it starts as, where it is kept, what a pipeline does with it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from modality_forcing import Pipeline
from modality_forcing.checkpoint.layouts import open_checkpoint
from modality_forcing.checkpoint.writing import convert, save_model
from modality_forcing.config import ModelConfig, RefinerConfig
from modality_forcing.errors import UserError
from modality_forcing.model.refiner import DepthRefiner
from modality_forcing.model.warm_start import deepen_refiner

SIZES = RefinerConfig(widths=(8, 16, 16, 24), blocks=(1, 1, 2, 3), norm_groups=4)


def trained(sizes: RefinerConfig = SIZES) -> DepthRefiner:
    """One whose convolutions are not zero where they begin so, as after training."""
    torch.manual_seed(3)
    refiner = DepthRefiner(sizes)
    for parameter in refiner.parameters():
        if parameter.dim() == 4 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return refiner.eval()


@pytest.fixture(scope="module")
def with_refiner(tiny_model, tmp_path_factory):
    """The tiny model with a refiner beside it."""
    folder = tmp_path_factory.mktemp("refined") / "model"
    checkpoint = open_checkpoint(tiny_model)
    return save_model(
        folder, replace(checkpoint.config, refiner=SIZES),
        transformer=checkpoint.load_transformer().state_dict(),
        autoencoder=checkpoint.load_autoencoder().state_dict(),
        refiner=trained().state_dict(),
    )  # fmt: skip


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 80)])
def test_before_training_it_changes_nothing(height, width):
    contracted, image = torch.rand(2, 1, height, width) * 2, torch.rand(2, 3, height, width) * 2 - 1
    assert torch.equal(DepthRefiner(SIZES)(contracted, image), contracted)


def test_every_weight_learns():
    refiner = trained()
    contracted, image = torch.rand(2, 1, 32, 32) * 2, torch.rand(2, 3, 32, 32) * 2 - 1
    refiner(contracted, image).square().mean().backward()
    still = [n for n, p in refiner.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


def test_it_learns_an_edge_that_the_depth_lacks():
    """Depth is blurred over sixteen pixels, the colours are not."""
    torch.manual_seed(0)
    refiner = DepthRefiner(SIZES)
    optimizer = torch.optim.AdamW(refiner.parameters(), lr=3e-3)

    def scene(edges: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        near = (torch.arange(32)[None, :] < edges[:, None]).float()[:, None, None, :].expand(-1, 1, 32, 32)
        depth = 1.5 - near
        blurred = torch.nn.functional.avg_pool2d(depth, 16).repeat_interleave(16, 2).repeat_interleave(16, 3)
        return depth, blurred, near.expand(-1, 3, -1, -1) * 2 - 1

    for _ in range(60):
        depth, blurred, image = scene(torch.randint(4, 28, (8,)))
        loss = (refiner(blurred, image) - depth).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    depth, blurred, image = scene(torch.tensor([7, 13, 22]))
    with torch.no_grad():
        left = (refiner(blurred, image) - depth).abs().mean()
    assert left < 0.5 * (blurred - depth).abs().mean()


def test_sizes_that_cannot_be():
    with pytest.raises(UserError, match=r"refiner width 10 .* norm_groups 4"):
        RefinerConfig(widths=(8, 10), norm_groups=4)
    with pytest.raises(UserError, match=r"refiner\.widths"):
        RefinerConfig(widths=())
    with pytest.raises(UserError, match=r"multiples of 32; depth tokens cover 16"):
        ModelConfig(refiner=RefinerConfig(widths=(8,) * 5, blocks=(1,) * 5))
    for blocks in ((1, 1, 2), (1, 1, 0, 1)):
        with pytest.raises(UserError, match=r"refiner\.blocks needs 4 numbers"):
            RefinerConfig(blocks=blocks)


def test_it_is_part_of_the_model_folder(with_refiner):
    checkpoint = open_checkpoint(with_refiner)
    assert checkpoint.config.refiner == SIZES
    loaded, expected = checkpoint.load_refiner().state_dict(), trained().state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert "refiner.safetensors" in checkpoint.sha256()


def test_a_model_without_one_has_none(tiny_model):
    checkpoint = open_checkpoint(tiny_model)
    assert checkpoint.config.refiner is None
    assert checkpoint.load_refiner() is None
    assert "refiner.safetensors" not in checkpoint.sha256()


def test_the_release_layout_keeps_it(with_refiner, tmp_path):
    there = convert(with_refiner, tmp_path / "release", "release")
    back = convert(there, tmp_path / "back", "ours")
    name = "refiner.safetensors"
    assert (back / name).read_bytes() == (with_refiner / name).read_bytes()


def test_half_precision_on_disk(with_refiner, tmp_path):
    """Matrices shrink, vectors do not; it computes in float32 all the same."""
    there = convert(with_refiner, tmp_path / "half", "ours", dtype=torch.bfloat16)
    stored = {t.dtype for _, t in open_checkpoint(there).refiner.weights.read()}
    assert stored == {torch.bfloat16, torch.float32}
    assert {p.dtype for p in open_checkpoint(there).load_refiner().parameters()} == {torch.float32}


def test_a_missing_file_is_named(with_refiner, tmp_path):
    there = convert(with_refiner, tmp_path / "model", "ours")
    (there / "refiner.safetensors").unlink()
    with pytest.raises(UserError, match=r"refiner\.safetensors"):
        open_checkpoint(there)


def test_other_sizes_are_named(with_refiner, tmp_path):
    there = convert(with_refiner, tmp_path / "model", "ours")
    values = json.loads((there / "config.json").read_text())
    values["refiner"] |= {"widths": [8, 16, 16], "blocks": [1, 1, 2]}
    (there / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="unexpected tensor"):
        open_checkpoint(there).load_refiner()


def test_a_folder_without_the_weights_it_promises_is_not_written(with_refiner, tmp_path):
    checkpoint = open_checkpoint(with_refiner)
    with pytest.raises(UserError, match="refiner"):
        save_model(tmp_path / "m", checkpoint.config, autoencoder=checkpoint.load_autoencoder().state_dict())
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("edge_radius", [0, 3])
def test_a_pipeline_sharpens_every_depth_it_decodes(tiny_model, with_refiner, picture, edge_radius):
    plain, refined = Pipeline.from_pretrained(tiny_model), Pipeline.from_pretrained(with_refiner)
    settings = {"seed": 1, "steps": 2, "edge_radius": edge_radius}
    for results in (
        [p.image_to_depth(picture, **settings)[0] for p in (plain, refined)],
        [p.joint("a house", size=(64, 48), refine_depth=False, **settings)[0] for p in (plain, refined)],
    ):
        without, with_it = results
        np.testing.assert_array_equal(without.rgb, with_it.rgb)
        assert without.depth.shape == with_it.depth.shape
        assert not np.allclose(without.depth, with_it.depth)
        assert np.isfinite(with_it.depth).all()
        assert (with_it.depth > 0).all()


def test_completion_and_inpainting_sharpen_too(tiny_model, with_refiner, picture, ramp):
    sparse = np.where(np.random.default_rng(0).random(ramp.shape) < 0.05, ramp, np.nan).astype(np.float32)
    hole = np.zeros(ramp.shape, bool)
    hole[10:30, 20:50] = True
    plain, refined = Pipeline.from_pretrained(tiny_model), Pipeline.from_pretrained(with_refiner)
    without, with_it = (p.complete(picture, sparse, seed=1, steps=2)[0].depth for p in (plain, refined))
    assert not np.allclose(without, with_it)
    without, with_it = (
        p.inpaint("a box", picture, hole, ramp, seed=1, steps=2)[0].depth for p in (plain, refined)
    )
    assert not np.allclose(without[hole], with_it[hole])
    np.testing.assert_array_equal(without[~hole], with_it[~hole])


def test_training_begins_with_one_that_is_less_deep():
    contracted, image = torch.rand(2, 1, 32, 32) * 2, torch.rand(2, 3, 32, 32) * 2 - 1
    smaller = trained(replace(SIZES, blocks=(1, 1, 1, 1)))
    deeper = DepthRefiner(SIZES)
    deepen_refiner(deeper, smaller.config, smaller.state_dict())
    assert torch.equal(deeper(contracted, image), smaller(contracted, image))
    assert not torch.equal(smaller(contracted, image), contracted)
    for blocks, groups in (((1, 2, 1, 1), 4), ((1, 1, 1, 1), 2)):
        other = trained(replace(SIZES, blocks=blocks, norm_groups=groups))
        with pytest.raises(ValueError, match="right is as wide and no deeper"):
            deepen_refiner(deeper, other.config, other.state_dict())
