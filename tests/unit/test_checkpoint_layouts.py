"""Model folders: recognised, loaded, written, converted; and the Hub, without a network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from modality_forcing.checkpoint import hub
from modality_forcing.checkpoint.layouts import open_checkpoint
from modality_forcing.checkpoint.weights import file_sha256, open_weights, save_weights
from modality_forcing.checkpoint.writing import convert, save_model
from modality_forcing.config import AutoencoderConfig, ModelConfig, TransformerConfig
from modality_forcing.errors import UserError
from modality_forcing.model.autoencoder import Autoencoder
from modality_forcing.model.transformer import Transformer
from modality_forcing.presets import MODELS, TINY, TRANSFORMERS

State = dict[str, torch.Tensor]
# BFL files do not say the group count, so only a model with FLUX.2's own can be recognised by shapes alone.
AE_CONFIG = AutoencoderConfig(channels=32, channel_multipliers=(1, 2), num_res_blocks=1, z_channels=8)
RGBD = replace(TINY, autoencoder=AE_CONFIG)
BACKBONE = replace(
    ModelConfig(), transformer=replace(TINY.transformer.backbone(), rope_theta=2000), autoencoder=AE_CONFIG
)


def random_state(module: torch.nn.Module) -> State:
    generator = torch.Generator().manual_seed(2)
    state = {
        name: torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in module.state_dict().items()
    }
    return {
        name: state[name.replace("decoder.bn.", "encoder.bn.")].clone() if ".bn." in name else tensor
        for name, tensor in state.items()
    }


def write(folder: Path, config: ModelConfig) -> tuple[State, State]:
    transformer = random_state(Transformer(config.transformer))
    autoencoder = random_state(Autoencoder(config.autoencoder))
    save_model(folder, config, transformer=transformer, autoencoder=autoencoder)
    return transformer, autoencoder


def equal(a: State, b: State) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def files(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): file_sha256(f) for f in sorted(folder.rglob("*")) if f.is_file()}


def test_save_and_open(tmp_path):
    transformer, autoencoder = write(tmp_path / "m", RGBD)
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.layout == "ours"
    assert checkpoint.config == RGBD
    assert equal(checkpoint.load_transformer().state_dict(), transformer)
    assert equal(checkpoint.load_autoencoder().state_dict(), autoencoder)
    assert not checkpoint.load_transformer().training
    assert checkpoint.sha256() == {
        name: file_sha256(tmp_path / "m" / name)
        for name in ("autoencoder.safetensors", "transformer.safetensors")
    }


def test_half_precision_keeps_the_depth_head_and_statistics(tmp_path):
    transformer, autoencoder = write(tmp_path / "m", RGBD)
    checkpoint = open_checkpoint(tmp_path / "m")
    model = checkpoint.load_transformer(torch.bfloat16)
    assert model.img_in.weight.dtype == torch.bfloat16
    assert torch.equal(model.depth_final_layer.linear.weight, transformer["depth_final_layer.linear.weight"])
    half = checkpoint.load_autoencoder(torch.bfloat16)
    assert half.encoder.conv_in.weight.dtype == torch.bfloat16
    assert torch.equal(half.decoder.bn.running_var, autoencoder["decoder.bn.running_var"])


def test_a_training_run_may_hold_one_part(tmp_path):
    state = random_state(Autoencoder(AE_CONFIG))
    save_model(tmp_path, RGBD, autoencoder=state)
    checkpoint = open_checkpoint(tmp_path)
    assert equal(checkpoint.load_autoencoder().state_dict(), state)
    with pytest.raises(UserError, match="holds no transformer"):
        checkpoint.load_transformer()
    with pytest.raises(UserError, match="nothing to save"):
        save_model(tmp_path, RGBD)


def test_what_does_not_fit_the_configuration_is_not_written(tmp_path):
    state = random_state(Transformer(RGBD.transformer))
    state["img_in.weight"] = torch.zeros(3, 3)
    with pytest.raises(UserError, match=r"img_in\.weight"):
        save_model(tmp_path / "m", RGBD, transformer=state)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(surprise=1), r"config\.json\.surprise"),
        (lambda v: v["transformer"].update(hiden=8), "hiden"),
        (lambda v: v.update(format_version=2), "format version 2"),
        (lambda v: v.update(format="other"), "no known layout"),
        (lambda v: v["transformer"].update(num_single_blocks=7), "lacks"),
        (lambda v: v["transformer"].update(num_heads=3), "num_heads"),
    ],
)
def test_wrong_configurations(tmp_path, change, message):
    write(tmp_path, RGBD)
    values = json.loads((tmp_path / "config.json").read_text())
    change(values)
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        open_checkpoint(tmp_path).load_transformer()


def test_not_models(tmp_path):
    with pytest.raises(UserError, match="is no model"):
        open_checkpoint(tmp_path)
    for content, message in (("{", "no valid JSON"), ("[]", "table"), ("{}", "no known layout")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=message):
            open_checkpoint(tmp_path)
    save_weights(tmp_path / "other.safetensors", {"x": torch.zeros(2)})
    with pytest.raises(UserError, match=r"no FLUX\.2 transformer"):
        open_checkpoint(tmp_path / "other.safetensors")


@pytest.fixture
def small_release(monkeypatch):
    """The release's variants at toy size."""
    monkeypatch.setitem(MODELS, "flux_rgbd_9b_v2", replace(RGBD, name="flux_rgbd_9b_v2"))
    monkeypatch.setitem(TRANSFORMERS, "flux_rgbd_9b_v2", RGBD.transformer)


def test_release_there_and_back(tmp_path, small_release):
    transformer, autoencoder = write(tmp_path / "ours", RGBD)
    folder = convert(tmp_path / "ours", tmp_path / "release", "release")
    assert sorted(f.name for f in folder.iterdir()) == [
        "ae_decoder.safetensors", "ae_encoder.safetensors", "config.json", "model.safetensors"
    ]  # fmt: skip
    assert json.loads((folder / "config.json").read_text()) == {"variant": "flux_rgbd_9b_v2"}
    assert set(open_weights(folder / "model.safetensors")) == {f"dit.{name}" for name in transformer}
    checkpoint = open_checkpoint(folder)
    assert checkpoint.layout == "release"
    assert equal(checkpoint.load_transformer().state_dict(), transformer)
    assert equal(checkpoint.load_autoencoder().state_dict(), autoencoder)
    back = convert(folder, tmp_path / "back", "ours")
    for name in ("transformer.safetensors", "autoencoder.safetensors"):
        assert file_sha256(back / name) == file_sha256(tmp_path / "ours" / name)
    assert files(convert(back, tmp_path / "again", "release")) == files(folder)


def test_unknown_release_variant(tmp_path, small_release):
    write(tmp_path / "ours", RGBD)
    folder = convert(tmp_path / "ours", tmp_path / "release", "release")
    (folder / "config.json").write_text('{"variant": "flux_rgbd_99b"}')
    with pytest.raises(UserError, match=r"flux_rgbd_99b.*flux_rgbd_9b_v1"):
        open_checkpoint(folder)


def test_backbone_through_every_layout(tmp_path):
    transformer, autoencoder = write(tmp_path / "ours", BACKBONE)
    bfl = convert(tmp_path / "ours", tmp_path / "bfl", "bfl")
    assert equal(dict(open_weights(bfl / "flux2.safetensors").read()), transformer)
    other = convert(
        bfl / "flux2.safetensors", tmp_path / "diffusers", "diffusers", autoencoder=bfl / "ae.safetensors"
    )
    checkpoint = open_checkpoint(other)
    assert (checkpoint.layout, checkpoint.config.transformer) == ("diffusers", BACKBONE.transformer)
    assert equal(checkpoint.load_transformer().state_dict(), transformer)
    assert equal(checkpoint.load_autoencoder().state_dict(), autoencoder)
    assert files(convert(other, tmp_path / "bfl2", "bfl")) == files(bfl)
    back = convert(other, tmp_path / "back", "ours")
    for name in ("transformer.safetensors", "autoencoder.safetensors"):
        assert file_sha256(back / name) == file_sha256(tmp_path / "ours" / name)


def test_data_types_survive_a_conversion(tmp_path):
    write(tmp_path / "ours", BACKBONE)
    source = tmp_path / "ours" / "transformer.safetensors"
    state = {n: t.bfloat16() if t.ndim > 1 else t for n, t in open_weights(source).read()}
    save_weights(source, state)
    convert(tmp_path / "ours", tmp_path / "d", "diffusers")
    convert(tmp_path / "d", tmp_path / "back", "ours")
    assert equal(dict(open_weights(tmp_path / "back" / "transformer.safetensors").read()), state)


def test_autoencoder_from_another_source(tmp_path):
    write(tmp_path / "ours", BACKBONE)
    other = random_state(Autoencoder(replace(AE_CONFIG, num_res_blocks=2)))
    save_model(
        tmp_path / "ae", replace(RGBD, autoencoder=replace(AE_CONFIG, num_res_blocks=2)), autoencoder=other
    )
    convert(tmp_path / "ours", tmp_path / "d", "diffusers")
    sources = {
        tmp_path / "ae": other,
        tmp_path / "ae" / "autoencoder.safetensors": other,
        tmp_path / "d" / "vae": random_state(Autoencoder(AE_CONFIG)),
        tmp_path / "d": random_state(Autoencoder(AE_CONFIG)),
    }
    for source, expected in sources.items():
        checkpoint = open_checkpoint(tmp_path / "ours", autoencoder=source)
        assert equal(checkpoint.load_autoencoder().state_dict(), expected)
    vae = tmp_path / "d" / "vae" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(UserError, match="name its folder"):
        open_checkpoint(tmp_path / "ours", autoencoder=vae)


def test_conversions_that_cannot_be(tmp_path):
    write(tmp_path / "rgbd", RGBD)
    for layout, message in (
        ("diffusers", "no depth"),
        ("bfl", "no depth"),
        ("x", "known"),
    ):
        with pytest.raises(UserError, match=message):
            convert(tmp_path / "rgbd", tmp_path / "out", layout)
        assert sorted(f.name for f in tmp_path.iterdir()) == ["rgbd"]
    with pytest.raises(UserError, match="exists"):
        convert(tmp_path / "rgbd", tmp_path / "rgbd", "ours")


def test_a_lone_bfl_transformer_needs_an_autoencoder(tmp_path):
    state = random_state(Transformer(BACKBONE.transformer))
    file = save_weights(tmp_path / "flux2.safetensors", state)
    checkpoint = open_checkpoint(file)
    assert checkpoint.layout == "bfl"
    assert equal(checkpoint.load_transformer().state_dict(), state)
    with pytest.raises(UserError, match="holds no autoencoder"):
        checkpoint.load_autoencoder()


def test_published_backbones_get_their_names(monkeypatch, tmp_path):
    from modality_forcing.checkpoint.describe import backbone_model

    klein = backbone_model(TRANSFORMERS["flux2-klein-4b"], AutoencoderConfig())
    assert (klein.name, klein.licence, klein.text.encoder) == ("flux2-klein-4b", "Apache-2.0", "qwen3-4b")
    other = backbone_model(TransformerConfig(num_double_blocks=3).backbone(), AutoencoderConfig())
    assert (other.name, other.licence) == ("flux2", "")


class FakeHub:
    """Stands for ``snapshot_download``: copies what the patterns name from a folder."""

    def __init__(self, source: Path, cache: Path) -> None:
        self.source, self.cache, self.calls = source, cache, []

    def __call__(self, repo, revision=None, allow_patterns=()):
        from fnmatch import fnmatch

        self.calls.append((repo, revision, tuple(allow_patterns)))
        for file in self.source.rglob("*"):
            name = str(file.relative_to(self.source))
            if file.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
                (self.cache / name).write_bytes(file.read_bytes())
        return str(self.cache)


def test_hub_repository(tmp_path, monkeypatch):
    transformer, _ = write(tmp_path / "repo", RGBD)
    (tmp_path / "repo" / "training.bin").write_bytes(b"PK")
    fake = FakeHub(tmp_path / "repo", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.snapshot_download", fake)
    checkpoint = open_checkpoint("owner/model", revision="v1")
    assert equal(checkpoint.load_transformer().state_dict(), transformer)
    assert {call[:2] for call in fake.calls} == {("owner/model", "v1")}
    assert not (tmp_path / "cache" / "training.bin").exists()


def test_hub_cache_names_give_the_hash(tmp_path):
    write(tmp_path / "m", RGBD)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    file = tmp_path / "m" / "transformer.safetensors"
    digest = "ab" * 32
    file.rename(blobs / digest)
    file.symlink_to(blobs / digest)
    assert open_checkpoint(tmp_path / "m").sha256()["transformer.safetensors"] == digest


@pytest.mark.parametrize(
    "source", ["no such folder", "a/b/c", "../x", "/nowhere/at/all", "https://x.org/y", "x"]
)
def test_what_is_neither_path_nor_hub_id(source, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("asked the Hub"))
    with pytest.raises(UserError, match="does not exist"):
        open_checkpoint(source)


def test_an_existing_path_never_asks_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("asked the Hub"))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "owner" / "model", RGBD)
    assert open_checkpoint("owner/model").config == RGBD
    assert not hub.looks_like_hub_id("owner/model")


def test_hub_failures_are_one_line(monkeypatch):
    from huggingface_hub import errors

    def failing(error):
        def download(*_args, **_kwargs):
            raise error

        return download

    response = type("Response", (), {"headers": {}, "request": None, "status_code": 404})()
    cases = [
        (ConnectionError("no route\nto host"), "could not be fetched.*no route$"),
        (errors.LocalEntryNotFoundError("offline"), "out of reach"),
        (errors.RepositoryNotFoundError("gone", response=response), "no public repository"),
        (errors.GatedRepoError("gated", response=response), "asks for consent"),
        (errors.RevisionNotFoundError("rev", response=response), "no revision main2"),
    ]
    for error, message in cases:
        monkeypatch.setattr("huggingface_hub.snapshot_download", failing(error))
        with pytest.raises(UserError, match=message):
            open_checkpoint("owner/model", revision="main2")
