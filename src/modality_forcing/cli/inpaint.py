"""``mf inpaint``: a part of an image and of its depth made anew."""

from __future__ import annotations

from typing import Annotated

import typer

from modality_forcing.cli import options as o


def inpaint(
    files: o.ImageFiles = None,
    image: o.Images = None,
    mask: Annotated[
        list[str] | None,
        typer.Option(
            "--mask",
            "-m",
            metavar="FILE",
            help="White where the image is made anew; one for all pictures, or one for each.",
        ),
    ] = None,
    depth: Annotated[
        list[str] | None,
        typer.Option(
            "--depth",
            "-d",
            metavar="FILE|FOLDER",
            help="A depth map of the picture's size, one for each; what it does not know is made anew.",
            show_default="estimated from the picture",
        ),
    ] = None,
    depth_mask: Annotated[
        list[str] | None,
        typer.Option(
            "--depth-mask",
            metavar="FILE",
            help="White where the depth is made anew; one for all, or one for each.",
            show_default="as --mask",
        ),
    ] = None,
    depth_kind: o.DepthKind = None,
    depth_scale: o.DepthScale = None,
    feather: Annotated[
        int | None,
        typer.Option(
            "--feather",
            metavar="N",
            help="Pixels outside the mask over which new fades into old; 0 is a hard edge.",
            show_default="a quarter of the model's 16-pixel cell",
        ),
    ] = None,
    prompt: o.Prompts = None,
    prompt_file: o.PromptFile = None,
    num_images: o.NumImages = 1,
    out: o.Out = o.DEFAULT_OUT,
    seed: o.Seed = None,
    steps: o.Steps = None,
    guidance: o.Guidance = None,
    size: o.ProcessingSize = None,
    log2_alpha: o.Log2Alpha = None,
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
    """A part of an image and of its depth made anew, the rest kept."""
    from modality_forcing.cli import editing_inputs, inputs
    from modality_forcing.cli.output import Session, folder_name, notice, notices
    from modality_forcing.errors import UserError
    from modality_forcing.inputs import MAX_SIDE

    texts = inputs.prompts(prompt, prompt_file)
    if not texts:
        raise UserError('--prompt is missing; say what the picture will show, or --prompt "" for anything')
    if not mask:
        raise UserError("--mask is missing; right is a picture that is white where the image is made anew")
    if feather is not None:
        inputs.whole_number("--feather", feather, 0, MAX_SIDE)
    tilt = inputs.parse_log2_alpha(log2_alpha)
    run = inputs.check_run(
        seed=seed, num_images=num_images, steps=steps, guidance=guidance, size=size, out=out,
        fov_x=fov_x, fov_y=fov_y, intrinsics=intrinsics, edge_rtol=edge_rtol, sor=sor, max_points=max_points,
        model=model, text_encoder=text_encoder, device=device, dtype=dtype, compile=compile,
        edge_radius=edge_radius,
    )  # fmt: skip
    pictures = inputs.read_images(
        inputs.files([*(image or []), *(files or [])], inputs.IMAGE_ENDINGS, "--image")
    )
    sizes = [picture.pixels.shape[:2] for _, picture in pictures]
    masks = editing_inputs.read_masks(mask, sizes, "--mask")
    depth_masks = (
        editing_inputs.read_masks(depth_mask, sizes, "--depth-mask") if depth_mask else [None] * len(sizes)
    )
    maps = []
    if depth:
        paths = inputs.files(depth, inputs.DEPTH_ENDINGS, "--depth")
        if len(paths) != len(pictures):
            raise UserError(f"{len(paths)} depth maps for {len(pictures)} images; give one for each")
        maps = [found for _, found in inputs.read_depths(paths, depth_kind, depth_scale, [])]
    elif depth_kind is not None or depth_scale is not None:
        raise UserError("--depth-kind and --depth-scale need --depth, the map that they speak of")
    scenes = []
    for i, (path, picture) in enumerate(pictures):
        notices(picture.notices)
        height, width = sizes[i]
        inputs.check_camera(run.camera, width, height)
        values, unit = None, "relative"
        if maps:
            notices(maps[i].notices)
            editing_inputs.same_size(f"depth map {paths[i]}", maps[i].depth.shape, sizes[i])
            values, unit = maps[i].with_sky(), maps[i].unit
        camera = run.camera or inputs.exif_camera(path, notice)
        scenes.append((path, picture.pixels, masks[i], values, depth_masks[i], unit, camera))
    tasks = inputs.pair(texts, scenes, "images")

    # Given depth may be full of small holes: taken for edges, they would leave no point.
    session = Session(run.out, {**run.cloud, "hole_edges": not maps})
    with session.pipeline(run.model) as pipeline:
        for text, (path, pixels, new_rgb, values, new_depth, unit, camera) in tasks:
            count = len(run.seeds)
            results = pipeline.inpaint(
                [text] * count,
                [pixels] * count,
                [new_rgb] * count,
                [values] * count,
                [new_depth] * count,
                depth_unit=unit,
                feather=feather,
                seed=run.seeds,
                on_step=session.on_step,
                **tilt,
                **run.sampling,
                **camera,
            )
            for number, result in zip(run.seeds, results, strict=True):
                session.save(result, folder_name(text or path.stem, number))
