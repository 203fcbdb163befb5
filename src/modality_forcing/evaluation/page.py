"""One HTML page of an evaluation: everything is inside the file."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modality_forcing.io.atomic import atomic_file

SHOWN = 8  # pictures per group
MAX_BAD = 200
STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:62rem;padding:0 1rem;color:#222}"
    ".table{overflow-x:auto}table{border-collapse:collapse;font-size:13px}"
    "td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;"
    "text-align:right}td:first-child,th:first-child{text-align:left}figure{margin:0 0 1.2rem}"
    "figure img{max-width:100%;display:block}figcaption{font-size:13px;color:#555}.plots img{max-width:31rem}"
    "@media(prefers-color-scheme:dark){body{background:#17181c;color:#ddd}figcaption{color:#aaa}"
    "td,th{border-color:#444}}"
)


def write_page(
    path: Path,
    lines: Sequence[str],
    cells: Sequence[Sequence[str]],
    good: Sequence[Mapping[str, Any]],
    bad: Sequence[Mapping[str, Any]],
    plots: Sequence[Path],
    pictures: Path,
) -> None:
    """Write the page: protocol, table, plots, and pictures ranked by the first alignment's AbsRel."""
    first = next(iter(good[0]["scores"]))
    ranked = sorted(good, key=lambda row: (-row["scores"][first]["abs_rel"], row["index"]))
    middle = max(0, len(ranked) // 2 - SHOWN // 2)
    groups = {
        "Worst": ranked[:SHOWN],
        "Median": ranked[middle : middle + SHOWN],
        "Best": ranked[::-1][: SHOWN // 2],
    }
    body = [f"<h1>{html.escape(lines[0].removeprefix('predictor: '))}</h1>", "<ul>"]
    body += [f"<li>{html.escape(line)}</li>" for line in lines]
    body += ["</ul>", "<div class=table><table>"]
    for number, texts in enumerate(cells):
        tag = "td" if number else "th"
        body.append("<tr>" + "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts) + "</tr>")
    body.append("</table></div>")
    if plots:
        body.append("<h2>Plots</h2><div class=plots>")
        body += [f'<img alt="{plot.stem}" src="{_data(plot)}">' for plot in plots]
        body.append("</div>")
    body.append(
        "<p>Each strip: image, reference, prediction after the alignment in the reference's colours, relative"
        " error (black 0, brightest from 0.5; gray: not counted).</p>"
    )
    for title, rows in groups.items():
        body.append(f"<h2>{title}</h2>")
        for row in rows:
            score = row["scores"][first]
            text = f"{row['name']}: AbsRel {score['abs_rel']:.3f}, δ1 {score['delta1']:.3f}"
            picture = pictures / str(row.get("picture", ""))
            image = f'<img alt="" src="{_data(picture)}">' if picture.is_file() else ""
            body.append(f"<figure>{image}<figcaption>{html.escape(text)}</figcaption></figure>")
    if bad:
        body.append(f"<h2>{len(bad)} pictures could not be measured</h2><ul>")
        body += [
            f"<li>{html.escape(str(row['name']))}: {html.escape(row['error'])}</li>" for row in bad[:MAX_BAD]
        ]
        body.append("</ul>")
    head = '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Depth evaluation</title>'
    page = f"{head}<style>{STYLE}</style></head><body>" + "\n".join(body) + "</body></html>\n"
    with atomic_file(path) as aside:
        aside.write_text(page, encoding="utf-8")


def _data(path: Path) -> str:
    kind = "png" if path.suffix == ".png" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
