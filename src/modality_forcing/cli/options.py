"""The options that several verbs share: name, meaning and where the default stands, each written once.

An option's default here is always "not given" (``None``): the value comes from the model's own
``config.json`` (``SamplerConfig``) or from the function that uses it, so the command line, Python and the
server cannot disagree. The help shows those values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer
from typer.models import OptionInfo

from modality_forcing.config import SamplerConfig
from modality_forcing.presets import LOWPOLY

DEFAULT_MODEL = LOWPOLY.name
DEFAULT_OUT = "outputs"
# The next three repeat constants of geometry/, whose import takes as long as a whole `mf --help` may;
# tests/cli/test_help.py compares them.
EDGE_RTOL = 0.04
MAX_POINTS = 1_200_000
FOV_X = 65.0

_SAMPLING, _CAMERA, _CLOUD, _MODEL = "Sampling", "Camera", "Point cloud", "Model and machine"


def _model_default(value: Callable[[SamplerConfig], object]) -> str:
    """How the help names a default that belongs to the model, which only its ``config.json`` knows."""
    full, small = value(SamplerConfig()), value(LOWPOLY.sampler)
    if full == small:
        return str(full)
    return f"the model's own: {LOWPOLY.name} {small}, full size {full}"


def _guidance(task: str, meaning: str) -> OptionInfo:
    """``--guidance`` with the default of "joint", "i2d" or "d2i"."""
    default = _model_default(lambda d: d.guidance_of(task))
    option: OptionInfo = typer.Option(
        "--guidance", metavar="X", rich_help_panel=_SAMPLING, show_default=default, help=meaning
    )
    return option


# Input
ImageFiles = Annotated[list[str] | None, typer.Argument(metavar="[IMAGE]...", help="As --image.")]
Images = Annotated[
    list[str] | None,
    typer.Option("--image", "-i", metavar="FILE|FOLDER", help="A picture; repeat it for several."),
]
DepthKind = Annotated[
    str | None,
    typer.Option(
        "--depth-kind",
        metavar="depth|disparity",
        help="What the numbers mean: larger = farther, or larger = nearer.",
        show_default="what the file says",
    ),
]
DepthScale = Annotated[
    float | None,
    typer.Option(
        "--depth-scale",
        metavar="X",
        help="number * X is metres; 0.001 for millimetres.",
        show_default="what the file says",
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt", "-p", metavar="TEXT", help="What to make, or what the image shows; repeat it for several."
    ),
]
PromptFile = Annotated[
    str | None, typer.Option("--prompt-file", metavar="FILE", help="A text file with one prompt per line.")
]
NumImages = Annotated[
    int,
    typer.Option("--num-images", "-n", metavar="N", help="Results per input, with seeds seed, seed+1, ..."),
]
Out = Annotated[
    str, typer.Option("--out", "-o", metavar="FOLDER", help="Where the run folders go; never overwrites one.")
]

# Sampling
Seed = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        rich_help_panel=_SAMPLING,
        show_default="drawn; it stands in the folder's name",
        help="Same seed, same result; every input gets the same seeds.",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        rich_help_panel=_SAMPLING,
        show_default=_model_default(lambda d: d.steps),
        help="Sampling steps.",
    ),
]
StepsI2d = Annotated[
    int | None,
    typer.Option(
        "--steps",
        metavar="N",
        rich_help_panel=_SAMPLING,
        show_default=_model_default(lambda d: d.steps_of("i2d")),
        help="Sampling steps; one gives the mean of what the image allows.",
    ),
]
Guidance = Annotated[
    float | None, _guidance("joint", "How strongly the prompt pulls; 1 is off and twice as fast.")
]
GuidanceDepth = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        rich_help_panel=_SAMPLING,
        show_default=_model_default(lambda d: d.guidance_depth),
        help="How strongly the image follows the depth; 1 is as the model learned it.",
    ),
]
GuidanceD2i = Annotated[float | None, _guidance("d2i", "How strongly the prompt pulls; 1 is off.")]
GuidanceI2d = Annotated[float | None, _guidance("i2d", "How strongly the prompt pulls; 1 is off.")]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="WxH",
        rich_help_panel=_SAMPLING,
        show_default=_model_default(lambda d: f"{d.width}x{d.height}"),
        help="Size of the results in pixels.",
    ),
]
ProcessingSize = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="WxH",
        rich_help_panel=_SAMPLING,
        show_default="as many pixels as the model's own size, in the input's shape",
        help="Size inside the model; results come back at the input's size, nothing is stretched.",
    ),
]
Log2Alpha = Annotated[
    str | None,
    typer.Option(
        "--log2-alpha",
        metavar="X",
        rich_help_panel=_SAMPLING,
        show_default=_model_default(lambda d: d.log2_alpha),
        help="Above 0 the image leads, below 0 the depth, 0 both together; 'none' gives each its own grid.",
    ),
]
GuideImageOnly = Annotated[
    bool | None,
    typer.Option(
        "--guide-image-only/--guide-both",
        rich_help_panel=_SAMPLING,
        show_default=f"the model's own: {LOWPOLY.name} the image alone, full size both",
        help="Whether the prompt's pull acts on the image alone, or on its depth too.",
    ),
]
GuidanceParallel = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        rich_help_panel=_SAMPLING,
        show_default=_model_default(lambda d: d.guidance_parallel),
        help="What is kept of guidance along the image itself, 0 to 1; less saturates less.",
    ),
]
RefineDepth = Annotated[
    bool | None,
    typer.Option(
        "--refine-depth/--no-refine-depth",
        rich_help_panel=_SAMPLING,
        show_default="on" if LOWPOLY.sampler.refine_depth else "off",
        help="Estimate the depth again from the finished image.",
    ),
]
EdgeRadius = Annotated[
    int | None,
    typer.Option(
        "--edge-radius",
        metavar="PIXELS",
        rich_help_panel=_SAMPLING,
        show_default=f"the model's own: {LOWPOLY.name} {LOWPOLY.sampler.edge_radius}, full size 0",
        help="Depth follows the image's edges, by windows of this radius inside the model; 0 is off.",
    ),
]

# Camera
FovX = Annotated[
    float | None,
    typer.Option(
        "--fov-x",
        metavar="DEGREES",
        rich_help_panel=_CAMERA,
        show_default=f"a photograph's EXIF focal length, else {FOV_X:g}",
        help="Horizontal field of view.",
    ),
]
FovY = Annotated[
    float | None,
    typer.Option("--fov-y", metavar="DEGREES", rich_help_panel=_CAMERA, help="Vertical field of view."),
]
Intrinsics = Annotated[
    str | None,
    typer.Option(
        metavar="fx,fy,cx,cy|FILE",
        rich_help_panel=_CAMERA,
        help="Focal lengths and principal point in pixels, or a .json or .txt with them or a 3x3 matrix; "
        "a metadata.json of ours will do.",
    ),
]

# Point cloud
EdgeRtol = Annotated[
    float | None,
    typer.Option(
        "--edge-rtol",
        metavar="X",
        rich_help_panel=_CLOUD,
        show_default=f"{EDGE_RTOL}, proportionally more below 512 pixels",
        help="Leave out pixels where depth jumps by more than this ratio; 0 keeps all.",
    ),
]
Sor = Annotated[
    bool | None,
    typer.Option(
        "--sor/--no-sor", rich_help_panel=_CLOUD, show_default="off", help="Remove statistical outliers."
    ),
]
MaxPoints = Annotated[
    int | None,
    typer.Option(
        "--max-points",
        metavar="N",
        rich_help_panel=_CLOUD,
        show_default=str(MAX_POINTS),
        help="At most so many.",
    ),
]

# Model and machine
Model = Annotated[
    str,
    typer.Option(
        metavar="NAME|FOLDER|HUB_ID", rich_help_panel=_MODEL, help="The embedded model, a folder or a Hub id."
    ),
]
TextEncoderSource = Annotated[
    str | None,
    typer.Option(
        "--text-encoder",
        metavar="FOLDER|HUB_ID",
        rich_help_panel=_MODEL,
        show_default="what the model was trained with",
        help="Weights of the text encoder.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda|cuda:N|mps",
        rich_help_panel=_MODEL,
        help="Where to compute; auto: the fastest.",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="auto|float32|bfloat16",
        rich_help_panel=_MODEL,
        show_default="float32 on the CPU, else bfloat16",
        help="Number format of the transformer's body.",
    ),
]
Compile = Annotated[
    bool,
    typer.Option("--compile", rich_help_panel=_MODEL, help="torch.compile: slow start, faster after that."),
]
