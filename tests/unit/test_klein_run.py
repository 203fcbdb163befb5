"""A FLUX.2 klein checkpoint in BFL's layout becomes a Modality Forcing model: warm start, training, a
conversion to the release's layout, generation. Real classes and files, at toy size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from modality_forcing.checkpoint.keymaps import bfl_autoencoder_map
from modality_forcing.checkpoint.layouts import open_checkpoint
from modality_forcing.checkpoint.weights import open_weights, save_weights
from modality_forcing.cli.main import main
from modality_forcing.config import (
    AutoencoderConfig,
    DataConfig,
    ForcingConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    SamplerConfig,
    SourceConfig,
    TextConfig,
    TrainConfig,
    TransformerConfig,
)
from modality_forcing.errors import UserError
from modality_forcing.model.adapted import is_fresh
from modality_forcing.model.autoencoder import Autoencoder
from modality_forcing.model.build import build_transformer
from modality_forcing.model.warm_start import CLONED, FREEZE_RULES
from modality_forcing.presets import MINILM_WIDTH
from modality_forcing.training.build import load_weights
from modality_forcing.training.export import ADAPTERS_FILE, export_run
from modality_forcing.training.lora import merge_state, read_adapters
from modality_forcing.training.trainer import Trainer

MODEL = ModelConfig(
    name="toy-klein",
    # The positions, their base and the latents are FLUX.2's; only widths and numbers of blocks are small.
    transformer=TransformerConfig(
        text_width=MINILM_WIDTH, hidden=64, num_heads=4, num_double_blocks=1, num_single_blocks=2,
        num_depth_blocks=1, rope_axes=(4, 4, 4, 4),
    ),
    autoencoder=AutoencoderConfig(channels=32, channel_multipliers=(1, 1, 1, 1), num_res_blocks=1),
    text=TextConfig(encoder="minilm", max_tokens=8),
    sampler=SamplerConfig(steps=2, guidance=2.0, width=32, height=32),
)  # fmt: skip


def random_state(module: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in module.state_dict().items():
        scale = tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 0.0
        state[name] = (
            torch.randn(tensor.shape, generator=source) * scale if scale else torch.ones_like(tensor)
        )
    return state


@pytest.fixture(scope="module")
def klein(tmp_path_factory) -> Path:
    """``flux2.safetensors`` and ``ae.safetensors`` as Black Forest Labs name their tensors."""
    folder = tmp_path_factory.mktemp("klein")
    save_weights(
        folder / "flux2.safetensors", random_state(build_transformer(MODEL.transformer.backbone()), 1)
    )
    autoencoder = random_state(Autoencoder(MODEL.autoencoder), 2)
    save_weights(folder / "ae.safetensors", bfl_autoencoder_map(autoencoder).to_theirs(autoencoder))
    return folder


def training(klein: Path, small_shards: Path, **changes) -> TrainConfig:
    config = TrainConfig(
        stage="forcing", steps=2, batch=2, image_size=32, precision="fp32", model=MODEL,
        data=DataConfig(sources=(SourceConfig(path=str(small_shards)),)),
        autoencoder=str(klein / "ae.safetensors"), init=str(klein / "flux2.safetensors"),
        freeze=("rgb_double_blocks",),
        optim=OptimConfig(optimizer="adamw", lr=1e-2, warmup=1, ema=0.5),
        forcing=ForcingConfig(p_i2d=0.0, p_d2i=0.0, distill_high=0.5, distill_low=0.1),
    )  # fmt: skip
    return replace(config, **changes)


def run(config: TrainConfig, folder: Path) -> Trainer:
    trainer = Trainer(config, folder)
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    check_start(start, dict(open_weights(config.init).read()))
    trainer.run()
    return trainer


def check_start(state: dict[str, torch.Tensor], source: dict[str, torch.Tensor]) -> None:
    """Every copied and cloned tensor equals its source to the bit, every mixer is zero."""
    seen = set()
    for name, tensor in state.items():
        name = name.replace(".base_layer.", ".")
        if ".lora_" in name:
            assert tensor.any() == (".lora_A." in name)
            continue
        origin = next((p.sub(new, name) for p, new in CLONED if p.match(name)), name)
        if is_fresh(name):
            assert "alpha" not in name or not tensor.any()
            continue
        assert torch.equal(tensor, source[origin]), name
        seen.add(origin)
    assert seen == set(source)


@pytest.mark.parametrize("rank", [0, 2])
def test_from_bfl_to_the_release_layout(rank, klein, small_shards, tmp_path, capsys):
    if rank:
        pytest.importorskip("peft")
    config = training(klein, small_shards, lora=LoraConfig(rank=rank))
    run(config, tmp_path / "run")
    source = dict(open_weights(klein / "flux2.safetensors").read())
    trained = load_weights(tmp_path / "run")
    names = set(build_transformer(MODEL.transformer).state_dict())
    assert set(trained) == names
    rgb = {name for name in names if FREEZE_RULES["rgb_double_blocks"].match(name)}
    assert all(torch.equal(trained[name], source[name]) for name in rgb)
    assert not torch.equal(
        trained["single_blocks.0.linear1.weight"], source["single_blocks.0.linear1.weight"]
    )

    release = tmp_path / "release"
    assert main(["convert", str(tmp_path / "run"), str(release), "--to", "release"]) == 0
    assert sorted(f.name for f in release.iterdir()) == [
        "ae_decoder.safetensors", "ae_encoder.safetensors", "config.json", "model.safetensors"
    ]  # fmt: skip
    stored = dict(open_weights(release / "model.safetensors").read())
    assert set(stored) == {f"dit.{name}" for name in names}
    assert all(torch.equal(stored[f"dit.{name}"], trained[name].float()) for name in names)
    config_json = json.loads((release / "config.json").read_text())
    assert config_json["variant"] == "custom"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

    capsys.readouterr()
    out = tmp_path / "out"
    words = ["joint", "--model", str(release), "--prompt", "a red cube", "--out", str(out), "--seed", "1"]
    assert main(words) == 0, capsys.readouterr().err
    assert list(out.rglob("depth.npy"))

    # Ours, and from there to the release's layout: the same bytes.
    ours = tmp_path / "ours"
    assert (
        main(["convert", str(tmp_path / "run"), str(ours), "--autoencoder", str(klein / "ae.safetensors")])
        == 0
    )
    again = tmp_path / "again"
    assert main(["convert", str(ours), str(again), "--to", "release"]) == 0
    assert (again / "model.safetensors").read_bytes() == (release / "model.safetensors").read_bytes()
    # The published backbone's licence and name do not pass on to a model of other sizes.
    assert open_checkpoint(release).config.transformer == MODEL.transformer


@pytest.fixture(scope="module")
def release(klein, small_shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run(training(klein, small_shards), folder / "run")
    assert main(["convert", str(folder / "run"), str(folder / "release"), "--to", "release"]) == 0
    return folder / "release"


@pytest.mark.parametrize("change", ["missing", "surplus", "misshapen"])
def test_the_release_layout_is_read_strictly(change, release, tmp_path):
    for file in release.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = dict(open_weights(tmp_path / "model.safetensors").read())
    name = "dit.cross_alpha_img"
    if change == "missing":
        state.pop(name)
    elif change == "surplus":
        state[f"{name}_2"] = torch.zeros(1)
    else:
        state[name] = torch.zeros(2)
    save_weights(tmp_path / "model.safetensors", {k: v.clone() for k, v in state.items()})
    with pytest.raises(UserError, match="cross_alpha_img"):
        open_checkpoint(tmp_path).load_transformer()


def test_half_precision_on_request(release, tmp_path):
    words = ["convert", str(release), str(tmp_path / "half"), "--to", "release", "--dtype", "bfloat16"]
    assert main(words) == 0
    small, large = (dict(open_weights(f / "model.safetensors").read()) for f in (tmp_path / "half", release))
    for name, tensor in small.items():
        keeps = "depth_final_layer" in name or tensor.ndim < 2
        assert tensor.dtype == (torch.float32 if keeps else torch.bfloat16), name
        assert torch.equal(tensor, large[name].to(tensor.dtype))
    assert main(["convert", str(release), str(tmp_path / "x"), "--dtype", "int8"]) == 2


def test_adapters_come_with_the_export_and_suffice_beside_the_start(klein, small_shards, tmp_path):
    pytest.importorskip("peft")
    config = training(klein, small_shards, lora=LoraConfig(rank=2))
    trainer = run(config, tmp_path / "run")
    start = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in trainer.model.state_dict().items()
        if ".lora_" not in name
    }
    folder = export_run(tmp_path / "run", tmp_path / "model")
    tensors, lora = read_adapters(folder / ADAPTERS_FILE)
    assert lora == config.lora
    merged = merge_state(start | tensors, lora)
    whole = open_checkpoint(folder).load_transformer().state_dict()
    assert set(merged) == set(whole)
    assert all(torch.allclose(merged[name].float(), whole[name], atol=1e-6) for name in whole)


def test_a_text_to_image_run_becomes_a_backbone_in_bfls_layout(klein, small_shards, tmp_path):
    config = training(klein, small_shards, stage="t2i", freeze=(), forcing=ForcingConfig())
    Trainer(config, tmp_path / "run").run()
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "bfl"), "--to", "bfl"]) == 0
    names = set(open_weights(tmp_path / "bfl" / "flux2.safetensors"))
    assert names == set(open_weights(klein / "flux2.safetensors"))


def test_what_cannot_be_exported_is_said(klein, small_shards, tmp_path, capsys):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "out")]) == 2
    assert "no checkpoint" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "out"), "--to", "onnx"]) == 2
    assert "known: ours" in capsys.readouterr().err
    assert sorted(f.name for f in tmp_path.iterdir()) == ["run"]


def test_the_text_encoder_runs_where_the_recipe_says(klein, small_shards, monkeypatch):
    from modality_forcing.training import encoding

    devices = []
    make = encoding.make_text_encoder
    monkeypatch.setattr(
        encoding, "make_text_encoder", lambda text, device: devices.append(str(device)) or make(text, "cpu")
    )
    for name in ("cpu", ""):
        encoding.Encoders(training(klein, small_shards, text_device=name), "cpu:0")
    assert devices == ["cpu", "cpu:0"]
    with pytest.raises(UserError, match="text_device is 'gpu'"):
        training(klein, small_shards, text_device="gpu")
