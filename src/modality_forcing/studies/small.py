"""Choices that the paper leaves open: density of t_depth, depth-only layers, mixing of levels, freezing."""

from __future__ import annotations

from modality_forcing.studies.analysis import (
    ABS_REL,
    DELTA,
    Analysis,
    Figure,
    Rows,
    Series,
    judge,
    relative_gain,
    table_of,
)
from modality_forcing.studies.cells import Arm, Cell, baseline, cells_of
from modality_forcing.studies.settings import StudySettings

NAME = "small"
TITLE = "Plateau density, depth-only layers, cross-stream mixing, freezing"
PAPER = (
    "The paper uses a plateau density of t_depth, four depth-only blocks, cross-stream mixing in the second "
    "variant, and frozen RGB weights in the double blocks, without comparing each alone."
)
LAYERS = (0, 1, 2, 4)
METRICS = {
    "AbsRel image to depth": ABS_REL,
    "δ1": DELTA,
    "AbsRel joint": "joint.abs_rel_scale",
    "FID": "joint.fid",
    "prompt accuracy": "joint.prompt_accuracy",
}
LABELS = {
    "base": "base",
    "logit-normal": "logit-normal density of t_depth",
    "no-mixing": "no cross-stream mixing",
    "frozen": "RGB weights of the double blocks frozen",
}


def cells(settings: StudySettings) -> list[Cell]:
    """The base once, and one change at a time."""
    measure = {"joint": settings.generated}
    arms = [
        Arm("base", {"arm": "base"}, measure=measure),
        Arm("logit-normal", {"arm": "logit-normal"}, {"depth_density": "logit_normal"}, measure=measure),
        Arm("no-mixing", {"arm": "no-mixing"}, transformer={"cross_stream_mixing": False}, measure=measure),
        Arm("frozen", {"arm": "frozen"}, freeze=("rgb_double_blocks",), measure=measure),
    ]
    for layers in LAYERS:
        if layers != settings.depth_blocks:
            where = {"arm": f"layers-{layers}"}
            arms.append(
                Arm(f"layers-{layers}", where, transformer={"num_depth_blocks": layers}, measure=measure)
            )
    found = [baseline(settings)]
    for arm in arms:
        found += cells_of(settings, arm)
    return found


def analyse(rows: Rows, settings: StudySettings) -> Analysis:
    """Each change against the base."""
    base = rows.where(arm="base")
    layers = {
        n: base if n == settings.depth_blocks else rows.where(arm=f"layers-{n}")
        for n in sorted({*LAYERS, settings.depth_blocks})
    }
    arms = {label: rows.where(arm=name) for name, label in LABELS.items()}
    arms |= {f"{n} depth-only blocks": mine for n, mine in layers.items() if n != settings.depth_blocks}
    arms["mean training depth"] = rows.where(arm="baseline mean")
    note = f"Depth-only blocks of the base: {settings.depth_blocks}. Other depths also differ in parameters."
    result = Analysis(table_of("One change at a time", arms, METRICS, note))
    points = [(n, mine.bar(ABS_REL)) for n, mine in layers.items()]
    result.figures.append(
        Figure("AbsRel by depth-only blocks", "depth-only blocks", "AbsRel", [Series.of("AbsRel", points)])
    )
    rule = "the 95 % interval of 1 - AbsRel(with) / AbsRel(without) lies above 0"
    for text, without, with_ in (
        ("The plateau density makes image to depth better.", rows.where(arm="logit-normal"), base),
        ("Cross-stream mixing makes image to depth better.", rows.where(arm="no-mixing"), base),
        ("Depth-only blocks make image to depth better (most against none).", layers[0], layers[max(layers)]),
        ("Freezing costs no depth.", base, rows.where(arm="frozen")),
    ):
        result.claims.append(judge(text, rule, relative_gain(without, with_, ABS_REL, settings), "share"))
    return result
