"""``mf joint``: text to image, depth and point cloud."""

from __future__ import annotations

from typing import Any

from modality_forcing.cli import options as o

TOGETHER = 8  # results computed and then saved together: what Ctrl-C can cost


def joint(
    prompt: o.Prompts = None,
    prompt_file: o.PromptFile = None,
    num_images: o.NumImages = 1,
    out: o.Out = o.DEFAULT_OUT,
    seed: o.Seed = None,
    steps: o.Steps = None,
    guidance: o.Guidance = None,
    size: o.Size = None,
    log2_alpha: o.Log2Alpha = None,
    refine_depth: o.RefineDepth = None,
    guide_image_only: o.GuideImageOnly = None,
    guidance_parallel: o.GuidanceParallel = None,
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
    """Text to image, depth and point cloud."""
    from modality_forcing.cli import inputs
    from modality_forcing.cli.output import Session, folder_name
    from modality_forcing.errors import UserError

    texts = inputs.prompts(prompt, prompt_file)
    if not texts:
        raise UserError('--prompt is missing; say what to make, or --prompt "" for anything')
    run = inputs.check_run(
        seed=seed, num_images=num_images, steps=steps, guidance=guidance, size=size, out=out,
        fov_x=fov_x, fov_y=fov_y, intrinsics=intrinsics, edge_rtol=edge_rtol, sor=sor, max_points=max_points,
        model=model, text_encoder=text_encoder, device=device, dtype=dtype, compile=compile,
        edge_radius=edge_radius,
    )  # fmt: skip
    inputs.in_range("--guidance-parallel", guidance_parallel, 0.0, 1.0)
    alpha = inputs.parse_log2_alpha(log2_alpha)
    if "size" in run.sampling:
        inputs.check_camera(run.camera, *run.sampling["size"])
    refine: dict[str, Any] = {} if refine_depth is None else {"refine_depth": refine_depth}

    items = [(text, number) for text in texts for number in run.seeds]
    session = Session(run.out, run.cloud)
    with session.pipeline(run.model) as pipeline:
        for first in range(0, len(items), TOGETHER):
            part = items[first : first + TOGETHER]
            results = pipeline.joint(
                [text for text, _ in part],
                seed=[number for _, number in part],
                batch_size=TOGETHER,
                on_step=session.on_step,
                guide_image_only=guide_image_only,
                guidance_parallel=guidance_parallel,
                **run.sampling,
                **run.camera,
                **alpha,
                **refine,
            )
            for (text, number), result in zip(part, results, strict=True):
                session.save(result, folder_name(text, number))
