"""UMT5 text encoder: the encoder of a whole model, alone (tiny random weights)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from modality_forcing.checkpoint.weights import open_weights, save_weights
from modality_forcing.codecs.text import TextEncoder, UMT5TextEncoder, make_text_encoder
from modality_forcing.config import TextConfig
from modality_forcing.errors import UserError

transformers = pytest.importorskip("transformers")

PROMPTS = ["a red cube", "", "a small tall cube red red tall small a cube red tall small a"]
WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "cube", "small", "tall"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a tiny UMT5 (encoder, decoder and head) and its tokenizer, and the model itself."""
    folder = tmp_path_factory.mktemp("umt5")
    torch.manual_seed(0)
    config = transformers.UMT5Config(
        vocab_size=len(WORDS), d_model=24, d_kv=8, d_ff=40, num_layers=3, num_heads=2,
        feed_forward_proj="gated-gelu", relative_attention_num_buckets=8, relative_attention_max_distance=20,
    )  # fmt: skip
    model = transformers.UMT5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder, model


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>"
    )
    fast.save_pretrained(folder)


def make(folder: Path, **options) -> UMT5TextEncoder:
    return UMT5TextEncoder(folder, **{"max_tokens": 8, "dtype": torch.float32, **options})


def test_equals_the_whole_models_encoder_and_padding_is_zero(whole):
    folder, model = whole
    encoder = make(folder)
    assert isinstance(encoder, TextEncoder)
    found = encoder.encode(PROMPTS)
    assert found.shape == (3, 8, encoder.width) == (3, 8, 24)
    assert (found.dtype, found.requires_grad, found.is_inference()) == (torch.float32, False, False)
    lengths = [4, 1, 8]  # words and the end token; the last one is cut
    for row, prompt, length in zip(found, PROMPTS, lengths, strict=True):
        ids = [WORDS.index(word) for word in prompt.split()] + [1]
        ids = [*ids[: length - 1], 1]
        with torch.no_grad():
            alone = model.get_encoder()(input_ids=torch.tensor([ids])).last_hidden_state[0]
        assert torch.allclose(row[:length], alone, atol=1e-5)
        assert not row[length:].any()
        assert row[:length].abs().min() > 0
    assert encoder.token_counts(PROMPTS) == [4, 1, 15]


def test_a_prompt_does_not_depend_on_its_batch(whole):
    encoder = make(whole[0])
    many = encoder.encode(PROMPTS * 4)
    assert torch.allclose(many[9], encoder.encode(PROMPTS[:1])[0], atol=1e-6)


def test_decoder_and_head_are_not_read_and_one_word_table_is_held(whole):
    encoder = make(whole[0])
    encoder.encode(["a"])
    names = [name for name, _ in encoder._model.named_parameters()]
    assert names.count("embed_tokens.weight") == 1
    assert set(encoder._weights) == set(names)
    assert not any("decoder" in name or "lm_head" in name for name in names)
    encoder.release()
    assert encoder._model is None
    assert encoder.encode(["a"]).abs().sum() > 0


@pytest.mark.parametrize("kept", ["shared.weight", "encoder.embed_tokens.weight", "both"])
def test_the_word_table_may_have_either_name_or_both(whole, tmp_path, kept):
    folder, model = whole
    state = {k: v for k, v in model.state_dict().items() if k.startswith("encoder.") or k == "shared.weight"}
    for name in ("shared.weight", "encoder.embed_tokens.weight"):
        if kept not in (name, "both"):
            del state[name]
    copy(folder, tmp_path)
    save_weights(tmp_path / "model.safetensors", {k: v.clone() for k, v in state.items()})
    assert torch.equal(make(tmp_path).encode(PROMPTS), make(folder).encode(PROMPTS))


def copy(folder: Path, target: Path) -> None:
    for file in folder.iterdir():
        if file.suffix == ".json":
            (target / file.name).write_bytes(file.read_bytes())


def test_a_pipelines_folders_and_shards(whole, tmp_path):
    folder, _ = whole
    for name in ("text_encoder", "tokenizer"):
        (tmp_path / name).mkdir()
        copy(folder, tmp_path / name)
    state = dict(open_weights(folder / "model.safetensors").read())
    parts = {
        "one": {k: v for k, v in state.items() if not k.startswith("decoder.")},
        "two": {k: v for k, v in state.items() if k.startswith("decoder.")},
    }
    for part, tensors in parts.items():
        save_weights(tmp_path / "text_encoder" / f"{part}.safetensors", tensors)
    index = {k: f"{part}.safetensors" for part, tensors in parts.items() for k in tensors}
    (tmp_path / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "text_encoder" / "two.safetensors").unlink()  # holds nothing that is needed
    assert torch.equal(make(tmp_path).encode(PROMPTS), make(folder).encode(PROMPTS))


def test_bf16_is_close(whole):
    a, b = make(whole[0]).encode(PROMPTS), make(whole[0], dtype=torch.bfloat16).encode(PROMPTS)
    assert b.dtype == torch.float32
    assert not torch.equal(a, b)
    assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.999


def test_fingerprints_tell_weights_lengths_and_precision_apart(whole, tmp_path):
    folder, _ = whole
    base = make(folder).fingerprint
    assert base == make(folder).fingerprint
    assert make(folder, max_tokens=9).fingerprint != base
    assert make(folder, dtype=torch.bfloat16).fingerprint != base
    copy(folder, tmp_path)
    state = dict(open_weights(folder / "model.safetensors").read())
    state["encoder.final_layer_norm.weight"] = state["encoder.final_layer_norm.weight"] + 1
    save_weights(tmp_path / "model.safetensors", state)
    assert make(tmp_path).fingerprint != base


def test_made_by_name(whole):
    folder, _ = whole
    made = make_text_encoder(TextConfig("umt5-xxl", str(folder), 8), dtype=torch.float32)
    assert torch.equal(made.encode(["a cube"]), make(folder).encode(["a cube"]))
    with pytest.raises(UserError, match=r"text\.source"):
        make_text_encoder(TextConfig("umt5-xxl"))


def test_what_is_no_umt5(whole, tmp_path):
    folder, _ = whole
    with pytest.raises(UserError, match=r"no readable config\.json"):
        make(tmp_path)
    copy(folder, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "t5"}))
    with pytest.raises(UserError, match="'t5'; right is 'umt5'"):
        make(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"d_model": None}))
    with pytest.raises(UserError, match="d_model"):
        make(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"no \.safetensors file"):
        make(tmp_path).encode(["a"])
    with pytest.raises(UserError, match="float16"):
        make(folder, dtype=torch.float16)
    with pytest.raises(UserError, match="3 to 512"):
        make(folder, max_tokens=600)
    state = dict(open_weights(folder / "model.safetensors").read())
    state.pop("encoder.final_layer_norm.weight")
    save_weights(tmp_path / "model.safetensors", state)
    with pytest.raises(UserError, match=r"final_layer_norm"):
        make(tmp_path).encode(["a"])
