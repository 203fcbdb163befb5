"""Text embeddings kept on disk, so that training and repeated prompts never load the encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from modality_forcing.checkpoint.weights import save_weights
from modality_forcing.codecs.text_base import TextEncoder, check_prompts


class CachedTextEncoder:
    """Another encoder with a folder of its results, one file per prompt.

    A file is named by the SHA-256 of the inner encoder's fingerprint and the prompt, so encoders may share a
    folder. Files are written under a temporary name and renamed: no reader ever sees half of one, and several
    processes may fill one folder. A damaged file is made anew.

    Args:
        inner: the encoder to ask for what is missing; it is not loaded while everything is there.
        folder: made at the first write if it does not exist.
        dtype: of the stored values; float32 keeps them exactly, bfloat16 halves the space.
    """

    def __init__(self, inner: TextEncoder, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        self.inner = inner
        self.folder = Path(folder)
        self.dtype = dtype
        self.width = inner.width
        self.max_tokens = inner.max_tokens

    @property
    def fingerprint(self) -> str:
        """The inner encoder's; a lossy storage type is part of it."""
        exact = self.dtype == torch.float32
        return self.inner.fingerprint if exact else f"{self.inner.fingerprint}:{str(self.dtype)[6:]}"

    def path(self, prompt: str) -> Path:
        """The file that holds this prompt's embedding, whether it exists or not."""
        # The separator cannot occur in a fingerprint, so no two pairs give one name.
        key = hashlib.sha256(f"{self.fingerprint}\0{prompt}".encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / f"{key}.safetensors"

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """B prompts -> (B, max_tokens, width), float32, on the CPU.

        Raises:
            UserError: no list of strings, or the folder cannot be written.
        """
        prompts = check_prompts(prompts)
        found = {prompt: self._read(prompt) for prompt in dict.fromkeys(prompts)}
        missing = [prompt for prompt, value in found.items() if value is None]
        if missing:
            for prompt, value in zip(missing, self.inner.encode(missing), strict=True):
                stored = value.to(self.dtype)
                self._write(prompt, stored)
                found[prompt] = stored.float()  # what a later read returns, also with a lossy type
        return torch.stack([value for prompt in prompts if (value := found[prompt]) is not None])

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        """See the inner encoder."""
        return self.inner.token_counts(prompts)

    def release(self) -> None:
        """Free the inner encoder's weights."""
        self.inner.release()

    def _read(self, prompt: str) -> Tensor | None:
        path = self.path(prompt)
        if not path.is_file():
            return None
        try:
            value = load_file(path)["embedding"]
        except (SafetensorError, KeyError, OSError):
            return None
        if value.shape != (self.max_tokens, self.width) or value.dtype != self.dtype:
            return None
        return value.float()

    def _write(self, prompt: str, value: Tensor) -> None:
        save_weights(self.path(prompt), {"embedding": value})
