"""``mf eval joint`` and ``mf eval control``: what is generated, against its own inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modality_forcing.cli import eval_options as e
from modality_forcing.cli import options as o


def joint(
    data: e.Data = "lowpoly:test",
    prompt_file: Annotated[
        str | None,
        typer.Option("--prompt-file", metavar="FILE", help="Prompts, one per line, in place of captions."),
    ] = None,
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FOLDER", help="Rows in it are kept: a stopped run goes on.")
    ] = "outputs/eval-joint",
    log2_alpha: Annotated[
        list[str] | None,
        typer.Option(
            "--log2-alpha", metavar="X|none", show_default="the model's", help="Repeat it for a sweep."
        ),
    ] = None,
    limit: e.Limit = 32,
    seed: e.Seed = 0,
    render_size: e.RenderSize = None,
    features: e.Features = "classifier",
    inception: e.InceptionFile = None,
    classifier: e.ClassifierFolder = None,
    steps: o.Steps = None,
    guidance: o.Guidance = None,
    guide_image_only: o.GuideImageOnly = None,
    guidance_parallel: o.GuidanceParallel = None,
    size: o.ProcessingSize = None,
    edge_radius: o.EdgeRadius = None,
    batch_size: e.Batch = 8,
    predictor: e.PredictorName = None,
    predictor_option: e.PredictorOptions = None,
    model: o.Model = o.DEFAULT_MODEL,
    text_encoder: o.TextEncoderSource = None,
    device: o.Device = "auto",
    dtype: o.Dtype = None,
) -> None:
    """Text to image and depth: does the depth belong to the picture, and the picture to its prompt?"""
    from modality_forcing.cli import inputs
    from modality_forcing.cli.output import progress
    from modality_forcing.errors import UserError

    e.check_common(limit, seed, batch_size)
    inputs.in_range("--guidance-parallel", guidance_parallel, 0.0, 1.0)
    given = [inputs.parse_log2_alpha(text)["log2_alpha"] for text in log2_alpha or []]
    texts = inputs.prompts(None, prompt_file)
    world = not texts and data.startswith("lowpoly:")
    if texts and features != "none" and features != "classifier":
        raise UserError("prompts of a file have no pictures to compare with; right is --features none")
    chosen = _features(features, inception)
    options, sampling = e.check_model(model, text_encoder, device, dtype, steps, guidance, size, edge_radius)
    if guide_image_only is not None:
        sampling["guide_image_only"] = guide_image_only
    if guidance_parallel is not None:
        sampling["guidance_parallel"] = guidance_parallel
    plugin, folder = e.parse_options(predictor_option), inputs.writable_folder(out)

    from modality_forcing.evaluation.classifier import place_in
    from modality_forcing.evaluation.datasets import open_data
    from modality_forcing.evaluation.generation import Prompt, evaluate_joint, prompts_of, table

    count = 32 if limit is None else limit
    with progress() as bars:
        bar = bars.add_task("reading", total=None)
        real: list[Any] = []
        if texts:
            asked = [
                Prompt(f"prompt-{i:05d}", text, place_in(text) or "") for i, text in enumerate(texts[:count])
            ]
            world = any(prompt.place for prompt in asked)
        else:
            pairs = list(prompts_of(open_data(data, limit=count, size=render_size), count))
            asked, real = [prompt for prompt, _ in pairs], [item.rgb for _, item in pairs]
        bars.update(bar, description="loading")
        tools = _tools(
            options,
            sampling,
            predictor,
            plugin,
            batch_size,
            chosen if real else None,
            inception,
            classifier,
            world,
        )
        alphas = given or [tools.pipeline.sampler_defaults.log2_alpha]
        bars.update(bar, description="generating")
        results = evaluate_joint(
            tools, asked, alphas, folder, seed=seed, real=real, source=prompt_file or data,
            progress=lambda done, total: bars.update(bar, completed=done, total=total, refresh=True),
        )  # fmt: skip
    e.print_table(table(results["summary"]))
    print(folder / "report.md")


def control(
    data: e.Data = "lowpoly:test",
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FOLDER", help="Rows in it are kept: a stopped run goes on.")
    ] = "outputs/eval-control",
    limit: e.Limit = 32,
    seed: e.Seed = 0,
    render_size: e.RenderSize = None,
    features: e.Features = "classifier",
    inception: e.InceptionFile = None,
    classifier: e.ClassifierFolder = None,
    steps: o.Steps = None,
    guidance: o.Guidance = None,
    guidance_depth: o.GuidanceDepth = None,
    guidance_parallel: o.GuidanceParallel = None,
    size: o.ProcessingSize = None,
    batch_size: e.Batch = 8,
    predictor: e.PredictorName = None,
    predictor_option: e.PredictorOptions = None,
    model: o.Model = o.DEFAULT_MODEL,
    text_encoder: o.TextEncoderSource = None,
    device: o.Device = "auto",
    dtype: o.Dtype = None,
) -> None:
    """Depth to image: FID and KID against real pictures; depth estimated anew against the given one."""
    from modality_forcing.cli import inputs
    from modality_forcing.cli.output import progress

    e.check_common(limit, seed, batch_size)
    chosen = _features(features, inception)
    inputs.in_range("--guidance-depth", guidance_depth, 0.0, inputs.MAX_GUIDANCE)
    inputs.in_range("--guidance-parallel", guidance_parallel, 0.0, 1.0)
    options, sampling = e.check_model(model, text_encoder, device, dtype, steps, guidance, size)
    if guidance_depth is not None:
        sampling["guidance_depth"] = guidance_depth
    if guidance_parallel is not None:
        sampling["guidance_parallel"] = guidance_parallel
    plugin, folder = e.parse_options(predictor_option), inputs.writable_folder(out)

    from modality_forcing.evaluation.datasets import open_data
    from modality_forcing.evaluation.generation import Prompt, evaluate_control, table

    count = 32 if limit is None else limit
    with progress() as bars:
        bar = bars.add_task("reading", total=None)
        items_of = open_data(data, limit=count, size=render_size)
        items = [items_of.read(i) for i in range(min(count, len(items_of.names)))]
        prompts = [Prompt(item.name, item.caption, str(item.facts.get("place", ""))) for item in items]
        bars.update(bar, description="loading")
        world = any(prompt.place for prompt in prompts)
        tools = _tools(options, sampling, predictor, plugin, batch_size, chosen, inception, classifier, world)
        bars.update(bar, description="generating")
        results = evaluate_control(
            tools, prompts, items, folder, seed=seed, source=data,
            progress=lambda done, total: bars.update(bar, completed=done, total=total, refresh=True),
        )  # fmt: skip
    e.print_table(table(results["summary"]))
    print(folder / "report.md")


def _features(name: str, inception: str | None) -> str | None:
    """The features FID and KID use, checked; None for none."""
    from modality_forcing.errors import UserError
    from modality_forcing.io.checks import existing_file

    if name not in ("classifier", "inception", "none"):
        raise UserError(f"--features is {name[:40]!r}; right is classifier, inception or none")
    if (name == "inception") != (inception is not None):
        raise UserError("--features inception and --inception FILE.safetensors belong together")
    if inception is not None:
        existing_file(Path(inception).expanduser(), "Inception weights")
    return None if name == "none" else name


def _tools(
    options: dict[str, Any],
    sampling: dict[str, Any],
    predictor: str | None,
    plugin: dict[str, str],
    batch_size: int,
    features: str | None,
    inception: str | None,
    classifier: str | None,
    world: bool,
) -> Any:
    """The model and what judges it. The place classifier is needed where the procedural world is measured."""
    from modality_forcing.data.lowpoly.colours import load_colours
    from modality_forcing.evaluation.classifier import load_classifier
    from modality_forcing.evaluation.features import ClassifierFeatures, InceptionFeatures
    from modality_forcing.evaluation.generation import Tools
    from modality_forcing.evaluation.predictors import PipelinePredictor, load_pipeline, open_predictor

    where = None if classifier is None else Path(classifier).expanduser()
    describe: Any = None
    if features == "classifier":
        describe = ClassifierFeatures(where)
    elif features == "inception":
        describe = InceptionFeatures(Path(str(inception)).expanduser())
    judged = world and (features is not None or classifier is not None)
    places = load_classifier(where) if judged else None
    colours = load_colours(where) if judged else None
    pipeline = load_pipeline(options)
    estimator: Any = (
        PipelinePredictor(
            pipeline, batch_size=batch_size, captions=True, edge_radius=sampling.get("edge_radius")
        )
        if predictor is None
        else open_predictor(predictor, options, predictor_options=plugin)
    )
    return Tools(pipeline, estimator, places, colours, describe, sampling, batch_size)
