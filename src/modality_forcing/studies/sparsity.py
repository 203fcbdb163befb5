"""Sparse supervision: how few measured pixels are enough, what fills the holes, pixels against codes."""

from __future__ import annotations

from modality_forcing.config import SensorConfig
from modality_forcing.studies.analysis import (
    ABS_REL,
    DELTA,
    Analysis,
    Figure,
    Interval,
    Rows,
    Series,
    by_steps,
    judge,
    judge_all,
    relative_gain,
    table_of,
)
from modality_forcing.studies.cells import Arm, Cell, baseline, cells_of
from modality_forcing.studies.settings import StudySettings

NAME = "sparsity"
TITLE = "Sparse supervision"
PAPER = (
    "Depth in pixel space can be learned from sparse measurements: missing pixels are filled with Gaussian "
    "noise and left out of the loss. A per-modality decoder beats depth coded by the image autoencoder, "
    "which needs dense maps."
)
DENSITIES = (0.002, 0.01, 0.05, 0.25, 1.0)
LATENT_DENSITIES = (0.05, 1.0)
ONLY_DEPTH = {"p_i2d": 1.0, "p_d2i": 0.0}
"""Supervision is what is compared: every sample of the forcing stage is image to depth."""
ENOUGH = 0.05
LOSS_ALLOWED = 0.25
"""5 % is enough if AbsRel is at most a quarter above that of dense depth (ours: the paper has no number)."""


def _sensor(kind: str, density: float) -> tuple[SensorConfig, ...]:
    return (SensorConfig("dense" if density == 1.0 else kind, 1.0, density, density),)


def cells(settings: StudySettings) -> list[Cell]:
    """Dense depth has neither holes nor a pattern, so it stands once, under "random" and "noise"."""
    found = [baseline(settings), baseline(settings, "coding")]
    for density in DENSITIES:
        for kind, fill, coding in (
            ("random", "noise", "pixels"), ("random", "zero", "pixels"), ("lidar", "noise", "pixels"),
            ("random", "noise", "latent"),
        ):  # fmt: skip
            dense = density == 1.0
            if (dense and (kind, fill) != ("random", "noise")) or (
                coding == "latent" and density not in LATENT_DENSITIES
            ):
                continue
            name = "-".join([kind, fill, coding, f"{100 * density:g}".replace(".", "_")])
            where = {"sensor": kind, "fill": fill, "coding": coding, "density": density}
            arm = Arm(
                name, where, forcing={**ONLY_DEPTH, "fill": fill, "depth_coding": coding},
                sensors=_sensor(kind, density),
                measure={"latent_depth": coding == "latent"},
            )  # fmt: skip
            found += cells_of(settings, arm)
    return found


def analyse(rows: Rows, settings: StudySettings) -> Analysis:
    """AbsRel against the share of measured pixels for every arm, and the three comparisons."""

    def of(sensor: str, fill: str, coding: str, density: float) -> Rows:
        return rows.where(sensor=sensor, fill=fill, coding=coding, density=density)

    kinds = {
        "random, noise fill": ("random", "noise", "pixels"),
        "random, zero fill": ("random", "zero", "pixels"),
        "LiDAR, noise fill": ("lidar", "noise", "pixels"),
        "autoencoder's code, nearest fill": ("random", "noise", "latent"),
    }
    arms = {
        f"{label}, {100 * density:g} %": of(*key, density)
        for label, key in kinds.items()
        for density in DENSITIES
    }
    baselines = {
        "mean training depth": rows.where(arm="baseline mean"),
        "true depth through the autoencoder": rows.where(arm="baseline coding"),
    }
    metrics = {
        "AbsRel": ABS_REL,
        "δ1": DELTA,
        "AbsRel affine": "depth.abs_rel_affine",
        "F1 edges": "depth.boundary_f1_scale",
    }
    note = "The share is that of all pixels. Every sample of the forcing stage is image to depth (p_i2d = 1)."
    reached = {
        label: mine.fact("measured_share") for label, mine in arms.items() if "LiDAR" in label and mine
    }
    if reached:
        found = ", ".join(
            f"{label.rpartition(', ')[2]}: {100 * share:.2g} %" for label, share in reached.items()
        )
        note += f" LiDAR reports what its pattern reaches ({found})."
    result = Analysis(table_of("Image to depth by supervision", {**arms, **baselines}, metrics, note))
    result.tables.append(by_steps(arms, settings))
    result.figures.append(
        Figure(
            "AbsRel by measured pixels", "share of measured pixels", "AbsRel (scale fitted)",
            [
                Series.of(label, [(d, of(*key, d).bar(ABS_REL)) for d in DENSITIES])
                for label, key in kinds.items()
            ],
            x_log=True,
        )
    )  # fmt: skip
    noise = ("random", "noise", "pixels")
    dense = of(*noise, 1.0)
    loss = relative_gain(dense, of(*noise, ENOUGH), ABS_REL, settings)  # negative: sparse is worse
    over_mean = relative_gain(rows.where(arm="baseline mean"), of(*noise, DENSITIES[0]), ABS_REL, settings)
    fills: dict[str, Interval] = {}
    for density in DENSITIES[:-1]:
        gain = relative_gain(of("random", "zero", "pixels", density), of(*noise, density), ABS_REL, settings)
        if gain is not None:
            fills[f"{100 * density:g} %"] = gain
    result.claims = [
        judge(
            f"Sparse measurements are enough: {100 * ENOUGH:g} % of the pixels.",
            f"the 95 % interval of {1 + LOSS_ALLOWED:g} - AbsRel({100 * ENOUGH:g} %) / AbsRel(dense) lies "
            "above 0",
            None if loss is None else loss.shifted(LOSS_ALLOWED),
            "margin",
        ),
        judge(
            f"Even {100 * DENSITIES[0]:g} % of the pixels teach more than the mean depth map knows.",
            "the 95 % interval of 1 - AbsRel(model) / AbsRel(mean map) lies above 0",
            over_mean,
            "share",
        ),
        judge_all(
            "Noise is the better fill at every density.",
            "at every density the 95 % interval of 1 - AbsRel(noise) / AbsRel(zero) lies above 0",
            fills,
            "share",
        ),
    ]
    for density in LATENT_DENSITIES:
        result.claims.append(
            judge(
                f"The per-modality decoder beats the autoencoder's code at {100 * density:g} %.",
                "the 95 % interval of 1 - AbsRel(pixels) / AbsRel(code) lies above 0",
                relative_gain(
                    of("random", "noise", "latent", density), of(*noise, density), ABS_REL, settings
                ),
                "share",
            )
        )
    return result
