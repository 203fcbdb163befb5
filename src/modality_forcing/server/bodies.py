"""Bodies of submissions: JSON or a form, told apart by the content type, read within the limits."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from modality_forcing.server.errors import Refused
from modality_forcing.server.requests import SCHEMAS, decode_uploads, read_json
from modality_forcing.server.settings import ServerSettings
from modality_forcing.server.tasks import Task

REPEATED = ("prompt", "seed")
"""Fields of a form that may come once for each item, like the files."""
MAX_PART = 64 * 1024  # bytes of a field that is no file: a prompt of 10 000 characters of four bytes
Body = tuple[dict[str, Any], dict[str, list[bytes]]]


async def read_body(request: Request, task: Task, settings: ServerSettings) -> Body:
    """Fields and uploads of a submission.

    Raises:
        Refused: 400 and 422, a body that does not hold them; 415, another content type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        body = await request.body()
        return await run_in_threadpool(_from_json, body, task)
    if kind == "multipart/form-data":
        return await _from_form(request, task, settings)
    raise Refused(415, "the content type is not known; right is application/json or multipart/form-data")


def _from_json(body: bytes, task: Task) -> Body:
    fields = read_json(body)
    uploads = decode_uploads(task, fields)
    return fields, uploads


async def _from_form(request: Request, task: Task, settings: ServerSettings) -> Body:
    names = {upload.name for upload in task.uploads}
    texts: dict[str, list[str]] = defaultdict(list)
    uploads: dict[str, list[bytes]] = defaultdict(list)
    count = settings.max_items
    limits = {
        "max_files": count * max(1, len(names)),
        "max_fields": 2 * count + 64,
        "max_part_size": MAX_PART,
    }
    async with request.form(**limits) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name not in names:
                    raise Refused(422, "the form holds a file that this task does not take")
                uploads[name].append(await value.read())
            else:
                texts[name].append(value)
    fields: dict[str, Any] = {}
    for name, values in texts.items():
        if name in names and name in uploads:
            raise Refused(422, f"{name} comes as a file and as text; right is one of them")
        if len(values) > 1 and name not in (*REPEATED, *names):
            raise Refused(422, "a field comes twice in the form; right is each once")
        if name != "prompt" and values == [""]:
            continue  # a field of a page that was left empty
        fields[name] = values if len(values) > 1 else values[0]
    uploads = {**uploads, **decode_uploads(task, fields)}
    return fields, uploads


def request_body(task: Task) -> dict[str, Any]:
    """The body of a submission as OpenAPI describes it."""
    schema = SCHEMAS[task.name].model_json_schema()
    form: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": {}}
    for name, field in schema["properties"].items():
        upload = next((u for u in task.uploads if u.name == name), None)
        if upload is not None:
            field = {"type": "string", "format": "binary", "description": upload.help}
        form["properties"][name] = field
    if "required" in schema:
        form["required"] = schema["required"]
    return {
        "required": True,
        "content": {"application/json": {"schema": schema}, "multipart/form-data": {"schema": form}},
    }
