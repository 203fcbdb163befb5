"""The form of each task, made from the table of tasks: which control stands for which field of a request."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modality_forcing.errors import UserError
from modality_forcing.inputs import MAX_ALPHA, MAX_PROMPT
from modality_forcing.server.settings import ServerSettings
from modality_forcing.server.tasks import Task

TABS = {
    "joint": "Text to picture and depth",
    "i2d": "Picture to depth",
    "d2i": "Depth to picture",
    "complete": "Complete sparse depth",
    "inpaint": "Make a part anew",
}
HELP = {
    "joint": "Say what to make. Picture, depth and a point cloud are made together.",
    "i2d": "Give a picture and get the depth of every pixel, and a point cloud.",
    "d2i": "Give a depth map and say what it shows: the picture follows its shapes.",
    "complete": "Give a picture and a few measured depths (0: unknown); get depth everywhere, in their unit.",
    "inpaint": "Give a picture, paint over a part, and say what is to be there; its depth is made as well.",
}
PICTURES = [".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"]
DEPTHS = [".png", ".npy", ".npz", ".exr", ".tif", ".tiff"]
YES_NO = [("as the model does", ""), ("yes", "yes"), ("no", "no")]
Make = Callable[[Any, ServerSettings], Any]  # gradio and the settings -> a component


@dataclass(frozen=True)
class Control:
    """One field of a request on the page.

    Attributes:
        make: builds the component.
        group: heading under which it stands: "sampling", "camera" or "cloud".
        read: the component's value -> the field's, None for "left out".
        show: the field's value -> the component's.
        wide: needs a row of its own.
    """

    make: Make
    group: str
    read: Callable[[Any], Any]
    show: Callable[[Any], Any]
    wide: bool = False


def _box(label: str, info: str) -> Make:
    return lambda gr, _: gr.Textbox(label=label, info=info, max_lines=1, min_width=150)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _number(name: str, label: str, info: str, group: str = "sampling", kind: type = float) -> Control:
    """A number as text: the toolkit's own number fields turn "empty" into 0 when they are first shown."""

    def read(value: str | None) -> float | int | None:
        text = (value or "").strip()
        if not text:
            return None
        try:
            return kind(text)
        except ValueError:
            right = "a whole number" if kind is int else "a number"
            raise UserError(f"{name} is {text[:40]!r}; right is {right}, or nothing at all") from None

    return Control(_box(label, info), group, read, _text)


def _yes_no(label: str, info: str) -> Make:
    return lambda gr, _: gr.Dropdown(YES_NO, value="", label=label, info=info, min_width=150)


def _choice(label: str, info: str, *choices: tuple[str, str]) -> Make:
    return lambda gr, _: gr.Dropdown(list(choices), value="", label=label, info=info, min_width=150)


def _or_none(value: str | None) -> str | None:
    return value or None


def _to_bool(value: str) -> bool | None:
    return {"yes": True, "no": False}.get(value)


def _from_bool(value: bool | None) -> str:
    return "" if value is None else ("yes" if value else "no")


def _tilt(value: str | None) -> float | str | None:
    text = (value or "").strip().lower()
    if not text:
        return None
    if text == "none":
        return text
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"tilt is {text[:40]!r}; right is a number from -{MAX_ALPHA:g} to {MAX_ALPHA:g}, or none"
        ) from None


CONTROLS: dict[str, Control] = {
    "seed": _number("seed", "Seed", "The same number repeats the result.", kind=int),
    "steps": _number("steps", "Steps", "More are finer and slower.", kind=int),
    "guidance": _number("guidance", "Guidance", "How strongly the text pulls; 1: not at all."),
    "guidance_depth": _number(
        "depth guidance", "Depth guidance", "How strongly the picture follows the depth; 1: as learned."
    ),
    "log2_alpha": Control(
        _box(
            "Tilt",
            "Who leads. 0: picture and depth take shape together. Above 0, as 5: the picture first, for"
            " cleaner depth. Below 0: the depth first. none: each at its own pace.",
        ),
        "sampling",
        _tilt,
        _text,
        wide=True,
    ),
    "refine_depth": Control(
        _yes_no("Refine the depth", "Estimate the depth a second time from the finished picture."),
        "sampling",
        _to_bool,
        _from_bool,
    ),
    "guide_image_only": Control(
        _yes_no("Guide the picture only", "The text pulls the picture alone, not its depth."),
        "sampling",
        _to_bool,
        _from_bool,
    ),
    "guidance_parallel": _number(
        "guidance along the picture",
        "Along the picture",
        "What is kept of guidance that only adds contrast and colour, 0 to 1. Less: calmer colours.",
    ),
    "edge_radius": _number(
        "edges",
        "Follow edges",
        "Depth jumps where the picture does: pixels around each that are looked at. 0: off.",
        kind=int,
    ),
    "width": _number("width", "Width", "Pixels, goes with the height.", kind=int),
    "height": _number("height", "Height", "Pixels, goes with the width.", kind=int),
    "depth_kind": Control(
        _choice(
            "What the numbers mean",
            "Matters for plain PNG files, which do not say.",
            ("as the file says", ""),
            ("depth: large is far", "depth"),
            ("disparity: large is near", "disparity"),
        ),
        "sampling",
        _or_none,
        _text,
    ),
    "depth_scale": _number(
        "scale", "Scale", "Number times scale is metres; 0.001 for millimetres. Empty: as the file says."
    ),
    "drop_outliers": Control(
        _yes_no(
            "Leave out false points", "Measured points that neither the picture nor their neighbours support."
        ),
        "sampling",
        _to_bool,
        _from_bool,
    ),
    "blend": Control(
        _choice(
            "Measured points",
            "Smoothing averages the noise of a sensor.",
            ("the usual", ""),
            ("keep them exactly", "exact"),
            ("smooth them too", "smooth"),
        ),
        "sampling",
        _or_none,
        _text,
    ),
    "feather": _number(
        "seam", "Seam", "Pixels over which old and new fade into each other; 0 is a hard edge.", kind=int
    ),
    "fov_x": _number(
        "field of view",
        "Field of view",
        "Horizontal, in degrees. Empty: from the photograph's own data, else 65.",
        "camera",
    ),
    "edge_rtol": _number(
        "edges",
        "Edges",
        "Points where depth jumps by more than this ratio are left out. 0 keeps all.",
        "cloud",
    ),
    "sor": Control(
        _yes_no("Remove stray points", "Leave out points that are far from all others."),
        "cloud",
        _to_bool,
        _from_bool,
    ),
    "max_points": _number("points", "At most so many points", "Empty: 1.2 million.", "cloud", int),
}
"""Fields with a control. Those of every task stand in each form, the others where the task names them."""
_EVERY = ("seed", "steps", "guidance", "width", "height", "fov_x", "edge_rtol", "sor", "max_points")
GROUPS = {
    "sampling": "How it is made (an empty field: the model's own)",
    "camera": "Camera",
    "cloud": "Point cloud",
}


@dataclass
class Form:
    """One tab: its components by field name, in the order in which their values arrive.

    Attributes:
        task: which.
        components: field -> component; "model" is there when there is a choice, uploads under their names.
        painted: upload -> the hidden text that brings the mask drawn in the browser.
    """

    task: Task
    components: dict[str, Any] = field(default_factory=dict)
    painted: dict[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> list[Any]:
        """All components whose values :meth:`read` takes."""
        return [*self.components.values(), *self.painted.values()]

    def read(self, values: list[Any]) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
        """Fields and uploads of a request.

        Raises:
            UserError: a value that is no such thing.
        """
        from modality_forcing.server.requests import decode_uploads

        fields: dict[str, Any] = {}
        uploads: dict[str, list[bytes]] = {}
        names = {upload.name for upload in self.task.uploads}
        count = len(self.components)
        for name, value in zip(self.components, values[:count], strict=True):
            if name in names:
                if value:
                    uploads[name] = [Path(value).read_bytes()]
                continue
            found = CONTROLS[name].read(value) if name in CONTROLS else value
            if found is not None and found != []:
                fields[name] = found
        for upload in self.task.uploads:
            if upload.required and upload.name not in uploads and upload.name not in self.painted:
                what = "a picture" if upload.kind == "image" else "a depth map"
                raise UserError(
                    f"{upload.name} is missing; add {what} above, or take one of the examples below"
                )
        drawn = {n: v for n, v in zip(self.painted, values[count:], strict=True) if v}
        if set(self.painted) - set(drawn) - set(uploads):
            raise UserError("nothing is painted; paint over what is to be made anew, or add a mask file")
        found_masks = decode_uploads(self.task, dict(drawn))
        return fields, {**found_masks, **uploads}  # a file outdoes the brush

    def show(self, settings: Mapping[str, Any]) -> dict[Any, Any]:
        """Values for the components from the settings of a request; what they do not name is emptied."""
        shown: dict[Any, Any] = {}
        names = {upload.name for upload in self.task.uploads}
        for name, component in self.components.items():
            if name in names:
                continue
            value = settings.get(name)
            if name == "prompt":
                shown[component] = value if isinstance(value, str) else ""
            elif name == "model":
                if isinstance(value, str):
                    shown[component] = value
            else:
                shown[component] = CONTROLS[name].show(value if not isinstance(value, list | dict) else None)
        return shown


def make_form(gr: Any, task: Task, settings: ServerSettings) -> Form:
    """Build the components of one task inside the open tab."""
    form = Form(task)
    gr.Markdown(HELP.get(task.name, task.title))
    painter = any(u.kind == "image" for u in task.uploads) and any(
        u.name == "mask" and u.required for u in task.uploads
    )
    for upload in task.uploads:
        if painter and upload.name == "mask":
            gr.HTML("<mf-paint></mf-paint>", elem_id=f"{task.name}-paint")
            form.painted["mask"] = gr.Textbox(visible="hidden", elem_id=f"{task.name}-painted")
            with gr.Accordion("Or a mask from a file", open=False):
                form.components["mask"] = _upload(gr, task, upload.name, upload.kind, upload.help, False)
            continue
        if upload.required:
            form.components[upload.name] = _upload(gr, task, upload.name, upload.kind, upload.help, True)
    further = [u for u in task.uploads if not u.required and not (painter and u.name == "mask")]
    needed = task.prompt_required
    form.components["prompt"] = gr.Textbox(
        label="Prompt" if needed else "Prompt (not needed)",
        placeholder="a red car in front of two trees" if needed else "what the picture shows, if you like",
        lines=2, max_length=MAX_PROMPT, elem_id=f"{task.name}-prompt",
    )  # fmt: skip
    if further:
        with gr.Accordion("More files", open=False):
            for upload in further:
                form.components[upload.name] = _upload(gr, task, upload.name, upload.kind, upload.help, False)
    if len(settings.models) > 1:
        form.components["model"] = gr.Dropdown(
            list(settings.models), value=settings.default_model, label="Model", elem_id=f"{task.name}-model"
        )
    names = [*_EVERY, *(name for name in task.options if name in CONTROLS)]
    for group, heading in GROUPS.items():
        found = [name for name in CONTROLS if name in names and CONTROLS[name].group == group]
        with gr.Accordion(heading, open=False):
            with gr.Row():
                for name in [name for name in found if not CONTROLS[name].wide]:
                    form.components[name] = _control(gr, task, name, settings)
            for name in [name for name in found if CONTROLS[name].wide]:
                form.components[name] = _control(gr, task, name, settings)
    return form


def _control(gr: Any, task: Task, name: str, settings: ServerSettings) -> Any:
    component = CONTROLS[name].make(gr, settings)
    component.elem_id = f"{task.name}-{name}"
    return component


def _upload(gr: Any, task: Task, name: str, kind: str, help: str, required: bool) -> Any:
    """A file, whose bytes only the guard process looks into: the page passes on where it lies."""
    label = name.replace("_", " ").capitalize() + ("" if required else " (not needed)")
    place = f"{task.name}-{name}"
    if kind == "depth":
        made = gr.File(label=label, file_types=DEPTHS, height=140, elem_id=place)
    else:
        made = gr.Image(label=label, type="filepath", image_mode=None, height=260, elem_id=place,
                        sources=["upload", "clipboard"], buttons=[])  # fmt: skip
    made.preprocess = lambda payload: None if payload is None else payload.path
    return made


def parse_settings(text: str, tasks: Mapping[str, Task]) -> tuple[str, dict[str, Any]]:
    """The task and the fields in the JSON of a permalink.

    Raises:
        UserError: it is no such JSON.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(
            "the settings are no JSON; right is what stands under a result as its settings"
        ) from None
    if not isinstance(found, dict) or not isinstance(found.get("task"), str) or found["task"] not in tasks:
        raise UserError(f"the settings name no task; right is one of {', '.join(tasks)}")
    return found["task"], found
