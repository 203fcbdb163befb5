"""A job as HTML: what it does now, its result, its files, or why there is none."""

from __future__ import annotations

import base64
import json
import zlib
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

import numpy as np

from modality_forcing.server.page.controls import TABS

if TYPE_CHECKING:
    from modality_forcing.server.views import ItemView, JobView

LEVELS = 65534  # steps between the nearest and the farthest depth; 0 stands for "no depth"
FILES = {
    "rgb.png": "picture",
    "depth.npy": "depth, 32-bit numbers",
    "depth.png": "depth, 16 bit, scale in its text",
    "depth_magma.png": "depth in colour",
    "mask.png": "where depth is known",
    "cloud.glb": "point cloud, glTF",
    "cloud.ply": "point cloud, PLY",
    "metadata.json": "everything that repeats it",
}
WAITING = "<div class='mf-empty'>The result appears here.</div>"


class Files(Protocol):
    """What knows where the files of a job are."""

    def file(self, job_id: str, index: int, name: str, owner: str | None = None) -> Path:
        """A file of a done job."""
        ...


def pack_depth(depth: np.ndarray) -> tuple[str, float, float]:
    """Depth for the browser: deflated little-endian uint16 in base64, and what its codes mean.

    Args:
        depth: float (H, W); 0, negative and non-finite values are "no depth".

    Returns:
        The text, near and far: code 0 is no depth, code c > 0 is near * (far / near) ** ((c - 1) / 65534).
        The error is at most half of one step, 0.007 % for a far 10 000 times as deep as near.
    """
    known = np.isfinite(depth) & (depth > 0)
    codes = np.zeros(depth.shape, "<u2")
    near, far = (float(depth[known].min()), float(depth[known].max())) if known.any() else (1.0, 1.0)
    if far > near:
        level = np.log(depth[known].astype(np.float64) / near) / np.log(far / near)
        codes[known] = 1 + np.rint(level * LEVELS).astype("<u2")
    else:
        codes[known] = 1
        far = near * 2
    return base64.b64encode(zlib.compress(codes.tobytes(), 6)).decode("ascii"), near, far


def view_html(job_id: str, index: int, files: Files, owner: str | None) -> str:
    """The ``<mf-view>`` element of one result."""
    depth = np.load(files.file(job_id, index, "depth.npy", owner), allow_pickle=False)
    metadata = json.loads(files.file(job_id, index, "metadata.json", owner).read_text(encoding="utf-8"))
    text, near, far = pack_depth(depth)
    camera = {name: metadata["camera"][name] for name in ("fx", "fy", "cx", "cy")}
    meta = {
        "width": depth.shape[1], "height": depth.shape[0], "near": near, "far": far,
        "unit": metadata["depth"]["unit"], "camera": camera, "edge_rtol": metadata["cloud"]["edge_rtol"],
    }  # fmt: skip
    address = f"/v1/jobs/{job_id}/results/{index}/rgb.png"
    about = escape(json.dumps(meta), quote=True)
    return f"<mf-view data-rgb='{address}' data-depth='{text}' data-meta='{about}'></mf-view>"


def done_html(job: JobView, files: Files, owner: str | None) -> str:
    """Results of a finished job with their files, what was assumed, and the link that repeats it."""
    notices = "".join(f"<li>{escape(text)}</li>" for text in job.notices)
    parts = [f"<ul class='mf-notices'>{notices}</ul>" if notices else ""]
    for item in job.items:
        caption = escape(item.prompt) or "no prompt"
        parts.append(
            f"<figure class='mf-result'>{view_html(job.id, item.index, files, owner)}"
            f"<figcaption>{caption}, seed {item.seed}</figcaption>{_downloads(item)}</figure>"
        )
    seconds = (job.finished or 0) - (job.started or 0)
    again = escape(settings_link(job.request), quote=True)
    parts.append(
        f"<p class='mf-links'>Computed in {seconds:.1f} s. <a href='?job={job.id}'>Link to this result</a>"
        f" (kept for a while), <a href='{again}'>link to its settings</a>"
        f"{' (add the same files)' if job.task != 'joint' else ''}.</p>"
    )
    return f"<section class='mf-done' data-job='{job.id}'>{''.join(parts)}</section>"


def _downloads(item: ItemView) -> str:
    rows = ""
    for file in item.files:
        name, about = escape(file.name, quote=True), escape(FILES.get(file.name, "further map"))
        link = f"<a href='{escape(file.url, quote=True)}' download='{name}'>{name}</a>"
        rows += f"<li>{link} <span>{about}, {size_text(file.bytes)}</span></li>"
    return f"<details class='mf-files' open><summary>Files</summary><ul>{rows}</ul></details>"


def size_text(count: int) -> str:
    """Bytes for people."""
    if count < 1000:
        return f"{count} bytes"
    return f"{count / 1000:.0f} kB" if count < 10**6 else f"{count / 10**6:.1f} MB"


def settings_link(request: dict[str, Any]) -> str:
    """The address of the page with these settings filled in."""
    return "?settings=" + quote(json.dumps(request, separators=(",", ":")), safe="")


def running_html(job: JobView, preview: dict[str, Any] | None) -> str:
    """A job that waits or runs, with the state of both pictures."""
    step, steps = job.progress.step, job.progress.steps
    if job.state == "queued":
        text = "Next in line." if not job.ahead else f"Waiting, {job.ahead} before this one."
        bar = "<progress aria-label='Progress'></progress>"
    else:
        text = f"Step {step} of {steps}" if steps else "Starting"
        bar = f"<progress aria-label='Progress' max='{steps or 1}' value='{step}'></progress>"
    return f"<section class='mf-live'><p role='status'>{text}</p>{bar}{_preview(preview)}</section>"


def _preview(preview: dict[str, Any] | None) -> str:
    if preview is None:
        return ""
    pictures = "".join(
        f"<img alt='{name} so far' src='data:image/jpeg;base64,{escape(preview[key], quote=True)}'>"
        for key, name in (("rgb", "picture"), ("depth", "depth"))
    )
    return f"<div class='mf-previews'>{pictures}</div>"


def note_html(text: str, error: bool = False) -> str:
    """One line, as an error or not."""
    kind = "class='mf-error' role='alert'" if error else "class='mf-note' role='status'"
    return f"<div {kind}>{escape(text[:1].upper() + text[1:])}</div>"


def history_html(jobs: list[JobView]) -> str:
    """The visitor's results, newest first, each a link to itself."""
    if not jobs:
        return "<p class='mf-empty'>Your results are listed here while this server keeps them.</p>"
    rows = []
    for job in jobs:
        item = job.items[0]
        title = escape(TABS.get(job.task, job.task))
        shown = escape(item.prompt, quote=True) or title
        picture = (
            f"<img loading='lazy' alt='' src='/v1/jobs/{job.id}/results/0/rgb.png'>"
            if job.state == "done"
            else f"<span class='mf-state'>{job.state}</span>"
        )
        rows.append(
            f"<li><a href='?job={job.id}' title='{title}: {shown}'>{picture}<span>{shown}</span></a></li>"
        )
    return f"<ul class='mf-history'>{''.join(rows)}</ul>"
