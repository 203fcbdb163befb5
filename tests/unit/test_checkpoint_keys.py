"""Key maps: every name and shape of the published models, and round trips that change no bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from modality_forcing.checkpoint import keymaps
from modality_forcing.checkpoint.describe import autoencoder_from_shapes, transformer_from_shapes
from modality_forcing.checkpoint.keymaps import Entry, KeyMap, Kind
from modality_forcing.config import AutoencoderConfig
from modality_forcing.errors import UserError
from modality_forcing.model.autoencoder import Autoencoder
from modality_forcing.model.transformer import Transformer
from modality_forcing.presets import RGBD_4B, TINY, TRANSFORMERS

GOLDEN = Path(__file__).parents[1] / "golden" / "data"
PUBLISHED = ["flux_rgbd_9b_v1", "flux_rgbd_9b_v2", "flux2-klein-4b", "flux2-klein-9b", "flux2-dev"]
BACKBONE = TINY.transformer.backbone()


def random_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in module.state_dict().items()
    }


def shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("variant", PUBLISHED)
def test_every_name_and_shape_of_a_published_transformer(variant):
    expected = json.loads((GOLDEN / f"keys_{variant.replace('-', '_')}.json").read_text())
    with torch.device("meta"):
        state = Transformer(TRANSFORMERS[variant]).state_dict()
    key_map = keymaps.release_map(state) if "rgbd" in variant else keymaps.identity_map(state)
    assert shapes(key_map.to_theirs(state)) == {k: tuple(v["shape"]) for k, v in expected["keys"].items()}
    assert sum(tensor.numel() for tensor in state.values()) == expected["total_parameters"]


@pytest.mark.parametrize("variant", PUBLISHED)
def test_a_published_transformer_is_recognised_by_its_shapes(variant):
    keys = json.loads((GOLDEN / f"keys_{variant.replace('-', '_')}.json").read_text())["keys"]
    found = transformer_from_shapes({k.removeprefix("dit."): tuple(v["shape"]) for k, v in keys.items()})
    assert found == TRANSFORMERS[variant]


def test_the_published_autoencoder_is_recognised_by_its_shapes():
    found = {
        f"{half}.{name}": tuple(value["shape"])
        for half in ("encoder", "decoder")
        for name, value in json.loads((GOLDEN / f"keys_ae_{half}_default.json").read_text())["keys"].items()
    }
    assert autoencoder_from_shapes(found) == AutoencoderConfig()


def test_other_weights_are_not_recognised():
    with pytest.raises(UserError, match=r"no FLUX\.2 transformer"):
        transformer_from_shapes({"lm_head.weight": (3, 4)})
    with pytest.raises(UserError, match=r"no FLUX\.2 autoencoder"):
        autoencoder_from_shapes({"lm_head.weight": (3, 4)})


@pytest.mark.parametrize(
    ("module", "make_map"),
    [
        (Transformer(TINY.transformer), keymaps.release_map),
        (Transformer(BACKBONE), keymaps.release_map),
        (Transformer(BACKBONE), keymaps.identity_map),
        (Transformer(BACKBONE), keymaps.diffusers_transformer_map),
        (Autoencoder(TINY.autoencoder), keymaps.bfl_autoencoder_map),
        (Autoencoder(TINY.autoencoder), keymaps.diffusers_autoencoder_map),
    ],
    ids=["rgbd-release", "rgb-release", "rgb-bfl", "rgb-diffusers", "ae-bfl", "ae-diffusers"],
)
def test_there_and_back_changes_no_bit(module, make_map):
    state = random_state(module)
    for name in state:
        if name.startswith("decoder.bn."):  # a copy of the encoder's in every real autoencoder
            state[name] = state[name.replace("decoder.", "encoder.", 1)].clone()
    key_map = make_map(state)
    assert key_map.ours == set(state)
    theirs = key_map.to_theirs(state)
    assert set(theirs) == key_map.theirs
    back = key_map.to_ours(theirs)
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_bfl_to_diffusers_and_back():
    state = random_state(Transformer(BACKBONE))
    bfl, other = keymaps.identity_map(state), keymaps.diffusers_transformer_map(state)
    round_trip = bfl.to_theirs(other.to_ours(other.to_theirs(bfl.to_ours(state))))
    assert all(torch.equal(round_trip[name], state[name]) for name in state)


def test_fused_projection_is_split_in_the_order_q_k_v():
    state = random_state(Transformer(BACKBONE))
    theirs = keymaps.diffusers_transformer_map(state).to_theirs(state)
    d = BACKBONE.hidden
    fused = state["double_blocks.0.txt_attn.qkv.weight"]
    assert torch.equal(theirs["transformer_blocks.0.attn.add_q_proj.weight"], fused[:d])
    assert torch.equal(theirs["transformer_blocks.0.attn.add_k_proj.weight"], fused[d : 2 * d])
    assert torch.equal(theirs["transformer_blocks.0.attn.add_v_proj.weight"], fused[2 * d :])


def test_head_modulation_is_exchanged():
    state = random_state(Transformer(BACKBONE))
    theirs = keymaps.diffusers_transformer_map(state).to_theirs(state)["norm_out.linear.weight"]
    shift, scale = state["final_layer.adaLN_modulation.1.weight"].chunk(2)
    assert torch.equal(theirs, torch.cat([scale, shift]))


def test_depth_has_no_place_in_diffusers():
    with torch.device("meta"):
        names = Transformer(RGBD_4B).state_dict()
    with pytest.raises(UserError, match="no counterpart in the diffusers layout"):
        keymaps.diffusers_transformer_map(names)


def test_statistics_that_differ_cannot_be_shared():
    state = random_state(Autoencoder(TINY.autoencoder))
    with pytest.raises(UserError, match="differ"):
        keymaps.bfl_autoencoder_map(state).to_theirs(state)


def test_shared_statistics_do_not_share_memory():
    entry = Entry(("a", "b"), ("c",), Kind.SHARED)
    first, second = entry.to_ours([torch.zeros(2)])
    first += 1
    assert second.tolist() == [0, 0]


def test_a_name_may_stand_only_once():
    with pytest.raises(AssertionError):
        KeyMap([Entry(("a",), ("x",)), Entry(("b",), ("x",))])
