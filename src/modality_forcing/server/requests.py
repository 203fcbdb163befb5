"""A request checked field by field before anything is decoded or queued."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from modality_forcing.errors import UserError
from modality_forcing.inputs import (
    MAX_ALPHA,
    MAX_EDGE_RADIUS,
    MAX_GUIDANCE,
    MAX_PROMPT,
    MAX_SEED,
    MIN_SIDE,
    check_prompt,
    pair_up,
)
from modality_forcing.io.checks import check_size
from modality_forcing.server.errors import Refused
from modality_forcing.server.settings import ServerSettings
from modality_forcing.server.tasks import DEPTH_OPTIONS, TASKS, Task

_Prompt = Annotated[str, Field(max_length=MAX_PROMPT)]
_Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
_PROMPT_HELP = (
    "What to make, or what the image shows: one text or one for each item; the empty text is anything."
)
OPTIONS: dict[str, tuple[Any, Any]] = {
    "model": (str | None, Field(None, max_length=100, description="One of /v1/models.")),
    "seed": (
        _Seed | Annotated[list[_Seed], Field(min_length=1)] | None,
        Field(None, description="One for each item, or one number: item i gets seed + i. Left out: drawn."),
    ),
    "steps": (int | None, Field(None, ge=1, description="Sampling steps.")),
    "guidance": (
        float | None,
        Field(None, ge=0, le=MAX_GUIDANCE, allow_inf_nan=False, description="Pull of the prompt; 1 is none."),
    ),
    "width": (
        int | None,
        Field(None, ge=MIN_SIDE, description="Of the result (joint) or inside the model, in pixels."),
    ),
    "height": (int | None, Field(None, ge=MIN_SIDE, description="Goes with width.")),
    "fov_x": (
        float | None,
        Field(None, gt=0, lt=180, allow_inf_nan=False, description="Horizontal field of view, degrees."),
    ),
    "fov_y": (
        float | None,
        Field(None, gt=0, lt=180, allow_inf_nan=False, description="Vertical field of view, degrees."),
    ),
    "edge_rtol": (
        float | None,
        Field(None, ge=0, le=1e6, allow_inf_nan=False, description="Cloud: ratio that counts as a jump."),
    ),
    "sor": (bool | None, Field(None, description="Cloud: remove statistical outliers.")),
    "max_points": (int | None, Field(None, ge=1, le=10**9, description="Cloud: at most so many points.")),
    "previews": (bool, Field(False, description="Send the state of both pictures with the events.")),
}
"""Fields of every task."""
FURTHER: dict[str, tuple[Any, Any]] = {
    "log2_alpha": (
        Annotated[float, Field(ge=-MAX_ALPHA, le=MAX_ALPHA, allow_inf_nan=False)] | Literal["none"] | None,
        Field(None, description="Above 0 the image leads, below 0 the depth; 'none': each on its own grid."),
    ),
    "guidance_depth": (
        float | None,
        Field(
            None,
            ge=0,
            le=MAX_GUIDANCE,
            allow_inf_nan=False,
            description="Pull of the given depth; 1 is as learned.",
        ),
    ),
    "guide_image_only": (bool | None, Field(None, description="The prompt's pull acts on the image alone.")),
    "guidance_parallel": (
        float | None,
        Field(
            None,
            ge=0,
            le=1,
            allow_inf_nan=False,
            description="What is kept of guidance along the image itself; less saturates less.",
        ),
    ),
    "refine_depth": (bool | None, Field(None, description="Estimate the depth again from the image.")),
    "edge_radius": (
        int | None,
        Field(
            None,
            ge=0,
            le=MAX_EDGE_RADIUS,
            description="Depth follows the image's edges, in such windows; 0: off.",
        ),
    ),
    "depth_kind": (
        Literal["depth", "disparity"] | None,
        Field(None, description="What the numbers mean where the file does not say."),
    ),
    "depth_scale": (
        float | None,
        Field(None, gt=0, allow_inf_nan=False, description="number * scale is metres; 0.001: millimetres."),
    ),
    "blend": (
        Literal["exact", "smooth"] | None,
        Field(
            None, description="'exact' keeps the given depth as it is, 'smooth' lets neighbours outvote it."
        ),
    ),
    "drop_outliers": (bool | None, Field(None, description="Leave out depths that nothing supports.")),
    "feather": (
        int | None,
        Field(None, ge=0, le=4096, description="Pixels over which the new image fades into the old one."),
    ),
}
"""Fields that a task names in its ``options``."""
CLOUD = ("edge_rtol", "sor", "max_points")
SAMPLING = ("steps", "guidance")
NOT_REPEATED = ("previews",)
"""Fields that do not change a result."""


def pipeline_options(task: Task, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are arguments of the pipeline's method as they are."""
    names = [*SAMPLING, *(name for name in task.options if name not in DEPTH_OPTIONS)]
    return {name: given[name] for name in names if name in given}


def _make_model(task: Task) -> type[BaseModel]:
    one_or_more = _Prompt | Annotated[list[_Prompt], Field(min_length=1)]
    prompt = (
        (one_or_more, Field(description=_PROMPT_HELP))
        if task.prompt_required
        else (one_or_more, Field("", description="Optional description of the picture."))
    )
    fields: dict[str, Any] = {"prompt": prompt}
    for upload in task.uploads:
        text = f"{upload.help} In JSON: base64, one or a list with one for each item."
        kind = str | Annotated[list[str], Field(min_length=1)]
        fields[upload.name] = (
            (kind, Field(description=text))
            if upload.required
            else (kind | None, Field(None, description=text))
        )
    fields |= OPTIONS | {name: FURTHER[name] for name in task.options}
    return create_model(
        f"{task.name.capitalize()}Request",
        __config__=ConfigDict(extra="forbid"),
        __doc__=task.title,
        **fields,
    )


SCHEMAS: dict[str, type[BaseModel]] = {name: _make_model(task) for name, task in TASKS.items()}
"""Task -> what its JSON body looks like."""


@dataclass(frozen=True)
class Request:
    """A checked request.

    Attributes:
        task: which.
        model: the name it is served under.
        prompts, seeds: one for each item.
        options: the other fields that were given.
        uploads: field -> bytes of each item (the same object for all where one serves all).
    """

    task: Task
    model: str
    prompts: list[str]
    seeds: list[int]
    options: dict[str, Any]
    uploads: dict[str, list[bytes]]

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) where given."""
        return (self.options["width"], self.options["height"]) if "width" in self.options else None

    def repeatable(self) -> dict[str, Any]:
        """JSON values that repeat this result when they are sent again, but for the uploads."""
        kept = {key: value for key, value in self.options.items() if key not in NOT_REPEATED}
        one = len(self.seeds) == 1
        return {
            "task": self.task.name,
            "model": self.model,
            "prompt": self.prompts[0] if one else self.prompts,
            "seed": self.seeds[0] if one else self.seeds,
            **kept,
        }


def read_json(body: bytes) -> dict[str, Any]:
    """The object in a body, strictly: no field twice, no NaN, no endless nesting.

    Raises:
        Refused: 400, no such object.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise Refused(400, "the JSON body names a field twice; right is each field once")
        return found

    def refuse(word: str) -> None:
        raise Refused(400, f"the JSON body holds {word}; right is a finite number")

    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=once, parse_constant=refuse)
    except Refused:
        raise
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise Refused(400, "the body is no valid JSON in UTF-8") from None
    if not isinstance(value, dict):
        raise Refused(400, "the body is no JSON object; right is {...} with the fields of the task")
    return value


def decode_uploads(task: Task, fields: dict[str, Any]) -> dict[str, list[bytes]]:
    """Take the uploads out of JSON ``fields`` and decode their base64.

    Raises:
        Refused: 422, an upload that is no base64 (an address is never fetched).
    """
    found: dict[str, list[bytes]] = {}
    for upload in task.uploads:
        given = fields.get(upload.name)
        if given is None:
            continue
        texts = given if isinstance(given, list) else [given]
        if not texts or not all(isinstance(text, str) for text in texts):
            continue  # the schema says what is wrong
        found[upload.name] = [_from_base64(text, upload.name) for text in texts]
        fields[upload.name] = [""] * len(texts) if isinstance(given, list) else ""
    return found


def _from_base64(text: str, name: str) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(
            422, f"{name} is no base64; right is the file itself, base64 in JSON or a part of a form."
            " Addresses are not fetched",
        ) from None  # fmt: skip


def check_request(
    task: Task, fields: Mapping[str, Any], uploads: Mapping[str, list[bytes]], settings: ServerSettings
) -> Request:
    """Check every field against the schema and the limits.

    Args:
        task: which.
        fields: values by name; those of ``uploads`` may hold anything.
        uploads: bytes by field, one file for all items or one for each.
        settings: the limits.

    Raises:
        Refused: 422 with the field, what was wrong and what would be right.
    """
    given = {**fields, **dict.fromkeys(uploads, "")}
    try:
        checked = SCHEMAS[task.name].model_validate(given)
    except ValidationError as error:
        raise Refused(422, _sentence(error)) from None
    values = {k: v for k, v in checked.model_dump().items() if v is not None}
    model = values.pop("model", settings.default_model)
    if model not in settings.models:
        raise Refused(422, f"this model is not served here; right is one of {', '.join(settings.models)}")
    for upload in task.uploads:
        values.pop(upload.name, None)
    return _refusing(lambda: _pair(task, model, values, uploads, settings))


def _refusing(function: Callable[[], Request]) -> Request:
    try:
        return function()
    except Refused:
        raise
    except UserError as error:
        raise Refused(422, str(error)) from None


def _pair(
    task: Task,
    model: str,
    values: dict[str, Any],
    uploads: Mapping[str, list[bytes]],
    settings: ServerSettings,
) -> Request:
    prompt, seed = values.pop("prompt"), values.pop("seed", None)
    for text in [prompt] if isinstance(prompt, str) else prompt:
        check_prompt(text)
    counts = {len(files) for files in uploads.values()} | {
        len(x) for x in (prompt, seed) if isinstance(x, list)
    }
    count = max(counts, default=1)
    if counts - {1, count}:
        raise Refused(
            422, "prompts, seeds and files differ in number; give one of each, or one for each item"
        )
    if count > settings.max_items:
        raise Refused(422, f"the job has {count} items; the limit is {settings.max_items}")
    if isinstance(seed, list) and len(seed) == 1 < count:
        raise Refused(
            422, f"1 seed in a list for {count} items; give one for each, or a number that counts up"
        )
    prompts, seeds = pair_up(prompt, seed, count)
    if values.get("steps", 1) > settings.max_steps:
        raise Refused(422, f"steps is {values['steps']}; the limit is {settings.max_steps}")
    if ("width" in values) != ("height" in values):
        raise Refused(422, "width and height go together; give both or none")
    if "width" in values:
        width, height = values["width"], values["height"]
        check_size(width, height, "the size", max_pixels=settings.max_area)
        if max(width, height) > settings.max_side:
            raise Refused(422, f"the size is {width}x{height}; a side may have {settings.max_side} pixels")
    spread = {name: files * count if len(files) == 1 else list(files) for name, files in uploads.items()}
    for name, files in spread.items():
        if not all(files):
            raise Refused(422, f"{name} is empty (0 bytes)")
    return Request(task, model, prompts, seeds, values, spread)


def _sentence(error: ValidationError) -> str:
    """The first faults in one line: "steps: Input should be ..."; no value is repeated, they may be long."""
    parts = []
    for fault in error.errors(include_url=False, include_input=False)[:3]:
        where = ".".join(str(part) for part in fault["loc"] if isinstance(part, int | str))[:60]
        printable = "".join(c if c.isprintable() and c.isascii() else "?" for c in where)
        parts.append(f"{printable or 'body'}: {fault['msg'][:200]}")
    return "; ".join(parts)
