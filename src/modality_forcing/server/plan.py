"""A checked request as what the worker gets, and as what tells which jobs may share a batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from modality_forcing.server.errors import Refused
from modality_forcing.server.requests import CLOUD, Request, pipeline_options
from modality_forcing.server.uploads import Decoded


def plan_job(job_id: str, request: Request, files: list[dict[str, Decoded]], results: Path) -> dict[str, Any]:
    """The columns of a new job's row.

    Args:
        job_id: its public name.
        request: checked.
        files: for each item, its decoded uploads by field.
        results: folder for the run folders.

    Raises:
        Refused: 422, depth maps of which only some are in metres.
    """
    task, given = request.task, request.options
    options = pipeline_options(task, given)
    if request.size is not None:
        options["size"] = list(request.size)
    units = {
        found.unit for item in files for name, found in item.items() if task.upload(name).kind == "depth"
    }
    if len(units) > 1:
        raise Refused(422, "some depth maps say they are in metres, others do not; send them in two jobs")
    if task.takes_unit and units:
        options["depth_unit"] = units.pop()
    shapes = sorted({found.shape for item in files for found in item.values()})
    # Jobs share a batch when this text is equal: same options, same size, same kinds of files.
    plan = {"options": options, "shapes": shapes, "files": sorted(files[0])}
    fields_of_view = {name: given[name] for name in ("fov_x", "fov_y") if name in given}
    notices: dict[str, None] = {}
    items = []
    for index, (prompt, seed, found) in enumerate(zip(request.prompts, request.seeds, files, strict=True)):
        camera = dict(fields_of_view)
        known = next((f.fov_x for f in found.values() if f.fov_x is not None), None)
        if not camera and known is not None:
            camera["fov_x"] = known
            notices[f"image: horizontal field of view {known:.1f} degrees, from its EXIF focal length"] = None
        notices |= {text: None for f in found.values() for text in f.notices}
        items.append(
            {
                "job": job_id,
                "index": index,
                "prompt": prompt,
                "seed": seed,
                "files": {name: str(f.path) for name, f in found.items()},
                "shape": next((list(f.shape) for f in found.values()), None),
                "camera": camera,
                "cloud": {name: given[name] for name in CLOUD if name in given},
                "previews": bool(given.get("previews")),
                "out": str(results / str(index)),
            }
        )
    return {
        "id": job_id,
        "task": task.name,
        "model": request.model,
        "request": json.dumps(request.repeatable()),
        "items": json.dumps(items),
        "plan": json.dumps(plan, sort_keys=True),
        "notices": json.dumps(list(notices)),
        "alone": len(shapes) > 1,
    }
