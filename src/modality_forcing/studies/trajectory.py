"""Trajectory: tilt, number of steps and order of the solver, on a given model; nothing is trained."""

from __future__ import annotations

from modality_forcing.studies.analysis import (
    ABS_REL,
    Analysis,
    Figure,
    Rows,
    Series,
    Table,
    judge,
    relative_gain,
    table_of,
)
from modality_forcing.studies.cells import Cell, measure_of
from modality_forcing.studies.settings import StudySettings

NAME = "trajectory"
TITLE = "Trajectory: tilt, steps and solver"
PAPER = (
    "Joint sampling follows t_depth = f_α(t_rgb); log2 α = 5, image first, is the default and gives cleaner "
    "depth. 50 Euler steps are the default."
)
DEPTH, JOINT = ABS_REL, "joint.abs_rel_scale"
CLOSE = 1.02
"""A number of steps is good enough when its error is at most 2 % above that of the most (ours)."""


def cells(settings: StudySettings, model: str = "lowpoly") -> list[Cell]:
    """Both sweeps; every seed draws other noise. Heun calls the model twice per step."""
    found = []
    for seed in range(settings.seeds):
        for alpha in settings.alphas:
            where = {"sweep": "alpha", "log2_alpha": alpha, "steps": settings.alpha_steps, "solver": "euler"}
            measure = measure_of(
                settings, depth=0, depth_steps=(), joint=settings.generated, log2_alpha=alpha,
                steps=settings.alpha_steps,
            )  # fmt: skip
            name = f"alpha{alpha:+g}-seed{seed}".replace(".", "_")
            found.append(Cell(name, where, seed, measure, model=model))
        for solver, counts in (("euler", settings.euler_steps), ("heun", settings.heun_steps)):
            for steps in counts:
                where = {"sweep": "steps", "solver": solver, "steps": steps}
                measure = measure_of(
                    settings, depth=settings.generated, depth_steps=(), joint=settings.generated, steps=steps,
                    solver=solver,
                )  # fmt: skip
                found.append(Cell(f"{solver}{steps}-seed{seed}", where, seed, measure, model=model))
    return found


def calls(solver: str, steps: int) -> int:
    """Model calls of one picture: Heun needs two per step but for the last, which ends at 0."""
    return 2 * steps - 1 if solver == "heun" else steps


def analyse(rows: Rows, settings: StudySettings) -> Analysis:
    """Error over tilt and over model calls; what a user should choose."""
    tilts = rows.where(sweep="alpha")
    alphas = tilts.coordinates("log2_alpha")
    arms = {f"log2 α = {alpha:g}": tilts.where(log2_alpha=alpha) for alpha in alphas}
    head = {"AbsRel joint": JOINT, "affine": "joint.abs_rel_affine", "δ1 joint": "joint.delta1_scale",
            "prompt accuracy": "joint.prompt_accuracy", "FID": "joint.fid"}  # fmt: skip
    note = (
        "AbsRel joint: generated depth against what the embedded model estimates from the generated picture."
    )
    steps = f"{settings.alpha_steps} Euler steps"
    result = Analysis(table_of(f"Tilt, {steps}", arms, head, note))
    for metric, label in ((JOINT, "AbsRel"), ("joint.fid", "FID")):
        points = [(alpha, tilts.where(log2_alpha=alpha).bar(metric)) for alpha in alphas]
        result.figures.append(Figure(f"{label} by tilt", "log2 α", label, [Series.of(steps, points)]))

    solved = rows.where(sweep="steps")
    by_solver = {"euler": settings.euler_steps, "heun": settings.heun_steps}
    arms = {
        f"{solver} {n} ({calls(solver, n)} calls)": solved.where(solver=solver, steps=n)
        for solver, counts in by_solver.items()
        for n in counts
    }
    head = {"AbsRel image to depth": DEPTH, "affine": "depth.abs_rel_affine", "AbsRel joint": JOINT,
            "joint affine": "joint.abs_rel_affine", "prompt accuracy": "joint.prompt_accuracy",
            "FID": "joint.fid"}  # fmt: skip
    result.tables.append(table_of("Steps and solver", arms, head))
    for metric, label in ((DEPTH, "AbsRel image to depth"), (JOINT, "AbsRel joint"), ("joint.fid", "FID")):
        series = [
            Series.of(
                solver,
                [(calls(solver, n), solved.where(solver=solver, steps=n).bar(metric)) for n in counts],
            )
            for solver, counts in by_solver.items()
        ]
        result.figures.append(Figure(f"{label} by model calls", "model calls", label, series, x_log=True))

    low, high = tilts.where(log2_alpha=min(alphas, default=0)), tilts.where(log2_alpha=max(alphas, default=0))
    result.claims.append(
        judge(
            "Image first (largest α) gives depth that fits the picture better than depth first (smallest).",
            "the 95 % interval of 1 - AbsRel(largest α) / AbsRel(smallest α) lies above 0",
            relative_gain(low, high, JOINT, settings) if len(alphas) > 1 else None,
            "share",
        )
    )
    diagonal = tilts.where(log2_alpha=0.0)
    result.claims.append(
        judge(
            "Image first is better than the diagonal.",
            "the 95 % interval of 1 - AbsRel(largest α) / AbsRel(α = 1) lies above 0",
            relative_gain(diagonal, high, JOINT, settings) if diagonal else None,
            "share",
        )
    )
    pairs = [
        (solved.where(solver="euler", steps=2 * n), solved.where(solver="heun", steps=n), n)
        for n in settings.heun_steps
        if 2 * n in settings.euler_steps
    ]
    for euler, heun, n in pairs[1:2] or pairs[:1]:
        result.claims.append(
            judge(
                f"Heun with {n} steps beats Euler with {2 * n} in image to depth (a question of ours).",
                "the 95 % interval of 1 - AbsRel(Heun) / AbsRel(Euler) lies above 0",
                relative_gain(euler, heun, DEPTH, settings),
                "share",
            )
        )
    result.tables.append(_advice(solved, tilts, by_solver))
    return result


def _advice(solved: Rows, tilts: Rows, by_solver: dict[str, tuple[int, ...]]) -> Table:
    """The fewest calls that are close to the best, by what is wanted."""
    lines = []
    for metric, label in (
        (DEPTH, "image to depth: AbsRel"),
        (JOINT, "joint: AbsRel"),
        ("joint.fid", "joint: FID"),
    ):
        found = [
            (calls(solver, n), solver, n, sum(values) / len(values))
            for solver, counts in by_solver.items()
            for n in counts
            if (values := solved.where(solver=solver, steps=n).means(metric))
        ]
        if found:
            best = min(value for *_, value in found)
            count, solver, n, value = min(row for row in found if row[3] <= CLOSE * best)
            lines.append(
                [
                    label,
                    f"{solver}, {n} step{'s' if n > 1 else ''}",
                    str(count),
                    f"{value:.4f}",
                    f"{best:.4f}",
                ]
            )
    by_alpha = [
        (sum(values) / len(values), alpha)
        for alpha in tilts.coordinates("log2_alpha")
        if (values := tilts.where(log2_alpha=alpha).means(JOINT))
    ]
    note = f"The fewest model calls whose mean is within {100 * (CLOSE - 1):.0f} % of the best of all."
    if by_alpha:
        note += f" Lowest AbsRel joint over the tilt: log2 α = {min(by_alpha)[1]:g}."
    return Table("What to choose", ["for", "choose", "calls", "mean", "best"], lines, note)
