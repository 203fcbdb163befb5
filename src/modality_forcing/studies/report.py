"""What a study leaves: ``rows.json``, ``report.md`` and figures."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modality_forcing.evaluation.report import versions
from modality_forcing.io.atomic import atomic_file, slug
from modality_forcing.io.plain_json import plain
from modality_forcing.studies.analysis import (
    ABS_REL,
    AFFINE,
    DELTA,
    SCALE,
    UNTRAINED,
    Claim,
    Figure,
    Rows,
    Table,
    aligned,
    unless_untrained,
)
from modality_forcing.studies.cells import Cell
from modality_forcing.studies.registry import Study
from modality_forcing.studies.settings import StudySettings, changed
from modality_forcing.studies.statistics import LEVEL

ROWS, REPORT, FIGURES = "rows.json", "report.md", "figures"
SIZE, DPI = (5.6, 3.6), 120


def write_rows(
    folder: Path, study: Study, scale: str, settings: StudySettings, results: Sequence[Any]
) -> Path:
    """Every finished cell without its numbers per picture, which its own ``result.json`` holds."""
    rows = [{key: value for key, value in result.items() if key != "pictures"} for result in results]
    head = json.dumps(plain({"study": study.name, "scale": scale, "settings": vars(settings)}), indent=1)
    lines = ",\n".join(json.dumps(plain(row), ensure_ascii=False) for row in rows)
    with atomic_file(folder / ROWS) as aside:  # a line per cell
        aside.write_text(f'{head[:-2]},\n "cells": [\n{lines}\n]}}\n', encoding="utf-8")
    return folder / ROWS


def write_report(
    folder: Path,
    study: Study,
    scale: str,
    settings: StudySettings,
    cells: Sequence[Cell],
    results: Sequence[Mapping[str, Any]],
    command: str,
) -> Path:
    """Tables, verdicts and figures from the finished cells.

    Args:
        cells: the whole plan.
        results: content of the ``result.json`` of those that are finished.
        command: that makes this report, for its head.
    """
    rows, affine = aligned(results, SCALE), aligned(results, AFFINE)
    analysis = study.analyse(rows, settings)
    claims = unless_untrained(analysis.claims, rows)
    again = unless_untrained(study.analyse(affine, settings).claims, affine)
    drawn = [draw(folder / FIGURES, figure, study.name) for figure in analysis.figures]
    lines = [f"# {study.title}", "", f"What the paper claims: {study.paper}", "", "```sh", command, "```", ""]
    lines += _facts(study, scale, settings, cells, results)
    lines += ["", "## Verdicts", "", *_claims(claims, again)]
    lines += ["", f"## {analysis.main.title}", "", *_table(analysis.main)]
    for table in analysis.tables:
        if table.lines:
            lines += ["", f"## {table.title}", "", *_table(table)]
    if analysis.notes:
        lines += ["", *(f"- {note}" for note in analysis.notes)]
    for figure, path in zip(analysis.figures, drawn, strict=True):
        lines += ["", f"## {figure.title}", ""]
        lines += [f"![{figure.title}]({FIGURES}/{path.name})", ""] if path is not None else []
        lines += _table(_numbers(figure))
    lines += ["", "## Cells", "", *_table(_cells(rows))]
    if any(path is None for path in drawn):
        lines += ["", "Figures need matplotlib: `pip install modality-forcing[eval]`, then the same command."]
    with atomic_file(folder / REPORT) as aside:
        aside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / REPORT


def _facts(
    study: Study, scale: str, settings: StudySettings, cells: Sequence[Cell], results: Sequence[Any]
) -> list[str]:
    done = f"{len(results)} of {len(cells)} cells"
    other = changed(settings, study.settings(scale, []))
    changes = ", ".join(f"{key}={value}" for key, value in other.items()) or "none"
    lines = [f"- scale {scale}, {done}; changed settings: {changes}"]
    trained = [cell for cell in cells if cell.config is not None]
    if trained:
        lines.append(
            f"- data: {settings.scenes:,} training scenes and {settings.test_scenes} of the test "
            f"split, procedural, {settings.image_size}x{settings.image_size}; frozen autoencoder "
            f"{settings.autoencoder}"
        )
        lines.append(
            f"- forcing stage: {settings.forcing_steps:,} steps of {settings.batch}, Muon {settings.lr:g}, "
            f"the same for every cell; text to image {settings.t2i_steps:,} steps by default"
        )
    lines.append(
        f"- image to depth on {settings.pictures} test scenes, protocol moge (exact L1 fit), unguided, with "
        f"{', '.join(map(str, settings.depth_steps))} steps, of which the number with the lowest AbsRel "
        f"counts for each cell; generation in {settings.sample_steps} steps with guidance "
        f"{settings.guidance:g}"
        if trained
        else f"- {settings.generated} captions or test scenes for every cell, guidance {settings.guidance:g}"
    )
    lines.append("- AbsRel and δ1 after fitting the scale; affine: scale and shift")
    lines.append(
        f"- ± and the bars of figures are the standard deviation over seeds; intervals are "
        f"{100 * LEVEL:.0f} % bootstrap percentiles over seeds and pictures together "
        f"({settings.bootstrap:,} resamplings)"
    )
    made = results[0]["versions"] if results else versions()
    lines.append("- " + ", ".join(f"{name} {value}" for name, value in made.items()))
    return lines


def _claims(claims: Sequence[Claim], affine: Sequence[Claim]) -> list[str]:
    lines = ["| claim | rule | seen | verdict | with the shift fitted, too | verdict |", "|" + "---|" * 6]
    for claim, other in zip(claims, affine, strict=True):
        cells = (claim.text, claim.rule, claim.seen, f"**{claim.verdict}**", other.seen, other.verdict)
        lines.append("| " + " | ".join(cells) + " |")
    return [
        *lines, "",
        "agrees: the whole interval lies on the claimed side; disagrees: on the other side; undecided: 0",
        "lies inside. Of a claim about several: one that disagrees refutes it, all must agree.",
        f"{UNTRAINED}: no cell has a lower AbsRel in image to depth than the mean map of training scenes.",
    ]  # fmt: skip


def _table(table: Table) -> list[str]:
    lines = ["| " + " | ".join(table.head) + " |", "|" + "---|" * len(table.head)]
    lines += ["| " + " | ".join(line) + " |" for line in table.lines]
    return [*lines, "", table.note] if table.note else lines


def _numbers(figure: Figure) -> Table:
    """A figure's numbers: means and standard deviations."""
    places = sorted({x for series in figure.series for x in series.x})
    lines = []
    for place in places:
        line = [figure.names[int(place)] if figure.names else f"{place:,.10g}"]
        for series in figure.series:
            at = series.x.index(place) if place in series.x else None
            if at is None:
                line.append("-")
            else:
                deviation = (series.high[at] - series.low[at]) / 2
                line.append(f"{series.y[at]:.4f}" + (f" ± {deviation:.4f}" if deviation else ""))
        lines.append(line)
    return Table(figure.title, [figure.x_label, *(series.label for series in figure.series)], lines)


def _cells(rows: Rows) -> Table:
    """Every cell with its cost."""
    head = [
        "cell",
        "parameters",
        "trainable",
        "TFLOP forcing",
        "TFLOP text to image",
        "minutes",
        "steps",
        "AbsRel",
        "δ1",
        "AbsRel affine",
    ]
    lines = []
    for result in rows:
        facts, metrics = result["facts"], result["metrics"]
        seconds = facts.get("forcing_seconds", 0.0)

        def mean(name: str, metrics: Mapping[str, Any] = metrics) -> str:
            value = metrics.get(name, {}).get("mean")
            return "-" if value is None else f"{value:.4f}"

        lines.append([
            result["name"], f"{facts['parameters']:,}", f"{facts['trainable']:,}",
            f"{facts['forcing_flops'] / 1e12:,.3f}", f"{facts['text_to_image_flops'] / 1e12:,.3f}",
            f"{seconds / 60:.1f}", str(facts.get("depth_steps", "-")), mean(ABS_REL), mean(DELTA),
            mean("depth.abs_rel_affine"),
        ])  # fmt: skip
    note = (
        "AbsRel and δ1 of image to depth and the number of steps they are for; minutes of the forcing stage."
    )
    return Table("Cells", head, lines, note)


def draw(folder: Path, figure: Figure, study: str) -> Path | None:
    """A figure as PNG; None where matplotlib is missing or there is nothing to draw."""
    if importlib.util.find_spec("matplotlib") is None or not any(series.x for series in figure.series):
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=SIZE, layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots()
    width = 0.8 / len(figure.series)
    for number, series in enumerate(figure.series):
        if not series.x:
            continue
        below = [max(0.0, y - low) for y, low in zip(series.y, series.low, strict=True)]
        above = [max(0.0, high - y) for y, high in zip(series.y, series.high, strict=True)]
        if figure.names:
            places = [x + (number - (len(figure.series) - 1) / 2) * width for x in series.x]
            axes.bar(places, series.y, 0.9 * width, yerr=[below, above], capsize=3, label=series.label)
        else:
            axes.errorbar(
                series.x, series.y, [below, above], marker="o", markersize=4, linewidth=1.4, capsize=3,
                label=series.label,
            )  # fmt: skip
    if figure.names:
        axes.set_xticks(range(len(figure.names)), figure.names)
    if figure.x_log:
        axes.set_xscale("log")
    if figure.y_log:
        axes.set_yscale("log")
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)
    axes.grid(alpha=0.3)
    if len(figure.series) > 1:
        axes.legend(frameon=False, fontsize=8)
    path = folder / f"{slug(f'{study} {figure.title}', 60)}.png"
    with atomic_file(path) as aside:
        canvas.savefig(aside, format="png", dpi=DPI)
    return path
