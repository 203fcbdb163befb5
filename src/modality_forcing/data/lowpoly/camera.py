"""Where the camera stands: a standpoint, a height, a field of view and a tilt drawn from a place's stage."""

from __future__ import annotations

import math

from modality_forcing.data.lowpoly.scene import Builder, Stage

FOV = (40.0, 90.0)
"""Horizontal field of view in degrees, uniform over this range at every place."""
MAX_ROLL = 9.0
"""Largest camera roll in degrees; most pictures stay within 3."""


def draw_view(b: Builder, stage: Stage, fov: float, target: tuple[float, float, float] | None = None) -> None:
    """Draw a standpoint and look at one of the stage's aims, or at ``target``.

    A narrow field of view stands farther back, so that the place still fits. The draw is kept in
    ``b.view``; everything is in the builder's frame, so mirrored scenes mirror it too.
    """
    narrow = (FOV[1] - fov) / (FOV[1] - FOV[0])
    x0, x1, y0, y1 = stage.stand
    y = y0 + (y1 - y0) * b.u(0, 1) * (1.0 - 0.7 * narrow)
    x = x0 + (x1 - x0) * b.u(0, 1)
    if target is not None:  # close enough to see it well
        y = y1 - (y1 - y0) * 0.5 * b.u(0, 1) * narrow
        x = min(max(target[0] + b.u(-2.5, 2.5), x0), x1)
    indoor = stage.high < 2.2
    style = b.rng.random()
    eye = (min(1.3, stage.high), min(1.9, stage.high))
    if style < (0.5 if indoor else 0.6):
        height = b.u(*eye)
    elif style < 0.75:
        height = b.u(stage.low, eye[0])
    else:
        height = b.u(eye[1] * 0.95, stage.high)
    ax, ay, az, spread = b.pick(stage.aims)
    if target is not None:
        blend = b.u(0.55, 1.0)
        ax, ay, az = (t + (p - t) * (1 - blend) for p, t in zip((ax, ay, az), target, strict=True))
        spread = 0.15
    ax, ay = ax + b.u(-spread, spread), ay + b.u(-spread, spread)
    az += b.u(-0.35, 0.35) if indoor else b.u(-0.08, 0.08) * math.hypot(ax - x, ay - y) * 0.5
    large = b.p(0.12)
    roll = b.u(-1, 1) * (MAX_ROLL if large else 3.0)
    b.look(x, y, stage.under + height, ax, ay, az, fov, roll)
    b.facts["under"] = stage.under
