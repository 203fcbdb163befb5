"""What an evaluation leaves: results.json, report.md, plots and one HTML page that needs no network."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import modality_forcing
from modality_forcing.errors import UserError
from modality_forcing.evaluation.fitting import ALIGNMENTS
from modality_forcing.evaluation.metrics import METRICS
from modality_forcing.evaluation.page import write_page
from modality_forcing.evaluation.plots import draw_plots
from modality_forcing.evaluation.protocols import Rules, find_protocol
from modality_forcing.evaluation.rows import (
    PICTURES,
    ROWS,
    SETTINGS,
    compare,
    failed,
    read_rows,
    read_settings,
    row_line,
    scored,
    summarise,
)
from modality_forcing.io.atomic import atomic_file, atomic_folder, write_errors
from modality_forcing.io.plain_json import plain

HEADS = {
    "abs_rel": "AbsRel", "sq_rel": "SqRel", "rmse": "RMSE", "rmse_log": "RMSElog", "log10": "log10",
    "silog": "SILog", "delta1": "δ1", "delta2": "δ2", "delta3": "δ3", "boundary_f1": "F1 edges",
    "non_positive": "p <= 0",
}  # fmt: skip
SHOWN = 8  # pictures from either end of the list
MAX_LISTED = 50  # bad samples in the Markdown report


def versions() -> dict[str, str]:
    """Of everything that enters a number."""
    import scipy
    import torch

    return {
        "modality_forcing": modality_forcing.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "torch": torch.__version__,
    }


def write_report(folder: Path, rows: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Write ``results.json``, ``report.md``, ``index.html`` and, with matplotlib, plots beside the rows.

    Returns:
        The content of ``results.json``.

    Raises:
        UserError: no picture could be measured, or the folder cannot be written.
    """
    settings = read_settings(folder)
    good, bad = scored(rows), failed(rows)
    if not good:
        reason = f"; the first: {bad[0]['error']}" if bad else ""
        raise UserError(f"none of {len(bad)} pictures could be measured{reason}")
    summary = summarise(good)
    results = {
        "settings": settings,
        "versions": versions(),
        "images": len(good),
        "bad": [{"index": row["index"], "name": row["name"], "error": row["error"]} for row in bad],
        "summary": summary,
        "rows": [{key: value for key, value in row.items() if key != "error_histogram"} for row in good],
    }
    _write(folder / "results.json", json.dumps(plain(results), indent=1, ensure_ascii=False) + "\n")
    lines = heading(settings, len(good))
    _write(folder / "report.md", markdown(settings, lines, summary, good, bad))
    plots = draw_plots(folder, good)
    write_page(folder / "index.html", lines, table_cells(summary), good, bad, plots, folder / PICTURES)
    return results


def heading(settings: Mapping[str, Any], images: int) -> list[str]:
    """Everything that must be known to compare the numbers, one line each."""
    rules: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in settings["rules"].items()
    }
    protocol = find_protocol(settings["protocol"])
    rules = {key: float("inf") if key == "far" and v is None else v for key, v in rules.items()}
    lines = protocol.describe(settings["kind"], Rules(**rules), images)
    facts = settings["predictor"]
    weights = facts.get("weights_sha256") or facts.get("sha256") or facts.get("plugin_sha256")
    if isinstance(weights, dict):
        weights = ", ".join(f"{name} {value[:12]}" for name, value in sorted(weights.items()))
    lines.insert(0, f"predictor: {settings['predictor_name']} ({settings['promise']} depth)")
    lines.insert(1, f"weights: {weights}" if weights else "weights: none")
    lines.insert(2, f"data: {settings['data']}, layout {settings['layout']}; seed {settings['seed']}")
    if settings.get("shard", "1/1") != "1/1":
        lines.append(f"part: {settings['shard']} of the pictures; mf eval merge puts the parts together")
    return lines


def table_cells(summary: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[list[str]]:
    """The table of means, head first; AbsRel and δ1 with their standard error."""
    cells = [["alignment", *(HEADS[name] for name in METRICS)]]
    for alignment, table in summary.items():
        row = [alignment]
        for name in METRICS:
            mean, error = table[name]["mean"], table[name]["error"]
            text = "-" if mean is None else f"{mean:.2f}" if name == "silog" else f"{mean:.4f}"
            if name in ("abs_rel", "delta1") and error is not None:
                text += f" ± {error:.4f}"
            row.append(text)
        cells.append(row)
    return cells


def markdown(
    settings: Mapping[str, Any],
    lines: Sequence[str],
    summary: Mapping[str, Mapping[str, Mapping[str, Any]]],
    good: Sequence[Mapping[str, Any]],
    bad: Sequence[Mapping[str, Any]],
) -> str:
    """The report as Markdown."""
    out = [f"# Depth: {settings['predictor_name']} on {settings['data']}", ""]
    out += [f"- {line}" for line in lines]
    out += [f"- alignment {name}: {ALIGNMENTS[name]}" for name in summary]
    out += ["- means over pictures, each counting alike; ± is the standard error of the mean", ""]
    cells = table_cells(summary)
    out += ["| " + " | ".join(cells[0]) + " |", "|" + "---|" * len(cells[0])]
    out += ["| " + " | ".join(row) + " |" for row in cells[1:]]
    first = next(iter(summary))
    spreads = [row["spread"] for row in good if "spread" in row]
    if spreads:
        errors = [row["scores"][first]["abs_rel"] for row in good if "spread" in row]
        out += [
            "",
            f"Spread of the ensemble: {np.mean(spreads):.4f} on average;"
            f" {reliability_text(spreads, errors)}.",
        ]
    worst = sorted(good, key=lambda row: -row["scores"][first]["abs_rel"])[:SHOWN]
    out += ["", f"Worst by AbsRel ({first}): " + ", ".join(
        f"{row['name']} {row['scores'][first]['abs_rel']:.3f}" for row in worst
    ) + "."]  # fmt: skip
    if bad:
        out += ["", f"## {len(bad)} pictures could not be measured", ""]
        out += [f"- {row['name']}: {row['error']}" for row in bad[:MAX_LISTED]]
        out += [f"- and {len(bad) - MAX_LISTED} more in results.json"] if len(bad) > MAX_LISTED else []
    return "\n".join(out) + "\n"


def reliability_text(spreads: Sequence[float], errors: Sequence[float]) -> str:
    """How the spread of pictures goes with their error: Spearman's rank correlation."""
    from scipy.stats import spearmanr

    if len(spreads) < 3 or len(set(spreads)) < 2 or len(set(errors)) < 2:
        return "too few pictures to relate it to the error"
    rank = float(spearmanr(spreads, errors).statistic)
    return f"rank correlation with AbsRel {rank:.2f} over {len(spreads)} pictures"


def merge(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Put the parts of one evaluation together.

    Args:
        folders: written by ``mf eval depth`` with the same settings but for the part.
        out: new folder; all or nothing.

    Raises:
        UserError: settings that differ, the same picture twice with different numbers, or ``out`` is taken.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is taken; choose another folder")
    settings = read_settings(folders[0])
    rows: dict[int, dict[str, Any]] = {}
    source: dict[int, Path] = {}
    for folder in folders:
        other = read_settings(folder)
        compare(settings, other, f"{folders[0]} and {folder} hold", "merge parts of one evaluation")
        for index, row in read_rows(folder).items():
            before = rows.get(index)
            if before is not None and "error" not in before and "error" not in row:
                if before["scores"] != row["scores"]:
                    raise UserError(
                        f"picture {row['name']} has other numbers in {source[index]} and {folder}"
                    )
                continue
            if before is None or "error" in before:
                rows[index], source[index] = row, folder
    merged = {**settings, "shard": "1/1", "merged": len(folders)}
    with atomic_folder(out) as target, write_errors(out):
        aside = target.aside
        (aside / PICTURES).mkdir()
        (aside / SETTINGS).write_text(
            json.dumps(merged, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (aside / ROWS).write_text("".join(row_line(rows[i]) for i in sorted(rows)), encoding="utf-8")
        for index, row in rows.items():
            picture = source[index] / PICTURES / str(row.get("picture", ""))
            if row.get("picture") and picture.is_file():
                (aside / PICTURES / picture.name).write_bytes(picture.read_bytes())
        return write_report(aside, rows)


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as aside:
        aside.write_text(text, encoding="utf-8")
