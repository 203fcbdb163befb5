"""Operations and memory: the formulas against what torch itself counts and keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modality_forcing.codecs.positions import depth_ids, image_ids, text_ids
from modality_forcing.config import (
    AugmentConfig,
    DataConfig,
    ForcingConfig,
    LoraConfig,
    OptimConfig,
    ParallelConfig,
    TrainConfig,
)
from modality_forcing.errors import UserError
from modality_forcing.model import layers
from modality_forcing.model.adapted import choose_trainable
from modality_forcing.model.build import build_transformer
from modality_forcing.model.flops import Tokens, forward_flops, training_flops
from modality_forcing.model.warm_start import initialise
from modality_forcing.presets import FREEZE, MODELS, model_preset
from modality_forcing.training.estimate import (
    ACTIVATION_BYTES,
    EDGE_BYTES,
    estimate,
    sample_tokens,
)

TEXT, SIDE = 5, 3
TOKENS = Tokens(TEXT, SIDE**2, SIDE**2)
LORA = LoraConfig(rank=3)


def small(name: str, depth: bool = True):
    config = replace(MODELS[name].transformer, text_width=24)
    return config if depth else config.backbone()


def call(model, batch: int = 1, text: int = TEXT, side: int = SIDE):
    """A forward pass on random tokens (depth only if the model has it)."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    ids = [text_ids(text), image_ids(side, side)]
    rgb = torch.randn(batch, side * side, config.latent_channels, generator=generator)
    words = torch.randn(batch, text, config.text_width, generator=generator)
    t = torch.rand(batch, generator=generator)
    if config.depth_channels is None:
        return model(rgb, None, words, model.rope(*ids), t)
    depth = torch.randn(batch, side * side, config.depth_channels, generator=generator)
    return model(rgb, depth, words, model.rope(*ids, depth_ids(side, side)), t, t)


def counted(model) -> tuple[int, int]:
    """Operations of a forward and of a backward pass as torch counts them."""
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            out = [o for o in call(model) if o is not None]
        with FlopCounterMode(display=False) as backward:
            sum(o.sum() for o in out).backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("depth", [True, False])
@pytest.mark.parametrize("name", ["tiny", "tiny-flat"])
def test_full_training_is_counted_exactly(name, depth):
    config = small(name, depth)
    model = build_transformer(config)
    initialise(model, torch.Generator().manual_seed(0))
    tokens = TOKENS if depth else Tokens(TEXT, SIDE**2)
    forward, backward = counted(model)
    found = training_flops(model, config, tokens, checkpointing=True)
    assert found.forward == forward == forward_flops(model, config, tokens)
    assert found.backward == backward
    assert found.model == found.forward + found.backward
    assert 0.5 * found.forward < found.recomputed < found.forward
    assert found.hardware == found.model + found.recomputed


@pytest.mark.parametrize("freeze", [(), ("rgb_double_blocks",)])
def test_frozen_weights_and_adapters_cost_what_they_cost(freeze):
    pytest.importorskip("peft")
    from modality_forcing.training.lora import add_lora

    config = small("tiny")
    with torch.device("meta"):
        plan = build_transformer(config)
    layers = choose_trainable(plan, freeze, LORA)
    expected = training_flops(plan, config, TOKENS, adapted=set(layers), rank=LORA.rank)
    model = build_transformer(config)
    initialise(model, torch.Generator().manual_seed(0))
    add_lora(model, LORA, freeze=freeze)
    forward, backward = counted(model)
    assert expected.forward == forward
    # Before the first trainable weight torch skips gradients that the formula counts.
    assert expected.backward == pytest.approx(backward, rel=0.05)
    assert expected.backward >= backward


def test_the_teacher_is_the_backbone_alone():
    with torch.device("meta"):
        grown, plain = build_transformer(small("tiny")), build_transformer(small("tiny", depth=False))
    tokens = Tokens(TEXT, SIDE**2)
    assert forward_flops(grown, small("tiny"), tokens) == forward_flops(plain, small("tiny", False), tokens)


@pytest.mark.parametrize("name", ["t2i-370m", "t2i-800m", "t2i-3.3b"])
def test_the_closed_form_of_the_docs(name):
    """Six operations per block weight and token, 12 N^2 D per block; all else is small."""
    config = MODELS[name].transformer
    with torch.device("meta"):
        model = build_transformer(config)
    n, d = 384, config.hidden
    blocks = 30 * (6 * 11.5 * d**2 * n + 12 * n**2 * d)
    assert training_flops(model, config, Tokens(128, 256)).model == pytest.approx(blocks, rel=0.02)


def kept_bytes(model, batch: int, text: int, side: int, bf16: bool) -> tuple[list[int], int]:
    """Bytes that autograd keeps per block, and outside the blocks; weights and their casts left out."""
    units = model.wrap_units()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {tuple(p.shape) for p in model.parameters() if p.dim() == 2}
    shapes |= {shape[::-1] for shape in shapes}
    where = [len(units)]
    kept: list[dict[int, int]] = [{} for _ in range(len(units) + 1)]
    alive = []
    seen: set[int] = set()

    def keep(tensor):
        key = tensor.untyped_storage().data_ptr()
        if key not in weights and key not in seen and tuple(tensor.shape) not in shapes:
            kept[where[0]][key] = tensor.untyped_storage().nbytes()
            seen.add(key)
        alive.append(tensor)
        return tensor

    for index, unit in enumerate(units):
        unit.register_forward_pre_hook(lambda _m, _a, index=index: where.__setitem__(0, index))
        unit.register_forward_hook(lambda _m, _a, _o: where.__setitem__(0, len(units)))
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        call(model, batch, text, side)
    totals = [sum(part.values()) for part in kept]
    return totals[:-1], totals[-1]


@pytest.mark.parametrize("depth", [True, False])
@pytest.mark.parametrize("name", ["tiny", "tiny-flat"])
def test_activation_constants_are_what_autograd_keeps(name, depth, monkeypatch):
    # The constants are those of accelerators: there attention is the fused kernel, which keeps no scores.
    monkeypatch.setattr(layers, "_attend_by_products", F.scaled_dot_product_attention)
    config = replace(small(name, depth), hidden=256, num_heads=4, rope_axes=(16, 16, 16, 16))
    batch, text, side = 2, 40, 8
    blocks, edge = kept_bytes(build_transformer(config), batch, text, side, bf16=True)
    tokens = text + side**2 * (2 if depth else 1)
    per_block = [b / (batch * tokens * config.hidden) for b in blocks]
    if depth:
        own = (
            per_block.pop() * tokens / side**2
        )  # it sees depth tokens only, and shares its input with others
        assert own == pytest.approx(ACTIVATION_BYTES, rel=0.15)
    assert all(value == pytest.approx(ACTIVATION_BYTES, rel=0.1) for value in per_block), per_block
    assert 0 < edge / (batch * tokens * config.hidden) <= EDGE_BYTES


def klein_lora(**changes) -> TrainConfig:
    return TrainConfig(
        model=model_preset("flux2-klein-4b-rgbd"),
        batch=1, image_size=512, freeze=FREEZE["flux2-klein-4b-rgbd"],
        optim=OptimConfig(optimizer="adamw"), lora=LoraConfig(rank=32),
        parallel=ParallelConfig(checkpointing=True), **changes,
    )  # fmt: skip


def test_parameters_of_a_run():
    found = estimate(klein_lora())
    total = found.total
    assert (total.total, found.adapters) == (5_182_990_082, 38_928_384)
    assert total.trainable + total.frozen == total.total
    # The freeze rule of the recipe, without adapters: image and text weights of five double blocks.
    full = estimate(replace(klein_lora(), lora=LoraConfig()))
    assert full.adapters == 0
    # Of 26 D^2 per double block and its heads' norms (two of them, q and k, over 128 channels).
    assert full.total.frozen == 5 * (2 * 13 * 3072**2 + 2 * 2 * 128)
    assert {part.part for part in full.counts if part.frozen} == {"double_blocks"}


def test_adapters_are_as_many_as_peft_makes():
    pytest.importorskip("peft")
    from modality_forcing.training.lora import add_lora

    config = TrainConfig(model=MODELS["tiny"], lora=LORA, freeze=("rgb_double_blocks",))
    model = build_transformer(config.model.transformer)
    add_lora(model, LORA, freeze=config.freeze)
    real = sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n)
    trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found = estimate(config)
    assert (found.adapters, found.total.trainable) == (real, trains)


def test_memory_is_counted_from_the_weights():
    config = TrainConfig(
        model=MODELS["tiny-flat"], stage="t2i", precision="fp32", optim=OptimConfig(optimizer="adamw")
    )
    found = estimate(config)
    n = found.total.total
    memory = found.memory
    assert (memory.weights, memory.gradients, memory.averages) == (4 * n, 4 * n, 4 * n)
    assert (memory.optimizer, memory.copies, memory.teacher) == (8 * n, 0, 0)
    assert memory.total == sum(vars(memory).values())
    muon = estimate(replace(config, optim=OptimConfig(optimizer="muon"))).memory.optimizer
    assert 4 * n < muon < 8 * n
    parts = estimate(replace(config, batch=8), world=4)
    assert parts.per_process == 2
    assert parts.memory.weights == n
    halves = replace(config, batch=8, parallel=ParallelConfig(replicate=2))
    assert estimate(halves, world=4).memory.weights == 2 * n
    copies = replace(config, batch=8, parallel=ParallelConfig(shard=1, replicate=4))
    assert estimate(copies, world=4).memory.weights == 4 * n


def test_checkpointing_and_accumulation_save_activations():
    config = TrainConfig(model=MODELS["lowpoly"], batch=32)
    base = estimate(config).memory.activations
    split = estimate(replace(config, parallel=ParallelConfig(accumulate=4))).memory.activations
    recomputed = estimate(replace(config, parallel=ParallelConfig(checkpointing=True)))
    assert split == base / 4
    assert recomputed.memory.activations < base / 4
    assert recomputed.flops.recomputed > 0 == estimate(config).flops.recomputed


def test_klein_4b_adapters_fit_24_gib_with_room_for_the_runtime():
    found = estimate(klein_lora(forcing=ForcingConfig(distill_high=1.0)))
    assert found.memory.teacher == 0
    assert found.memory.total < 23 * 2**30
    assert found.teacher_flops > 0
    full = estimate(replace(klein_lora(forcing=ForcingConfig(distill_high=1.0)), lora=LoraConfig()))
    assert full.memory.teacher == 2 * 3_875_544_576
    assert full.memory.total > 80 * 2**30


def test_a_reader_is_a_whole_transformer_asked_where_depth_is_given():
    config = TrainConfig(model=MODELS["lowpoly"], precision="fp32")
    plain = estimate(config)
    reads = estimate(replace(config, forcing=ForcingConfig(p_d2i=0.5, reader="x", d2i_read=1.0)))
    cycles = estimate(replace(config, forcing=ForcingConfig(p_d2i=0.5, reader="x", cycle_weight=1.0)))
    assert plain.memory.teacher == 0 == plain.teacher_flops
    assert reads.memory.teacher == 4 * plain.total.total
    assert reads.teacher_flops == plain.flops.forward / 2
    assert cycles.teacher_flops == 3 * reads.teacher_flops
    guided = replace(config.model.sampler, guidance=1.0, guidance_d2i=None, guidance_depth=3.0)
    painting = ForcingConfig(
        p_d2i=0.5, reader="x", d2i_read=0.8, cycle_weight=1.0, painted=0.5, painted_steps=6
    )
    paints = estimate(replace(config, model=replace(config.model, sampler=guided), forcing=painting))
    # Of the samples with given depth 0.4 are painted, in three steps on average, each asked twice.
    assert paints.teacher_flops == pytest.approx((3 + 0.4 * 3 * 2) * reads.teacher_flops)
    keeps = estimate(replace(config, forcing=ForcingConfig(p_d2i=0.5, reader="x", keep_depth=1.0)))
    assert keeps.teacher_flops == reads.teacher_flops + plain.flops.forward


def test_pictures_of_text_alone_cost_the_way_to_their_node():
    config = TrainConfig(model=MODELS["lowpoly"], precision="fp32")
    forcing = ForcingConfig(p_i2d=0.25, p_d2i=0.25, judge="x", word_weight=1.0, worded=0.8, painted_steps=6)
    found = estimate(replace(config, forcing=forcing))
    assert found.memory.teacher == 0
    # 0.4 of all samples, in three steps on average, each asked twice.
    assert found.teacher_flops == pytest.approx(0.4 * 3 * 2 * found.flops.forward)


def test_tokens_of_the_largest_bucket():
    config = TrainConfig(model=model_preset("flux2-klein-4b-rgbd"), image_size=512)
    assert sample_tokens(config) == Tokens(512, 1024, 1024)
    buckets = replace(config, stage="t2i", data=DataConfig(buckets=("512x256", "384x512")))
    assert sample_tokens(buckets) == Tokens(512, 24 * 32, 0)
    with pytest.raises(UserError, match="WIDTHxHEIGHT"):
        sample_tokens(replace(config, data=DataConfig(buckets=("512",), augment=AugmentConfig())))


def test_the_autoencoder_stage_too():
    found = estimate(TrainConfig(stage="autoencoder", model=MODELS["tiny"], image_size=64, batch=4))
    assert {part.part for part in found.counts} == {"encoder", "decoder"}
    assert found.flops.backward == 2 * found.flops.forward > 0
    assert found.memory.activations > found.memory.weights
    twice = estimate(TrainConfig(stage="autoencoder", model=MODELS["tiny"], image_size=128, batch=4))
    assert twice.flops.forward == pytest.approx(4 * found.flops.forward, rel=0.05)


def test_a_frozen_encoder_has_no_gradients_and_no_backward_pass():
    config = TrainConfig(stage="autoencoder", model=MODELS["tiny"], image_size=64, batch=4)
    whole, decoder = estimate(config), estimate(replace(config, freeze=("encoder",)))
    assert {part.part: part.frozen == part.total for part in decoder.counts} == {
        "encoder": True,
        "decoder": False,
    }
    assert decoder.flops.forward == whole.flops.forward
    assert decoder.flops.backward < 0.8 * whole.flops.backward
    assert decoder.memory.weights == whole.memory.weights
    trained = next(part.trainable for part in decoder.counts if part.part == "decoder")
    assert decoder.memory.gradients == decoder.memory.averages == 4 * trained
    assert decoder.memory.activations < 0.8 * whole.memory.activations


def test_the_table_says_it_in_words():
    rows = dict(estimate(klein_lora()).rows())
    assert rows["parameters"] == "5,182,990,082 (trainable 609,092,610, frozen 4,573,897,472)"
    assert rows["tokens per sample"] == "2,560 (text 512, image 1,024, depth 1,024)"
    assert rows["memory per process"].endswith("GiB")
