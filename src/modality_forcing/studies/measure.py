"""Measuring a cell by the project's own evaluation: image to depth, joint generation, depth to image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modality_forcing.codecs.depth import expand, surfaces
from modality_forcing.codecs.depth_latent import decode_latent_depth, encode_latent_depth
from modality_forcing.codecs.frame import Frame
from modality_forcing.data.shards import ShardSet
from modality_forcing.errors import UserError
from modality_forcing.evaluation.classifier import load_classifier
from modality_forcing.evaluation.datasets.lowpoly import ShardedSet
from modality_forcing.evaluation.features import ClassifierFeatures, compare_sets
from modality_forcing.evaluation.generation import Tools, evaluate_control, evaluate_joint, prompts_of
from modality_forcing.evaluation.metrics import METRICS, score_depth
from modality_forcing.evaluation.predictors import MeanDepth, PipelinePredictor, load_pipeline
from modality_forcing.evaluation.protocols import find_protocol
from modality_forcing.evaluation.rows import mean_and_error, scored, summarise
from modality_forcing.evaluation.run import Job, evaluate_depth
from modality_forcing.pipeline import Pipeline
from modality_forcing.studies.backbone import text_to_image
from modality_forcing.studies.cells import Measure
from modality_forcing.studies.replacement import share_level

PROTOCOL = "moge"
ALIGNMENTS = ("affine", "scale")
PER_PICTURE = ("abs_rel", "delta1")
SEEDS_APART = 100_000
"""Between the sampling seeds of two training seeds: no picture shares its noise with another cell's seed."""
MEAN_MAPS = 256
BATCH = 8
Progress = Callable[[float], None]


@dataclass
class Measured:
    """What came out.

    Attributes:
        metrics: "depth.abs_rel_affine" -> mean, standard error over pictures, count.
        pictures: the same names -> one number per picture, where a picture has one.
        facts: parameters and weight hashes of what was measured.
    """

    metrics: dict[str, dict[str, float | int | None]] = field(default_factory=dict)
    pictures: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class LatentDepthPipeline(Pipeline):
    """A pipeline around a model whose depth tokens are the autoencoder's code (image to depth only)."""

    def _decode_depth(
        self, tokens: torch.Tensor, frame: Frame, image: np.ndarray, edge_radius: int
    ) -> tuple[np.ndarray, np.ndarray]:
        contracted = decode_latent_depth(tokens, frame.rows, frame.cols, self.autoencoder).cpu()
        depth, mask = surfaces(frame.restore(contracted[:, None])[0, 0], self.config.depth.far_threshold)
        return depth.numpy(), mask.numpy()


def measure(
    what: Measure, folder: Path, *, seed: int, model: str, test: Path, train: Path, autoencoder: str,
    start: str = "", device: str = "cpu", progress: Progress = lambda share: None,
) -> Measured:  # fmt: skip
    """Measure a model. Rows in ``folder`` are kept, so a stopped measurement goes on.

    Args:
        seed: of the cell.
        model: folder, or "lowpoly".
        test, train: shards of the test scenes, and of the training scenes (for the mean depth map).
        autoencoder: of the study's models (for what depth in its code can reach).
        start: the text-to-image model, where ``what.backbone`` asks for it.
        progress: called with the share that is done.

    Raises:
        UserError: a model or data that cannot be read, or nothing that could be measured.
    """
    result = Measured()
    data = ShardedSet(test)
    if what.predictor == "coding":
        _coding(result, what, data, autoencoder)
        return result
    first = seed * SEEDS_APART
    pipeline = None
    parts = [what.depth, what.joint, what.control]
    done = 0

    def part(size: int) -> Callable[[int, int], None]:
        return lambda n, total: progress((done + size * n / max(1, total)) / sum(parts))

    predictor: Any
    if what.predictor == "mean":
        shards = ShardSet(train)
        maps = [shards.read(i, ("depth",)).depth for i in range(min(MEAN_MAPS, len(shards)))]
        predictor = MeanDepth(maps, "training scenes")
    else:
        pipeline = _open(what, model, device)
        result.facts = {
            "parameters": sum(p.numel() for p in pipeline.engine.transformer.parameters()),
            "weights_sha256": pipeline.weights_hash,
        }
        predictor = PipelinePredictor(pipeline, batch_size=BATCH, steps=what.steps)
    if what.depth and what.depth_steps and pipeline is not None:
        _depth_at_each(result, what, data, pipeline, folder, first, part(what.depth))
    elif what.depth:
        _depth(result, what, data, predictor, folder / "depth", first, part(what.depth))
    done += what.depth
    if pipeline is not None and (what.joint or what.control):
        tools = _tools(pipeline, what, device)
        if what.joint:
            _joint(result, tools, what, data, folder / "joint", first, start, part(what.joint))
            done += what.joint
        if what.control:
            _control(result, tools, what, data, folder / "control", first, part(what.control))
    return result


def _open(what: Measure, model: str, device: str) -> Pipeline:
    kind = LatentDepthPipeline if what.latent_depth else Pipeline
    pipeline = kind.from_pretrained(model, device=device)
    if what.shared_level:
        share_level(pipeline)
    pipeline.engine.solver = what.solver
    return pipeline


def _tools(pipeline: Pipeline, what: Measure, device: str) -> Tools:
    judge = PipelinePredictor(
        load_pipeline({"source": "lowpoly", "device": device}), batch_size=BATCH, steps=what.judge_steps
    )
    return Tools(
        pipeline=pipeline, estimator=judge, classifier=load_classifier(), features=ClassifierFeatures(),
        options={"steps": what.steps, "guidance": what.guidance}, batch_size=BATCH,
    )  # fmt: skip


def _depth_at_each(
    result: Measured, what: Measure, data: ShardedSet, pipeline: Pipeline, folder: Path, seed: int,
    progress: Any,
) -> None:  # fmt: skip
    """Image to depth with each number of steps, under "depth@N.*" (see ``analysis.aligned``)."""
    for number, steps in enumerate(what.depth_steps):
        found = Measured()
        predictor = PipelinePredictor(pipeline, batch_size=BATCH, steps=steps)

        def share(n: int, total: int, number: int = number) -> None:
            progress(number * total + n, total * len(what.depth_steps))

        _depth(found, what, data, predictor, folder / f"depth-{steps}", seed, share)
        prefix = f"depth@{steps}."
        for name, table in found.metrics.items():
            result.metrics[name.replace("depth.", prefix, 1)] = table
        for name, values in found.pictures.items():
            result.pictures[name.replace("depth.", prefix, 1)] = values


def _depth(
    result: Measured, what: Measure, data: ShardedSet, predictor: Any, folder: Path, seed: int, progress: Any
) -> None:
    protocol = find_protocol(PROTOCOL)
    job = Job(
        data, predictor, protocol, protocol.rules_for(data.kind), ALIGNMENTS, seed=seed, limit=what.depth
    )
    folder.mkdir(parents=True, exist_ok=True)
    rows = scored(evaluate_depth(job, folder, progress))
    if not rows:
        raise UserError(f"none of {what.depth} test pictures could be measured; see {folder}")
    for alignment, table in summarise(rows).items():
        for name in METRICS:
            result.metrics[f"depth.{name}_{alignment}"] = table[name]
        for name in PER_PICTURE:
            result.pictures[f"depth.{name}_{alignment}"] = [row["scores"][alignment][name] for row in rows]


def _joint(
    result: Measured, tools: Tools, what: Measure, data: ShardedSet, folder: Path, seed: int, start: str,
    progress: Any,
) -> None:  # fmt: skip
    pairs = list(prompts_of(data, what.joint))
    prompts, real = [prompt for prompt, _ in pairs], [item.rgb for _, item in pairs]
    folder.mkdir(parents=True, exist_ok=True)
    found = evaluate_joint(
        tools, prompts, [what.log2_alpha], folder, seed=seed, real=real, source=data.source, progress=progress
    )
    _generated(result, "joint", found)
    if not what.backbone or not start:
        return
    made = text_to_image(
        tools.pipeline, start, [prompt.text for prompt in prompts], [seed + i for i in range(len(prompts))],
        steps=what.steps, guidance=what.guidance,
    )  # fmt: skip
    assert tools.classifier is not None and tools.features is not None
    seen = tools.classifier.places(made)
    right = [float(p.place == place) for p, place in zip(prompts, seen, strict=True) if p.place]
    result.metrics["backbone.prompt_accuracy"] = mean_and_error(right)
    _distances(result, "backbone", compare_sets(tools.features, made, real))


def _control(
    result: Measured, tools: Tools, what: Measure, data: ShardedSet, folder: Path, seed: int, progress: Any
) -> None:
    pairs = list(prompts_of(data, what.control))
    folder.mkdir(parents=True, exist_ok=True)
    found = evaluate_control(
        tools, [prompt for prompt, _ in pairs], [item for _, item in pairs], folder, seed=seed,
        source=data.source, progress=progress,
    )  # fmt: skip
    _generated(result, "control", found)


def _generated(result: Measured, task: str, found: dict[str, Any]) -> None:
    """The summary of generated pictures, and AbsRel picture by picture."""
    (line,) = found["summary"]
    for name, value in line.items():
        if isinstance(value, dict) and "mean" in value:
            result.metrics[f"{task}.{name}"] = value
    _distances(result, task, line.get("distance", {}))
    for name in ("abs_rel_affine", "abs_rel_scale", "delta1_affine", "delta1_scale"):
        values = [row[name] for row in found["rows"] if name in row]
        if values:
            result.pictures[f"{task}.{name}"] = values


def _distances(result: Measured, task: str, distance: dict[str, Any]) -> None:
    for name in ("fid", "kid"):
        if distance.get(name) is not None:
            count = distance["made"]
            result.metrics[f"{task}.{name}"] = {"mean": distance[name], "error": None, "count": count}


def _coding(result: Measured, what: Measure, data: ShardedSet, autoencoder: str) -> None:
    """The true depth, dense, through the autoencoder and back: the floor of depth in its code."""
    pipeline = load_pipeline({"source": "lowpoly", "device": "cpu", "autoencoder": autoencoder})
    config = pipeline.config
    patch, sky = config.transformer.patch_size, config.depth.sky
    found: dict[str, list[float]] = {}
    for index in range(what.depth):
        item = data.read(index)
        depth = torch.from_numpy(item.depth)[None]
        tokens, _ = encode_latent_depth(depth, None, pipeline.autoencoder, patch, sky)
        rows, cols = depth.shape[-2] // patch, depth.shape[-1] // patch
        z = decode_latent_depth(tokens, rows, cols, pipeline.autoencoder)[0]
        coded = expand(z.clamp(max=config.depth.far_threshold)).numpy()
        for alignment in ALIGNMENTS:
            score = vars(score_depth(coded, item.depth, alignment=alignment))
            for name in METRICS:
                if np.isfinite(score[name]):
                    found.setdefault(f"depth.{name}_{alignment}", []).append(score[name])
    result.metrics = {name: mean_and_error(values) for name, values in found.items()}
    result.pictures = {
        name: values for name, values in found.items() if name.removeprefix("depth.").startswith(PER_PICTURE)
    }
