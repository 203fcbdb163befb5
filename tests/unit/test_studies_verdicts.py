"""Statistics, verdicts and reports of the studies, on numbers made up; nothing is trained here."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from modality_forcing.studies import plan
from modality_forcing.studies.analysis import (
    ABS_REL,
    AFFINE,
    AGREES,
    DELTA,
    DISAGREES,
    NOT_MEASURED,
    SCALE,
    UNDECIDED,
    UNTRAINED,
    Claim,
    Figure,
    Rows,
    Series,
    aligned,
    judge,
    judge_all,
    relative_gain,
    unless_untrained,
)
from modality_forcing.studies.registry import STUDIES
from modality_forcing.studies.report import draw, write_report, write_rows
from modality_forcing.studies.settings import TOY
from modality_forcing.studies.statistics import (
    Interval,
    bootstrap,
    fit_line,
    mean_and_deviation,
    spread_over_seeds,
)

FAST = replace(TOY, bootstrap=100)


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(100):
        values = rng.normal(3.0, 1.0, (1, 60))
        found = bootstrap({0: values}, lambda m: m[0], 200, seed)
        assert found.value == pytest.approx(values.mean())
        hits += found.low <= 3.0 <= found.high
    assert 87 <= hits <= 100


def test_pairs_are_drawn_together():
    """What is common to two arms, here how hard a picture is, does not widen their difference."""
    rng = np.random.default_rng(1)
    hard = rng.normal(0, 1.0, (1, 50))
    first = 5 + hard + rng.normal(0, 0.05, (3, 50))
    second = 4.9 + hard + rng.normal(0, 0.05, (3, 50))
    found = bootstrap({"a": first, "b": second}, lambda m: m["a"] - m["b"], 500)
    alone = bootstrap({"a": first}, lambda m: m["a"], 500)
    assert found.low > 0
    assert found.high - found.low < 0.2 * (alone.high - alone.low)


def test_seeds_widen_an_interval():
    rng = np.random.default_rng(2)
    pictures = rng.normal(0, 0.01, (3, 40))
    narrow = bootstrap({0: pictures}, lambda m: m[0], 300)
    wide = bootstrap({0: pictures + np.array([[0.0], [0.5], [1.0]])}, lambda m: m[0], 300)
    assert wide.high - wide.low > 10 * (narrow.high - narrow.low)


def test_a_power_law_is_found_exactly():
    sizes = [1e5, 3e5, 1e6, 3e6]
    slope, intercept = fit_line([math.log(n) for n in sizes], [math.log(2.0 * n**-0.25) for n in sizes])
    assert slope == pytest.approx(-0.25)
    assert math.exp(intercept) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="two different x"):
        fit_line([1.0, 1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="at least one"):
        bootstrap({0: np.zeros((0, 3))}, lambda m: m[0])
    assert mean_and_deviation([2.0]) == (2.0, None)
    assert mean_and_deviation([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))


def test_a_cell_with_one_seed_borrows_the_spread_of_others():
    pictures = np.ones(50)
    three = np.stack([pictures * f for f in (0.9, 1.0, 1.1)])
    alone = pictures[None] * 2.0
    expected = float(np.std(np.log([0.9, 1.0, 1.1]), ddof=1))
    assert spread_over_seeds([three, alone]) == pytest.approx(expected)
    found = bootstrap({"three": three, "alone": alone}, lambda m: math.log(m["alone"]), count=4000)
    assert found.value == pytest.approx(math.log(2.0))
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * expected, rel=0.1)
    fixed = bootstrap({0: three, 1: alone}, lambda m: m[1], count=100, untrained=[1])
    assert (fixed.low, fixed.high) == pytest.approx((2.0, 2.0))
    # Nobody to borrow from, and numbers that have no logarithm: only pictures vary.
    assert spread_over_seeds([alone]) == 0.0 and spread_over_seeds([three - 0.95]) == 0.0
    still = bootstrap({"alone": alone}, lambda m: m["alone"], count=100)
    assert (still.low, still.high) == pytest.approx((2.0, 2.0))


def test_verdicts():
    above, below, across = Interval(0.2, 0.1, 0.3), Interval(-0.2, -0.3, -0.1), Interval(0.0, -0.1, 0.1)
    assert judge("", "", above, "x").verdict == AGREES
    assert judge("", "", below, "x").verdict == DISAGREES
    assert judge("", "", across, "x").verdict == UNDECIDED
    assert judge("", "", None, "x").verdict == NOT_MEASURED
    assert judge("", "", above, "gain").seen == "gain 0.2000, 95 % 0.1000 to 0.3000"
    assert judge_all("", "", {"a": above, "b": above}, "x").verdict == AGREES
    assert judge_all("", "", {"a": above, "b": across}, "x").verdict == UNDECIDED
    assert judge_all("", "", {"a": across, "b": below}, "x").verdict == DISAGREES
    assert judge_all("", "", {}, "x").verdict == NOT_MEASURED


def result(
    name: str, where: dict, value: float, seed: int = 0, trained: bool = True, **metrics: float
) -> dict:
    """A cell's result with an error in image to depth that varies a little from picture to picture."""
    pictures = {ABS_REL: [value * (1 + 0.01 * (i % 5 - 2)) for i in range(20)]}
    means = {ABS_REL: value, DELTA: 1 - value, **metrics}
    return {
        "name": name, "where": where, "seed": seed, "settings": {"training": {} if trained else None},
        "versions": {"torch": "0"}, "pictures": pictures,
        "facts": {"parameters": 10, "trainable": 10, "forcing_flops": 1e12, "text_to_image_flops": 0.0},
        "metrics": {key: {"mean": mean, "error": None, "count": 20} for key, mean in means.items()},
    }  # fmt: skip


MEAN = result("baseline-mean", {"arm": "baseline mean"}, 0.3, trained=False)


def test_no_verdict_on_models_that_know_less_than_the_mean_depth():
    claims = [Claim("", "", "", AGREES), Claim("", "", "", NOT_MEASURED)]
    dull, good = result("a", {}, 0.4), result("b", {}, 0.2)
    assert [c.verdict for c in unless_untrained(claims, Rows([MEAN, dull]))] == [UNTRAINED, NOT_MEASURED]
    assert [c.verdict for c in unless_untrained(claims, Rows([MEAN, dull, good]))] == [AGREES, NOT_MEASURED]
    assert unless_untrained(claims, Rows([dull])) == claims


def test_every_alignment_sees_its_best_number_of_steps():
    pictures = {f"depth@{n}.abs_rel_{a}": [0.1 * n, 0.2] for n in (1, 8) for a in ("scale", "affine")}
    means = {
        "depth@1.abs_rel_scale": 0.2, "depth@8.abs_rel_scale": 0.3,
        "depth@1.abs_rel_affine": 0.25, "depth@8.abs_rel_affine": 0.15,
        "depth@1.delta1_affine": 0.6, "depth@8.delta1_affine": 0.7,
        "joint.abs_rel_scale": 0.5, "joint.abs_rel_affine": 0.4, "joint.fid": 7.0,
    }  # fmt: skip
    given = result("a", {}, 0.9)
    del given["pictures"][ABS_REL], given["metrics"][ABS_REL], given["metrics"][DELTA]
    given["pictures"] |= pictures
    given["metrics"] |= {name: {"mean": mean, "error": None, "count": 2} for name, mean in means.items()}
    scale, affine = aligned([given], SCALE), aligned([given], AFFINE)
    assert (scale.means(ABS_REL), scale.fact("depth_steps")) == ([0.2], 1)
    assert scale.means("joint.abs_rel_scale") == [0.5] and scale.means("depth.abs_rel_affine") == [0.25]
    assert scale.pictures(ABS_REL).tolist() == [[0.1, 0.2]]
    assert (affine.means(ABS_REL), affine.fact("depth_steps")) == ([0.15], 8)
    assert affine.means("joint.abs_rel_scale") == [0.4] and affine.means("joint.fid") == [7.0]
    assert affine.means(DELTA) == [0.7] and affine.pictures(ABS_REL).tolist() == [[0.8, 0.2]]
    # What was measured with one number of steps stays as it is.
    plain = result("b", {}, 0.3)
    assert aligned([plain], SCALE).means(ABS_REL) == [0.3]
    assert "depth.abs_rel_scale" not in given["metrics"]  # nothing is changed in place


def test_a_relative_gain():
    rows = Rows([result("a", {"arm": "a"}, 0.4), result("b", {"arm": "b"}, 0.3)])
    gain = relative_gain(rows.where(arm="a"), rows.where(arm="b"), ABS_REL, FAST)
    assert gain.value == pytest.approx(0.25)
    assert gain.low == pytest.approx(0.25) and gain.high == pytest.approx(0.25)  # pictures are paired
    assert relative_gain(rows.where(arm="c"), rows, ABS_REL, FAST) is None


def scaled(exponents: dict[int, float]) -> list[dict]:
    """Results of a scaling study with these exponents by budget; scratch is a third worse at the smallest."""
    found = [MEAN]
    for cell in STUDIES["scaling"].cells(FAST):
        if cell.config is None:
            continue
        width, budget = cell.where["width"], cell.where["t2i_steps"]
        size = plan.facts(cell)["parameters"]
        value = (0.2 if budget else 0.25) * (size / 20_000) ** -exponents[budget]
        found.append(result(cell.name, cell.where, value, cell.seed))
        found[-1]["facts"]["parameters"] = size
        assert width
    return found


@pytest.mark.parametrize(
    ("exponents", "verdicts"),
    [
        ((0.05, 0.2, 0.2, 0.2), [AGREES, AGREES, AGREES]),
        ((0.5, 0.1, 0.1, 0.1), [DISAGREES, AGREES, DISAGREES]),
        ((0.1, -0.1, -0.1, -0.1), [DISAGREES, DISAGREES, DISAGREES]),
    ],
)
def test_the_scaling_study_finds_what_is_there(exponents, verdicts):
    by_budget = dict(zip(FAST.t2i_budgets, exponents, strict=True))
    analysis = STUDIES["scaling"].analyse(Rows(scaled(by_budget)), FAST)
    assert [claim.verdict for claim in analysis.claims] == verdicts
    law = next(table for table in analysis.tables if table.title == "Power law in size")
    assert [float(line[1]) for line in law.lines] == pytest.approx(list(exponents), abs=2e-3)


@pytest.mark.parametrize("name", STUDIES)
def test_a_report_of_every_study_whatever_is_missing(name, tmp_path):
    """No cell, one cell, all cells; every number of a figure is in a table."""
    study = STUDIES[name]
    cells = study.cells(FAST)
    rng = np.random.default_rng(0)
    generated = ("joint", "control", "backbone")
    extra = {
        f"{task}.{m}": 1.5 for task in generated for m in ("fid", "kid", "prompt_accuracy", "abs_rel_scale")
    }
    results = []
    for cell in cells:
        trained = cell.config is not None
        value = 0.3 if not trained else float(rng.uniform(0.1, 0.2))
        results.append(result(cell.name, cell.where, value, cell.seed, trained, **extra))
        results[-1]["facts"] = {**plan.facts(cell), "measured_share": 0.1}
    for some in ([], results[:1], results[: len(results) // 2], results):
        folder = tmp_path / str(len(some))
        path = write_report(folder, study, "toy", FAST, cells, some, "mf study ...")
        text = path.read_text()
        assert text.startswith(f"# {study.title}\n")
        assert "## Verdicts" in text and f"{len(some)} of {len(cells)} cells" in text
        for picture in sorted((folder / "figures").glob("*.png")) if some else []:
            assert f"figures/{picture.name}" in text
    assert NOT_MEASURED not in text.partition("## Verdicts")[2].partition("##")[0] or name == "trajectory"
    rows = json.loads(write_rows(tmp_path, study, "toy", FAST, results).read_text())
    assert [row["name"] for row in rows["cells"]] == [cell.name for cell in cells]
    assert all("pictures" not in row for row in rows["cells"])


def test_a_figure_without_points_is_not_drawn(tmp_path):
    empty = Figure("nothing", "x", "y", [Series("a", [], [], [], [])])
    assert draw(tmp_path, empty, "toy") is None
    pytest.importorskip("matplotlib")
    full = Figure("one", "x", "y", [Series("a", [1.0], [2.0], [1.5], [2.5])], x_log=True)
    assert draw(tmp_path, full, "toy") == tmp_path / "toy-one.png"
    assert (tmp_path / "toy-one.png").read_bytes().startswith(b"\x89PNG")
