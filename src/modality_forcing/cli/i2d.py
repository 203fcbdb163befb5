"""``mf i2d``: image to depth and point cloud."""

from __future__ import annotations

from modality_forcing.cli import options as o


def i2d(
    files: o.ImageFiles = None,
    image: o.Images = None,
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
    """Image to depth and point cloud; the prompt is optional."""
    from modality_forcing.cli import inputs
    from modality_forcing.cli.output import Session, folder_name, notice, notices

    texts = inputs.prompts(prompt, prompt_file) or [""]
    run = inputs.check_run(
        seed=seed, num_images=num_images, steps=steps, guidance=guidance, size=size, out=out,
        fov_x=fov_x, fov_y=fov_y, intrinsics=intrinsics, edge_rtol=edge_rtol, sor=sor, max_points=max_points,
        model=model, text_encoder=text_encoder, device=device, dtype=dtype, compile=compile,
        edge_radius=edge_radius,
    )  # fmt: skip
    paths = inputs.files([*(image or []), *(files or [])], inputs.IMAGE_ENDINGS, "--image")
    pictures = inputs.read_images(paths)
    cameras = []
    for path, picture in pictures:
        notices(picture.notices)
        height, width = picture.pixels.shape[:2]
        inputs.check_camera(run.camera, width, height)
        cameras.append(run.camera or inputs.exif_camera(path, notice))
    tasks = inputs.pair(texts, list(zip(pictures, cameras, strict=True)), "images")

    session = Session(run.out, run.cloud)
    with session.pipeline(run.model) as pipeline:
        for text, ((path, picture), camera) in tasks:
            results = pipeline.image_to_depth(
                [picture.pixels] * len(run.seeds),
                prompt=text,
                seed=run.seeds,
                on_step=session.on_step,
                **run.sampling,
                **camera,
            )
            for number, result in zip(run.seeds, results, strict=True):
                session.save(result, folder_name(path.stem, number))
