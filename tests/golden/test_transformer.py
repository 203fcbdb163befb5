"""The transformer against numbers of the released code: outputs, every intermediate it stored, bf16."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from modality_forcing.codecs.positions import depth_ids, image_ids, text_ids
from modality_forcing.model.layers import timestep_embedding
from modality_forcing.model.transformer import Transformer

DATA = Path(__file__).parent / "data"
RGBD = ["dit_v2_small", "dit_v1_small", "dit_guidance"]
BACKBONES = ["backbone_t2i_small", "backbone_t2i_guidance_small"]
ROWS, COLS, NUM_TEXT = 4, 6, 7

# 5 to 10 times the largest difference between equivalent evaluations of the original.
OUTPUT = 3e-5
OUTPUT_GUIDANCE = 5e-5
TAP = 1e-4
TABLE = 1e-6
BF16_RMS, BF16_MAX = 0.04, 0.2


def tolerance(name: str) -> float:
    return OUTPUT_GUIDANCE if "guidance" in name else OUTPUT


def max_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a.float() - b.float()).abs().max().item()


def call(model: Transformer, io: dict[str, Tensor], t_rgb: Tensor, t_depth: Tensor) -> tuple[Tensor, Tensor]:
    rope = model.rope(text_ids(NUM_TEXT), image_ids(ROWS, COLS), depth_ids(ROWS, COLS))
    rgb, depth = model(
        io["in.img"], io["in.depth"], io["in.ctx"], rope, t_rgb, t_depth, io.get("in.guidance")
    )
    assert depth is not None
    return rgb, depth


@pytest.mark.parametrize("name", RGBD)
def test_outputs(name, small_transformer):
    io = load_file(DATA / f"{name}.io.safetensors")
    rgb, depth = call(small_transformer(name), io, io["in.timesteps"], io["in.depth_timesteps"])
    assert max_difference(rgb, io["out.rgb_out"]) < tolerance(name)
    assert max_difference(depth, io["out.depth_out"]) < tolerance(name)


@pytest.mark.parametrize(("task", "t_rgb", "t_depth"), [("t_i2d", 0.0, 1.0), ("t_d2i", 1.0, 0.0)])
@pytest.mark.parametrize("name", RGBD)
def test_outputs_at_the_ends_of_the_noise_levels(name, task, t_rgb, t_depth, small_transformer):
    io = load_file(DATA / f"{name}.io.safetensors")
    rgb, depth = call(small_transformer(name), io, torch.full((2,), t_rgb), torch.full((2,), t_depth))
    assert max_difference(rgb, io[f"out.{task}.rgb_out"]) < tolerance(name)
    assert max_difference(depth, io[f"out.{task}.depth_out"]) < tolerance(name)


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone(name, small_transformer):
    io = load_file(DATA / f"{name}.io.safetensors")
    model = small_transformer(name)
    ids = text_ids(NUM_TEXT), image_ids(ROWS, COLS)
    for ours, theirs in zip(ids, (io["in.ctx_ids"], io["in.x_ids"]), strict=True):
        assert torch.equal(ours.expand_as(theirs), theirs.float())
    out, depth = model(
        io["in.x"], None, io["in.ctx"], model.rope(*ids), io["in.timesteps"], None, io.get("in.guidance")
    )
    assert depth is None
    assert max_difference(out, io["out.out"]) < tolerance(name)


def tapped(model: Transformer, io: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every intermediate of one call under the golden file's name for it."""
    taps: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...] | dict) -> None:
            if isinstance(output, dict):
                taps.update({f"{name}.{stream}": tokens for stream, tokens in output.items()})
            elif isinstance(output, tuple):
                taps[name] = torch.cat(output, dim=-1)
            else:
                taps[name] = output

        return hook

    # Modules by their place in the model: its direct children and the blocks of its lists.
    handles = []
    for name, module in model.named_modules():
        if name.count(".") == (1 if "blocks." in name else 0) and name:
            handles.append(module.register_forward_hook(keep(name)))
    try:
        call(model, io, io["in.timesteps"], io["in.depth_timesteps"])
    finally:
        for handle in handles:
            handle.remove()
    cond = model.conditioning(io["in.timesteps"], io["in.depth_timesteps"], io.get("in.guidance"))
    assert cond.vec_depth is not None
    taps |= {"vec_img": cond.vec_img, "vec_depth": cond.vec_depth}
    return taps


@pytest.mark.parametrize("name", RGBD)
def test_every_intermediate(name, small_transformer):
    io = load_file(DATA / f"{name}.io.safetensors")
    tables = ("tap.emb_", "tap.ids_", "tap.pe_")
    expected = {
        key.removeprefix("tap."): value
        for key, value in io.items()
        if key.startswith("tap.") and not key.startswith(tables)
    }
    taps = tapped(small_transformer(name), io)
    assert set(expected) <= set(taps)
    wrong = {key: diff for key in expected if (diff := max_difference(taps[key], expected[key])) >= TAP}
    assert not wrong


def test_tables(small_transformer):
    io = load_file(DATA / "dit_v2_small.io.safetensors")
    model = small_transformer("dit_v2_small")
    assert max_difference(timestep_embedding(io["in.timesteps"]), io["tap.emb_timesteps"]) < TABLE
    assert max_difference(timestep_embedding(io["in.depth_timesteps"]), io["tap.emb_depth_timesteps"]) < TABLE
    streams = {"txt": text_ids(NUM_TEXT), "img": image_ids(ROWS, COLS), "depth": depth_ids(ROWS, COLS)}
    for stream, ids in streams.items():
        assert torch.equal(ids.expand(2, -1, -1), io[f"tap.ids_{stream}"].float())
        matrices = io[f"tap.pe_{stream}"][0, 0]  # (N, K/2, 2, 2): [[cos, -sin], [sin, cos]]
        table = model.rope(ids)
        assert max_difference(table[..., 0], matrices[..., 0, 0]) < TABLE
        assert max_difference(table[..., 1], matrices[..., 1, 0]) < TABLE


@pytest.mark.parametrize("name", RGBD)
def test_bf16_body(name, small_transformer):
    """Ours embeds the noise levels in float32; the original rounds t and then 1000 t to bf16.

    Fed with the levels that the original's rounding amounts to, the rest of the bf16 body must agree.
    """

    def as_rounded(value: Tensor) -> Tensor:
        return (1000.0 * value.bfloat16()).bfloat16().float() / 1000.0

    io = load_file(DATA / f"{name}.io.safetensors")
    guidance = {"in.guidance": as_rounded(io["in.guidance"])} if "in.guidance" in io else {}
    model = copy.deepcopy(small_transformer(name)).bfloat16().keep_depth_head_float32()
    t_rgb, t_depth = as_rounded(io["in.timesteps"]), as_rounded(io["in.depth_timesteps"])
    rgb, depth = call(model, io | guidance, t_rgb, t_depth)
    assert rgb.dtype == torch.bfloat16
    assert depth.dtype == torch.float32  # a bf16 depth head bands
    for ours, key in ((rgb, "rgb_out"), (depth, "depth_out")):
        difference = ours.float() - io[f"out.bf16_head32.{key}"].float()
        assert difference.square().mean().sqrt().item() <= BF16_RMS
        assert difference.abs().max().item() <= BF16_MAX
