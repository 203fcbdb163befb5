"""What is generated against its own inputs: distances of sets, the place classifier, joint and control."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from modality_forcing.data.lowpoly import PLACES, networks
from modality_forcing.errors import UserError
from modality_forcing.evaluation import classifier as places
from modality_forcing.evaluation.datasets.common import EvalItem
from modality_forcing.evaluation.distances import frechet_distance, kernel_distance
from modality_forcing.evaluation.features import ClassifierFeatures, compare_sets
from modality_forcing.evaluation.generation import (
    Prompt,
    Tools,
    agreement,
    evaluate_control,
    evaluate_joint,
    table,
)
from modality_forcing.evaluation.predictors import PipelinePredictor, load_pipeline


def features(seed: int, count: int, width: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + rng.normal(size=width)


def test_frechet_distance_against_a_general_matrix_root() -> None:
    a, b = features(0, 40), features(1, 50)
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    shift = a.mean(0) - b.mean(0)
    expected = shift @ shift + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(float(expected), rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-8)
    # Two Gaussians on a line: (m1 - m2)^2 + (s1 - s2)^2.
    x = np.array([[-1.0], [1.0]])
    s = math.sqrt(2)
    assert frechet_distance(x, 3 * x + 5) == pytest.approx(25 + (3 * s - s) ** 2)


def test_kernel_distance_follows_its_definition() -> None:
    a, b = features(2, 7), features(3, 9)

    def kernel(x, y):
        return (x @ y / 6 + 1) ** 3

    within = [
        sum(kernel(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j)
        / (len(s) * (len(s) - 1))
        for s in (a, b)
    ]
    across = sum(kernel(x, y) for x in a for y in b) / (7 * 9)
    assert kernel_distance(a, b) == pytest.approx(sum(within) - 2 * across, rel=1e-9)
    # Unbiased: over many draws of one distribution the mean is zero.
    rng = np.random.default_rng(0)
    draws = [kernel_distance(rng.normal(size=(8, 3)), rng.normal(size=(8, 3))) for _ in range(300)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / math.sqrt(300)
    with pytest.raises(ValueError, match="right is"):
        kernel_distance(a[:1], b)


def test_distances_against_torch_fidelity() -> None:
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    a, b = features(4, 30), features(5, 30)
    stats = [fid.fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    expected = fid.fid_statistics_to_metric(*stats, verbose=False)[fid.KEY_METRIC_FID]
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, saved."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classifier")
    places.save_classifier(places.PlaceClassifier(), folder, {"accuracy": 0.1})
    return folder


def test_classifier_file(classifier: Path, tmp_path: Path) -> None:
    path = classifier / places.FILE
    assert path.stat().st_size < 1_000_000
    model = places.load_classifier(classifier)
    assert model.facts["accuracy"] == 0.1 and model.facts["places"] == list(PLACES)
    images = [np.random.default_rng(i).integers(0, 255, (70, 90, 3), dtype=np.uint8) for i in range(3)]
    found = model.describe(images)
    assert found.shape == (3, places.CHANNELS[-1]) and set(model.places(images)) <= set(PLACES)
    np.testing.assert_allclose(model.describe(images[1:2]), found[1:2], atol=1e-5)
    with pytest.raises(UserError, match="there is no place classifier"):
        places.load_classifier(tmp_path)
    (tmp_path / places.FILE).write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be used"):
        places.load_classifier(tmp_path)


def test_places_in_prompts() -> None:
    assert places.place_in("A red car in a Street at night") == "street"
    assert places.place_in("a living room with a view of the beach") == "living room"
    assert places.place_in("nothing of ours") is None


def test_classifier_learns_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe's training on pictures of one colour per place: it must tell them apart."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "recipes" / "lowpoly")
    fitting, recipe = importlib.import_module("_fitting"), importlib.import_module("classifier")
    colours = np.random.default_rng(0).integers(0, 255, (3, 1, 1, 3))
    pictures = np.clip(
        colours[np.arange(24) % 3] + np.random.default_rng(1).normal(0, 9, (24, 64, 64, 3)), 0, 255
    ).astype(np.uint8)
    labels = torch.arange(24) % 3
    torch.manual_seed(0)
    model = places.PlaceClassifier()

    def loss(picked: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        x = recipe.augment(networks.to_tensor(pictures[picked.numpy()]), generator)
        assert x.shape == (8, 3, 64, 64) and x.isfinite().all()
        return torch.nn.functional.cross_entropy(model(x), labels[picked])

    def measure() -> float:
        return recipe.accuracy(model, pictures, labels)

    assert measure() < 0.9
    assert fitting.fit(model, len(pictures), loss, measure, epochs=20, batch=8, seed=0, every=20) > 0.9


def test_agreement_has_the_right_reference() -> None:
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 9, (20, 20)).astype(np.float32)
    every = np.ones_like(depth, bool)
    same = agreement(depth, every, 3 * depth, "relative", given=False)
    assert same["abs_rel_scale"] < 1e-6 and same["delta1_affine"] == 1.0
    assert agreement(depth, every, 2 / depth + 1, "disparity", given=True)["abs_rel_affine"] < 1e-5
    assert "abs_rel_scale" not in agreement(depth, every, 2 / depth + 1, "disparity", given=True)
    other = rng.uniform(1, 9, (20, 20)).astype(np.float32)
    judged, asked = (
        agreement(depth, every, other, "relative", given=g)["abs_rel_scale"] for g in (False, True)
    )
    assert judged != asked
    holes = every.copy()
    holes[:10] = False
    spoiled = depth.copy()
    spoiled[:10] = 1e5
    assert agreement(spoiled, holes, depth, "relative", given=True)["abs_rel_scale"] < 1e-6


@pytest.fixture(scope="module")
def tools(tiny_model: Path, classifier: Path) -> Tools:
    pipeline = load_pipeline({"source": str(tiny_model), "device": "cpu"})
    return Tools(
        pipeline,
        PipelinePredictor(pipeline, captions=True, steps=1),
        places.load_classifier(classifier),
        None,
        ClassifierFeatures(classifier),
        {"steps": 2, "size": (32, 32)},
        batch_size=2,
    )


def test_joint_sweep(tools: Tools, tmp_path: Path) -> None:
    prompts = [Prompt("a", "a kitchen", "kitchen"), Prompt("b", "a desert", "desert"), Prompt("c", "a thing")]
    real = [np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8) for i in range(3)]
    steps = []
    results = evaluate_joint(
        tools, prompts, [-1.0, None], tmp_path, seed=4, real=real, source="toy",
        progress=lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    assert steps[-1] == (6, 6) and [line["group"] for line in results["summary"]] == [
        "log2_alpha -1",
        "log2_alpha none",
    ]
    for line in results["summary"]:
        assert line["images"] == 3 and line["prompt_accuracy"]["count"] == 2
        assert line["abs_rel_scale"]["count"] == 3 and math.isfinite(line["distance"]["fid"])
    rows = results["rows"]
    assert [row["seed"] for row in rows] == [4, 5, 6, 4, 5, 6] and rows[2]["place"] == ""
    # One picture by hand: its own depth judged against image to depth on it.
    (made,) = tools.pipeline.joint(["a desert"], seed=[5], log2_alpha=-1.0, steps=2, size=(32, 32))
    (estimate,) = tools.estimator.predict([made.rgb], ["a desert"], [4 + 3 + 1])
    expected = agreement(made.depth, made.mask, estimate.depth, "relative", given=False)
    assert rows[1]["abs_rel_scale"] == pytest.approx(expected["abs_rel_scale"], rel=1e-4)
    assert rows[1]["seen"] == tools.classifier.places([made.rgb])[0]
    again = evaluate_joint(tools, prompts, [-1.0, None], tmp_path, seed=4, real=real, source="toy")
    assert again["summary"] == results["summary"]
    assert len(table(results["summary"])) == 3 and "log2_alpha none" in (tmp_path / "report.md").read_text()
    with pytest.raises(UserError, match="another count"):
        evaluate_joint(tools, prompts[:2], [-1.0, None], tmp_path, seed=4, real=real, source="toy")
    with pytest.raises(UserError, match="another seed"):
        evaluate_joint(tools, prompts, [-1.0, None], tmp_path, seed=5, real=real, source="toy")


def test_wrong_colours_and_missing_things_are_told_apart(tools: Tools, tmp_path: Path) -> None:
    class Judge:
        facts: ClassVar[dict[str, str]] = {"name": "says the same of every picture"}

        def colours(self, images: Sequence[np.ndarray]) -> list[dict[str, str]]:
            return [{"sofa": "red", "bed": "green"} for _ in images]

    prompts = [Prompt("a", "a bedroom with a red sofa and a white bed, a blue rug, a pink curtain")]
    judged = replace(tools, colours=Judge())
    (line,) = evaluate_joint(judged, prompts, [0.0], tmp_path, seed=1)["summary"]
    assert line["colour_pairs"] == 4
    assert line["colour_accuracy"]["mean"] == 0.25 and line["colour_unseen"]["mean"] == 0.5
    head, row = table([line])
    assert row[head.index("colours")].startswith("0.25") and row[head.index("not seen")].startswith("0.50")


def test_control(tools: Tools, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    items = []
    for i in range(3):
        depth = rng.uniform(1, 9, (32, 32)).astype(np.float32)
        depth[:4] = np.inf
        items.append(EvalItem(f"p{i}", rng.integers(0, 255, (32, 32, 3), dtype=np.uint8), depth, "a beach"))
    prompts = [Prompt(item.name, item.caption, "beach") for item in items]
    results = evaluate_control(tools, prompts, items, tmp_path, source="toy")
    (line,) = results["summary"]
    assert line["images"] == 3 and line["prompt_accuracy"]["count"] == 3
    made = [
        np.array(__import__("PIL.Image").Image.open(tmp_path / row["picture"])) for row in results["rows"]
    ]
    expected = compare_sets(tools.features, made, [item.rgb for item in items])
    assert line["distance"]["kid"] == pytest.approx(expected["kid"])
    json.loads((tmp_path / "results.json").read_text())


def test_rows_of_other_sampler_defaults_are_not_gone_on_with(
    tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights' hash does not tell: the defaults stand in config.json."""
    prompts = [Prompt("a", "a castle", "castle")]
    evaluate_joint(tools, prompts, [0.0], tmp_path, seed=1)
    config = tools.pipeline.config
    other = replace(config, sampler=replace(config.sampler, guidance=config.sampler.guidance + 1))
    monkeypatch.setattr(tools.pipeline, "config", other)
    with pytest.raises(UserError, match=r"sampler\.guidance"):
        evaluate_joint(tools, prompts, [0.0], tmp_path, seed=1)


def test_the_embedded_classifier_knows_the_world() -> None:
    """On renders it never saw (validation split, from the middle of nowhere) it is right nearly always."""
    pytest.importorskip("embreex")
    from modality_forcing.data.lowpoly import make_sample, split_seed

    assert (networks.EMBEDDED / places.FILE).stat().st_size < 1_000_000
    model = places.load_classifier()
    assert model.facts["accuracy"] >= 0.98 and model.facts["validation_pictures"] >= 500
    samples = [make_sample(split_seed("val", 10_000 + i), 64, 64, supersample=1) for i in range(16)]
    found = model.places([sample.rgb for sample in samples])
    assert sum(a == s.meta["place"] for a, s in zip(found, samples, strict=True)) >= 15
