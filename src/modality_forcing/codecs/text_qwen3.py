"""Text embeddings from Qwen3, the encoder of FLUX.2 klein (4B: 7680 channels, 8B: 12288).

Recipe (spec section 6): one user turn in the model's chat template, generation prompt added, thinking off;
padded or cut to 512 tokens; the hidden states after layers 9, 18 and 27, not normalised, concatenated. Layers
above the last one needed, the final norm and the language head are never built, and shards that hold nothing
else are never read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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

LAYERS = (9, 18, 27)
BATCH = 8  # prompts per forward pass
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


class Qwen3TextEncoder:
    """Qwen3 in front of FLUX.2 klein. Weights load at the first use and can be released.

    Args:
        source: a folder or Hub id with ``config.json``, tokenizer and safetensors of a Qwen3 model, or
            one with ``text_encoder/`` and ``tokenizer/`` as diffusers pipelines have.
        max_tokens: tokens per prompt, template included (512 in the published models).
        device: where the encoder runs; the embeddings always come back on the CPU.
        dtype: of the weights and the computation.
        layers: after which layers the states are taken; other values are for tests.

    Raises:
        UserError: the source is missing, is no Qwen3 model or has too few layers.
    """

    def __init__(
        self,
        source: str | Path,
        max_tokens: int = 512,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        layers: Sequence[int] = LAYERS,
    ) -> None:
        self.source = source
        self.device = torch.device(device)
        self.dtype = dtype
        self.layers = tuple(layers)
        patterns = ["*.json", "*.txt", "*.jinja", "text_encoder/*.json", "tokenizer/*"]
        root = fetch(source, patterns)
        self._model_folder, self._tokenizer_folder = split_folder(root)
        self._config = self._read_config()
        self.width = int(self._config["hidden_size"]) * len(self.layers)
        self.max_tokens = check_max_tokens(
            max_tokens, int(self._config.get("max_position_embeddings", 32768))
        )
        self._model: Any = None

    def _read_config(self) -> dict[str, Any]:
        config = read_encoder_config(self._model_folder, self.source, "qwen3", "hidden_size")
        depth, last = config.get("num_hidden_layers", 0), max(self.layers)
        if depth < last:
            path = self._model_folder / "config.json"
            raise UserError(f"{path} describes {depth} layers; the state after layer {last} is needed")
        return config

    def _needed(self, name: str) -> str | None:
        """The model's name for a tensor of the file, None if the truncated model does not have it."""
        if name == "lm_head.weight":
            return None
        name = name.removeprefix("model.")
        if name == "norm.weight":
            return None
        layer = re.match(r"layers\.(\d+)\.", name)
        return None if layer and int(layer[1]) >= max(self.layers) else name

    @cached_property
    def _weights(self) -> Weights:
        if looks_like_hub_id(self.source):
            folder = "text_encoder/" if self._model_folder.name == "text_encoder" else ""
            fetch(self.source, [f"{folder}{name}" for name in self._weight_files()])
        weights = open_weights(self._model_folder, needed=lambda name: self._needed(name) is not None)
        return weights.renamed(self._needed)

    def _weight_files(self) -> list[str]:
        """Only the shards that hold a tensor of the truncated model: about three quarters of the whole."""
        for index in self._model_folder.glob("*.safetensors.index.json"):
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return sorted({file for name, file in weight_map.items() if self._needed(name)})
        return ["*.safetensors"]

    @cached_property
    def fingerprint(self) -> str:
        """See :func:`~modality_forcing.codecs.text_base.fingerprint`."""
        recipe = [self._config, self.layers, self.max_tokens, str(self.dtype)]
        files = [self._tokenizer_folder / name for name in TOKENIZER_FILES]
        return f"qwen3:{fingerprint(recipe, files, self._weights)}"

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(self._tokenizer_folder), local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"{self._tokenizer_folder} has no readable tokenizer: {reason}") from None
        if not tokenizer.chat_template:
            raise UserError(f"the tokenizer in {self._tokenizer_folder} has no chat template")
        return tokenizer

    def _texts(self, prompts: list[str]) -> list[str]:
        return [
            self._tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
            )
            for prompt in prompts
        ]

    def _load(self) -> Any:
        from transformers import Qwen3Config, Qwen3Model

        last = max(self.layers)
        truncated: dict[str, Any] = {"num_hidden_layers": last}
        if self._config.get("layer_types"):
            truncated["layer_types"] = self._config["layer_types"][:last]
        config = Qwen3Config(**{**self._config, **truncated})
        with torch.device("meta"):
            model: Any = Qwen3Model(config)
        model.norm = nn.Identity()
        # The rotary table is computed, not stored, so it is made anew off the meta device.
        model.rotary_emb = type(model.rotary_emb)(config=config)
        load_into(model, self._weights, dtype=self.dtype, device=self.device)
        return model.to(self.device).eval().requires_grad_(False)

    @torch.inference_mode()
    def _forward(self, texts: list[str]) -> Tensor:
        if self._model is None:
            self._model = self._load()
        batch = self._tokenizer(
            texts, return_tensors="pt", padding="max_length", truncation=True, max_length=self.max_tokens
        )
        states: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            states.append(output[0] if isinstance(output, tuple) else output)

        # Hooks see the states themselves; the library's list of them normalises the last.
        handles = [self._model.layers[k - 1].register_forward_hook(keep) for k in self.layers]
        try:
            ids, real = batch["input_ids"].to(self.device), batch["attention_mask"].to(self.device)
            self._model(input_ids=ids, attention_mask=real, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return torch.cat([state.float().cpu() for state in states], dim=-1)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """B prompts -> (B, max_tokens, 3 * hidden), float32, on the CPU.

        Raises:
            UserError: no list of strings, or weights that are missing or damaged.
        """
        texts = self._texts(check_prompts(prompts))
        parts = [self._forward(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
        # clone: an inference tensor could not take part in training.
        return torch.cat(parts).clone()

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each uncut prompt, template included."""
        return [len(ids) for ids in self._tokenizer(self._texts(check_prompts(prompts)))["input_ids"]]

    def release(self) -> None:
        """Free the weights; the next ``encode`` loads them again."""
        self._model = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
