"""1, 2 and 4 processes, any split of the batch, any layout of the weights: one and the same run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import training_runs as runs
from processes import together

from modality_forcing.config import (
    DataConfig,
    ForcingConfig,
    LoraConfig,
    ParallelConfig,
    RefinerConfig,
    SourceConfig,
    TrainConfig,
)
from modality_forcing.data.lowpoly.colours import ColourClassifier, save_colours
from modality_forcing.presets import TINY
from shard_folders import toy_sample, write_samples

pytestmark = pytest.mark.slow

STEPS = 20


def with_optimizer(config: TrainConfig, name: str) -> TrainConfig:
    return replace(config, optim=replace(config.optim, optimizer=name))


def same(result: dict, reference: dict, tolerance: float = 1e-4) -> None:
    """The first loss within 1e-6, the curve and the weights within ``tolerance``, relative."""
    assert result["loss"][0] == pytest.approx(reference["loss"][0], rel=1e-6)
    assert result["loss"] == pytest.approx(reference["loss"], rel=tolerance)
    assert result["norm"] == pytest.approx(reference["norm"], rel=10 * tolerance)
    for mine, other in zip(result["means"], reference["means"], strict=True):
        assert mine == pytest.approx(other, rel=10 * tolerance, abs=1e-7)
    assert result["weights"] == pytest.approx(reference["weights"], rel=tolerance, abs=1e-7)


@pytest.fixture(scope="module")
def references(toy, tmp_path_factory) -> dict[str, dict]:
    """One plain process, by optimizer."""
    folder = tmp_path_factory.mktemp("plain")
    return {
        name: together(0, runs.train, with_optimizer(toy["forcing"], name), folder / name, STEPS)
        for name in ("adamw", "muon")
    }


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_number_of_processes_changes_nothing(size, optimizer, references, toy, tmp_path):
    config = with_optimizer(toy["forcing"], optimizer)
    result = together(size, runs.train, config, tmp_path / "run", STEPS)
    same(result, references[optimizer])
    assert result["loss"][-1] != pytest.approx(result["loss"][0], rel=1e-2)  # it did train


@pytest.mark.parametrize(
    ("size", "parallel"),
    [
        (0, ParallelConfig(accumulate=2)),
        (0, ParallelConfig(accumulate=4)),
        (2, ParallelConfig(accumulate=4, checkpointing=True)),
        (4, ParallelConfig(replicate=2, shard=2, accumulate=2)),
        (2, ParallelConfig(replicate=2, shard=1)),
    ],
    ids=["accumulate-2", "accumulate-4", "2x4-recomputed", "hsdp-2x2", "replicated"],
)
def test_the_layout_changes_nothing(size, parallel, references, toy, tmp_path):
    config = replace(with_optimizer(toy["forcing"], "muon"), parallel=parallel)
    result = together(size, runs.train, config, tmp_path / "run", 6)
    begin = {key: references["muon"][key][:6] for key in ("loss", "norm", "means")}
    same(result, begin | {"weights": result["weights"]})


@pytest.mark.parametrize(("before", "after", "optimizer"), [(2, 1, "adamw"), (1, 4, "muon")])
def test_a_run_goes_on_with_another_number_of_processes(before, after, optimizer, references, toy, tmp_path):
    config = with_optimizer(toy["forcing"], optimizer)
    first = together(before, runs.train, config, tmp_path / "run", 8, False, True)
    second = together(after, runs.train, config, tmp_path / "run", STEPS - 8, True)
    assert second["first"] == 8
    curve = {key: first[key] + second[key] for key in ("loss", "norm", "means")}
    same(curve | {"weights": second["weights"]}, references[optimizer])


def test_the_autoencoder_is_sharded_too(toy, tmp_path):
    """Convolutions under Muon, latent statistics in buffers, random crops."""
    plain = together(0, runs.train, toy["autoencoder"], tmp_path / "plain", 4)
    same(together(2, runs.train, toy["autoencoder"], tmp_path / "two", 4), plain)


def test_the_refiner_and_its_transformer_are_sharded_too(toy, tiny_model, tmp_path):
    sizes = RefinerConfig(widths=(8, 16, 16, 24), blocks=(1, 1, 1, 2), norm_groups=4)
    model = replace(TINY, refiner=sizes)
    config = replace(toy["forcing"], stage="refiner", model=model, init=str(tiny_model))
    plain = together(0, runs.refine_smoothly, config, tmp_path / "plain", 4)
    assert plain["means"][3]["depth"] < plain["means"][3]["unrefined"]
    same(together(2, runs.refine_smoothly, config, tmp_path / "two", 4), plain)


@pytest.mark.parametrize("freeze", [(), ("img_in", "txt_in", "time_in", "double_stream_modulation_img",
                                         "double_stream_modulation_txt", "single_stream_modulation",
                                         "final_layer", "single_blocks", "rgb_double_blocks")],
                         ids=["own copy", "student itself"])  # fmt: skip
def test_the_teacher_is_sharded_too(freeze, toy, tmp_path):
    config = replace(toy["forcing"], freeze=freeze, forcing=ForcingConfig(distill_high=1.0, distill_low=0.1))
    plain = together(0, runs.train, config, tmp_path / "plain", 4)
    assert plain["means"][1]["distill"] > 0
    same(together(2, runs.train, config, tmp_path / "two", 4), plain)


def test_the_reader_is_sharded_too(toy, tmp_path):
    """In some steps a process has no sample with given depth, and still has to gather its weights."""
    together(0, runs.train, toy["forcing"], tmp_path / "reader", 2, False, True)
    forcing = ForcingConfig(
        p_d2i=0.4,
        reader=str(tmp_path / "reader"),
        d2i_read=0.5,
        cycle_weight=2.0,
        painted=0.5,
        keep_rgb=1.0,
        keep_depth=0.5,
        keep_painted=0.5,
    )
    config = replace(toy["forcing"], forcing=forcing)
    plain = together(0, runs.train, config, tmp_path / "plain", 4)
    assert plain["means"][1]["cycle"] > 0 < plain["means"][1]["keep_depth"]
    same(together(2, runs.train, config, tmp_path / "two", 4), plain)


def test_words_are_painted_together(toy, tmp_path):
    """Few captions name a colour: in some steps a process has none to paint, and none to judge."""
    torch.manual_seed(0)
    save_colours(ColourClassifier(), tmp_path, {})
    samples = [toy_sample(i) for i in range(12)]
    samples[1:5:2] = [replace(sample, captions=("a red chair, a teal boat",)) for sample in samples[1:5:2]]
    data = DataConfig(sources=(SourceConfig(str(write_samples(tmp_path / "shards", samples))),))
    forcing = ForcingConfig(judge=str(tmp_path), worded=0.9, word_weight=0.5, painted_steps=3)
    config = replace(toy["forcing"], data=data, forcing=forcing)
    plain = together(0, runs.train, config, tmp_path / "plain", 4)
    assert any(means.get("words", 0.0) > 0 for means in plain["means"])
    same(together(2, runs.train, config, tmp_path / "two", 4), plain)


def test_adapters_are_sharded_too(toy, tmp_path):
    pytest.importorskip("peft")
    config = replace(toy["forcing"], lora=LoraConfig(rank=2), forcing=ForcingConfig(distill_high=1.0))
    plain = together(0, runs.train, config, tmp_path / "plain", 4, False, True)
    assert plain["means"][1]["distill"] > 0
    two = together(2, runs.train, config, tmp_path / "two", 4)
    # Adapters start with gradients of rounding size, which AdamW turns into updates of full size.
    same(two | {"weights": plain["weights"]}, plain)
    resumed = together(2, runs.train, config, tmp_path / "plain", 1, True)
    assert resumed["first"] == 4


def test_muon_is_the_same_however_the_rows_lie(tmp_path: Path):
    """Shapes that do not divide, more matrices than processes and fewer, rows that run out."""
    plain = together(0, runs.muon_steps)
    for size in (2, 3):
        for mine, other in zip(together(size, runs.muon_steps), plain, strict=True):
            assert mine == pytest.approx(other, abs=1e-5)
