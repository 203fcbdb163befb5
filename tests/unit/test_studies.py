"""Plans, estimates, results on disk and processes of the studies; nothing is trained here."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from modality_forcing.config import TrainConfig, from_dict, to_dict
from modality_forcing.errors import UserError
from modality_forcing.studies import plan, sparsity
from modality_forcing.studies.plan import CELL, DATA, ENCODE, START, Job
from modality_forcing.studies.registry import STUDIES, find_study
from modality_forcing.studies.runner import State, run_jobs
from modality_forcing.studies.settings import SCALES, TOY, model_config, read_settings, train_config
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
