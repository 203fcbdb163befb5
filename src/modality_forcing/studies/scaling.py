"""Scaling: does text-to-image pre-training make depth better, at every size, and more so the larger?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from modality_forcing.studies.analysis import (
    ABS_REL,
    DELTA,
    Analysis,
    Claim,
    Figure,
    Rows,
    Series,
    Table,
    judge,
    judge_all,
)
from modality_forcing.studies.cells import SCRATCH, Arm, Cell, baseline, cells_of
from modality_forcing.studies.settings import StudySettings
from modality_forcing.studies.statistics import bootstrap, fit_line

NAME = "scaling"
TITLE = "Scaling: model size and text-to-image pre-training"
PAPER = (
    "Depth estimation improves with model size and with text-to-image pre-training: δ1 0.957, 0.963, 0.972 "
    "at 370M, 800M and 3.3B after 1.92B images, against 0.933, 0.942, 0.944 from scratch; size helps less "
    "from scratch."
)


def cells(settings: StudySettings) -> list[Cell]:
    """Every size with every budget; the flat family, whose image head predicts x0, as in the paper."""
    found = [baseline(settings)]
    for number, width in enumerate(settings.widths):
        for budget in settings.t2i_budgets:
            arm = Arm(
                f"w{width}-t2i{budget or SCRATCH}", {"width": width, "t2i_steps": budget}, start_steps=budget,
                seeds=settings.seeds if number == 0 else settings.more_seeds,
            )  # fmt: skip
            found += cells_of(settings, arm, width=width, family="flat")
    return found


def analyse(rows: Rows, settings: StudySettings) -> Analysis:
    """Error against size for every budget, a power law in size, and the two comparisons with scratch."""
    sizes = rows.coordinates("width")
    budgets = rows.coordinates("t2i_steps")
    parameters = {width: rows.where(width=width).fact("parameters") for width in sizes}
    samples = {(w, b): rows.where(width=w, t2i_steps=b).pictures(ABS_REL) for w in sizes for b in budgets}
    samples = {key: values for key, values in samples.items() if values.size}
    result = Analysis(Table("Error by size and budget", *_table(rows, sizes, budgets, parameters, settings)))

    for metric, label in ((ABS_REL, "AbsRel"), (DELTA, "Share within 25 % (δ1)")):
        series = []
        for budget in budgets:
            points = [(w, rows.where(width=w, t2i_steps=budget).bar(metric)) for w in sizes]
            series.append(Series.of(_label(budget, settings), [(parameters[w], i) for w, i in points if i]))
        result.figures.append(
            Figure(f"{label} by size", "parameters", f"{label} (scale fitted)", series, x_log=True)
        )

    laws = {}
    for budget in budgets:
        known = [w for w in sizes if (w, budget) in samples]
        if len(known) >= 3:
            laws[budget] = bootstrap(samples, _exponent(known, parameters, budget), settings.bootstrap)
    head = ["text to image", "exponent b of AbsRel = a N^-b", "95 % interval"]
    lines = [[_label(b, settings), f"{law.value:.3f}", law.text(3)] for b, law in laws.items()]
    note = (
        "N: all parameters of the RGB-D model. Seeds and pictures are resampled; sizes with one seed borrow "
        "the relative spread over seeds of the others."
    )
    result.tables.append(Table("Power law in size", head, lines, note))

    pre = [b for b in budgets if b]
    top = max(pre, default=0)
    gains = {
        w: bootstrap(samples, _gain(w, top), settings.bootstrap)
        for w in sizes
        if top and {(w, 0), (w, top)} <= samples.keys()
    }
    result.tables.append(
        Table(
            f"AbsRel from scratch over AbsRel after {top:,} steps of text to image",
            ["width", "parameters", "ratio", "95 % interval"],
            [[str(w), f"{parameters[w]:,.0f}", f"{g.value:.3f}", g.text(3)] for w, g in gains.items()],
        )
    )
    for w in sizes:
        known = [b for b in pre if (w, b) in samples]
        if len(known) >= 2:
            slope = bootstrap(samples, _budget_exponent(w, known), settings.bootstrap)
            result.notes.append(
                f"Width {w}: AbsRel goes as (steps of text to image)^-c with c = {slope.value:.3f}, "
                f"95 % {slope.text(3)}."
            )
    ratios = {w: gain.shifted(-1.0) for w, gain in gains.items()}
    result.claims = [
        judge_all(
            "Text-to-image pre-training beats training from scratch at every size.",
            "at every size the 95 % interval of AbsRel(scratch) / AbsRel(largest budget) lies above 1",
            {_seeds(w, rows): ratio for w, ratio in ratios.items()} if len(ratios) == len(sizes) else {},
            "excess of the ratio over 1",
        ),
        judge(
            "With pre-training, larger models are better.",
            "the 95 % interval of the exponent b after the largest budget lies above 0",
            laws.get(top) if top else None,
            "b",
        ),
        _difference(samples, sizes, top, parameters, laws, settings),
    ]
    return result


def _difference(
    samples: Mapping,
    sizes: Sequence[int],
    top: int,
    parameters: Mapping,
    laws: Mapping,
    settings: StudySettings,
) -> Claim:
    effect = None
    if top and {0, top} <= laws.keys():
        known = [w for w in sizes if {(w, 0), (w, top)} <= samples.keys()]
        with_, without = _exponent(known, parameters, top), _exponent(known, parameters, 0)
        effect = bootstrap(samples, lambda means: with_(means) - without(means), settings.bootstrap)
    return judge(
        "Size helps less without pre-training.",
        "the 95 % interval of b(largest budget) - b(scratch) lies above 0",
        effect,
        "difference of exponents",
    )


def _exponent(sizes: Sequence[int], parameters: Mapping, budget: int):
    def fit(means: Mapping) -> float:
        return -fit_line([math.log(parameters[w]) for w in sizes], [np.log(means[w, budget]) for w in sizes])[
            0
        ]

    return fit


def _budget_exponent(width: int, budgets: Sequence[int]):
    def fit(means: Mapping) -> float:
        return -fit_line([math.log(b) for b in budgets], [np.log(means[width, b]) for b in budgets])[0]

    return fit


def _seeds(width: int, rows: Rows) -> str:
    count = len(rows.where(width=width, t2i_steps=0))
    return f"width {width} ({count} seed{'s' if count > 1 else ''})"


def _gain(width: int, top: int):
    return lambda means: means[width, 0] / means[width, top]


def _label(budget: int, settings: StudySettings) -> str:
    return f"{budget:,} steps ({budget * settings.batch:,} images)" if budget else "from scratch"


def _table(
    rows: Rows, sizes: Sequence, budgets: Sequence, parameters: Mapping, settings: StudySettings
) -> tuple[list[str], list[list[str]]]:
    head = ["width", "parameters", "text to image", "seeds", "AbsRel", "δ1", "AbsRel affine"]
    lines = []
    for width in sizes:
        for budget in budgets:
            mine = rows.where(width=width, t2i_steps=budget)
            if mine:
                lines.append([
                    str(width), f"{parameters[width]:,.0f}", _label(budget, settings), str(len(mine)),
                    mine.spread(ABS_REL), mine.spread(DELTA),
                    mine.spread("depth.abs_rel_affine"),
                ])  # fmt: skip
    return head, lines
