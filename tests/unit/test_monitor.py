"""A run looks at itself: the same grid every time, the training left as it was, true numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from modality_forcing.checkpoint.layouts import open_checkpoint
from modality_forcing.cli.monitor import Monitor, Parts, read_validation, save_picture
from modality_forcing.codecs.text import MiniLMTextEncoder
from modality_forcing.config import LogConfig, TrainConfig
from modality_forcing.errors import UserError
from modality_forcing.evaluation.metrics import mean_score, score_depth
from modality_forcing.model.build import build_transformer
from modality_forcing.pipeline import Pipeline
from modality_forcing.presets import TINY
from modality_forcing.types import Camera, Sample


def sample(seed: int) -> Sample:
    rng = np.random.default_rng(seed)
    rgb = np.kron(rng.integers(0, 255, (4, 4, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    depth = np.kron(rng.uniform(1, 5, (4, 4)), np.ones((16, 16))).astype(np.float32)
    depth[:8], depth[8:10] = np.inf, 0.0
    return Sample(rgb, depth, Camera.from_fov(64, 64, fov_x=60), (f"number {seed}", f"picture number {seed}"))


@pytest.fixture(scope="module")
def parts(tiny_model) -> Parts:
    checkpoint = open_checkpoint(tiny_model)
    device = torch.device("cpu")
    text = MiniLMTextEncoder(max_tokens=TINY.text.max_tokens)
    transformer = checkpoint.load_transformer(torch.float32, device).requires_grad_(True).train()
    autoencoder = checkpoint.load_autoencoder(torch.float32, device)
    return Parts(transformer, autoencoder, text.encode)


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    log = LogConfig(sample_every=1, sample_steps=2, validate_every=1, validation="somewhere")
    return TrainConfig(stage="forcing", model=TINY, image_size=64, log=log)


def test_the_grid_is_the_same_every_time_and_disturbs_nothing(parts, config):
    monitor = Monitor(config, [sample(i) for i in range(3)])
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = monitor.draw(parts)
    assert torch.equal(torch.get_rng_state(), before)
    assert parts.model.training
    assert all(p.requires_grad for p in parts.model.parameters())
    assert np.array_equal(monitor.draw(parts), first)
    # Three rows (joint, image to depth, depth to image) of three pairs each.
    assert first.shape == (6 + 3 * (128 + 6 + 10 + 6), 6 + 6 * (128 + 6), 3)
    assert not np.array_equal(Monitor(config, [sample(i) for i in range(3, 6)]).draw(parts), first)


def test_prompts_of_the_user_come_before_captions(parts, config):
    samples = [sample(i) for i in range(6)]
    assert Monitor(config, samples).prompts == [f"picture number {i}" for i in range(4)]
    chosen = replace(config, log=replace(config.log, prompts=("a", "b")))
    assert Monitor(chosen, samples).prompts == ["a", "b"]
    assert Monitor(chosen, []).draw(parts).shape == (6 + 128 + 6 + 16, 6 + 4 * 134, 3)


def test_validation_is_what_the_metrics_say_of_the_pipeline(parts, config, tiny_model):
    samples = [sample(i) for i in range(3)]
    row = Monitor(config, samples).validate(parts)
    pipeline = Pipeline.from_pretrained(tiny_model, device="cpu")
    found = pipeline.image_to_depth([s.rgb for s in samples], seed=0, steps=2, size=(64, 64))
    for name, alignment in (("val", "scale"), ("val_affine", "affine")):
        scores = [
            score_depth(r.depth, s.depth, alignment=alignment) for r, s in zip(found, samples, strict=True)
        ]
        assert row[f"{name}_abs_rel"] == pytest.approx(mean_score(scores).abs_rel, rel=1e-4)
        assert row[f"{name}_delta1"] == pytest.approx(mean_score(scores).delta1, abs=2e-3)


def test_text_to_image_grid(parts, config):
    backbone = build_transformer(TINY.transformer.backbone())
    torch.manual_seed(0)
    for weight in backbone.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    mine = replace(parts, model=backbone)

    def tiles(*prompts: str) -> list[np.ndarray]:
        grid = Monitor(replace(config, stage="t2i", log=replace(config.log, prompts=prompts)), []).draw(mine)
        assert grid.shape == (6 + 128 + 6 + 16, 6 + len(prompts) * 134, 3)
        return [grid[6:134, 6 + i * 134 : 134 + i * 134] for i in range(len(prompts))]

    one, two, _ = tiles("a house", "a house", "a boat")
    other, again = tiles("a boat", "a house")
    assert not np.array_equal(one, two)  # every place in the grid has its seed
    assert not np.array_equal(one, other)  # the prompt is heard
    # Equal up to rounding: a batch of another size is computed in another order.
    assert np.abs(two.astype(int) - again).max() <= 2
    assert Monitor(replace(config, stage="t2i"), []).validate(mine) == {}


def test_autoencoder_grid_and_psnr(parts, config):
    monitor = Monitor(replace(config, stage="autoencoder"), [sample(i) for i in range(2)])
    mine = Parts(parts.autoencoder)
    assert monitor.draw(mine).shape == (6 + 2 * 134, 6 + 2 * 134, 3)
    (value,) = monitor.validate(mine).values()
    assert 0 < value < 30  # random weights


def test_what_is_read_and_refused(tmp_path):
    assert read_validation(LogConfig(validation="nowhere")) == []
    with pytest.raises(UserError, match=r"log\.validation is empty"):
        read_validation(LogConfig(validate_every=5))
    with pytest.raises(UserError, match="nowhere is no folder of shards"):
        read_validation(LogConfig(validate_every=5, validation=str(tmp_path / "nowhere")))


def test_the_picture_is_written_whole(tmp_path):
    from PIL import Image

    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    save_picture(tmp_path / "samples" / "step_000010.png", pixels)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "samples" / "step_000010.png")), pixels)
    assert [p.name for p in (tmp_path / "samples").iterdir()] == ["step_000010.png"]
