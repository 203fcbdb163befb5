"""The options that several verbs share: name, meaning and where the default stands, each written once.

An option's default here is always "not given" (``None``): the value comes from the model's own
``config.json`` (``SamplerConfig``) or from the function that uses it, so the command line, Python and the
server cannot disagree. The help shows those values.
"""

from __future__ import annotations

from typing import Annotated

import typer

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


def _model_default(name: str) -> str:
    """How the help names a default that belongs to the model."""
    full, small = getattr(SamplerConfig(), name), getattr(LOWPOLY.sampler, name)
    if full == small:
        return f"[default: {full}]"
    return f"[default: the model's own; {LOWPOLY.name} {small}, full size {full}]"


def _size_default() -> str:
    small, full = LOWPOLY.sampler, SamplerConfig()
    return (
        f"[default: the model's own; {LOWPOLY.name} {small.width}x{small.height},"
        f" full size {full.width}x{full.height}]"
    )


# Input
Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", "-p", metavar="TEXT", help="What to make; repeat it for several."),
]
PromptFile = Annotated[
    str | None, typer.Option("--prompt-file", metavar="FILE", help="A text file with one prompt per line.")
]
NumImages = Annotated[
    int, typer.Option("--num-images", "-n", metavar="N", help="Results per input, with seeds seed, seed+1, ...")
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
        help="Same seed, same result; every input gets the same seeds. [default: drawn; it stands in the folder's name]",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(metavar="N", rich_help_panel=_SAMPLING, help=f"Sampling steps. {_model_default('steps')}"),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        rich_help_panel=_SAMPLING,
        help=f"How strongly the prompt pulls; 1 is off and twice as fast. {_model_default('guidance')}",
    ),
]
GuidanceI2d = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        metavar="X",
        rich_help_panel=_SAMPLING,
        help=f"How strongly the prompt pulls; 1 is off. {_model_default('guidance_i2d')}",
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="WxH", rich_help_panel=_SAMPLING, help=f"Size of the results in pixels. {_size_default()}"
    ),
]
ProcessingSize = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="WxH",
        rich_help_panel=_SAMPLING,
        help="Size inside the model; results come back at the input's size, nothing is stretched. "
        "[default: the model's own number of pixels in the input's shape]",
    ),
]
Log2Alpha = Annotated[
    str | None,
    typer.Option(
        "--log2-alpha",
        metavar="X",
        rich_help_panel=_SAMPLING,
        help="Above 0 the image leads, below 0 the depth, 0 both together; 'none' gives each its own grid. "
        + _model_default("log2_alpha"),
    ),
]
RefineDepth = Annotated[
    bool | None,
    typer.Option(
        "--refine-depth/--no-refine-depth",
        rich_help_panel=_SAMPLING,
        help="Estimate the depth again from the finished image. "
        f"[default: {'on' if LOWPOLY.sampler.refine_depth else 'off'}]",
    ),
]

# Camera
FovX = Annotated[
    float | None,
    typer.Option(
        "--fov-x",
        metavar="DEGREES",
        rich_help_panel=_CAMERA,
        help=f"Horizontal field of view. [default: {FOV_X:g}, or a photograph's EXIF focal length]",
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
        help=f"Leave out pixels where depth jumps by more than this ratio; 0 keeps all. [default: {EDGE_RTOL}]",
    ),
]
Sor = Annotated[
    bool | None,
    typer.Option("--sor/--no-sor", rich_help_panel=_CLOUD, help="Remove statistical outliers. [default: off]"),
]
MaxPoints = Annotated[
    int | None,
    typer.Option(
        "--max-points", metavar="N", rich_help_panel=_CLOUD, help=f"At most so many. [default: {MAX_POINTS}]"
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
        help="Weights of the text encoder. [default: what the model was trained with]",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda|cuda:N|mps", rich_help_panel=_MODEL, help="Where to compute; auto: the fastest."
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="auto|float32|bfloat16",
        rich_help_panel=_MODEL,
        help="Number format of the transformer's body. [default: auto, by device]",
    ),
]
Compile = Annotated[
    bool,
    typer.Option("--compile", rich_help_panel=_MODEL, help="torch.compile: slow start, faster after that."),
]
