"""Plots of an evaluation, where matplotlib is installed (``pip install modality-forcing[eval]``)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modality_forcing.io.atomic import atomic_file

LEAST_PIXELS = 50  # a bin of the reliability diagram with fewer says nothing


def draw_plots(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Histogram of the pictures' AbsRel, histogram of the pixels' relative errors, reliability of an
    ensemble.

    Returns:
        The PNG files that were written; none without matplotlib.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return []
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    alignments = list(rows[0]["scores"])
    reliable = [row["reliability"] for row in rows if "reliability" in row]
    figures: dict[str, Any] = {}

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    values = {name: [row["scores"][name]["abs_rel"] for row in rows] for name in alignments}
    top = max(float(np.quantile(v, 0.98)) for v in values.values()) * 1.05 + 1e-9
    bins: list[float] = np.linspace(0.0, top, 25).tolist()
    for name, found in values.items():
        axes.hist(np.clip(found, 0, top), bins, histtype="step", linewidth=1.5, label=name)
    axes.set_xlabel("AbsRel of a picture")
    axes.set_ylabel("pictures")
    axes.legend(frameon=False, fontsize=8)
    figures["histogram.png"] = figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    counts = np.sum([row["error_histogram"] for row in rows], axis=0).astype(float)
    edges = error_edges()
    share = np.cumsum(counts)[:-1] / counts.sum()
    axes.plot(edges[1:-1], share, linewidth=1.5)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.set_xlabel(f"relative error e of a pixel ({alignments[0]})")
    axes.set_ylabel("share of pixels with error below e")
    figures["errors.png"] = figure

    if reliable:
        figure = Figure(figsize=(4, 3.6), layout="constrained")
        axes = figure.subplots()
        spread, error = reliability(reliable)
        axes.plot(spread, error, "o-", linewidth=1.5, markersize=4)
        low, high = min(spread.min(), error.min()), max(spread.max(), error.max())
        axes.plot([low, high], [low, high], color="gray", linewidth=1, linestyle="--", label="spread = error")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("spread of the ensemble")
        axes.set_ylabel("relative error")
        axes.legend(frameon=False, fontsize=8)
        figures["reliability.png"] = figure

    written = []
    for name, figure in figures.items():
        FigureCanvasAgg(figure)
        with atomic_file(folder / name) as aside:
            figure.savefig(aside, format="png", dpi=110)
        written.append(folder / name)
    return written


def reliability(rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean spread and mean relative error of the pixels in every bin of spread that holds enough of them."""
    pixels, spread, error = (
        np.sum([row[name] for row in rows], axis=0).astype(float) for name in ("pixels", "spread", "error")
    )
    keep = pixels >= min(LEAST_PIXELS, pixels.max())
    keep &= (spread > 0) & (error > 0)
    return spread[keep] / pixels[keep], error[keep] / pixels[keep]


def error_edges() -> np.ndarray:
    """Bins of the rows' ``error_histogram``."""
    from modality_forcing.evaluation.run import ERROR_EDGES

    return ERROR_EDGES
