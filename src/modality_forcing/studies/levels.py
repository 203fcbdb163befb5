"""Noise levels: one per modality against one that both share, at the same compute."""

from __future__ import annotations

from modality_forcing.studies.analysis import (
    ABS_REL,
    DELTA,
    Analysis,
    Figure,
    Rows,
    Series,
    by_steps,
    judge,
    relative_gain,
    table_of,
)
from modality_forcing.studies.cells import Arm, Cell, baseline, cells_of
from modality_forcing.studies.settings import StudySettings

NAME = "levels"
TITLE = "Separate noise levels against one shared level"
PAPER = (
    "A noise level per modality gives one model for all tasks: mean AbsRel 0.0319 against 0.0746 of the best "
    "earlier joint generator, 57 % lower. (Those models differ in much else; here nothing else differs.)"
)
ARMS = {
    "separate": "separate levels",
    "shared": "shared level, plateau density",
    "shared-logit": "shared level, logit-normal density",
}
METRICS = {
    "AbsRel image to depth": ABS_REL,
    "δ1 image to depth": DELTA,
    "AbsRel depth to image": "control.abs_rel_scale",
    "AbsRel joint": "joint.abs_rel_scale",
    "prompt accuracy": "joint.prompt_accuracy",
    "FID joint": "joint.fid",
    "FID depth to image": "control.fid",
}


def cells(settings: StudySettings) -> list[Cell]:
    """Three kinds of training; every task is measured of each."""
    measure = {"joint": settings.generated, "control": settings.generated}
    shared = {"shared_level": True, "p_i2d": 0.0, "p_d2i": 0.0}
    found = [baseline(settings)]
    for arm in (
        Arm("separate", {"arm": "separate"}, measure=measure),
        Arm("shared", {"arm": "shared"}, forcing=shared, measure={**measure, "shared_level": True}),
        Arm(
            "shared-logit", {"arm": "shared-logit"}, forcing={**shared, "depth_density": "logit_normal"},
            measure={**measure, "shared_level": True},
        ),
    ):  # fmt: skip
        found += cells_of(settings, arm)
    return found


def analyse(rows: Rows, settings: StudySettings) -> Analysis:
    """AbsRel of every task, and how much lower it is with separate levels than with the better shared one."""
    arms = {label: rows.where(arm=name) for name, label in ARMS.items()}
    note = (
        "A model with one shared level is conditioned by replacement: at every step the given modality is "
        "its true value at the current level. Depth of generated pictures is estimated by the embedded "
        "model, the same for all; for depth to image AbsRel compares it with the given depth, for joint "
        "with the generated depth."
    )
    arms_and_mean = {**arms, "mean training depth": rows.where(arm="baseline mean")}
    result = Analysis(table_of("Tasks", arms_and_mean, METRICS, note))
    result.tables.append(by_steps(arms, settings))
    tasks = {
        "image to depth": ABS_REL,
        "depth to image": "control.abs_rel_scale",
        "joint": "joint.abs_rel_scale",
    }
    result.figures.append(
        Figure(
            "AbsRel by task", "task", "AbsRel (scale fitted)",
            [
                Series.of(label, [(i, mine.bar(m)) for i, m in enumerate(tasks.values())])
                for label, mine in arms.items()
            ],
            names=tuple(tasks),
        )
    )  # fmt: skip
    shared = [(name, rows.where(arm=name)) for name in ("shared", "shared-logit")]
    for task, metric in tasks.items():
        known = [(name, mine) for name, mine in shared if mine.means(metric)]
        # Against the better of the two: the claim is about levels, not about a density chosen badly.
        best = min(known, key=lambda pair: sum(pair[1].means(metric)) / len(pair[1]), default=None)
        gain = relative_gain(best[1], rows.where(arm="separate"), metric, settings) if best else None
        name = f"AbsRel is lower by the share (against {ARMS[best[0]]})" if best else ""
        result.claims.append(
            judge(
                f"Separate levels are better in {task}.",
                "the 95 % interval of 1 - AbsRel(separate) / AbsRel(better of the shared ones) lies above 0",
                gain,
                name,
            )
        )
    return result
