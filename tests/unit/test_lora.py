"""Low-rank adapters: what they change, what they leave alone to the bit, and the way back."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from modality_forcing.codecs.positions import depth_ids, image_ids, text_ids
from modality_forcing.config import LoraConfig
from modality_forcing.errors import UserError
from modality_forcing.model.adapted import adapted_layers, choose_trainable, is_fresh
from modality_forcing.model.build import build_transformer
from modality_forcing.model.warm_start import warm_start
from modality_forcing.presets import MODELS
from modality_forcing.training.lora import (
    adapters_off,
    add_lora,
    load_adapters,
    lora_modules,
    merge_lora,
    merge_state,
    read_adapters,
    save_adapters,
    trained_state,
)

pytest.importorskip("peft")

LORA = LoraConfig(rank=3, alpha=6.0)
FAMILIES = ("tiny", "tiny-flat")


def sizes(name: str):
    return replace(MODELS[name].transformer, text_width=24)


def pretrained(name: str) -> torch.nn.Module:
    """A text-to-image model with random weights."""
    model = build_transformer(sizes(name).backbone())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    return model


def grown(name: str) -> torch.nn.Module:
    model = build_transformer(sizes(name))
    warm_start(model, pretrained(name).state_dict(), torch.Generator().manual_seed(2))
    return model


def run(model, name: str, with_depth: bool = True):
    config = sizes(name)
    generator = torch.Generator().manual_seed(3)
    rgb = torch.randn(2, 4, config.latent_channels, generator=generator)
    depth = torch.randn(2, 4, config.depth_channels or 0, generator=generator)
    text = torch.randn(2, 5, 24, generator=generator)
    ids = [text_ids(5), image_ids(2, 2), depth_ids(2, 2)]
    t = torch.tensor([0.3, 0.9])
    if with_depth:
        return model(rgb, depth, text, model.rope(*ids), t, t.flip(0))
    return model(rgb, None, text, model.rope(*ids[:2]), t)


def train(model, name: str, steps: int = 6) -> None:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        rgb, depth = run(model, name)
        optimizer.zero_grad()
        ((rgb - 1).square().mean() + (depth + 1).square().mean()).backward()
        optimizer.step()


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_changes_at_first_to_the_bit(name):
    model, plain = grown(name), grown(name)
    add_lora(model, LORA)
    for a, b in zip(run(model, name), run(plain, name), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_and_fresh_parts_train_and_nothing_else(name):
    model = grown(name)
    layers = add_lora(model, LORA)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    fresh = {n for n in build_transformer(sizes(name)).state_dict() if is_fresh(n)}
    adapters = {f"{layer}.lora_{half}.default.weight" for layer in layers for half in "AB"}
    assert trained == fresh | adapters
    assert set(lora_modules(model)) == set(layers)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model, name)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == trained


def test_the_default_targets_are_every_pretrained_block_and_the_depth_modulations():
    layers = adapted_layers(grown("tiny"), LORA)
    block = [f"double_blocks.0.{s}_{part}" for s in ("txt", "img", "depth")
             for part in ("attn.qkv", "attn.proj", "mlp.0", "mlp.2")]  # fmt: skip
    single = [f"single_blocks.{i}.linear{k}" for i in range(2) for k in (1, 2)]
    modulations = [f"{kind}_stream_modulation_depth.lin" for kind in ("double", "single")]
    assert sorted(layers) == sorted([*block, *single, *modulations])
    flat = adapted_layers(grown("tiny-flat"), LORA)
    assert sorted(flat) == sorted(
        [*(f"blocks.{i}.linear{k}" for i in range(3) for k in (1, 2)), "modulation_depth.lin"]
    )


def test_the_freeze_list_stands_above_adapters():
    model = grown("tiny")
    layers = add_lora(model, LORA, freeze=["rgb_double_blocks", "depth_in"])
    assert not [n for n in layers if n.startswith("double_blocks") and ".depth_" not in n]
    assert [n for n in layers if ".depth_attn.qkv" in n]
    assert not model.depth_in.weight.requires_grad


def test_own_targets():
    layers = adapted_layers(grown("tiny"), LoraConfig(rank=2, targets=("img_attn", "txt_in")))
    assert layers == ["txt_in", "double_blocks.0.img_attn.qkv", "double_blocks.0.img_attn.proj"]


@pytest.mark.parametrize(
    ("targets", "freeze", "message"),
    [
        (("query",), [], "'query'"),
        (("linear1", "query"), [], "'query'"),
        (("qkv", "proj", "mlp"), ["double_blocks"], "leaves no layer"),
        (("linear1",), ["double"], "'double'"),
    ],
)
def test_what_fits_nothing_is_named(targets, freeze, message):
    with pytest.raises(UserError, match=message):
        choose_trainable(grown("tiny"), freeze, LoraConfig(rank=2, targets=targets))


@pytest.mark.parametrize("name", FAMILIES)
def test_merged_equals_unmerged(name):
    model = grown(name)
    add_lora(model, LORA)
    train(model, name)
    with torch.no_grad():
        before = run(model, name)
        state = {k: v.clone() for k, v in model.state_dict().items()}
        merged = merge_lora(model)
        after = run(merged, name)
    for a, b in zip(before, after, strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-5)
    plain = build_transformer(sizes(name))
    assert list(merged.state_dict()) == list(plain.state_dict())
    # The same from tensors alone, as an export does it.
    plain.load_state_dict(merge_state(state, LORA), strict=True)
    for k, v in merged.state_dict().items():
        assert torch.allclose(plain.state_dict()[k], v, atol=1e-6)
    # And the adapters did something.
    assert any(not torch.equal(v, grown(name).state_dict()[k]) for k, v in merged.state_dict().items()
               if not is_fresh(k))  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_switched_off_it_is_the_text_to_image_model_to_the_bit(name):
    """The teacher of self-distillation, also after training and in the middle of a backward pass."""
    model, teacher = grown(name), pretrained(name)
    add_lora(model, LORA)
    train(model, name)
    with torch.no_grad():
        expected, _ = run(teacher, name, with_depth=False)
        assert not torch.equal(run(model, name, with_depth=False)[0], expected)
        rgb, _ = run(model, name)
    with torch.enable_grad():
        rgb, _ = run(model, name)
        trains = [p.requires_grad for p in model.parameters()]
        with adapters_off(model), torch.no_grad():
            found, depth = run(model, name, with_depth=False)
            assert [p.requires_grad for p in model.parameters()] == trains
        assert torch.equal(found, expected)
        assert depth is None
        model.zero_grad(set_to_none=True)
        rgb.square().mean().backward()
    some = next(iter(lora_modules(model).values()))
    assert some.lora_B["default"].weight.grad.any()
    assert [p.requires_grad for p in model.parameters()] == trains


def test_frozen_weights_in_half_precision_train_in_float32():
    model = grown("tiny")
    add_lora(model, LORA, base_dtype=torch.bfloat16)
    dtypes = {(p.requires_grad, p.dtype) for p in model.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    for _ in range(2):  # a context each: autocast remembers the weights it has cast
        with torch.autocast("cpu", torch.bfloat16):
            train(model, "tiny", steps=1)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        before = run(model, "tiny")[1]
    assert all(torch.isfinite(p).all() for p in model.parameters())
    merged = merge_lora(model)
    assert merged.single_blocks[0].linear1.weight.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.allclose(run(merged, "tiny")[1], before, atol=0.05)


def test_adapters_on_disk(tmp_path):
    model = grown("tiny")
    add_lora(model, LORA)
    train(model, "tiny")
    file = save_adapters(tmp_path / "adapters.safetensors", trained_state(model), LORA)
    tensors, config = read_adapters(file)
    assert config == LORA
    assert not [n for n in tensors if "base_layer" in n or "default" in n]
    other = grown("tiny")
    torch.manual_seed(9)
    add_lora(other, LORA)
    load_adapters(other, file)
    for a, b in zip(run(other, "tiny"), run(model, "tiny"), strict=True):
        assert torch.equal(a, b)
    # Beside the plain model they came from, the file is enough for the trained one.
    merged = merge_state(grown("tiny").state_dict() | tensors, config)
    for k, v in merge_lora(other).state_dict().items():
        assert torch.allclose(merged[k], v, atol=1e-6)


def test_what_does_not_fit_is_refused(tmp_path):
    model = grown("tiny")
    add_lora(model, LORA)
    file = save_adapters(tmp_path / "a.safetensors", trained_state(model), LORA)
    wider = grown("tiny")
    add_lora(wider, replace(LORA, rank=4))
    with pytest.raises(UserError, match="does not fit"):
        load_adapters(wider, file)
    from modality_forcing.checkpoint.weights import save_weights

    with pytest.raises(UserError, match="no adapter file"):
        read_adapters(save_weights(tmp_path / "b.safetensors", {"x": torch.zeros(2)}))
    state = model.state_dict()
    half = {k: v for k, v in state.items() if k != "single_blocks.0.linear1.lora_B.default.weight"}
    with pytest.raises(UserError, match=r"single_blocks\.0\.linear1"):
        merge_state(half, LORA)


def test_without_peft_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    model = grown("tiny")
    with pytest.raises(UserError, match=r"modality-forcing\[train\]"):
        add_lora(model, LORA)
    assert all(p.requires_grad for p in model.parameters())
    assert merge_lora(model) is model


def test_sharded_in_bfloat16_after_the_teacher_ran_first():
    """FSDP2 decides in the first forward pass which gradients become float32; that pass is the teacher's."""
    import torch.distributed as dist

    from modality_forcing.config import ParallelConfig
    from modality_forcing.training import parallelize
    from modality_forcing.training.distributed import World

    model = grown("tiny")
    add_lora(model, LORA, base_dtype=torch.bfloat16)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parallelize, "compute_dtype", lambda *_: torch.bfloat16)
            parallelize.shard(model, ParallelConfig(), 1, "bf16", World(0, 1, torch.device("cpu")))
        with adapters_off(model), torch.no_grad():
            run(model, "tiny", with_depth=False)
        rgb, depth = run(model, "tiny")
        (rgb.float().square().mean() + depth.square().mean() + depth.mean()).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        assert {g.dtype for g in gradients.values() if g is not None} == {torch.float32}
        assert any(g is not None and g.full_tensor().any() for n, g in gradients.items() if ".lora_B." in n)
    finally:
        dist.destroy_process_group()
