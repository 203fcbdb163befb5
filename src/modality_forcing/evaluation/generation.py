"""What a model generates, held against its own inputs: prompts, given depth, and depth estimated anew."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from modality_forcing.data.lowpoly.colours import pairs_in
from modality_forcing.errors import UserError
from modality_forcing.evaluation.datasets import EvalItem, EvalSet
from modality_forcing.evaluation.features import Features, compare_sets
from modality_forcing.evaluation.metrics import DepthScore, score_depth
from modality_forcing.evaluation.predictors import Predictor
from modality_forcing.evaluation.report import versions
from modality_forcing.evaluation.rows import ROWS, begin, mean_and_error, row_line
from modality_forcing.io.atomic import atomic_file, write_errors
from modality_forcing.io.plain_json import plain

if TYPE_CHECKING:
    from modality_forcing.data.lowpoly.colours import ColourClassifier
    from modality_forcing.evaluation.classifier import PlaceClassifier
    from modality_forcing.pipeline import Pipeline
    from modality_forcing.types import RGBD

IMAGES = "images"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Tools:
    """What judges generated pictures.

    Attributes:
        pipeline: the model that is measured.
        estimator: estimates depth of generated pictures; usually the same model, image to depth.
        classifier: names the place, None where nothing of the procedural world is measured.
        colours: names the colours of objects, None like ``classifier``.
        features: of FID and KID, or None.
        options: of the pipeline's method (steps, guidance, size).
        batch_size: pictures per call.
    """

    pipeline: Pipeline
    estimator: Predictor
    classifier: PlaceClassifier | None = None
    colours: ColourClassifier | None = None
    features: Features | None = None
    options: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 8


def agreement(
    generated: np.ndarray, mask: np.ndarray, estimate: np.ndarray, promise: str, *, given: bool
) -> dict[str, float]:
    """AbsRel and delta1 between generated (or given) depth and depth estimated from the picture.

    The estimate is the prediction where depth was given (that is what a control signal asks), or where its
    own shift is unknown; else the estimate is the reference and the generated depth is judged.

    Returns:
        "abs_rel_scale", "delta1_scale", "abs_rel_affine", "delta1_affine"; for disparity the affine ones
        only.
    """
    found: dict[str, float] = {}
    for alignment in ("scale", "affine"):
        score: DepthScore
        if promise == "disparity":
            if alignment == "scale":
                continue
            score = score_depth(estimate, generated, mask, alignment="disparity", disparity=True)
        elif given or promise == "affine":
            score = score_depth(estimate, generated, mask, alignment=alignment)
        else:
            score = score_depth(generated, estimate, mask, alignment=alignment)
        found[f"abs_rel_{alignment}"], found[f"delta1_{alignment}"] = score.abs_rel, score.delta1
    return found


@dataclass(frozen=True)
class Prompt:
    """A text and the place it names, "" when it names none of the procedural world."""

    name: str
    text: str
    place: str = ""


def prompts_of(data: EvalSet, limit: int) -> Iterator[tuple[Prompt, EvalItem]]:
    """Captions of a set, with their items; items without one are left out."""
    for index in range(min(limit, len(data.names))):
        item = data.read(index)
        if item.caption:
            yield Prompt(item.name, item.caption, str(item.facts.get("place", ""))), item


def evaluate_joint(
    tools: Tools,
    prompts: Sequence[Prompt],
    alphas: Sequence[float | None],
    folder: Path,
    *,
    seed: int = 0,
    real: Sequence[np.ndarray] = (),
    source: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Text to image and depth: does the depth belong to the picture, and the picture to the prompt?

    Args:
        prompts: prompt i uses ``seed + i``, the same for every tilt.
        alphas: values of log2_alpha; None: both modalities on their own grid.
        folder: rows and pictures in it are kept, so a stopped run goes on.
        real: pictures FID and KID compare with.
        source: of the prompts, for the report.

    Returns:
        The content of ``results.json``.
    """
    groups = [(_alpha_name(alpha), {"log2_alpha": alpha}) for alpha in alphas]

    def make(indices: Sequence[int], extra: Mapping[str, Any]) -> list[RGBD]:
        # Depth refined from the image would be compared with itself.
        return tools.pipeline.joint(
            [prompts[i].text for i in indices], seed=[seed + i for i in indices],
            batch_size=tools.batch_size, refine_depth=False, **tools.options, **extra,
        )  # fmt: skip

    def judge(index: int, result: RGBD, estimate: np.ndarray) -> dict[str, Any]:
        row = {"prompt": prompts[index].text, "place": prompts[index].place}
        return row | agreement(result.depth, result.mask, estimate, tools.estimator.promise, given=False)

    settings = {"task": "joint", "prompts": source, "alphas": [name for name, _ in groups]}
    return _evaluate(tools, prompts, groups, make, judge, folder, settings, seed, real, progress)


def evaluate_control(
    tools: Tools,
    prompts: Sequence[Prompt],
    items: Sequence[EvalItem],
    folder: Path,
    *,
    seed: int = 0,
    source: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Depth and text to image: does the picture have the depth it was given, and does it look like real ones?

    Args:
        items: pictures with depth, one per prompt; FID and KID compare with these pictures.
        Others: as of :func:`evaluate_joint`.

    Returns:
        The content of ``results.json``.
    """

    def make(indices: Sequence[int], extra: Mapping[str, Any]) -> list[RGBD]:
        return tools.pipeline.depth_to_image(
            [prompts[i].text for i in indices], [items[i].depth for i in indices],
            seed=[seed + i for i in indices], batch_size=tools.batch_size, **tools.options, **extra,
        )  # fmt: skip

    def judge(index: int, result: RGBD, estimate: np.ndarray) -> dict[str, Any]:
        depth = items[index].depth
        valid = np.isfinite(depth) & (depth > 0)
        row = {"prompt": prompts[index].text, "place": prompts[index].place}
        return row | agreement(depth, valid, estimate, tools.estimator.promise, given=True)

    settings = {"task": "control", "data": source}
    real = [item.rgb for item in items]
    return _evaluate(tools, prompts, [("control", {})], make, judge, folder, settings, seed, real, progress)


def _evaluate(
    tools: Tools,
    prompts: Sequence[Prompt],
    groups: Sequence[tuple[str, Mapping[str, Any]]],
    make: Callable[[Sequence[int], Mapping[str, Any]], list[RGBD]],
    judge: Callable[[int, RGBD, np.ndarray], dict[str, Any]],
    folder: Path,
    settings: Mapping[str, Any],
    seed: int,
    real: Sequence[np.ndarray],
    progress: Progress | None,
) -> dict[str, Any]:
    """Generate what is missing, judge it, and sum up."""
    if not prompts:
        raise UserError("there is no prompt to generate from")
    if len(prompts) != len({prompt.name for prompt in prompts}):
        raise UserError("two prompts have one name")
    pipeline = tools.pipeline
    full = {
        **settings,
        "model": pipeline.config.name,
        "weights_sha256": pipeline.weights_hash,
        "sampler": asdict(pipeline.sampler_defaults),
        "options": {key: list(v) if isinstance(v, tuple) else v for key, v in tools.options.items()},
        "estimator": tools.estimator.name,
        "promise": tools.estimator.promise,
        "estimator_facts": {k: v for k, v in tools.estimator.facts.items() if k != "device"},
        "classifier": None if tools.classifier is None else tools.classifier.facts,
        "colours": None if tools.colours is None else tools.colours.facts,
        "seed": seed,
        "count": len(prompts),  # rows are numbered by it, so it may not change
    }
    rows = begin(folder, full)
    count = len(prompts)
    total, done = count * len(groups), len([i for i in rows if i < count * len(groups)])
    with write_errors(folder / ROWS), (folder / ROWS).open("a", encoding="utf-8") as stream:
        for number, (group, extra) in enumerate(groups):
            todo = [i for i in range(count) if number * count + i not in rows]
            for start in range(0, len(todo), tools.batch_size):
                part = todo[start : start + tools.batch_size]
                results = make(part, extra)
                images = [result.rgb for result in results]
                texts = [prompts[i].text for i in part]
                # Another seed than the picture's: image to depth must not start from the same noise.
                estimates = tools.estimator.predict(images, texts, [seed + count + i for i in part])
                places = tools.classifier.places(images) if tools.classifier else [None] * len(part)
                colours = tools.colours.colours(images) if tools.colours else [None] * len(part)
                for i, result, estimate, place, seen in zip(
                    part, results, estimates, places, colours, strict=True
                ):
                    row: dict[str, Any] = {
                        "index": number * count + i,
                        "group": group,
                        "name": prompts[i].name,
                        "seed": seed + i,
                    }
                    row |= judge(i, result, estimate.depth)
                    row |= {"seen": place, "picture": f"{IMAGES}/{group}/{i:06d}.png"}
                    if seen is not None:
                        named = pairs_in(prompts[i].text)
                        row["colours"] = [[thing, colour, seen.get(thing)] for thing, colour in named]
                    _save(folder / row["picture"], result.rgb)
                    stream.write(row_line(row))
                    stream.flush()
                    rows[row["index"]] = row
                    done += 1
                    if progress is not None:
                        progress(done, total)
    return _sum_up(tools, folder, full, groups, rows, real)


def _sum_up(
    tools: Tools,
    folder: Path,
    settings: Mapping[str, Any],
    groups: Sequence[tuple[str, Mapping[str, Any]]],
    rows: Mapping[int, Mapping[str, Any]],
    real: Sequence[np.ndarray],
) -> dict[str, Any]:
    summary = []
    for group, _ in groups:
        mine = [rows[i] for i in sorted(rows) if rows[i]["group"] == group]
        line: dict[str, Any] = {"group": group, "images": len(mine)}
        for name in ("abs_rel_scale", "delta1_scale", "abs_rel_affine", "delta1_affine"):
            line[name] = mean_and_error([row[name] for row in mine if name in row])
        named = [row for row in mine if row["place"] and row["seen"]]
        line["prompt_accuracy"] = mean_and_error([float(row["place"] == row["seen"]) for row in named])
        pairs = [pair for row in mine for pair in row.get("colours", ())]
        line["colour_pairs"] = len(pairs)
        line["colour_accuracy"] = mean_and_error([float(wanted == seen) for _, wanted, seen in pairs])
        line["colour_unseen"] = mean_and_error([float(seen is None) for _, _, seen in pairs])
        if tools.features is not None and len(real):
            made = [np.asarray(Image.open(folder / row["picture"]).convert("RGB")) for row in mine]
            line["distance"] = compare_sets(tools.features, made, real)
        summary.append(line)
    results = {
        "settings": settings,
        "versions": versions(),
        "summary": summary,
        "rows": [rows[i] for i in sorted(rows)],
    }
    with atomic_file(folder / "results.json") as aside:
        aside.write_text(json.dumps(plain(results), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with atomic_file(folder / "report.md") as aside:
        aside.write_text(_markdown(settings, table(summary)), encoding="utf-8")
    return results


def table(summary: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The table of a report, head first."""
    head = ["", "images", "AbsRel scale", "δ1 scale", "AbsRel affine", "δ1 affine"]
    cells = [[*head, "place", "colours", "not seen", "FID", "KID"]]
    numbers = ("abs_rel_scale", "delta1_scale", "abs_rel_affine", "delta1_affine")
    for line in summary:
        row = [line["group"], str(line["images"])]
        for name in (*numbers, "prompt_accuracy", "colour_accuracy", "colour_unseen"):
            mean, error = line[name]["mean"], line[name]["error"]
            text = "-" if mean is None else f"{mean:.4f}" if error is None else f"{mean:.4f} ± {error:.4f}"
            row.append(text)
        distance = line.get("distance", {})
        row += [
            "-" if distance.get("fid") is None else f"{distance['fid']:.3f}",
            "-" if distance.get("kid") is None else f"{distance['kid']:.5f}",
        ]
        cells.append(row)
    return cells


def _markdown(settings: Mapping[str, Any], cells: Sequence[Sequence[str]]) -> str:
    lines = [f"# {settings['task']}: {settings['model']}", ""]
    lines += [f"- {name}: {json.dumps(plain(value), ensure_ascii=False)}" for name, value in settings.items()]
    lines += ["- means over pictures; ± is the standard error of the mean", ""]
    lines += ["| " + " | ".join(cells[0]) + " |", "|" + "---|" * len(cells[0])]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells[1:])]) + "\n"


def _alpha_name(alpha: float | None) -> str:
    return "log2_alpha none" if alpha is None else f"log2_alpha {alpha:g}"


def _save(path: Path, pixels: np.ndarray) -> None:
    with atomic_file(path) as aside:
        Image.fromarray(pixels).save(aside, format="PNG", compress_level=3)
