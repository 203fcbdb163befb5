"""What FID and KID compare: features of our own classifier (offline), or Inception's of torch-fidelity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import numpy as np

from modality_forcing.errors import UserError
from modality_forcing.evaluation.classifier import load_classifier
from modality_forcing.evaluation.distances import frechet_distance, kernel_distance

BATCH = 32
LEAST = 2  # pictures


class Features(Protocol):
    """What describes pictures.

    Attributes:
        name: for the report: distances of different features do not compare.
    """

    name: str

    def describe(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """float64 (N, D) of uint8 (H, W, 3) pictures."""
        ...


class ClassifierFeatures:
    """Pooled features of the place classifier."""

    def __init__(self, folder: Path | None = None) -> None:
        self.model = load_classifier(folder)
        self.name = "place classifier"

    def describe(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """See :class:`Features`."""
        return self.model.describe(images)


class InceptionFeatures:
    """The 2048 features of FID's Inception v3, computed by torch-fidelity, so numbers compare with the
    papers'.

    Args:
        weights: the network's weights as .safetensors; docs/evaluation.md says how to get them once.

    Raises:
        UserError: the file does not hold them.
        ModuleNotFoundError: torch-fidelity is missing (``pip install modality-forcing[eval]``).
    """

    name = "Inception v3 (torch-fidelity)"

    def __init__(self, weights: Path, device: str = "cpu") -> None:
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file
        from torch_fidelity import feature_extractor_inceptionv3 as inception

        try:
            state = load_file(weights)
        except (SafetensorError, OSError) as error:
            raise UserError(f"Inception weights {weights} cannot be read as safetensors: {error}") from None
        # The library reads its weights by unpickling. Ours come from safetensors, through the same door.
        with mock.patch.object(inception, "load_state_dict_from_url", return_value=state):
            try:
                network = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
            except RuntimeError as error:
                raise UserError(f"{weights} does not hold FID's Inception v3: {str(error)[:160]}") from None
        self.network = network.eval().to(device)
        self._torch = torch
        self.device = device

    def describe(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """See :class:`Features`. The network resizes every picture by itself."""
        parts = []
        with self._torch.no_grad():
            for image in images:
                pixels = self._torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
                parts.append(self.network(pixels.to(self.device))[0].double().cpu().numpy())
        return np.concatenate(parts)


def compare_sets(
    features: Features, made: Sequence[np.ndarray], real: Sequence[np.ndarray]
) -> dict[str, Any]:
    """FID and KID of generated against real pictures, with their numbers."""
    if min(len(made), len(real)) < LEAST:
        return {"features": features.name, "made": len(made), "real": len(real), "fid": None, "kid": None}
    a, b = features.describe(made), features.describe(real)
    return {
        "features": features.name,
        "made": len(made),
        "real": len(real),
        "fid": frechet_distance(a, b),
        "kid": kernel_distance(a, b),
    }
