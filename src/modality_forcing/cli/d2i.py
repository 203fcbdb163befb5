"""``mf d2i``: depth to image and point cloud."""

from __future__ import annotations

from typing import Annotated

import typer

from modality_forcing.cli import options as o


def d2i(
    files: Annotated[list[str] | None, typer.Argument(metavar="[DEPTH]...", help="As --depth.")] = None,
    depth: Annotated[
        list[str] | None,
        typer.Option(
            "--depth",
            "-d",
            metavar="FILE|FOLDER",
            help="A depth map (.npy, .npz, 16-bit .png or .tif, .exr); repeat it for several.",
        ),
    ] = None,
    depth_kind: o.DepthKind = None,
    depth_scale: o.DepthScale = None,
    mask: Annotated[
        list[str] | None,
        typer.Option(
            "--mask",
            "-m",
            metavar="FILE",
            help="White where the depth counts; one for all maps, or one for each.",
        ),
    ] = None,
    prompt: o.Prompts = None,
    prompt_file: o.PromptFile = None,
    num_images: o.NumImages = 1,
    out: o.Out = o.DEFAULT_OUT,
    seed: o.Seed = None,
    steps: o.Steps = None,
    guidance: o.GuidanceD2i = None,
    guidance_depth: o.GuidanceDepth = None,
    guidance_parallel: o.GuidanceParallel = None,
    size: o.ProcessingSize = None,
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
    """Depth to image and point cloud."""
    from modality_forcing.cli import inputs
    from modality_forcing.cli.output import Session, folder_name, notices
    from modality_forcing.errors import UserError

    texts = inputs.prompts(prompt, prompt_file)
    if not texts:
        raise UserError('--prompt is missing; say what the depth shows, or --prompt "" for anything')
    run = inputs.check_run(
        seed=seed, num_images=num_images, steps=steps, guidance=guidance, size=size, out=out,
        fov_x=fov_x, fov_y=fov_y, intrinsics=intrinsics, edge_rtol=edge_rtol, sor=sor, max_points=max_points,
        model=model, text_encoder=text_encoder, device=device, dtype=dtype, compile=compile,
    )  # fmt: skip
    inputs.in_range("--guidance-depth", guidance_depth, 0.0, inputs.MAX_GUIDANCE)
    inputs.in_range("--guidance-parallel", guidance_parallel, 0.0, 1.0)
    paths = inputs.files([*(depth or []), *(files or [])], inputs.DEPTH_ENDINGS, "--depth")
    maps = inputs.read_depths(paths, depth_kind, depth_scale, mask or [])
    for _, found in maps:
        notices(found.notices)
        inputs.check_camera(run.camera, found.depth.shape[1], found.depth.shape[0])
    tasks = inputs.pair(texts, maps, "depth maps")

    # A sensor's depth is full of small holes: taken for edges, they would leave no point.
    session = Session(run.out, {**run.cloud, "hole_edges": False})
    with session.pipeline(run.model) as pipeline:
        for text, (path, found) in tasks:
            count = len(run.seeds)
            results = pipeline.depth_to_image(
                [text] * count,
                [found.with_sky()] * count,
                depth_unit=found.unit,
                guidance_depth=guidance_depth,
                guidance_parallel=guidance_parallel,
                seed=run.seeds,
                on_step=session.on_step,
                **run.sampling,
                **run.camera,
            )
            for number, result in zip(run.seeds, results, strict=True):
                session.save(result, folder_name(text or path.stem, number))
