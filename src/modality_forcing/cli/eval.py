"""``mf eval``: depth against a reference, generation against its own inputs, parts put together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modality_forcing.cli import eval_generated
from modality_forcing.cli import eval_options as e
from modality_forcing.cli import options as o

app = typer.Typer(help="Measure a model.", no_args_is_help=False)


@app.command("depth")
def depth(
    context: typer.Context,
    data: e.Data,
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FOLDER", help="Rows in it are kept: a stopped run goes on.")
    ] = "outputs/eval",
    protocol: Annotated[
        str,
        typer.Option(metavar="moge|marigold", help="Crop, range, size and alignment of the papers' tables."),
    ] = "moge",
    alignment: Annotated[
        list[str] | None,
        typer.Option(
            "--alignment",
            metavar="none|scale|affine|scale_lstsq|affine_lstsq|disparity",
            show_default="the protocol's",
            help="Repeat it for several; the first ranks the pictures.",
        ),
    ] = None,
    limit: e.Limit = None,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Part I of N, for many machines; mf eval merge joins them.")
    ] = "1/1",
    ray: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="N parts at once on a Ray cluster; --out must be a folder all of it sees."
        ),
    ] = None,
    ray_gpus: Annotated[
        float, typer.Option("--ray-gpus", metavar="X", help="GPUs each part asks for.")
    ] = 0.0,
    kitti_crop: Annotated[
        str | None,
        typer.Option("--kitti-crop", metavar="eigen|garg|all", help="Window of KITTI that counts."),
    ] = None,
    split_list: Annotated[
        str | None,
        typer.Option("--split-list", metavar="FILE", help="The pictures of a published set, one line each."),
    ] = None,
    render_size: e.RenderSize = None,
    ensemble: Annotated[
        int, typer.Option(metavar="N", help="Seeds per picture; the median counts, their spread is reported.")
    ] = 1,
    caption: e.Caption = False,
    seed: e.Seed = 0,
    steps: o.StepsI2d = None,
    guidance: o.GuidanceI2d = None,
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
    """Depth against a reference: AbsRel, RMSE, δ, boundary F1 and more, under a stated protocol."""
    from modality_forcing.cli.inputs import whole_number, writable_folder
    from modality_forcing.cli.output import notice, progress
    from modality_forcing.errors import UserError
    from modality_forcing.evaluation.datasets import open_data
    from modality_forcing.evaluation.fitting import check_alignments
    from modality_forcing.evaluation.protocols import find_protocol
    from modality_forcing.io.checks import existing_file

    e.check_common(limit, seed, batch_size, ensemble)
    if render_size is not None:
        whole_number("--render-size", render_size, 16, 1024)
    part = e.parse_shard(shard)
    rules_of = find_protocol(protocol)
    alignments = check_alignments(alignment) if alignment else rules_of.alignments
    model_options, sampling = e.check_model(
        model, text_encoder, device, dtype, steps, guidance, size, edge_radius
    )
    plugin = e.parse_options(predictor_option)
    folder = writable_folder(out)
    path = None if split_list is None else existing_file(Path(split_list).expanduser(), "split list")
    items = open_data(data, limit=limit, size=render_size, split=path)
    rules = rules_of.rules_for(items.kind, window=kitti_crop)
    if ray is not None:
        from modality_forcing.cli.eval_ray import on_ray, words_of

        whole_number("--ray", ray, 1, e.MAX_SHARDS)
        if shard != "1/1":
            raise UserError("--ray makes the parts itself; leave --shard out")
        words = words_of(context, without=("ray", "ray_gpus", "out", "shard"))
        show_results(on_ray(words, ray, folder, gpus=ray_gpus), folder / "whole")
        return

    from modality_forcing.evaluation.predictors import open_predictor
    from modality_forcing.evaluation.report import write_report
    from modality_forcing.evaluation.rows import scored
    from modality_forcing.evaluation.run import Job, evaluate_depth

    with progress() as bars:
        bar = bars.add_task("loading", total=None)
        estimator = open_predictor(
            predictor, model_options, predictor_options=plugin, captions=caption, ensemble=ensemble,
            batch_size=batch_size, sampling=sampling,
        )  # fmt: skip
        if alignment is None and estimator.promise == "disparity":
            alignments = ("disparity",)
        job = Job(items, estimator, rules_of, rules, alignments, seed, limit, part)
        bars.update(bar, description="measuring")
        rows = evaluate_depth(
            job, folder, lambda done, total: bars.update(bar, completed=done, total=total, refresh=True)
        )
    if part.count > 1 and not scored(rows):  # the other parts may have something to report
        notice(f"none of the {len(rows)} pictures of part {shard} could be measured; {folder} says why")
        return
    show_results(write_report(folder, rows), folder)


@app.command("merge")
def merge(
    folders: Annotated[list[str], typer.Argument(metavar="FOLDER...", help="Parts of one evaluation.")],
    out: Annotated[str, typer.Option("--out", "-o", metavar="FOLDER", help="A new folder.")],
) -> None:
    """Put the parts of `mf eval depth --shard` together into one report."""
    from modality_forcing.cli.inputs import writable_folder
    from modality_forcing.evaluation.report import merge as join

    folder = writable_folder(out)
    show_results(join([Path(text).expanduser() for text in folders], folder), folder)


def show_results(results: dict[str, Any], folder: Path) -> None:
    """Protocol, table, bad samples and where the report is."""
    from modality_forcing.cli.output import notice
    from modality_forcing.evaluation.report import heading, table_cells

    for line in heading(results["settings"], results["images"]):
        print(line)
    e.print_table(table_cells(results["summary"]))
    for row in results["bad"][:10]:
        notice(f"{row['name']} could not be measured: {row['error']}")
    if len(results["bad"]) > 10:
        notice(f"{len(results['bad']) - 10} more are listed in {folder / 'report.md'}")
    print(folder / "index.html")


app.command("joint")(eval_generated.joint)
app.command("control")(eval_generated.control)
