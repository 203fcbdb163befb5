"""Plans, estimates, statistics and verdicts of the studies; nothing is trained here."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from modality_forcing.config import TrainConfig, from_dict, to_dict
from modality_forcing.errors import UserError
from modality_forcing.studies import plan, sparsity
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
from modality_forcing.studies.plan import CELL, DATA, ENCODE, START, Job
from modality_forcing.studies.registry import STUDIES, find_study
from modality_forcing.studies.report import draw, write_report, write_rows
from modality_forcing.studies.runner import State, run_jobs
from modality_forcing.studies.settings import SCALES, TOY, model_config, read_settings, train_config
from modality_forcing.studies.statistics import (
    Interval,
    bootstrap,
    fit_line,
    mean_and_deviation,
    spread_over_seeds,
)
from modality_forcing.studies.trajectory import calls
from modality_forcing.studies.work import Place, is_done, read_result

FAST = replace(TOY, bootstrap=100)


# -- plans -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", STUDIES)
def test_every_plan_is_whole(name, scale):
    study = STUDIES[name]
    settings = study.settings(scale, [])
    cells = study.cells(settings)
    assert len({cell.name for cell in cells}) == len(cells)
    assert all(len({len(f"{cell.name}"), 0}) == 2 and "/" not in cell.name for cell in cells)
    # Three seeds for every cell at the smallest size.
    for where in {json.dumps(cell.where, sort_keys=True) for cell in cells}:
        mine = [cell for cell in cells if json.dumps(cell.where, sort_keys=True) == where]
        smallest = mine[0].where.get("width", settings.widths[0]) == settings.widths[0]
        if not where.count("baseline") and smallest:
            assert sorted(cell.seed for cell in mine) == [0, 1, 2], where
    for cell in cells:
        if cell.config is not None:
            assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(cell.config)))) == cell.config
            assert cell.config.steps == settings.forcing_steps  # the same compute for all


def test_the_scaling_plan_has_four_sizes_and_four_budgets():
    cells = STUDIES["scaling"].cells(SCALES["cpu"])
    trained = [cell for cell in cells if cell.config is not None]
    assert len({cell.where["width"] for cell in trained}) >= 4
    budgets = {cell.where["t2i_steps"] for cell in trained}
    assert len(budgets) >= 4 and 0 in budgets
    assert all((cell.start is None) == (cell.where["t2i_steps"] == 0) for cell in trained)
    assert {cell.config.model.transformer.family for cell in trained} == {"flat"}


def test_shared_work_is_done_once_and_before_it_is_needed():
    settings = SCALES["cpu"]
    cells = STUDIES["scaling"].cells(settings)
    jobs = plan.make_jobs(cells, settings)
    seen: set[str] = set()
    for job in jobs:
        assert set(job.needs) <= seen, job.name
        seen.add(job.name)
    assert len(seen) == len(jobs)
    kinds = [job.kind for job in jobs]
    assert kinds.count(DATA) == 2 and kinds.count(ENCODE) == 1
    # One text-to-image run per size and seed, left at each budget.
    starts = [job for job in jobs if job.kind == START]
    assert len(starts) == settings.seeds + settings.more_seeds * (len(settings.widths) - 1)
    assert all(job.steps == settings.t2i_budgets[1:] for job in starts)
    assert kinds.count(CELL) == len(cells)
    assert all(job.seconds > 0 for job in jobs)


def test_arms_of_a_study_share_their_start():
    settings = SCALES["cpu"]
    for name in ("levels", "sparsity", "distillation", "small"):
        jobs = plan.make_jobs(STUDIES[name].cells(settings), settings)
        assert len([job for job in jobs if job.kind == START]) == settings.seeds, name


def test_the_trajectory_study_trains_nothing():
    study = STUDIES["trajectory"]
    settings = study.settings("cpu", [])
    jobs = plan.make_jobs(study.cells(settings), settings)
    assert {job.kind for job in jobs} == {DATA, CELL}
    assert [job.split for job in jobs if job.kind == DATA] == ["test"]
    assert settings.image_size == 128
    assert all(cell.model == "elsewhere" for cell in study.cells(settings, "elsewhere"))


def test_numbers_of_a_cell():
    settings = SCALES["cpu"]
    (cell,) = [c for c in STUDIES["scaling"].cells(settings) if c.name == "w32-t2i1000-seed0"]
    found = plan.facts(cell)
    assert found["parameters"] == found["trainable"] == 173_826
    assert found["samples"] == settings.forcing_steps * settings.batch
    more = plan.facts(replace(cell, start_steps=2000))
    assert more["text_to_image_flops"] == 2 * found["text_to_image_flops"] > 0
    frozen = next(c for c in STUDIES["small"].cells(settings) if c.name == "frozen-seed0")
    assert plan.facts(frozen)["trainable"] < plan.facts(frozen)["parameters"]
    baseline = STUDIES["scaling"].cells(settings)[0]
    assert set(plan.facts(baseline).values()) == {0}


def test_estimates_follow_the_work():
    speed = plan.CORE
    cells = {cell.name: cell for cell in STUDIES["distillation"].cells(SCALES["cpu"])}
    without, with_ = cells["lambda-0-seed0"], cells["lambda-1-seed0"]
    assert plan.training_seconds(with_, speed) > plan.training_seconds(without, speed) > 0
    measure = without.measure
    once = plan.measure_seconds(measure, 1e9, speed)
    assert plan.measure_seconds(replace(measure, solver="heun"), 1e9, speed) > once
    assert calls("heun", 8) == 15 and calls("euler", 8) == 8
    latent = next(c for c in STUDIES["sparsity"].cells(SCALES["cpu"]) if "latent" in c.name)
    pixels = next(c for c in STUDIES["sparsity"].cells(SCALES["cpu"]) if "random-noise-pixels" in c.name)
    assert plan.training_seconds(latent, speed) > plan.training_seconds(pixels, speed)


def test_cells_are_chosen_by_name():
    cells = STUDIES["scaling"].cells(TOY)
    assert [cell.name for cell in plan.choose(cells, "w8-t2inone-*", None)] == [
        f"w8-t2inone-seed{seed}" for seed in range(3)
    ]
    assert len(plan.choose(cells, None, 2)) == 2
    with pytest.raises(UserError, match="fits none of"):
        plan.choose(cells, "w7-*", None)


@pytest.mark.parametrize(
    "text",
    [
        "forcing_steps=0", "image_size=60", "widths=64,32", "widths=40", "t2i_budgets=-1,5", "pictures=1000",
        "density_low=0.5", "device=tpu", "colour=1", "forcing_steps=many", "seeds", "euler_steps=0,1",
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(text):
    with pytest.raises(UserError):
        read_settings("cpu", [text])


def test_settings_stand_above_the_scale():
    assert read_settings("toy", ["seeds=5", "widths=8,16"]).widths == (8, 16)
    assert read_settings("toy").seeds == 3
    with pytest.raises(UserError, match="right is toy, cpu, gpu"):
        read_settings("huge")
    with pytest.raises(UserError, match="known: scaling"):
        find_study("scalings")
    assert STUDIES["trajectory"].settings("toy", ["image_size=64"]).image_size == 64


def test_models_of_all_widths_exist():
    for width in (8, 16, 24, 32, 64, 96, 512):
        for family in ("flux2", "flat"):
            transformer = model_config(TOY, width, family).transformer
            assert transformer.hidden == width
            assert all(axis % 2 == 0 for axis in transformer.rope_axes)


def test_text_to_image_keeps_its_rate_so_that_one_run_serves_all_budgets():
    config = train_config(TOY, "t2i", model_config(TOY, 16), 0, 5)
    assert config.optim.decay == 0.0
    assert train_config(TOY, "forcing", model_config(TOY, 16), 0, 5).optim.decay == TOY.decay > 0


# -- statistics and verdicts -----------------------------------------------------------------------------


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


def test_dense_depth_stands_once_in_the_sparsity_plan():
    cells = sparsity.cells(FAST)
    dense = {json.dumps(c.where) for c in cells if c.where.get("density") == 1.0}
    assert len(dense) == 2  # pixels, and the autoencoder's code
    kinds = {c.config.data.sensors[0].kind for c in cells if c.config is not None}
    assert kinds == {"random", "lidar", "dense"}


# -- results on disk ---------------------------------------------------------------------------------------


def test_a_result_belongs_to_its_settings(tmp_path):
    place = Place(tmp_path, FAST)
    cell = STUDIES["levels"].cells(FAST)[1]
    job = Job(cell.name, CELL, (), 1.0, cell=cell)
    assert not is_done(job, place)
    path = place.cell(cell) / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"settings": cell.settings()}))
    assert is_done(job, place)
    other = replace(cell, measure=replace(cell.measure, steps=99))
    with pytest.raises(UserError, match="other settings"):
        read_result(other, place)
    path.write_text("{")
    with pytest.raises(UserError, match="delete it"):
        read_result(cell, place)


def test_paths_are_filled_where_the_study_is(tmp_path):
    cell = STUDIES["levels"].cells(FAST)[1]
    assert "{shared}" in cell.config.init and str(tmp_path) not in json.dumps(cell.settings())
    filled = Place(tmp_path, FAST).filled(cell.config)
    assert filled.init.startswith(str(tmp_path / "shared"))
    assert Path(filled.autoencoder).is_dir()
    elsewhere = Place(tmp_path, replace(FAST, shared="common"))
    assert elsewhere.filled(cell.config).data.cache == "common/encodings"


# -- processes -----------------------------------------------------------------------------------------------


def pretend(job: Job, place: Path, progress) -> None:
    """In a worker: leaves a line; names say what else happens."""
    if "wrong" in job.name:
        raise UserError("it is wrong")
    if "dies" in job.name:
        os.kill(os.getpid(), signal.SIGKILL)
    progress(0.5)
    with (place / "log").open("a") as log:
        log.write(f"{job.name} {os.environ['OMP_NUM_THREADS']}\n")


def job(name: str, *needs: str) -> Job:
    return Job(name, CELL, needs, 1.0)


@pytest.mark.slow
def test_jobs_run_after_what_they_need_and_a_failure_stops_only_its_own(tmp_path):
    jobs = [
        job("data"), job("wrong", "data"), job("dies", "data"), job("first", "data"),
        job("hopeless", "wrong"), job("more hopeless", "hopeless"), job("last", "first", "made before"),
    ]  # fmt: skip
    told: list[str] = []

    def report(state: State, ended: str) -> None:
        assert len(state.running) <= 2
        if ended:
            told.append(ended)

    state = run_jobs(jobs, tmp_path, 2, report, pretend)
    assert set(state.done) == {"data", "first", "last"}
    assert state.failed["wrong"] == "it is wrong"
    assert "code -9 (memory full?)" in state.failed["dies"]
    assert state.failed["hopeless"] == "needs wrong"
    assert state.failed["more hopeless"] == "needs hopeless"
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == "data 1" and lines.index("first 1") < lines.index("last 1")
    assert set(told) == {"data", "wrong", "dies", "first", "last"}
    assert state.seconds_left == pytest.approx(0.0)
