"""Growing a text-to-image backbone into an RGB-D model: what is copied, cloned and fresh."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from modality_forcing.codecs.positions import depth_ids, image_ids, text_ids
from modality_forcing.errors import UserError
from modality_forcing.model.transformer import Transformer
from modality_forcing.model.warm_start import (
    FRESH_PREFIXES,
    freeze,
    initialise,
    smooth_depth_head,
    warm_start,
)
from modality_forcing.presets import TINY

CONFIG = replace(TINY.transformer, text_width=24, num_double_blocks=2, num_depth_blocks=2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def predict(model: Transformer) -> tuple[torch.Tensor, torch.Tensor]:
    """Both heads' answers to two tokens of each kind."""
    rope = model.rope(text_ids(2), image_ids(1, 2), depth_ids(1, 2))
    level = torch.full((1,), 0.5)
    return model(
        torch.ones(1, 2, CONFIG.latent_channels), torch.ones(1, 2, CONFIG.depth_channels or 0),
        torch.ones(1, 2, 24), rope, level, level,
    )  # fmt: skip


@pytest.fixture
def backbone() -> Transformer:
    model = Transformer(CONFIG.backbone()).eval().requires_grad_(False)
    source = generator(7)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=source) * parameter.shape[-1] ** -0.5)
    return model


@pytest.fixture
def grown(backbone) -> tuple[Transformer, dict[str, list[str]]]:
    model = Transformer(CONFIG).eval().requires_grad_(False)
    return model, warm_start(model, backbone.state_dict(), generator())


def test_every_tensor_is_copied_cloned_or_fresh(grown, backbone):
    model, report = grown
    names = [name for kind in report.values() for name in kind]
    assert sorted(names) == sorted(model.state_dict())
    assert sorted(report["copied"]) == sorted(backbone.state_dict())


def test_copies_are_equal_to_the_bit(grown, backbone):
    model, report = grown
    ours, source = model.state_dict(), backbone.state_dict()
    for name in report["copied"]:
        assert torch.equal(ours[name], source[name])


def test_the_depth_stream_is_a_clone_of_the_image_stream(grown, backbone):
    model, report = grown
    ours, source = model.state_dict(), backbone.state_dict()
    expected = {
        "double_stream_modulation_depth.lin.weight": "double_stream_modulation_img.lin.weight",
        "single_stream_modulation_depth.lin.weight": "single_stream_modulation.lin.weight",
    }
    parts = ("attn.qkv.weight", "attn.proj.weight", "attn.norm.query_norm.scale",
             "attn.norm.key_norm.scale", "mlp.0.weight", "mlp.2.weight")  # fmt: skip
    for block in range(CONFIG.num_double_blocks):
        for part in parts:
            expected[f"double_blocks.{block}.depth_{part}"] = f"double_blocks.{block}.img_{part}"
    assert sorted(report["cloned"]) == sorted(expected)
    for clone, original in expected.items():
        assert torch.equal(ours[clone], source[original])
        assert ours[clone].data_ptr() != ours[original].data_ptr()


def test_exactly_the_depth_parts_without_a_twin_are_fresh(grown):
    model, report = grown
    embedders = ("time_in_depth", "time_in_depth_to_img", "time_in_rgb_to_depth")
    expected = {
        "depth_in.weight",
        "cross_alpha_img",
        "cross_alpha_depth",
        "depth_decoder_modulation.lin.weight",
    }
    expected |= {f"{name}.{layer}.weight" for name in embedders for layer in ("in_layer", "out_layer")}
    expected |= {"depth_final_layer.linear.weight", "depth_final_layer.adaLN_modulation.1.weight"}
    expected |= {name for name in model.state_dict() if name.startswith("depth_decoder_blocks.")}
    assert set(report["fresh"]) == expected
    assert all(any(name.startswith(prefix) for name in expected) for prefix in FRESH_PREFIXES)


def test_fresh_values_by_role(grown):
    model, report = grown
    state = model.state_dict()
    for name in report["fresh"]:
        value = state[name]
        if "alpha" in name or "modulation" in name.lower() or "final_layer.linear" in name:
            assert not value.any(), name
        elif name.endswith("scale"):
            assert (value == 1).all(), name
        else:
            assert value.std().item() == pytest.approx(value.shape[1] ** -0.5, rel=0.1), name


def test_zero_mixers_leave_the_image_modulation_alone_to_the_bit(grown, backbone):
    model, _ = grown
    t = torch.tensor([0.73, 0.1, 1.0])
    plain = backbone.conditioning(t, None).vec_img
    for t_depth in (torch.zeros(3), torch.tensor([0.2, 0.9, 1.0])):
        cond = model.conditioning(t, t_depth)
        assert torch.equal(cond.vec_img, plain)
        assert torch.equal(cond.vec_depth, model.time_in_depth(timestep(t_depth)))


def timestep(t: torch.Tensor) -> torch.Tensor:
    from modality_forcing.model.layers import timestep_embedding

    return timestep_embedding(t)


def test_depth_starts_at_zero_and_the_image_still_sees_its_text(grown):
    model, _ = grown
    rope = model.rope(text_ids(4), image_ids(2, 2), depth_ids(2, 2))
    source = generator(3)
    rgb = torch.randn(1, 4, CONFIG.latent_channels, generator=source)
    depth = torch.randn(1, 4, CONFIG.depth_channels or 0, generator=source)
    text = torch.randn(2, 4, 24, generator=source)
    level = torch.full((1,), 0.5)
    a, depth_a = model(rgb, depth, text[:1], rope, level, level)
    b, _ = model(rgb, depth, text[1:], rope, level, level)
    assert not depth_a.any()
    assert (a - b).abs().max() > 0.01


def test_the_same_seed_gives_the_same_fresh_values(backbone):
    models = [Transformer(CONFIG) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        warm_start(model, backbone.state_dict(), generator(seed))
    assert torch.equal(models[0].depth_in.weight, models[1].depth_in.weight)
    assert not torch.equal(models[0].depth_in.weight, models[2].depth_in.weight)


def test_the_backbone_is_not_shared(backbone):
    model = Transformer(CONFIG)
    warm_start(model, backbone.state_dict(), generator())
    before = backbone.img_in.weight.clone()
    model.img_in.weight.data.zero_()
    assert torch.equal(backbone.img_in.weight, before)


def test_strict_about_the_backbone(backbone):
    model = Transformer(CONFIG)
    state = backbone.state_dict()
    with pytest.raises(ValueError, match=r"lacks img_in\.weight"):
        warm_start(model, {k: v for k, v in state.items() if k != "img_in.weight"}, generator())
    with pytest.raises(ValueError, match="surplus_tensor"):
        warm_start(model, state | {"surplus_tensor": torch.zeros(1)}, generator())
    with pytest.raises(ValueError, match=r"txt_in\.weight is \(3, 3\)"):
        warm_start(model, state | {"txt_in.weight": torch.zeros(3, 3)}, generator())


def test_a_model_from_scratch_starts_at_zero():
    model = Transformer(CONFIG).eval().requires_grad_(False)
    initialise(model, generator())
    other = Transformer(CONFIG)
    initialise(other, generator())
    for name, value in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    rgb, depth = predict(model)
    assert not rgb.any()
    assert not depth.any()


def test_the_image_and_text_weights_of_the_double_blocks_freeze():
    model = Transformer(CONFIG)
    trainable, frozen = freeze(model, ["rgb_double_blocks"])
    expected = [
        name for name, _ in model.named_parameters()
        if name.startswith("double_blocks.") and ".depth_" not in name
    ]  # fmt: skip
    assert frozen == expected
    assert expected
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == set(expected)
    assert sorted([*trainable, *frozen]) == sorted(model.state_dict())


def test_no_image_hangs_on_what_trains_beside_a_frozen_trunk():
    """Images come without any gradient; depth brings one to all that trains."""
    model = Transformer(CONFIG)
    trainable, _ = freeze(model, ["trunk"])
    heads = {"depth_decoder_blocks", "depth_decoder_modulation", "depth_final_layer"}
    assert {name.split(".")[0] for name in trainable} == heads
    rgb, depth = predict(model)
    assert not rgb.requires_grad
    depth.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == trainable


def test_freezing_by_the_start_of_a_name():
    model = Transformer(CONFIG)
    _, frozen = freeze(
        model, ["img_in", "double_blocks.1", "single_blocks.0.linear1.weight", "cross_alpha_img"]
    )
    expected = {
        n for n in model.state_dict()
        if n.startswith("double_blocks.1.") or n in ("img_in.weight", "single_blocks.0.linear1.weight")
    }  # fmt: skip
    assert set(frozen) == expected | {"cross_alpha_img"}
    # A second list adds to the first.
    assert len(freeze(model, ["txt_in."])[1]) == len(frozen) + 1


@pytest.mark.parametrize("entry", ["img", "double_blocks.9", "rgb", "", "img_in.weight.x"])
def test_a_name_that_fits_nothing_freezes_nothing(entry):
    model = Transformer(CONFIG)
    with pytest.raises(UserError, match="known: rgb_double_blocks"):
        freeze(model, ["img_in", entry])
    assert all(p.requires_grad for p in model.parameters())


def test_a_smooth_head_predicts_smooth_patches(grown):
    """Neighbours inside a patch start alike whatever the features are; the mean of a patch has its own."""
    model, _ = grown
    smooth_depth_head(model)
    weight = model.depth_final_layer.linear.weight
    side = round(weight.shape[0] ** 0.5)
    features = torch.randn(64, weight.shape[1], generator=generator())
    patches = (features @ weight.T).unflatten(-1, (side, side))
    assert patches.std() > 0.1
    step = (patches[:, :, 1:] - patches[:, :, :-1]).std()
    assert step < 0.35 * patches.std()
    assert torch.allclose(weight[:, 0], weight[0, 0].expand(len(weight)))
    others = weight[:, 1:]
    assert torch.allclose(others.mean(dim=0), torch.zeros(others.shape[1]), atol=1e-6)
    gram = weight.T @ weight
    assert torch.allclose(gram, torch.diag(gram.diagonal()), atol=1e-4)
