"""Text to picture and depth, picture to depth, depth to picture, looking and saving, as nodes.

Between nodes go ComfyUI's IMAGE, float (B, H, W, 3) in [0, 1], and RGBD: a list of ``modality_forcing.RGBD``.
A value of 0 (steps, width, height) or -1 (guidance) means the model's own default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

CATEGORY = "Modality Forcing"
MAX_SEED = 2**63 - 1
TILTS = ("model's own", "value", "none")
KINDS = ("disparity: bright is near", "depth: bright is far")


def to_image(pictures: list[Any]) -> Any:
    """uint8 (H, W, 3) arrays of one size -> ComfyUI's IMAGE."""
    import numpy as np
    import torch

    return torch.from_numpy(np.stack(pictures).astype(np.float32) / 255.0)


def to_pictures(image: Any) -> list[Any]:
    """ComfyUI's IMAGE -> uint8 (H, W, 3) arrays; gray and transparent pictures become RGB."""
    import numpy as np

    values = image.detach().cpu().numpy()
    values = np.repeat(values, 3, -1) if values.shape[-1] == 1 else values[..., :3]
    return list(np.rint(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8))


def watch() -> Any:
    """What is called after each step: ComfyUI's progress bar and its Cancel, where there is a ComfyUI."""
    try:
        from comfy.model_management import throw_exception_if_processing_interrupted
        from comfy.utils import ProgressBar
    except ImportError:
        return None
    bar: Any = None

    def on_step(step: Any) -> None:
        nonlocal bar
        throw_exception_if_processing_interrupted()
        bar = ProgressBar(step.num_steps) if bar is None or step.index == 0 else bar
        bar.update_absolute(step.index + 1, step.num_steps)

    return on_step


def sampling(steps: int, guidance: float, width: int = 0, height: int = 0) -> dict[str, Any]:
    """Options of the pipeline from widgets, the defaults left out.

    Raises:
        UserError: only one of width and height is given.
    """
    from modality_forcing.errors import UserError

    options: dict[str, Any] = {"on_step": watch()}
    if steps > 0:
        options["steps"] = steps
    if guidance >= 0:
        options["guidance"] = guidance
    if bool(width) != bool(height):
        raise UserError("width and height go together; set both, or both to 0 for the model's own")
    if width:
        options["size"] = (width, height)
    return options


_SEED = ("INT", {"default": 0, "min": 0, "max": MAX_SEED, "control_after_generate": True})
_STEPS = ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip": "0: the model's own"})
_GUIDANCE = (
    "FLOAT",
    {"default": -1.0, "min": -1.0, "max": 100.0, "step": 0.1, "tooltip": "-1: the model's own"},
)
_SIDE = ("INT", {"default": 0, "min": 0, "max": 4096, "step": 16, "tooltip": "0: the model's own"})
_FOV = ("FLOAT", {"default": 65.0, "min": 1.0, "max": 179.0, "tooltip": "horizontal, degrees"})
_PROMPT = ("STRING", {"multiline": True, "default": ""})


class LoadModel:
    """A model: "lowpoly" comes with the package; a folder or a Hub id is any other."""

    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES, RETURN_NAMES = ("MF_PIPELINE",), ("pipeline",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Widgets."""
        return {
            "required": {
                "source": ("STRING", {"default": "lowpoly"}),
                "device": ("STRING", {"default": "auto", "tooltip": "auto, cpu, cuda, cuda:1, mps"}),
            }
        }

    def load(self, source: str, device: str) -> tuple[Any]:
        """The pipeline."""
        from modality_forcing import Pipeline

        return (Pipeline.from_pretrained(source, device=device),)


class Joint:
    """Text to picture and depth."""

    CATEGORY, FUNCTION = CATEGORY, "run"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", "RGBD"), ("image", "rgbd")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Widgets."""
        tilt = {
            "default": 0.0,
            "min": -20.0,
            "max": 20.0,
            "step": 0.5,
            "tooltip": "above 0 the picture leads",
        }
        return {
            "required": {
                "pipeline": ("MF_PIPELINE",), "prompt": _PROMPT, "seed": _SEED, "steps": _STEPS,
                "guidance": _GUIDANCE, "width": _SIDE, "height": _SIDE, "fov_x": _FOV,
                "tilt": (list(TILTS),), "tilt_value": ("FLOAT", tilt),
            }
        }  # fmt: skip

    def run(
        self,
        pipeline: Any,
        prompt: str,
        seed: int,
        steps: int,
        guidance: float,
        width: int,
        height: int,
        fov_x: float,
        tilt: str,
        tilt_value: float,
    ) -> tuple[Any, Any]:
        """One picture with its depth."""
        options = sampling(steps, guidance, width, height)
        if tilt != TILTS[0]:
            options["log2_alpha"] = tilt_value if tilt == TILTS[1] else None
        found = pipeline.joint(prompt, seed=seed, fov_x=fov_x, **options)
        return to_image([item.rgb for item in found]), found


class ImageToDepth:
    """The depth of every picture of a batch."""

    CATEGORY, FUNCTION = CATEGORY, "run"
    RETURN_TYPES, RETURN_NAMES = ("RGBD",), ("rgbd",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Widgets."""
        return {
            "required": {
                "pipeline": ("MF_PIPELINE",), "image": ("IMAGE",), "seed": _SEED, "steps": _STEPS,
                "guidance": _GUIDANCE, "fov_x": _FOV,
            },
            "optional": {"prompt": _PROMPT},
        }  # fmt: skip

    def run(
        self,
        pipeline: Any,
        image: Any,
        seed: int,
        steps: int,
        guidance: float,
        fov_x: float,
        prompt: str = "",
    ) -> tuple[Any]:
        """One result for each picture, with seeds seed, seed + 1, ..."""
        options = sampling(steps, guidance)
        return (
            pipeline.image_to_depth(to_pictures(image), prompt=prompt, seed=seed, fov_x=fov_x, **options),
        )


class DepthToImage:
    """A picture from depth: that of an RGBD, or a gray picture of any depth node."""

    CATEGORY, FUNCTION = CATEGORY, "run"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", "RGBD"), ("image", "rgbd")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Widgets."""
        return {
            "required": {
                "pipeline": ("MF_PIPELINE",), "prompt": _PROMPT, "seed": _SEED, "steps": _STEPS,
                "guidance": _GUIDANCE, "fov_x": _FOV, "kind": (list(KINDS),),
            },
            "optional": {
                "rgbd": ("RGBD",), "depth_image": ("IMAGE",), "guidance_depth": _GUIDANCE,
            },
        }  # fmt: skip

    def run(
        self,
        pipeline: Any,
        prompt: str,
        seed: int,
        steps: int,
        guidance: float,
        fov_x: float,
        kind: str,
        rgbd: Any = None,
        depth_image: Any = None,
        guidance_depth: float = -1.0,
    ) -> tuple[Any, Any]:
        """One picture for each depth map."""
        from modality_forcing.errors import UserError

        if (rgbd is None) == (depth_image is None):
            raise UserError("depth to image needs one depth: connect rgbd or depth_image, not both")
        options = sampling(steps, guidance)
        if guidance_depth >= 0:
            options["guidance_depth"] = guidance_depth
        if rgbd is not None:
            options |= {"mask": [item.mask for item in rgbd], "depth_unit": rgbd[0].depth_unit}
            maps = [item.depth for item in rgbd]
        else:
            maps = gray_depth(depth_image, kind)
        found = pipeline.depth_to_image(prompt, maps, seed=seed, fov_x=fov_x, **options)
        return to_image([item.rgb for item in found]), found


def gray_depth(image: Any, kind: str) -> list[Any]:
    """Gray pictures -> relative depth, float32 (H, W), NaN where the value is 0 and so says nothing."""
    import numpy as np

    maps = []
    for values in image.detach().cpu().numpy().astype(np.float32)[..., :3].mean(-1):
        known = np.where(values > 0, values, np.nan)
        maps.append(1.0 / known if kind == KINDS[0] else known)
    return maps


class ShowDepth:
    """Depth as colours, near is bright: connect it to ComfyUI's preview."""

    CATEGORY, FUNCTION = CATEGORY, "show"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", "MASK"), ("image", "valid")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Widgets."""
        from modality_forcing.viz import COLOR_MAPS

        return {"required": {"rgbd": ("RGBD",), "colors": (list(COLOR_MAPS),)}}

    def show(self, rgbd: Any, colors: str) -> tuple[Any, Any]:
        """Pictures, and masks (B, H, W) that are 1 where depth means something."""
        import numpy as np
        import torch

        from modality_forcing.viz import colorize

        pictures = [colorize(item.depth, item.mask, cmap=colors) for item in rgbd]
        masks = np.stack([item.mask for item in rgbd]).astype(np.float32)
        return to_image(pictures), torch.from_numpy(masks)


class SaveRun:
    """Run folders: picture, depth in full precision, point cloud, and everything that repeats the result."""

    CATEGORY, FUNCTION, OUTPUT_NODE = CATEGORY, "save", True
    RETURN_TYPES: tuple[str, ...] = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Widgets."""
        return {"required": {"rgbd": ("RGBD",), "name": ("STRING", {"default": "modality-forcing"})}}

    def save(self, rgbd: Any, name: str) -> dict[str, Any]:
        """Write one folder for each item into ComfyUI's output folder; none is ever overwritten."""
        from modality_forcing.io.atomic import slug

        try:
            from folder_paths import get_output_directory
        except ImportError:
            base = Path("output")
        else:
            base = Path(get_output_directory())
        folders = [item.save(base / slug(name)) for item in rgbd]
        return {"ui": {"text": [str(folder) for folder in folders]}}


_NODES = {
    "ModalityForcingLoad": (LoadModel, "Load RGB-D model"),
    "ModalityForcingJoint": (Joint, "Text to image and depth"),
    "ModalityForcingImageToDepth": (ImageToDepth, "Image to depth"),
    "ModalityForcingDepthToImage": (DepthToImage, "Depth to image"),
    "ModalityForcingShowDepth": (ShowDepth, "Show depth"),
    "ModalityForcingSave": (SaveRun, "Save image, depth and cloud"),
}
NODE_CLASS_MAPPINGS = {name: node for name, (node, _) in _NODES.items()}
NODE_DISPLAY_NAME_MAPPINGS = {name: title for name, (_, title) in _NODES.items()}
