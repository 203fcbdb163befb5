"""Marigold through diffusers, as a predictor of ``mf eval``.

    mf eval depth --data nyuv2:FOLDER --protocol marigold --predictor baselines/marigold.py:Marigold
    ... --predictor-option steps=4 --predictor-option ensemble=10

Needs diffusers and weights in safetensors (downloaded once, or a folder).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image


class Marigold:
    """Affine-invariant depth.

    Args:
        model: folder or Hub id of a ``MarigoldDepthPipeline``.
        steps: denoising steps; "" for the checkpoint's own.
        ensemble: members that diffusers aligns and averages; at least 3, or 1 for none.
        resolution: longer side inside the model; "" for the checkpoint's own, "0" for the picture's.
        device: "auto", "cpu", "cuda", ...
        dtype: "float32", "float16" or "bfloat16".
    """

    name, promise = "Marigold", "affine"

    def __init__(
        self,
        model: str = "prs-eth/marigold-depth-v1-1",
        steps: str = "",
        ensemble: str = "1",
        resolution: str = "",
        device: str = "auto",
        dtype: str = "float32",
    ) -> None:
        import diffusers

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = device
        self.pipeline = diffusers.MarigoldDepthPipeline.from_pretrained(model, use_safetensors=True).to(
            device, getattr(torch, dtype)
        )
        self.pipeline.set_progress_bar_config(disable=True)
        self.options: dict[str, Any] = {
            "num_inference_steps": int(steps) if steps else None,
            "ensemble_size": int(ensemble),
            "processing_resolution": int(resolution) if resolution else None,
        }
        self.facts = {"model": model, "diffusers": diffusers.__version__, "dtype": dtype, **self.options}

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Float (H, W) in 0..1, larger is farther, of a uint8 (H, W, 3) picture."""
        found = self.pipeline(
            Image.fromarray(image),
            generator=torch.Generator(self.device).manual_seed(seed),
            output_type="np",
            **self.options,
        )
        return np.asarray(found.prediction, dtype=np.float32).squeeze()
