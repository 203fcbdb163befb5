"""Depth models of transformers as predictors of ``mf eval``: Depth Anything, DPT, ZoeDepth, Depth Pro, GLPN.

    mf eval depth --data nyuv2:FOLDER --predictor baselines/transformers_depth.py:DepthModel
    ... --predictor-option model=depth-anything/Depth-Anything-V2-Small-hf

Needs weights in safetensors (downloaded once, or a folder).
"""

from __future__ import annotations

import inspect

import numpy as np
import torch

# What the numbers of a family mean; Depth Anything comes as both, its configuration says which.
PROMISES = {
    "dpt": "disparity",
    "depth_anything": "disparity",
    "zoedepth": "metric",
    "depth_pro": "metric",
    "glpn": "metric",
    "prompt_depth_anything": "metric",
}


class DepthModel:
    """Depth or disparity, whichever the model gives.

    Args:
        model: folder or Hub id that ``AutoModelForDepthEstimation`` knows.
        promise: "metric", "relative", "affine" or "disparity"; "" for what the family is known to give.
        device: "auto", "cpu", "cuda", ...

    Raises:
        ValueError: an unknown family without ``promise``.
    """

    def __init__(
        self,
        model: str = "depth-anything/Depth-Anything-V2-Small-hf",
        promise: str = "",
        device: str = "auto",
    ) -> None:
        import transformers

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = device
        self.processor = transformers.AutoImageProcessor.from_pretrained(model)
        self.model = transformers.AutoModelForDepthEstimation.from_pretrained(model, use_safetensors=True)
        self.model.eval().to(device)
        family = self.model.config.model_type
        if not promise:
            metric = getattr(self.model.config, "depth_estimation_type", "relative") == "metric"
            promise = "metric" if metric else PROMISES.get(family, "")
        if not promise:
            raise ValueError(f"what {family} gives is not known here; say it with promise=...")
        self.name, self.promise = str(model).rstrip("/").split("/")[-1], promise
        self.facts = {"model": str(model), "family": family, "transformers": transformers.__version__}

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Float (H, W) of a uint8 (H, W, 3) picture."""
        size = image.shape[:2]
        inputs = self.processor(images=image, return_tensors="pt").to(self.device)
        outputs = self.model(**inputs)
        finish = self.processor.post_process_depth_estimation
        sizes = {"target_sizes": [size]}
        if "source_sizes" in inspect.signature(finish).parameters:  # ZoeDepth pads and must cut again
            sizes["source_sizes"] = [size]
        return finish(outputs, **sizes)[0]["predicted_depth"].float().cpu().numpy()
