"""What can be asked for, as data: the schemas, the routes and the worker are made from this table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Upload:
    """A file that belongs to each item.

    Attributes:
        name: of the field.
        kind: "image", "depth" or "mask": who decodes it.
        required: without it the request is refused.
        help: for the documentation.
        argument: of the pipeline's method, where it has another name.
    """

    name: str
    kind: str
    required: bool
    help: str
    argument: str = ""


@dataclass(frozen=True)
class Task:
    """One thing a pipeline can do.

    Attributes:
        name: in the address (``/v1/joint``) and in every record.
        method: of ``Pipeline``; it takes texts, ``seed``, the uploads and the options by name.
        title: one line for people.
        prompt_required: whether a text must be given (it may be empty).
        uploads: files of each item.
        options: names of fields besides those that all tasks have (``requests.OPTIONS``).
        sized_by: the upload that gives the size of the result; None: ``width`` and ``height`` do.
        hole_edges: see ``geometry.cloud.point_cloud``.
        takes_unit: whether the method wants ``depth_unit``, the unit of the depth map that was sent.
        prompt_argument: name of the method's argument for the texts.
        passes: how often the sampler usually runs, for the progress.
    """

    name: str
    method: str
    title: str
    prompt_required: bool
    uploads: tuple[Upload, ...] = ()
    options: tuple[str, ...] = ()
    sized_by: str | None = None
    hole_edges: bool = True
    takes_unit: bool = False
    prompt_argument: str = "prompt"
    passes: int = 1

    def upload(self, name: str) -> Upload:
        """The upload of that name."""
        return next(upload for upload in self.uploads if upload.name == name)


IMAGE = Upload("image", "image", True, "A picture: PNG, JPEG, WebP or TIFF.")
DEPTH = Upload("depth", "depth", True, "A depth map: .npy, .npz, 8 or 16 bit PNG, TIFF or EXR.")
DEPTH_MASK = Upload("mask", "mask", False, "A picture, white where the depth counts.")

DEPTH_OPTIONS = ("depth_kind", "depth_scale")
"""Fields that say how a depth map is read."""

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "joint",
            "joint",
            "Text to image and depth",
            True,
            options=("log2_alpha", "refine_depth", "guide_image_only", "guidance_parallel", "edge_radius"),
        ),
        Task(
            "i2d",
            "image_to_depth",
            "Image to depth",
            False,
            (IMAGE,),
            options=("edge_radius",),
            sized_by="image",
        ),
        Task(
            "d2i",
            "depth_to_image",
            "Depth to image",
            True,
            (DEPTH, DEPTH_MASK),
            options=("guidance_depth", "guidance_parallel", *DEPTH_OPTIONS),
            sized_by="depth",
            hole_edges=False,  # a sensor's depth is full of small holes, which are no edges
            takes_unit=True,
        ),
        Task(
            "complete",
            "complete",
            "Image and sparse depth to dense depth",
            False,
            (
                Upload("image", "image", True, IMAGE.help, "images"),
                Upload(
                    "depth", "depth", True, f"{DEPTH.help} Of the image's size, 0 where unknown.", "depths"
                ),
            ),
            options=("blend", "drop_outliers", "edge_radius", *DEPTH_OPTIONS),
            sized_by="image",
            takes_unit=True,
            passes=2,
        ),
        Task(
            "inpaint",
            "inpaint",
            "A part of an image and of its depth made anew",
            True,
            (
                Upload("image", "image", True, IMAGE.help, "images"),
                Upload("mask", "mask", True, "A picture, white where the image is made anew.", "masks"),
                Upload("depth", "depth", False, f"{DEPTH.help} Left out: estimated.", "depths"),
                Upload("depth_mask", "mask", False, "As the mask, for the depth.", "depth_masks"),
            ),
            options=("log2_alpha", "feather", "edge_radius", *DEPTH_OPTIONS),
            sized_by="image",
            takes_unit=True,
            prompt_argument="prompts",
        ),
    )
}
