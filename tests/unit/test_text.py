"""The MiniLM text encoder, the embedding cache and the choice of an encoder by name."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from modality_forcing.codecs.text import (
    CachedTextEncoder,
    MiniLMTextEncoder,
    TextEncoder,
    make_text_encoder,
)
from modality_forcing.config import TextConfig
from modality_forcing.errors import UserError

PROMPTS = ["a red cube on a table", "", "two big blue spheres behind a yellow cone in a green meadow " * 2]


@pytest.fixture(scope="module")
def encoder() -> MiniLMTextEncoder:
    return MiniLMTextEncoder(max_tokens=16)


class Counting:
    """An inner encoder that notes what it was asked for."""

    width, max_tokens, fingerprint = 4, 3, "counting"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, prompts):
        self.asked += list(prompts)
        return torch.stack([torch.full((3, 4), 0.1 + len(p)) for p in prompts])

    def token_counts(self, prompts):
        return [len(p) for p in prompts]

    def release(self) -> None:
        self.asked.append("<released>")


def test_equals_the_library_model(encoder):
    bert = pytest.importorskip("transformers.models.bert.modeling_bert")
    config = bert.BertConfig(**json.loads((encoder._folder / "config.json").read_text()))
    model = bert.BertModel(config).eval()
    state = load_file(encoder._folder / "model.safetensors")
    state.pop("embeddings.position_ids")
    model.load_state_dict(state)
    ids, real = encoder._tokenize(PROMPTS)
    with torch.no_grad():
        states = model(ids, attention_mask=real.long(), output_hidden_states=True).hidden_states
    expected = torch.cat([states[2], states[4], states[6]], dim=-1)
    assert (encoder.encode(PROMPTS) - expected).abs().max() < 1e-5


def test_shape_type_and_protocol(encoder):
    embeddings = encoder.encode(PROMPTS)
    assert isinstance(encoder, TextEncoder)
    assert embeddings.shape == (3, 16, encoder.width) == (3, 16, 1152)
    assert embeddings.dtype == torch.float32
    assert not embeddings.requires_grad
    assert not embeddings.is_inference()


def test_a_prompt_does_not_depend_on_its_neighbours(encoder):
    alone = torch.cat([encoder.encode([p]) for p in PROMPTS])
    assert (encoder.encode(PROMPTS) - alone).abs().max() < 1e-5


def test_padding_does_not_disturb_real_tokens(encoder):
    longer = MiniLMTextEncoder(max_tokens=24)
    count = encoder.token_counts(PROMPTS[:1])[0]
    a, b = encoder.encode(PROMPTS[:1]), longer.encode(PROMPTS[:1])
    assert (a[:, :count] - b[:, :count]).abs().max() < 1e-5


def test_cut_prompt_keeps_its_end_token(encoder):
    ids, real = encoder._tokenize(PROMPTS)
    assert encoder.token_counts(PROMPTS)[2] > 16
    assert ids[2, -1] == ids[0, real[0].sum() - 1] == 102
    assert real[2].all()


def test_release_and_reload(encoder):
    first = encoder.encode(PROMPTS)
    encoder.release()
    assert torch.equal(encoder.encode(PROMPTS), first)


def test_loads_without_the_large_library():
    code = (
        "import sys; from modality_forcing.codecs.text import MiniLMTextEncoder; "
        "MiniLMTextEncoder().encode(['a']); print('transformers' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_other_weights_are_refused(tmp_path, monkeypatch):
    encoder = MiniLMTextEncoder()
    for file in encoder._folder.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"something else")
    monkeypatch.setattr(encoder, "_folder", tmp_path)
    with pytest.raises(UserError, match=r"model\.safetensors.*reinstall"):
        encoder.encode(["a"])


@pytest.mark.parametrize("max_tokens", [2, 513])
def test_token_limits(max_tokens):
    with pytest.raises(UserError, match="3 to 512"):
        MiniLMTextEncoder(max_tokens=max_tokens)


@pytest.mark.parametrize(
    ("prompts", "message"), [("a cube", "list"), ([], "no prompt"), (["a", 3], "prompt 1 is int")]
)
def test_prompts_must_be_a_list_of_strings(encoder, prompts, message):
    with pytest.raises(UserError, match=message):
        encoder.encode(prompts)


def test_cache_asks_once_per_prompt(tmp_path):
    inner = Counting()
    cached = CachedTextEncoder(inner, tmp_path / "embeddings")
    first = cached.encode(["b", "a", "b"])
    assert inner.asked == ["b", "a"]
    assert torch.equal(first[0], first[2])
    again = CachedTextEncoder(inner, tmp_path / "embeddings").encode(["a", "b", "c"])
    assert inner.asked == ["b", "a", "c"]
    assert torch.equal(again[0], first[1])
    assert isinstance(cached, TextEncoder)
    assert not list((tmp_path / "embeddings").glob("*.tmp*"))


def test_cache_separates_encoders(tmp_path):
    first, second = Counting(), Counting()
    second.fingerprint = "another"
    CachedTextEncoder(first, tmp_path).encode(["a"])
    CachedTextEncoder(second, tmp_path).encode(["a"])
    assert second.asked == ["a"]


@pytest.mark.parametrize("damage", [b"", b"broken", None])
def test_cache_makes_a_damaged_file_anew(tmp_path, damage):
    inner = Counting()
    cached = CachedTextEncoder(inner, tmp_path)
    expected = cached.encode(["a"])
    path = cached.path("a")
    path.write_bytes(path.read_bytes()[:-5] if damage is None else damage)
    assert torch.equal(cached.encode(["a"]), expected)
    assert inner.asked == ["a", "a"]
    assert torch.equal(cached.encode(["a"]), expected)
    assert inner.asked == ["a", "a"]


def test_cache_in_half_precision_is_the_same_before_and_after(tmp_path):
    cached = CachedTextEncoder(Counting(), tmp_path, dtype=torch.bfloat16)
    first = cached.encode(["a"])
    assert first.dtype == torch.float32
    assert torch.equal(cached.encode(["a"]), first)
    assert cached.fingerprint != "counting"


def test_cache_passes_the_rest_on(tmp_path):
    inner = Counting()
    cached = CachedTextEncoder(inner, tmp_path)
    assert (cached.width, cached.max_tokens, cached.token_counts(["abc"])) == (4, 3, [3])
    cached.release()
    assert inner.asked == ["<released>"]


def test_encoder_by_name():
    encoder = make_text_encoder(TextConfig(encoder="minilm", max_tokens=20))
    assert (encoder.width, encoder.max_tokens) == (1152, 20)
    with pytest.raises(UserError, match=r"known: minilm, qwen3-4b, qwen3-8b"):
        make_text_encoder(TextConfig(encoder="t5"))
    with pytest.raises(UserError, match="somewhere does not exist"):
        make_text_encoder(TextConfig(encoder="minilm", source="somewhere", max_tokens=20))


def test_minilm_from_a_named_folder_is_the_same_and_checked(tmp_path):
    package = MiniLMTextEncoder(max_tokens=8)
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((package._folder / name).read_bytes())
    named = make_text_encoder(TextConfig(encoder="minilm", source=str(tmp_path), max_tokens=8))
    assert torch.equal(named.encode(["a red ball"]), package.encode(["a red ball"]))
    assert named.fingerprint == package.fingerprint
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    damaged = make_text_encoder(TextConfig(encoder="minilm", source=str(tmp_path), max_tokens=8))
    with pytest.raises(UserError, match="SHA-256 differs"):
        damaged.encode(["a red ball"])
