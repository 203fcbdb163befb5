"""Optimizers, schedule, averaging and crops of the training loop."""

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
from modality_forcing.training.muon import Muon, orthogonalise
from modality_forcing.training.optim import EMA, learning_rate, make_optimizers
from modality_forcing.training.stages import random_crops


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 7)])
def test_orthogonalised_singular_values_are_about_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalise(matrix)
    assert found.shape == shape
    values = torch.linalg.svdvals(found)
    assert 0.6 < values.min() <= values.max() < 1.3
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    # The directions stay: U^T O V is diagonal.
    rotated = u.T @ found @ vh.T
    torch.testing.assert_close(rotated, torch.diag(rotated.diagonal()), atol=1e-4, rtol=0)


def test_nothing_stays_nothing():
    assert not orthogonalise(torch.zeros(3, 4)).any()


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-3), (torch.bfloat16, 1e-6)])
def test_muon_is_torchs_muon(dtype, tolerance, shape):
    """PyTorch's own, which iterates in bf16: in float32 equal up to that."""
    generator = torch.Generator().manual_seed(1)
    mine, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    ours = Muon([mine], lr=0.1, weight_decay=0.3, dtype=dtype)
    reference = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        mine.grad = torch.randn(shape, generator=generator)
        theirs.grad = mine.grad.clone()
        ours.step()
        reference.step()
    torch.testing.assert_close(mine.detach(), theirs.detach(), atol=tolerance, rtol=0)
    assert (mine - 1).abs().mean() > 0.05


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_convolution_is_updated_as_its_flattened_kernel(channels_last):
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 10, 3, bias=False)
    if channels_last:
        convolution = convolution.to(memory_format=torch.channels_last)
    gradient = torch.randn(convolution.weight.shape)
    matrix = nn.Parameter(convolution.weight.detach().flatten(1).clone())
    matrix.grad = gradient.flatten(1)
    before = convolution.weight.detach().clone()
    convolution.weight.grad = gradient.clone()
    Muon([matrix], lr=0.1).step()
    Muon([convolution.weight], lr=0.1).step()
    torch.testing.assert_close(convolution.weight.detach().flatten(1), matrix.detach(), rtol=0, atol=1e-7)
    assert not torch.equal(before, convolution.weight)


def test_muon_leaves_alone_what_has_no_gradient():
    used, idle = (nn.Conv2d(2, 3, 3, bias=False).weight for _ in range(2))
    before = idle.detach().clone()
    used.grad = torch.ones_like(used)
    Muon([used, idle], lr=0.1).step()
    assert torch.equal(idle, before)


def test_muon_refuses_vectors():
    with pytest.raises(ValueError, match="two or more dimensions"):
        Muon([nn.Parameter(torch.ones(3))])


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize(
    "build", [lambda: Transformer(TINY.transformer), lambda: Autoencoder(TINY.autoencoder)]
)
def test_every_trainable_parameter_has_one_optimizer(kind, build):
    model = build()
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    optimizers = make_optimizers(model, OptimConfig(optimizer=kind))
    assert {type(optimizer).__name__ for optimizer in optimizers} == {"AdamW"} | (
        {"Muon"} if kind == "muon" else set()
    )
    places: list[int] = []
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            places += [p.data_ptr() for p in group["params"]]
    wanted = [p.data_ptr() for p in model.parameters() if p.requires_grad]
    assert sorted(places) == sorted(wanted)


def test_unknown_optimizer_is_named():
    with pytest.raises(UserError, match="'sgd'"):
        make_optimizers(nn.Linear(2, 2), OptimConfig(optimizer="sgd"))


def test_nothing_to_train_is_said():
    with pytest.raises(UserError, match="nothing to train"):
        make_optimizers(nn.Linear(2, 2).requires_grad_(False), OptimConfig())


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


def fail_inside(ema: EMA, model: nn.Linear, average: torch.Tensor) -> None:
    with ema.in_place(model):
        assert torch.equal(model.weight, average)
        raise KeyError


def test_averages_stand_in_for_the_weights_and_leave_again():
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    ema = EMA(model, decay=0.5)
    assert set(ema.shadow) == {"weight"}  # what is frozen is its own average
    with torch.no_grad():
        model.weight.add_(1.0)
    weight, average = model.weight.detach().clone(), ema.shadow["weight"].clone()
    with pytest.raises(KeyError):
        fail_inside(ema, model, average)
    assert torch.equal(model.weight, weight)
    assert torch.equal(ema.shadow["weight"], average)


def test_crops_are_parts_of_their_own_image_and_follow_their_slots():
    images = torch.arange(4 * 3 * 8 * 8).reshape(4, 3, 8, 8).float()

    def crop(slots: list[int], side: int = 4) -> torch.Tensor:
        return random_crops(images[slots], side, slots, 4, torch.Generator().manual_seed(0))

    crops = crop([0, 1, 2, 3])
    assert crops.shape == (4, 3, 4, 4)
    for image, part in zip(images, crops, strict=True):
        windows = image.unfold(1, 4, 1).unfold(2, 4, 1)
        assert any(torch.equal(windows[:, i, j], part) for i in range(5) for j in range(5))
    assert torch.equal(crop([2, 3]), crops[2:])
    assert torch.equal(crop([0, 1], 0), images[:2])
    assert torch.equal(crop([0, 1], 8), images[:2])


def test_a_fresh_autoencoder_has_silent_branches():
    model = Autoencoder(TINY.autoencoder)
    initialise_autoencoder(model)
    silent = [n for n, p in model.named_parameters() if not p.any() and n.endswith("weight")]
    assert silent
    assert all(".conv2." in n or ".proj_out." in n for n in silent)
    block = model.encoder.mid.block_1
    x = torch.randn(1, block.conv1.in_channels, 4, 4)
    assert torch.equal(block(x), x)
