"""Qwen3 text encoder: a truncated model equals the full one's hidden states (tiny random weights)."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from modality_forcing.checkpoint.weights import save_weights
from modality_forcing.codecs.text import Qwen3TextEncoder
from modality_forcing.errors import UserError

transformers = pytest.importorskip("transformers")

LAYERS = (1, 3, 4)  # with a gap, so that a count that is off by one shows
PROMPTS = ["a red cube", "", "a small house behind a tall tree and a blue sphere on a table " * 3]
WORDS = [
    "a",
    "red",
    "cube",
    "small",
    "house",
    "behind",
    "tall",
    "tree",
    "and",
    "blue",
    "sphere",
    "on",
    "table",
]
MARKS = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "user", "assistant"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant"
    "{% if enable_thinking is defined and enable_thinking is false %} <think> </think>{% endif %}{% endif %}"
)


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(MARKS + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


@pytest.fixture(scope="module")
def full_model(tmp_path_factory):
    """A folder with a tiny Qwen3 causal model and tokenizer, and the model itself."""
    folder = tmp_path_factory.mktemp("qwen3")
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    )
    model = transformers.Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder, model


def reference(folder: Path, model, prompts: list[str], max_tokens: int) -> torch.Tensor:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": p}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        for p in prompts
    ]
    batch = tokenizer(
        texts, return_tensors="pt", padding="max_length", truncation=True, max_length=max_tokens
    )
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True, use_cache=False).hidden_states
    return torch.cat([states[k] for k in LAYERS], dim=-1)


def write_two_shards(target: Path, folder: Path, model) -> None:
    """The model in ``folder`` as two shards, of which the second holds nothing that is needed."""
    state = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    needless = ("model.layers.4.", "model.norm.")
    shards = {
        name: f"model-0000{2 if name.startswith(needless) else 1}-of-00002.safetensors" for name in state
    }
    for shard in set(shards.values()):
        save_weights(target / shard, {name: state[name] for name in state if shards[name] == shard})
    (target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    for file in folder.iterdir():
        if file.suffix in (".json", ".jinja"):
            (target / file.name).write_bytes(file.read_bytes())


def make(folder: Path | str, **options) -> Qwen3TextEncoder:
    return Qwen3TextEncoder(folder, **{"max_tokens": 24, "dtype": torch.float32, "layers": LAYERS, **options})


def test_equals_the_full_model(full_model):
    folder, model = full_model
    encoder = make(folder)
    embeddings = encoder.encode(PROMPTS)
    assert embeddings.shape == (3, 24, 96)
    assert embeddings.dtype == torch.float32
    assert torch.equal(embeddings, reference(folder, model, PROMPTS, 24))
    assert not torch.equal(embeddings[0], embeddings[1])


def test_truncated_model_has_no_more_than_it_needs(full_model):
    encoder = make(full_model[0])
    encoder.encode(["a"])
    names = dict(encoder._model.named_parameters())
    assert len(encoder._model.layers) == 4
    assert "norm.weight" not in names
    assert not any("lm_head" in name for name in names)


def test_last_state_is_not_normalised(full_model):
    folder, _ = full_model
    last = make(folder).encode(["a red cube"])[..., -32:]
    # After a final norm the mean square of each token would follow the norm's weight: near 1 for all tokens.
    assert last.square().mean(-1).std() > 0.05


def test_shards_without_needed_tensors_may_be_absent(full_model, tmp_path):
    folder, model = full_model
    write_two_shards(tmp_path, folder, model)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert torch.equal(make(tmp_path).encode(PROMPTS), make(folder).encode(PROMPTS))
    assert make(tmp_path).fingerprint == make(folder).fingerprint


def test_only_needed_shards_are_downloaded(full_model, tmp_path, monkeypatch):
    folder, model = full_model
    repository, cache = tmp_path / "repository", tmp_path / "cache"
    repository.mkdir()
    write_two_shards(repository, folder, model)
    upper = repository / "model-00002-of-00002.safetensors"
    upper.write_bytes(b"not needed")

    def download(_repo, revision=None, allow_patterns=()):
        cache.mkdir(exist_ok=True)
        for file in repository.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns):
                (cache / file.name).write_bytes(file.read_bytes())
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    encoder = make("owner/qwen3")
    assert not list(cache.glob("*.safetensors"))
    assert torch.equal(encoder.encode(PROMPTS), make(folder).encode(PROMPTS))
    assert [file.name for file in cache.glob("*.safetensors")] == ["model-00001-of-00002.safetensors"]


def test_pipeline_folder(full_model, tmp_path):
    folder, _ = full_model
    for name in ("text_encoder", "tokenizer"):
        (tmp_path / name).mkdir()
    for file in folder.iterdir():
        target = "tokenizer" if "token" in file.name or file.suffix == ".jinja" else "text_encoder"
        (tmp_path / target / file.name).write_bytes(file.read_bytes())
    assert torch.equal(make(tmp_path).encode(PROMPTS), make(folder).encode(PROMPTS))


def test_missing_tensor_is_named(full_model, tmp_path):
    folder, model = full_model
    state = {k: v for k, v in model.state_dict().items() if "layers.1.mlp.up_proj" not in k}
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    save_weights(tmp_path / "model.safetensors", {k: v.clone() for k, v in state.items()})
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj"):
        make(tmp_path).encode(["a"])


def test_fingerprint_follows_weights_and_length(full_model, tmp_path):
    folder, model = full_model
    assert make(folder).fingerprint == make(folder).fingerprint
    assert make(folder).fingerprint != make(folder, max_tokens=25).fingerprint
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = {k: v.clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    state["model.layers.2.mlp.up_proj.weight"][0] += 1
    save_weights(tmp_path / "model.safetensors", state)
    assert make(tmp_path).fingerprint != make(folder).fingerprint


def test_token_counts_show_what_is_cut(full_model):
    counts = make(full_model[0]).token_counts(PROMPTS)
    assert counts[0] < 24 < counts[2]


def test_release_and_reload(full_model):
    encoder = make(full_model[0])
    first = encoder.encode(["a red cube"])
    encoder.release()
    assert torch.equal(encoder.encode(["a red cube"]), first)


def test_wrong_sources(full_model, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Qwen3TextEncoder(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config\.json"):
        Qwen3TextEncoder(tmp_path)
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 40}'
    )
    with pytest.raises(UserError, match="llama"):
        Qwen3TextEncoder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3", "num_hidden_layers": 40}')
    with pytest.raises(UserError, match="hidden_size"):
        Qwen3TextEncoder(tmp_path)
    with pytest.raises(UserError, match="5 layers"):
        Qwen3TextEncoder(full_model[0])
    with pytest.raises(UserError, match="max_tokens"):
        make(full_model[0], max_tokens=500)
