"""``mf complete``: image and sparse depth to dense depth and point cloud."""

from __future__ import annotations

from typing import Annotated

import typer

from modality_forcing.cli import options as o


def complete(
    files: o.ImageFiles = None,
    image: o.Images = None,
    depth: Annotated[
        list[str] | None,
        typer.Option(
            "--depth",
            "-d",
            metavar="FILE|FOLDER",
            help="What is known of its depth, one for each picture: a map of its size (0 or NaN: unknown), "
            "or a .csv with x,y,z in each line.",
        ),
    ] = None,
    depth_scale: o.DepthScale = None,
    blend: Annotated[
        str,
        typer.Option(
            "--blend",
            metavar="exact|smooth",
            help="At known pixels: the given numbers, or a map whose neighbours outvote a noisy one.",
        ),
    ] = "exact",
    keep_outliers: Annotated[
        bool,
        typer.Option("--keep-outliers", help="Use points, too, that neither image nor neighbours support."),
    ] = False,
    prompt: o.Prompts = None,
    prompt_file: o.PromptFile = None,
    num_images: o.NumImages = 1,
    out: o.Out = o.DEFAULT_OUT,
    seed: o.Seed = None,
    steps: o.StepsI2d = None,
    guidance: o.GuidanceI2d = None,
    size: o.ProcessingSize = None,
    edge_radius: o.EdgeRadius = None,
    fov_x: o.FovX = None,
    fov_y: o.FovY = None,
    intrinsics: o.Intrinsics = None,
    edge_rtol: o.EdgeRtol = None,
    sor: o.Sor = None,
    max_points: o.MaxPoints = None,
    model: o.Model = o.DEFAULT_MODEL,
    text_encoder: o.TextEncoderSource = None,
    device: o.Device = "auto",
    dtype: o.Dtype = None,
    compile: o.Compile = False,
) -> None:
    """Image and sparse depth to dense depth in the same unit, and point cloud; the prompt is optional."""
    from modality_forcing.cli import editing_inputs, inputs
    from modality_forcing.cli.output import Session, folder_name, notice, notices
    from modality_forcing.errors import UserError
    from modality_forcing.inputs import BLENDS

    texts = inputs.prompts(prompt, prompt_file) or [""]
    if blend not in BLENDS:
        raise UserError(f"--blend is {blend[:40]!r}; right is {' or '.join(BLENDS)}")
    run = inputs.check_run(
        seed=seed, num_images=num_images, steps=steps, guidance=guidance, size=size, out=out,
        fov_x=fov_x, fov_y=fov_y, intrinsics=intrinsics, edge_rtol=edge_rtol, sor=sor, max_points=max_points,
        model=model, text_encoder=text_encoder, device=device, dtype=dtype, compile=compile,
        edge_radius=edge_radius,
    )  # fmt: skip
    pictures = inputs.read_images(
        inputs.files([*(image or []), *(files or [])], inputs.IMAGE_ENDINGS, "--image")
    )
    sparse = inputs.files(depth or [], editing_inputs.SPARSE_ENDINGS, "--depth")
    if len(sparse) != len(pictures):
        raise UserError(f"{len(sparse)} depth files for {len(pictures)} images; give one for each, in order")
    scenes = []
    for (path, picture), file in zip(pictures, sparse, strict=True):
        notices(picture.notices)
        height, width = picture.pixels.shape[:2]
        inputs.check_camera(run.camera, width, height)
        values, unit, said = editing_inputs.read_sparse(file, (height, width), depth_scale)
        notices(said)
        scenes.append((path, picture, values, unit, run.camera or inputs.exif_camera(path, notice)))
    tasks = inputs.pair(texts, scenes, "images")

    session = Session(run.out, run.cloud)
    with session.pipeline(run.model) as pipeline:
        for text, (path, picture, values, unit, camera) in tasks:
            count = len(run.seeds)
            results = pipeline.complete(
                [picture.pixels] * count,
                [values] * count,
                prompt=text,
                depth_unit=unit,
                drop_outliers=not keep_outliers,
                blend=blend,
                seed=run.seeds,
                on_step=session.on_step,
                **run.sampling,
                **camera,
            )
            for number, result in zip(run.seeds, results, strict=True):
                session.save(result, folder_name(path.stem, number))
