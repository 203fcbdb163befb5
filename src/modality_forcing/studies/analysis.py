"""From the numbers of cells to tables, figures and verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from modality_forcing.studies.settings import StudySettings
from modality_forcing.studies.statistics import Interval, bootstrap, mean_and_deviation

AGREES, DISAGREES, UNDECIDED, NOT_MEASURED = "agrees", "disagrees", "undecided", "not measured"
UNTRAINED = "too little trained to say"
SCALE, AFFINE = "scale", "affine"
ABS_REL, DELTA = "depth.abs_rel_scale", "depth.delta1_scale"
"""What cells are compared by: the models predict depth up to scale. :func:`aligned` puts the numbers with a
shift fitted, too, in their place."""


class Rows:
    """Results of cells (the content of their ``result.json``), in the order of the plan."""

    def __init__(self, results: Sequence[Mapping[str, Any]]) -> None:
        self.results = list(results)

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.results)

    def where(self, **coordinates: Any) -> Rows:
        """Those with these coordinates."""
        return Rows(
            [r for r in self.results if all(r["where"].get(key) == v for key, v in coordinates.items())]
        )

    def coordinates(self, key: str) -> list[Any]:
        """Values of a coordinate, each once, in the order of the plan."""
        return list(dict.fromkeys(r["where"][key] for r in self.results if key in r["where"]))

    def fact(self, name: str) -> float:
        """A number that is the same for all of them, such as "parameters"; NaN when no row has it."""
        return float(self.results[0]["facts"].get(name, np.nan)) if self.results else float("nan")

    def means(self, metric: str) -> list[float]:
        """The metric of every row that has it, one number per seed."""
        found = (r["metrics"].get(metric, {}).get("mean") for r in self.results)
        return [float(value) for value in found if value is not None]

    def pictures(self, metric: str) -> np.ndarray:
        """float64 (seeds, pictures); (seeds, 1) for a metric of all pictures together, empty if unknown."""
        rows = [r["pictures"].get(metric) for r in self.results]
        if rows and all(rows) and len({len(row) for row in rows if row}) == 1:
            return np.asarray(rows, dtype=np.float64)
        return np.asarray(self.means(metric), dtype=np.float64).reshape(-1, 1)

    def bar(self, metric: str) -> Interval | None:
        """Mean and a standard deviation over seeds to either side (none for one seed), for figures; None if
        there is nothing. How pictures differ is left out: all cells are measured on the same ones."""
        values = self.means(metric)
        if not values:
            return None
        mean, deviation = mean_and_deviation(values)
        return Interval(mean, mean - (deviation or 0.0), mean + (deviation or 0.0))

    def spread(self, metric: str, digits: int = 4) -> str:
        """ "0.1234 ± 0.0012": mean and standard deviation over seeds; the mean alone for one seed."""
        values = self.means(metric)
        if not values:
            return "-"
        mean, deviation = mean_and_deviation(values)
        return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def aligned(results: Sequence[Mapping[str, Any]], alignment: str) -> Rows:
    """Results as one alignment sees them: SCALE or AFFINE.

    Where image to depth was measured with several numbers of steps ("depth@4.*"), "depth.*" is the one with
    the lowest AbsRel, and the fact "depth_steps" says which. Under AFFINE the numbers of that alignment stand
    under the names of SCALE.
    """
    found = []
    for result in results:
        metrics, pictures, facts = dict(result["metrics"]), dict(result["pictures"]), dict(result["facts"])
        tail = f".abs_rel_{alignment}"
        errors = {
            name[len("depth@") : -len(tail)]: value["mean"]
            for name, value in metrics.items()
            if name.startswith("depth@") and name.endswith(tail) and value["mean"] is not None
        }
        if errors:
            best = min(errors, key=lambda steps: errors[steps])
            facts["depth_steps"] = int(best)
            _copy(metrics, f"depth@{best}.", "", "depth.", "")
            _copy(pictures, f"depth@{best}.", "", "depth.", "")
        if alignment != SCALE:
            _copy(metrics, "", f"_{alignment}", "", f"_{SCALE}")
            _copy(pictures, "", f"_{alignment}", "", f"_{SCALE}")
        found.append({**result, "metrics": metrics, "pictures": pictures, "facts": facts})
    return Rows(found)


def _copy(values: dict[str, Any], prefix: str, suffix: str, new_prefix: str, new_suffix: str) -> None:
    """Every value whose name begins and ends so, also under the name that begins and ends anew."""
    for name in [n for n in values if n.startswith(prefix) and n.endswith(suffix)]:
        middle = name[len(prefix) : len(name) - len(suffix)]
        values[f"{new_prefix}{middle}{new_suffix}"] = values[name]


@dataclass(frozen=True)
class Table:
    """A table of the report: texts only."""

    title: str
    head: Sequence[str]
    lines: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Series:
    """One line of a figure."""

    label: str
    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]

    @classmethod
    def of(cls, label: str, points: Sequence[tuple[float, Interval | None]]) -> Series:
        """From intervals; points without one are left out."""
        known = [(float(x), i) for x, i in points if i is not None]
        return cls(
            label, [x for x, _ in known], [i.value for _, i in known], [i.low for _, i in known],
            [i.high for _, i in known],
        )  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A plot, error bars one standard deviation over seeds; its numbers go into the report as a table.

    Attributes:
        names: of the places on the x axis, for what is no quantity: columns then, and x = 0, 1, ...
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    x_log: bool = False
    y_log: bool = False
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper and what became of it: one of the verdicts above, by a stated rule."""

    text: str
    rule: str
    seen: str
    verdict: str


@dataclass
class Analysis:
    """What a study found."""

    main: Table
    claims: list[Claim] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def judge(text: str, rule: str, effect: Interval | None, name: str) -> Claim:
    """A claim that holds where an effect is positive: it agrees if the whole interval lies above 0, disagrees
    if it lies below, and is undecided if 0 lies inside."""
    if effect is None:
        return Claim(text, rule, "-", NOT_MEASURED)
    return Claim(text, rule, f"{name} {effect.value:.4f}, 95 % {effect.text()}", verdict_of([effect]))


def judge_all(text: str, rule: str, effects: Mapping[str, Interval], name: str) -> Claim:
    """A claim that holds where every effect is positive: one that is surely negative refutes it."""
    if not effects:
        return Claim(text, rule, "-", NOT_MEASURED)
    seen = "; ".join(f"{key}: {effect.value:.4f} ({effect.text()})" for key, effect in effects.items())
    return Claim(text, rule, f"{name}: {seen}", verdict_of(list(effects.values())))


def verdict_of(effects: Sequence[Interval]) -> str:
    """See :func:`judge` and :func:`judge_all`."""
    if any(effect.high < 0 for effect in effects):
        return DISAGREES
    return AGREES if all(effect.low > 0 for effect in effects) else UNDECIDED


def relative_gain(worse: Rows, better: Rows, metric: str, settings: StudySettings) -> Interval | None:
    """1 - mean(better) / mean(worse): the share by which an error falls; None where one is missing."""
    samples = {"worse": worse.pictures(metric), "better": better.pictures(metric)}
    if not all(values.size for values in samples.values()):
        return None
    sides = {"worse": worse, "better": better}
    fixed = [name for name, rows in sides.items() if all(r["settings"]["training"] is None for r in rows)]
    return bootstrap(samples, lambda m: 1.0 - m["better"] / m["worse"], settings.bootstrap, untrained=fixed)


def table_of(
    title: str, arms: Mapping[str, Rows], metrics: Mapping[str, str], note: str = "", digits: int = 4
) -> Table:
    """One line per arm: its name, seeds, parameters, and the metrics by their heading."""
    lines = []
    for name, rows in arms.items():
        if rows:
            trained = np.isfinite(rows.fact("parameters")) and rows.fact("parameters") > 0
            size = f"{rows.fact('parameters'):,.0f}" if trained else "-"
            lines.append([name, str(len(rows)), size, *(rows.spread(m, digits) for m in metrics.values())])
    return Table(title, ["", "seeds", "parameters", *metrics], lines, note)


def by_steps(arms: Mapping[str, Rows], settings: StudySettings) -> Table:
    """Image to depth with every number of steps: how far sampling leads away from the model's mean."""
    metrics = {
        f"{n} step{'s' if n > 1 else ''}": ABS_REL.replace("depth.", f"depth@{n}.", 1)
        for n in settings.depth_steps
    }
    note = "One step gives the model's mean, more give a sample."
    return table_of("AbsRel of image to depth by steps", arms, metrics, note)


def unless_untrained(claims: Sequence[Claim], rows: Rows) -> list[Claim]:
    """The claims, without a verdict where no cell has learned more than the mean depth map of training knows:
    differences between such models are differences between beginnings."""
    baseline = rows.where(arm="baseline mean").means(ABS_REL)
    trained = [
        mean for r in rows if r["settings"]["training"] is not None for mean in Rows([r]).means(ABS_REL)
    ]
    if not baseline or not trained or min(trained) < baseline[0]:
        return list(claims)
    return [claim if claim.verdict == NOT_MEASURED else replace(claim, verdict=UNTRAINED) for claim in claims]


Analyse = Callable[[Rows, StudySettings], Analysis]
