"""The flat family: its sizes, its block against one written out by hand, and the depth stream grown on it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from modality_forcing.checkpoint.layouts import open_checkpoint
from modality_forcing.checkpoint.writing import save_model
from modality_forcing.codecs.positions import depth_ids, image_ids, text_ids
from modality_forcing.config import FlowConfig, TransformerConfig
from modality_forcing.errors import UserError
from modality_forcing.model.autoencoder import Autoencoder
from modality_forcing.model.build import build_transformer
from modality_forcing.model.flat import FlatBlock, FlatTransformer
from modality_forcing.model.layers import apply_rope, timestep_embedding
from modality_forcing.model.transformer import Transformer
from modality_forcing.model.warm_start import initialise, warm_start
from modality_forcing.presets import MODELS, TINY, TINY_FLAT

CONFIG = replace(TINY_FLAT.transformer, text_width=24)
SIZES = {"t2i-370m": (1024, 362e6), "t2i-800m": (1536, 814e6), "t2i-3.3b": (3072, 3256e6)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomised(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Every weight at random, norms and mixers included, so that nothing hides behind a zero or a one."""
    source = generator(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1.0
            parameter.copy_(torch.randn(parameter.shape, generator=source) * scale)
    return model.eval().requires_grad_(False)


def inputs(batch: int = 2, text: int = 5, side: int = 3):
    source = generator(11)
    rgb = torch.randn(batch, side * side, CONFIG.latent_channels, generator=source)
    depth = torch.randn(batch, side * side, CONFIG.depth_channels or 0, generator=source)
    words = torch.randn(batch, text, CONFIG.text_width, generator=source)
    ids = text_ids(text), image_ids(side, side), depth_ids(side, side)
    return rgb, depth, words, ids


@pytest.fixture
def backbone() -> FlatTransformer:
    return randomised(FlatTransformer(CONFIG.backbone()), 7)


@pytest.fixture
def grown(backbone) -> tuple[FlatTransformer, dict[str, list[str]]]:
    model = FlatTransformer(CONFIG).eval().requires_grad_(False)
    return model, warm_start(model, backbone.state_dict(), generator())


@pytest.mark.parametrize("name", SIZES)
def test_the_blocks_have_the_published_number_of_weights(name):
    hidden, published = SIZES[name]
    config = MODELS[name].transformer
    assert (config.hidden, config.mlp_width, config.num_single_blocks) == (hidden, 3 * hidden, 30)
    with torch.device("meta"):
        model = build_transformer(config)
    blocks = sum(p.numel() for p in model.blocks.parameters())
    assert blocks == pytest.approx(published, rel=0.01)
    # 11.5 D^2 of matrices, two norms over D and two over a head, thirty times.
    assert blocks == 30 * (23 * hidden**2 // 2 + 2 * hidden + 2 * 128)


@pytest.mark.parametrize("name", SIZES)
def test_the_family_is_used_as_the_study_says(name):
    model = MODELS[name]
    assert model.flow.rgb_prediction == "x0"
    assert model.transformer.kv_heads * 4 == model.transformer.num_heads
    assert (model.autoencoder.latent_channels, model.autoencoder.downscale) == (128, 16)
    assert (model.sampler.width, model.sampler.height) == (256, 256)
    assert model.transformer == MODELS[f"{name}-rgbd"].transformer.backbone()
    assert MODELS[f"{name}-rgbd"].transformer.depth_channels == 256


def test_build_picks_the_family():
    assert type(build_transformer(CONFIG)) is FlatTransformer
    assert type(build_transformer(TINY.transformer)) is Transformer


def by_hand(block: FlatBlock, config: TransformerConfig, x, shift, scale, gate, rope):
    """The block's equations on one sample (N, D), with grouped heads written as a loop."""

    def rms(v, weight):
        return v / (v.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    size, groups = config.head_size, config.num_heads // config.kv_heads
    d, kv = config.hidden, config.kv_heads * config.head_size
    h = rms(x, block.pre_norm.scale) * (1 + scale) + shift
    projected = h @ block.linear1.weight.T
    q, k, v = projected[:, :d], projected[:, d : d + kv], projected[:, d + kv : d + 2 * kv]
    a, b = projected[:, d + 2 * kv :].chunk(2, dim=-1)
    heads = []
    for head in range(config.num_heads):
        own = slice(head * size, (head + 1) * size)
        shared = slice(head // groups * size, (head // groups + 1) * size)
        query = apply_rope(rms(q[:, own], block.norm.query_norm.scale)[None, None], rope)[0, 0]
        key = apply_rope(rms(k[:, shared], block.norm.key_norm.scale)[None, None], rope)[0, 0]
        heads.append((query @ key.T / size**0.5).softmax(-1) @ v[:, shared])
    out = torch.cat([*heads, F.silu(a) * b], dim=-1) @ block.linear2.weight.T
    return x + gate * rms(out, block.post_norm.scale)


def test_the_block_is_its_equations():
    block = randomised(FlatBlock(CONFIG), 3)
    source = generator(4)
    x, shift, scale, gate = (torch.randn(2, 9, CONFIG.hidden, generator=source) for _ in range(4))
    model = FlatTransformer(CONFIG)
    rope = model.rope(image_ids(3, 3))
    found = block(x, (shift, scale, gate), rope)
    for i in range(2):
        expected = by_hand(block, CONFIG, x[i], shift[i], scale[i], gate[i], rope)
        assert torch.allclose(found[i], expected, atol=1e-4, rtol=1e-4)


def test_text_and_image_follow_the_image_noise_level_depth_its_own():
    """With one shared block, a change of ``t_depth`` reaches text and image only through depth's tokens."""
    model = randomised(FlatTransformer(replace(CONFIG, cross_stream_mixing=False, num_single_blocks=1)), 5)
    rgb, depth, text, ids = inputs()
    rope = model.rope(*ids)
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda _m, args: seen.append(args[1]))
    level = torch.full((2,), 0.4)
    model(rgb, depth, text, rope, level, level)
    model(rgb, depth, text, rope, level, level * 2)
    others = text.shape[1] + rgb.shape[1]
    for first, second in zip(*seen, strict=True):
        assert torch.equal(first[:, :others], second[:, :others])
        assert not torch.equal(first[:, others:], second[:, others:])


@pytest.mark.parametrize("name", ["tiny", "tiny-flat"])
def test_without_depth_it_is_its_own_backbone_to_the_bit(name):
    config = replace(MODELS[name].transformer, text_width=24)
    model = randomised(build_transformer(config), 1)
    plain = build_transformer(config.backbone()).eval().requires_grad_(False)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k in plain.state_dict()})
    rgb, depth, text, ids = inputs()
    rope = plain.rope(*ids[:2])
    t = torch.tensor([0.3, 0.8])
    own, no_depth = model(rgb, None, text, rope, t)
    assert no_depth is None
    assert torch.equal(own, plain(rgb, None, text, rope, t)[0])
    for wrong in (model, plain):
        with pytest.raises(ValueError, match="come together"):
            wrong(rgb, depth, text, rope, t)
        with pytest.raises(ValueError, match="come together"):
            wrong(rgb, None, text, rope, t, t)
    with pytest.raises(ValueError, match="with a depth stream"):
        plain(rgb, depth, text, rope, t, t)


def test_padding_of_zeros_stays_zero_through_the_text_projection(backbone):
    text = torch.randn(1, 4, CONFIG.text_width)
    text[:, 2:] = 0
    found = backbone.embed_text(text)
    assert found[:, :2].abs().min() > 0
    assert not found[:, 2:].any()
    # The norm makes the scale of an encoder irrelevant.
    assert torch.allclose(backbone.embed_text(100 * text), found, atol=1e-4)


def test_warm_start_copies_clones_and_freshens(grown, backbone):
    model, report = grown
    ours, source = model.state_dict(), backbone.state_dict()
    assert sorted(report["copied"]) == sorted(source)
    for name in report["copied"]:
        assert torch.equal(ours[name], source[name])
    assert report["cloned"] == ["modulation_depth.lin.weight"]
    assert torch.equal(ours["modulation_depth.lin.weight"], source["modulation.lin.weight"])
    assert ours["modulation_depth.lin.weight"].data_ptr() != ours["modulation.lin.weight"].data_ptr()
    assert sorted(n for kind in report.values() for n in kind) == sorted(ours)
    assert not ours["cross_alpha_img"].any() and not ours["cross_alpha_depth"].any()


def test_zero_mixers_leave_both_modulation_vectors_alone_to_the_bit(grown, backbone):
    model, _ = grown
    t = torch.tensor([0.73, 0.1, 1.0])
    plain = backbone.conditioning(t, None).vec_img
    for t_depth in (torch.zeros(3), torch.tensor([0.2, 0.9, 1.0])):
        cond = model.conditioning(t, t_depth)
        assert torch.equal(cond.vec_img, plain)
        assert torch.equal(cond.vec_depth, model.time_in_depth(timestep_embedding(t_depth)))
        with torch.no_grad():
            model.cross_alpha_img.fill_(0.1)
        assert not torch.equal(model.conditioning(t, t_depth).vec_img, plain)
        with torch.no_grad():
            model.cross_alpha_img.zero_()


def test_depth_starts_at_zero_and_everything_learns_after_a_step():
    model = FlatTransformer(CONFIG)
    initialise(model, generator())
    rgb, depth, text, ids = inputs()
    level = torch.full((2,), 0.5)
    first = model(rgb, depth, text, model.rope(*ids), level, level)
    assert not first[0].any() and not first[1].any()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(4):  # heads first, then the gates, then what lies behind them
        a, b = model(rgb, depth, text, model.rope(*ids), level, level * 0.9)
        optimizer.zero_grad()
        ((a - 1).square().mean() + (b + 1).square().mean()).backward()
        optimizer.step()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_every_block_is_a_wrap_unit_once():
    for name, blocks in (("tiny-flat", 3 + 1), ("tiny", 1 + 2 + 1)):
        units = build_transformer(MODELS[name].transformer).wrap_units()
        assert len(units) == len({id(unit) for unit in units}) == blocks
        assert all("Block" in type(unit).__name__ for unit in units)


def test_a_flat_model_folder_generates_and_reads_back(tmp_path):
    from modality_forcing.pipeline import Pipeline

    model = randomised(build_transformer(TINY_FLAT.transformer), 2)
    autoencoder = randomised(Autoencoder(TINY_FLAT.autoencoder), 3)
    save_model(tmp_path, TINY_FLAT, transformer=model.state_dict(), autoencoder=autoencoder.state_dict())
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == TINY_FLAT
    loaded = checkpoint.load_transformer()
    assert type(loaded) is FlatTransformer
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    pipeline = Pipeline.from_pretrained(tmp_path)
    (result,) = pipeline.joint("a red cube", seed=1, steps=2)
    assert result.rgb.shape == (64, 64, 3)
    assert result.depth[result.mask].min() > 0
    (again,) = pipeline.image_to_depth([result.rgb], seed=1, steps=2)
    assert again.depth.shape == (64, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "round"}, "'round'; known: flux2, flat"),
        ({"num_double_blocks": 2}, "no double blocks"),
        ({"num_kv_heads": 3}, "not a multiple of num_kv_heads=3"),
        ({"family": "flux2"}, "no grouped queries"),
        ({"rope_axes": (4, 4, 4)}, "sum to 12"),
    ],
)
def test_shapes_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        replace(CONFIG, **changes)


def test_tiny_flat_predicts_the_clean_latent():
    assert TINY_FLAT.flow == FlowConfig(rgb_prediction="x0")


def test_both_stages_train_and_the_result_generates(tiny_model, small_shards, tmp_path):
    """Text-to-image, then forcing on its weights, through the trainer; the same autoencoder throughout."""
    from modality_forcing.config import DataConfig, OptimConfig, TrainConfig
    from modality_forcing.pipeline import Pipeline
    from modality_forcing.training.export import export_run
    from modality_forcing.training.trainer import Trainer

    images = TrainConfig(
        stage="t2i", model=TINY_FLAT, steps=12, batch=4, image_size=32, precision="fp32",
        data=DataConfig.from_text(str(small_shards)), autoencoder=str(tiny_model), remember=True,
        optim=OptimConfig(lr=1e-2, warmup=1, decay=0.0, ema=0.5),
    )  # fmt: skip
    forcing = replace(images, stage="forcing", init=str(tmp_path / "t2i"))
    losses = {}
    for config in (images, forcing):
        trainer = Trainer(config, tmp_path / config.stage)
        losses[config.stage] = [trainer.train_step().loss for _ in range(config.steps)]
        trainer.save()
    for values in losses.values():
        assert sum(values[-4:]) < 0.9 * sum(values[:4]), values
    folder = export_run(tmp_path / "forcing", tmp_path / "model")
    (result,) = Pipeline.from_pretrained(folder).joint("sample 3", seed=0, steps=2)
    assert result.depth[result.mask].min() > 0
