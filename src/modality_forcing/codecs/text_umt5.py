"""Text embeddings from UMT5, the encoder of the from-scratch family (XXL: 4096 channels; spec section 8).

Recipe: the prompt as it is, an end token, padded or cut to ``max_tokens``; the encoder's last hidden states
after its final norm. States of padding tokens are zero (ours: what an encoder says about padding is no
information, and a zero stays zero through the model's text projection). The decoder and the language head are
never read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modality_forcing.checkpoint.hub import fetch, looks_like_hub_id
from modality_forcing.checkpoint.weights import Weights, load_into, open_weights
from modality_forcing.codecs.text_base import (
    check_max_tokens,
    check_prompts,
    fingerprint,
    read_encoder_config,
    split_folder,
)
from modality_forcing.errors import UserError

BATCH = 8  # prompts per forward pass
POSITIONS = 512  # the length UMT5 was trained at; its positions are relative, so more would run
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "special_tokens_map.json")


class UMT5TextEncoder:
    """The encoder half of a UMT5 model. Weights load at the first use and can be released.

    Args:
        source: a folder or Hub id with ``config.json``, tokenizer and safetensors of a UMT5 model, or one
            with ``text_encoder/`` and ``tokenizer/`` as diffusers pipelines have.
        max_tokens: tokens per prompt, end token included; 3 to 512.
        device: where the encoder runs; the embeddings always come back on the CPU.
        dtype: of the weights and the computation: bfloat16 or float32 (float16 overflows in T5 models).

    Raises:
        UserError: the source is missing or no UMT5 model, or ``dtype`` is float16.
    """

    def __init__(
        self,
        source: str | Path,
        max_tokens: int = 128,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        if dtype == torch.float16:
            raise UserError("the text encoder umt5-xxl overflows in float16; use bfloat16 or float32")
        self.source = source
        self.device = torch.device(device)
        self.dtype = dtype
        root = fetch(source, ["*.json", "spiece.model", "text_encoder/*.json", "tokenizer/*"])
        self._model_folder, self._tokenizer_folder = split_folder(root)
        self._config = read_encoder_config(self._model_folder, source, "umt5", "d_model")
        self.width = int(self._config["d_model"])
        self.max_tokens = check_max_tokens(max_tokens, POSITIONS)
        self._model: Any = None

    @cached_property
    def _weights(self) -> Weights:
        if looks_like_hub_id(self.source):
            folder = "text_encoder/" if self._model_folder.name == "text_encoder" else ""
            fetch(self.source, [f"{folder}{name}" for name in self._weight_files()])
        weights = open_weights(self._model_folder, needed=lambda name: _needed(name) is not None)
        # Some files hold the word embedding once, some under both of its names.
        twice = "encoder.embed_tokens.weight" in weights and "shared.weight" in weights
        return weights.renamed(lambda name: None if twice and name == "shared.weight" else _needed(name))

    def _weight_files(self) -> list[str]:
        """Only the shards that hold a tensor of the encoder."""
        for index in self._model_folder.glob("*.safetensors.index.json"):
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return sorted({file for name, file in weight_map.items() if _needed(name)})
        return ["*.safetensors"]

    @cached_property
    def fingerprint(self) -> str:
        """See :func:`~modality_forcing.codecs.text_base.fingerprint`."""
        recipe = [self._config, self.max_tokens, str(self.dtype), "padding zero"]
        files = [self._tokenizer_folder / name for name in TOKENIZER_FILES]
        return f"umt5:{fingerprint(recipe, files, self._weights)}"

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(str(self._tokenizer_folder), local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"{self._tokenizer_folder} has no readable tokenizer: {reason}") from None

    def _load(self) -> Any:
        from transformers import UMT5Config, UMT5EncoderModel

        with torch.device("meta"):
            # Its encoder alone: the model around it holds the word embedding under a second name.
            model: Any = UMT5EncoderModel(UMT5Config(**self._config)).encoder
        load_into(model, self._weights, dtype=self.dtype, device=self.device)
        return model.to(self.device).eval().requires_grad_(False)

    @torch.inference_mode()
    def _forward(self, prompts: list[str]) -> Tensor:
        if self._model is None:
            self._model = self._load()
        batch = self._tokenizer(
            prompts, return_tensors="pt", padding="max_length", truncation=True, max_length=self.max_tokens
        )
        ids, real = batch["input_ids"].to(self.device), batch["attention_mask"].to(self.device)
        states = self._model(input_ids=ids, attention_mask=real).last_hidden_state.float()
        return (states * real[..., None]).cpu()

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """B prompts -> (B, max_tokens, d_model), float32, on the CPU; padding is zero.

        Raises:
            UserError: no list of strings, or weights that are missing or damaged.
        """
        texts = check_prompts(prompts)
        parts = [self._forward(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
        # clone: an inference tensor could not take part in training.
        return torch.cat(parts).clone()

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each uncut prompt, end token included."""
        return [len(ids) for ids in self._tokenizer(check_prompts(prompts))["input_ids"]]

    def release(self) -> None:
        """Free the weights; the next ``encode`` loads them again."""
        self._model = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _needed(name: str) -> str | None:
    """The encoder's own name for a tensor of the file; None for the decoder and the language head."""
    if name == "shared.weight":
        return "embed_tokens.weight"
    return name.removeprefix("encoder.") if name.startswith("encoder.") else None
