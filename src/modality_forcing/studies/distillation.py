"""Self-distillation: how far text to image drifts while depth is learned, and what holding it costs."""

from __future__ import annotations

from modality_forcing.studies.analysis import (
    ABS_REL,
    DELTA,
    Analysis,
    Figure,
    Interval,
    Rows,
    Series,
    judge,
    relative_gain,
    table_of,
)
from modality_forcing.studies.cells import Arm, Cell, baseline, cells_of
from modality_forcing.studies.settings import StudySettings
from modality_forcing.studies.statistics import bootstrap

NAME = "distillation"
TITLE = "Self-distillation"
PAPER = (
    "Post-training for depth lets text-to-image quality drift; a distance to the frozen text-to-image model, "
    "weighted higher where depth is noise, holds it without costing depth. The weights are not published."
)
LAMBDAS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)
RATIO = 0.1  # lambda_low / lambda_high (ours, as in recipes/lowpoly)
METRICS = {
    "AbsRel image to depth": ABS_REL,
    "δ1": DELTA,
    "FID": "joint.fid",
    "KID": "joint.kid",
    "prompt accuracy": "joint.prompt_accuracy",
    "FID before": "backbone.fid",
    "prompt accuracy before": "backbone.prompt_accuracy",
}
COST_ALLOWED = 0.1
"""Depth may be at most a tenth worse with distillation to count as held (ours)."""


def cells(settings: StudySettings) -> list[Cell]:
    """One arm per weight; the text-to-image model before is measured beside each."""
    found = [baseline(settings)]
    for value in LAMBDAS:
        forcing = {"distill_high": value, "distill_low": RATIO * value}
        measure = {"joint": settings.drift, "backbone": True}
        name = f"lambda-{value:g}".replace(".", "_")
        found += cells_of(settings, Arm(name, {"lambda": value}, forcing=forcing, measure=measure))
    return found


def analyse(rows: Rows, settings: StudySettings) -> Analysis:
    """Drift against depth accuracy over the weight, and the best weight against none."""
    arms = {f"λ {value:g}": rows.where(**{"lambda": value}) for value in LAMBDAS}
    note = (
        f"λ is lambda_high, lambda_low is {RATIO:g} λ. FID and KID compare features of the place classifier "
        "with renders of the captions; before: the text-to-image model that the cell started from, on the "
        "same captions and noise."
    )
    result = Analysis(table_of("Drift and depth", arms, METRICS, note))
    held = {value: rows.where(**{"lambda": value}) for value in LAMBDAS}
    for metric, label in (
        ("joint.fid", "FID"),
        ("joint.prompt_accuracy", "prompt accuracy"),
        (ABS_REL, "AbsRel"),
    ):
        points = [(value, mine.bar(metric)) for value, mine in held.items()]
        result.figures.append(
            Figure(f"{label} by distillation weight", "λ", label, [Series.of(label, points)])
        )
    off = held[0.0]
    drift: Interval | None = None
    pairs = {"after": off.pictures("joint.fid"), "before": off.pictures("backbone.fid")}
    if all(values.size for values in pairs.values()):
        drift = bootstrap(pairs, lambda m: m["after"] - m["before"], settings.bootstrap)
    known = [v for v in LAMBDAS[1:] if held[v].means("joint.fid")]
    best = min(known, key=lambda v: sum(held[v].means("joint.fid")) / len(held[v]), default=None)
    gain = relative_gain(off, held[best], "joint.fid", settings) if best is not None else None
    cost = relative_gain(off, held[best], ABS_REL, settings) if best is not None else None
    result.claims = [
        judge(
            "Without distillation text-to-image quality drifts.",
            "the 95 % interval of FID(after, λ = 0) - FID(before) lies above 0",
            drift,
            "FID rises by",
        ),
        judge(
            "Distillation holds it.",
            "the 95 % interval of 1 - FID(best λ) / FID(λ = 0) lies above 0; only seeds are resampled, and λ "
            "is chosen by the same FID, which favours the claim",
            gain,
            f"share (best λ {best:g})" if best is not None else "",
        ),
        judge(
            "It does not cost depth.",
            f"the 95 % interval of {1 + COST_ALLOWED:g} - AbsRel(best λ) / AbsRel(λ = 0) lies above 0",
            None if cost is None else cost.shifted(COST_ALLOWED),
            "margin",
        ),
    ]
    return result
