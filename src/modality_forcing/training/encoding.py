"""What training asks of the frozen encoders: latents of images, states of captions, each worked out once.

On a CPU every image and every caption is encoded alone: measured at the embedded model's size this is as fast
as in batches, and an output then never depends on its neighbours, so a resumed run, another number of
processes and a cache all see the same numbers to the bit. Accelerators encode what is new in batches, equal
up to rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from modality_forcing.checkpoint.hub import looks_like_hub_id
from modality_forcing.checkpoint.layouts import AUTOENCODER_FILE, open_autoencoder
from modality_forcing.checkpoint.weights import load_into, open_weights
from modality_forcing.codecs.image import PIXELS_PER_PASS
from modality_forcing.codecs.text import make_text_encoder
from modality_forcing.config import TrainConfig
from modality_forcing.errors import UserError
from modality_forcing.model.autoencoder import Autoencoder
from modality_forcing.training.data import Batch
from modality_forcing.training.memory import Remembered, Shelf


def load_autoencoder(source: str | Path, config: TrainConfig) -> Autoencoder:
    """The autoencoder of a training run (latent statistics included) or of a model in any layout, float32.

    Raises:
        UserError: no source given, nothing there, a run whose latent statistics were not measured yet, or an
            autoencoder of other sizes than ``config.model.autoencoder``.
    """
    if not str(source) or str(source) == ".":
        raise UserError("this stage needs autoencoder=FOLDER: an autoencoder run or a model")
    path = Path(source).expanduser()
    wanted = config.model.autoencoder
    if (path / AUTOENCODER_FILE).is_file():
        with torch.device("meta"):
            model = Autoencoder(wanted)
        return load_into(model, open_weights(path / AUTOENCODER_FILE), dtype=torch.float32)
    run = path.is_dir() and (path / "checkpoints").is_dir()
    if run or not (path.exists() or looks_like_hub_id(source)):
        raise UserError(f"{path / AUTOENCODER_FILE} does not exist; finish the autoencoder run first")
    found, part = open_autoencoder(source)
    if found != wanted:
        raise UserError(f"the autoencoder in {source} is {found}; model.autoencoder asks for {wanted}")
    with torch.device("meta"):
        model = Autoencoder(found)
    return part.load(model, torch.float32, "cpu")


def weights_fingerprint(module: nn.Module) -> str:
    """SHA-256 (16 digits) over names, shapes and float32 values of a module's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class Encoders:
    """The frozen autoencoder and text encoder of a stage "t2i" or "forcing".

    With ``config.remember`` outputs stay in memory, with ``config.data.cache`` on disk, in float16 (the
    states of encoders that compute in bfloat16 in bfloat16, which is exact). On disk each encoder has its own
    folder, named by its weights. Latents are kept by sample and bucket, mirrored ones apart; an image that
    was cropped, recoloured or degraded at random has no such key and is encoded each time.

    Attributes:
        autoencoder: frozen, in evaluation mode, on ``device``.
        text_encoder: see :func:`~modality_forcing.codecs.text.make_text_encoder`.
        empty_text: (1, T, C) float32 on ``device``: the states of "", which text dropout puts in place of a
            caption's.

    Raises:
        UserError: see :func:`load_autoencoder`; missing or damaged weights of the text encoder.
    """

    def __init__(self, config: TrainConfig, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        autoencoder = load_autoencoder(config.autoencoder, config).eval().requires_grad_(False)
        keep = config.remember or bool(config.data.cache)
        shelves: list[Shelf | None] = [None, None]
        self.text_encoder = make_text_encoder(config.model.text, config.text_device or self.device)
        if config.data.cache:
            names = (
                ("latents", f"{weights_fingerprint(autoencoder.encoder)}-{config.model.autoencoder}"),
                ("text", self.text_encoder.fingerprint),
            )
            shelves = [_shelf(Path(config.data.cache).expanduser(), *name) for name in names]
        self.autoencoder = autoencoder.to(self.device)
        if self.device.type == "cpu":
            self.autoencoder.to(memory_format=torch.channels_last)
        # MiniLM computes in float32, and its states are small; large encoders compute in bfloat16.
        text_dtype = torch.float16 if config.model.text.encoder == "minilm" else torch.bfloat16
        self._latents = Remembered(torch.float16, shelves[0], config.remember) if keep else None
        self._text = Remembered(text_dtype, shelves[1], config.remember) if keep else None
        self.empty_text = self.text([""])

    def latents(self, batch: Batch) -> Tensor:
        """(b, C, H/f, W/f) float32 on the device: normalised latents of a batch's images.

        Raises:
            FloatingPointError: see :class:`~modality_forcing.training.memory.Remembered`.
        """
        if batch.latents is not None:
            return batch.latents.to(self.device)
        images = batch.images
        if images is None:
            raise ValueError("a batch holds neither images nor latents")
        if self._latents is None:
            return self._encode(images)
        keys = batch.keys or [None] * len(images)
        return self._latents(keys, lambda new: self._encode(images[new])).to(self.device)

    def text(self, captions: Sequence[str]) -> Tensor:
        """b captions -> (b, T, C) float32 on the device."""
        captions = list(captions)
        if self._text is None:
            return self._states(captions).to(self.device)
        return self._text(captions, lambda new: self._states([captions[i] for i in new])).to(self.device)

    def flush(self) -> None:
        """Write to ``data.cache`` what is not there yet; worth calling at every checkpoint and at the end."""
        for memory in (self._latents, self._text):
            if memory is not None:
                memory.flush()

    def release_text(self) -> None:
        """Free the text encoder's weights; it loads them again when an unknown caption comes."""
        self.text_encoder.release()

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        pixels = images.shape[-2] * images.shape[-1]
        chunk = 1 if self.device.type == "cpu" else max(1, PIXELS_PER_PASS // pixels)
        form = torch.channels_last if self.device.type == "cpu" else torch.contiguous_format
        # Whatever precision training asks for around this: what is kept must not depend on it.
        with torch.autocast(self.device.type, enabled=False):
            return torch.cat(
                [
                    self.autoencoder.encode(part.to(self.device).contiguous(memory_format=form)).float()
                    for part in images.split(chunk)
                ]
            )

    def _states(self, captions: list[str]) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            if self.device.type == "cpu":
                return torch.cat([self.text_encoder.encode([caption]) for caption in captions])
            return self.text_encoder.encode(captions)


def _shelf(cache: Path, what: str, encoder: str) -> Shelf:
    folder = cache / f"{what}-{hashlib.sha256(encoder.encode()).hexdigest()[:16]}"
    return Shelf(folder, {"format": "pt", "what": what, "encoder": encoder})
