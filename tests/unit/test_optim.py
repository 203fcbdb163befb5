"""Optimizers, schedule, averaging and memory of the training loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modality_forcing.config import OptimConfig
from modality_forcing.errors import UserError
from modality_forcing.model.autoencoder import Autoencoder
from modality_forcing.model.transformer import Transformer
from modality_forcing.model.warm_start import initialise_autoencoder
from modality_forcing.presets import TINY
from modality_forcing.training.memory import Remembered
from modality_forcing.training.optim import EMA, ConvMuon, learning_rate, make_optimizers
from modality_forcing.training.stages import random_crops


@pytest.mark.parametrize("channels_last", [False, True])
def test_conv_muon_is_muon_on_the_flattened_kernel(channels_last):
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 10, 3, bias=False)
    if channels_last:
        convolution = convolution.to(memory_format=torch.channels_last)
    gradient = torch.randn_like(convolution.weight)

    def flat(weight: torch.Tensor) -> torch.Tensor:
        return (weight.permute(0, 2, 3, 1) if channels_last else weight).reshape(10, -1)

    matrix = nn.Parameter(flat(convolution.weight.detach()).clone())
    matrix.grad = flat(gradient).clone()
    before = convolution.weight.detach().clone()
    convolution.weight.grad = gradient.clone(memory_format=torch.preserve_format)
    torch.optim.Muon([matrix], lr=0.1).step()
    optimizer = ConvMuon([convolution.weight], lr=0.1)
    optimizer.step()
    torch.testing.assert_close(flat(convolution.weight.detach()), matrix.detach(), rtol=0, atol=0)
    assert not torch.equal(before, convolution.weight)
    optimizer.zero_grad()
    assert convolution.weight.grad is None


def test_conv_muon_skips_what_has_no_gradient():
    used, idle = (nn.Conv2d(2, 3, 3, bias=False).weight for _ in range(2))
    before = idle.detach().clone()
    used.grad = torch.ones_like(used)
    ConvMuon([used, idle], lr=0.1).step()
    assert torch.equal(idle, before)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize(
    "build", [lambda: Transformer(TINY.transformer), lambda: Autoencoder(TINY.autoencoder)]
)
def test_every_trainable_parameter_has_one_optimizer(kind, build):
    model = build()
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    optimizers = make_optimizers(model, OptimConfig(optimizer=kind))
    places: list[int] = []
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            places += [p.data_ptr() for p in group["params"]]
    wanted = [p.data_ptr() for p in model.parameters() if p.requires_grad]
    assert sorted(places) == sorted(wanted)


def test_unknown_optimizer_is_named():
    with pytest.raises(UserError, match="'sgd'"):
        make_optimizers(nn.Linear(2, 2), OptimConfig(optimizer="sgd"))


def test_learning_rate_warms_up_holds_and_falls_to_zero():
    config = OptimConfig(lr=2.0, warmup=10, decay=0.25)
    rates = [learning_rate(step, 100, config) for step in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[50] == rates[75] == 2.0
    assert rates[90] == pytest.approx(2.0 * 10 / 25)
    assert rates[100] == 0.0


def test_ema_follows_its_formula():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    ema = EMA(model, decay=0.5)
    with torch.no_grad():
        model.weight.fill_(3.0)
    ema.update(model, step=1000)  # long after the ramp
    assert ema.shadow["weight"].item() == pytest.approx(2.0)
    ema.update(model, step=0)  # the ramp: decay 0.1
    assert ema.shadow["weight"].item() == pytest.approx(0.1 * 2.0 + 0.9 * 3.0)


def test_remembered_asks_once_per_key():
    asked: list[list[int]] = []
    values = {"a": 1.0, "b": 2.5, "c": -3.0}
    memory = Remembered()

    def look_up(keys: list[str]) -> torch.Tensor:
        def compute(positions: list[int]) -> torch.Tensor:
            asked.append(positions)
            return torch.tensor([[values[keys[i]]] for i in positions])

        return memory(keys, compute)

    assert look_up(["a", "b", "a"]).tolist() == [[1.0], [2.5], [1.0]]
    assert sorted(asked.pop()) in ([0, 1], [1, 2])
    assert look_up(["c", "b"]).tolist() == [[-3.0], [2.5]]
    assert asked == [[0]]
    assert look_up(["b", "a", "c"]).tolist() == [[2.5], [1.0], [-3.0]]
    assert asked == [[0]]


def test_crops_are_parts_of_their_own_image():
    images = torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8).float()
    crops = random_crops(images, 4, torch.Generator().manual_seed(0))
    assert crops.shape == (2, 3, 4, 4)
    for image, crop in zip(images, crops, strict=True):
        windows = image.unfold(1, 4, 1).unfold(2, 4, 1)
        assert any(torch.equal(windows[:, i, j], crop) for i in range(5) for j in range(5))
    assert random_crops(images, 0, torch.Generator()) is images
    assert random_crops(images, 8, torch.Generator()) is images


def test_a_fresh_autoencoder_has_silent_branches():
    model = Autoencoder(TINY.autoencoder)
    initialise_autoencoder(model)
    silent = [n for n, p in model.named_parameters() if not p.any() and n.endswith("weight")]
    assert silent
    assert all(".conv2." in n or ".proj_out." in n for n in silent)
    block = model.encoder.mid.block_1
    x = torch.randn(1, block.conv1.in_channels, 4, 4)
    assert torch.equal(block(x), x)
