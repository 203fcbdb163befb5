"""The studies by name. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from modality_forcing.errors import UserError
from modality_forcing.studies import distillation, levels, scaling, small, sparsity, trajectory
from modality_forcing.studies.analysis import Analyse
from modality_forcing.studies.cells import Cell
from modality_forcing.studies.settings import SCALES, StudySettings, read_settings

DEFAULT_MODEL = "lowpoly"


@dataclass(frozen=True)
class Study:
    """A question of the paper.

    Attributes:
        name, title, paper: its name, what it is about, and what the paper says.
        plan: settings (and a model, where ``takes_model``) -> cells.
        analyse: rows -> tables, figures, verdicts.
        changes: by scale, settings of the study's own.
        takes_model: it measures a given model and trains none.
    """

    name: str
    title: str
    paper: str
    plan: Callable[..., list[Cell]]
    analyse: Analyse
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    takes_model: bool = False

    def settings(self, scale: str, assignments: list[str]) -> StudySettings:
        """See :func:`studies.settings.read_settings`; the study's own settings stand between both."""
        own = [f"{key}={value}" for key, value in self.changes.get(scale, {}).items()]
        return read_settings(scale, [*own, *assignments])

    def cells(self, settings: StudySettings, model: str = DEFAULT_MODEL) -> list[Cell]:
        """The plan, the cheapest cells that say something first."""
        cells = self.plan(settings, model) if self.takes_model else self.plan(settings)
        assert len({cell.name for cell in cells}) == len(cells)
        return cells


def _study(module: Any, **more: Any) -> Study:
    return Study(module.NAME, module.TITLE, module.PAPER, module.cells, module.analyse, **more)


# The embedded model, which the trajectory study measures by default, works at 128 pixels.
_TRAJECTORY: dict[str, dict[str, Any]] = {scale: {"image_size": 128} for scale in SCALES}
_TRAJECTORY["cpu"]["generated"] = 24
STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        _study(scaling),
        _study(levels, changes={"cpu": {"forcing_steps": 2000}}),
        _study(sparsity),
        _study(distillation),
        _study(trajectory, changes=_TRAJECTORY, takes_model=True),
        _study(small),
    )
}


def find_study(name: str) -> Study:
    """A study by name.

    Raises:
        UserError: there is none; the message lists the known ones.
    """
    if name not in STUDIES:
        raise UserError(f"unknown study {name[:40]!r}; known: {', '.join(STUDIES)}")
    return STUDIES[name]
