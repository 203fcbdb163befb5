"""Whatever turns a picture into depth, behind one small interface. Only this module imports the pipeline."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from modality_forcing.errors import UserError
from modality_forcing.evaluation.ensemble import combine

if TYPE_CHECKING:
    from modality_forcing.pipeline import Pipeline

PROMISES = ("metric", "relative", "affine", "disparity")
"""What the numbers mean: metres; depth up to a factor; up to factor and shift; disparity up to both."""
MEAN_SCENES, MEAN_SIZE = 64, 64


@dataclass(frozen=True)
class Prediction:
    """One answer.

    Attributes:
        depth: float32 (H, W) of the picture's size, in the predictor's promise.
        spread: float32 (H, W), the expected relative error where the predictor knows one.
    """

    depth: np.ndarray
    spread: np.ndarray | None = None


class Predictor(Protocol):
    """A depth estimator.

    Attributes:
        name: short, for tables.
        promise: one of ``PROMISES``.
        batch_size: pictures that are best given together.
        facts: everything needed to repeat its answers, as plain values.
    """

    name: str
    promise: str
    batch_size: int
    facts: dict[str, Any]

    def predict(
        self, images: Sequence[np.ndarray], captions: Sequence[str], seeds: Sequence[int]
    ) -> list[Prediction]:
        """Depth of uint8 (H, W, 3) pictures of any sizes; a picture's randomness comes from its seed."""
        ...


class PipelinePredictor:
    """Our model, image to depth.

    Args:
        pipeline: loaded.
        captions: use the data's captions as prompts.
        options: further arguments of ``Pipeline.image_to_depth`` (steps, guidance, size).
    """

    promise = "relative"

    def __init__(
        self, pipeline: Pipeline, *, captions: bool = False, batch_size: int = 8, **options: Any
    ) -> None:
        self.pipeline, self.captions, self.batch_size = pipeline, captions, batch_size
        self.options = {key: value for key, value in options.items() if value is not None}
        defaults = pipeline.sampler_defaults
        steps = self.options.get("steps", defaults.steps_of("i2d"))
        self.name = f"{pipeline.config.name}, {steps} steps{', captions' if captions else ''}"
        self.facts = {
            "model": pipeline.config.name,
            "weights_sha256": pipeline.weights_hash,
            "text_encoder": pipeline.engine.text.fingerprint,
            "captions": captions,
            "steps": steps,
            "guidance": self.options.get("guidance", defaults.guidance_i2d),
            "size": self.options.get("size"),
            "edge_radius": self.options.get("edge_radius", defaults.edge_radius),
            "device": str(pipeline.device),
            "dtype": str(pipeline.engine.transformer.dtype).removeprefix("torch."),
        }

    def predict(
        self, images: Sequence[np.ndarray], captions: Sequence[str], seeds: Sequence[int]
    ) -> list[Prediction]:
        """See :class:`Predictor`."""
        prompts = [text if self.captions else "" for text in captions]
        results = self.pipeline.image_to_depth(
            list(images), prompt=prompts, seed=list(seeds), batch_size=self.batch_size, **self.options
        )
        return [Prediction(result.depth) for result in results]


def load_pipeline(model: Mapping[str, Any]) -> Pipeline:
    """The pipeline of ``Pipeline.from_pretrained``'s keyword arguments."""
    from modality_forcing.pipeline import Pipeline

    return Pipeline.from_pretrained(**model)


class ConstantDepth:
    """The same depth everywhere: what a scale or a shift alone can reach."""

    name, promise, batch_size = "constant depth", "relative", 64
    facts: dict[str, Any] = {"model": "constant"}  # noqa: RUF012 -- never written

    def predict(
        self, images: Sequence[np.ndarray], captions: Sequence[str], seeds: Sequence[int]
    ) -> list[Prediction]:
        """See :class:`Predictor`."""
        return [Prediction(np.ones(image.shape[:2], dtype=np.float32)) for image in images]


class MeanDepth:
    """The mean depth map of training scenes of the procedural world, whatever the picture shows.

    Every map is divided by its mean, then pixels are averaged where they are known; the result is stretched
    to each picture.

    Args:
        maps: (H, W) depth of one shape; 0, NaN and infinity are unknown.
        source: of the maps, for the report.
    """

    name, promise, batch_size = "mean training depth", "relative", 64

    def __init__(self, maps: Sequence[np.ndarray], source: str) -> None:
        total, count = np.zeros(maps[0].shape), np.zeros(maps[0].shape)
        for depth in maps:
            known = np.isfinite(depth) & (depth > 0)
            if known.any():
                total[known] += depth[known] / depth[known].mean(dtype=np.float64)
                count += known
        self.depth = np.divide(total, count, out=np.ones_like(total), where=count > 0).astype(np.float32)
        digest = hashlib.sha256(np.ascontiguousarray(self.depth, dtype="<f4").tobytes()).hexdigest()
        self.facts: dict[str, Any] = {"model": "mean", "source": source, "maps": len(maps), "sha256": digest}

    @classmethod
    def of_world(cls, scenes: int = MEAN_SCENES, size: int = MEAN_SIZE) -> MeanDepth:
        """From the first scenes of the training split."""
        from modality_forcing.data.lowpoly import make_sample, split_seed

        maps = [make_sample(split_seed("train", i), size, size, supersample=1).depth for i in range(scenes)]
        return cls(maps, "lowpoly:train")

    def predict(
        self, images: Sequence[np.ndarray], captions: Sequence[str], seeds: Sequence[int]
    ) -> list[Prediction]:
        """See :class:`Predictor`."""
        from PIL import Image

        picture = Image.fromarray(self.depth)
        return [
            Prediction(np.array(picture.resize((image.shape[1], image.shape[0]), Image.Resampling.BILINEAR)))
            for image in images
        ]


class Ensemble:
    """N seeds of another predictor, aligned, the median of every pixel; their spread beside it.

    Args:
        inner: draws differently for different seeds.
        members: at least 2.
    """

    def __init__(self, inner: Predictor, members: int) -> None:
        self.inner, self.members = inner, members
        self.name, self.promise = f"{inner.name}, ensemble of {members}", inner.promise
        self.batch_size = max(1, inner.batch_size // members)
        self.facts = {**inner.facts, "ensemble": members}

    def predict(
        self, images: Sequence[np.ndarray], captions: Sequence[str], seeds: Sequence[int]
    ) -> list[Prediction]:
        """See :class:`Predictor`. Seed s becomes s * members ... s * members + members - 1."""
        n = self.members
        found = self.inner.predict(
            [image for image in images for _ in range(n)],
            [text for text in captions for _ in range(n)],
            [seed * n + k for seed in seeds for k in range(n)],
        )
        shift = self.promise in ("affine", "disparity")
        result = []
        for i in range(len(images)):
            median, spread = combine([p.depth for p in found[i * n : (i + 1) * n]], shift=shift)
            result.append(Prediction(median, spread))
        return result


class PluginPredictor:
    """A function or class of a file the user names.

    The function takes one uint8 (H, W, 3) picture and gives float (H, W); a class is made once (``options``
    are its arguments) and then called like the function. Attributes ``promise`` (one of ``PROMISES``,
    "relative" when missing) and ``facts`` are read where they exist. A parameter named ``seed`` or
    ``caption`` gets that value.

    Raises:
        UserError: no such file or name, an unknown promise, or arguments it does not take.
    """

    batch_size = 1

    def __init__(self, text: str, options: Mapping[str, str] | None = None) -> None:
        file, colon, name = text.rpartition(":")
        path = Path(file).expanduser()
        if not colon or not name.isidentifier() or path.suffix != ".py":
            raise UserError(f"--predictor is {text[:200]!r}; right is constant, mean, or FILE.py:NAME")
        if not path.is_file():
            raise UserError(f"--predictor {path} does not exist")
        found: Any = getattr(_module(path), name, None)
        if not callable(found):
            raise UserError(f"--predictor {path} has no function or class {name}")
        options = dict(options or {})
        try:
            if inspect.isclass(found):
                found = found(**options)
            elif options:
                raise UserError(f"--predictor-option needs a class; {name} of {path} is a function")
        except TypeError as error:
            raise UserError(f"--predictor {path}: {error}") from None
        self.function: Callable[..., Any] = found
        self.promise = str(getattr(found, "promise", "relative"))
        if self.promise not in PROMISES:
            raise UserError(f"{name} of {path} promises {self.promise!r}; right is {', '.join(PROMISES)}")
        self.name = str(getattr(found, "name", name))
        known = inspect.signature(found).parameters
        self._extras = [key for key in ("seed", "caption") if key in known]
        self.facts = {
            "plugin": f"{path.name}:{name}",
            "plugin_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "options": options,
            **getattr(found, "facts", {}),
        }

    def predict(
        self, images: Sequence[np.ndarray], captions: Sequence[str], seeds: Sequence[int]
    ) -> list[Prediction]:
        """See :class:`Predictor`.

        Raises:
            UserError: an answer of another shape or kind.
        """
        results = []
        for image, caption, seed in zip(images, captions, seeds, strict=True):
            extras = {"seed": seed, "caption": caption}
            answer = np.asarray(self.function(image, **{key: extras[key] for key in self._extras}))
            if answer.shape != image.shape[:2] or answer.dtype.kind not in "fui":
                raise UserError(
                    f"{self.name} gave {answer.dtype} {answer.shape}; right is numbers {image.shape[:2]}"
                )
            results.append(Prediction(answer.astype(np.float32)))
        return results


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"predictor_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError:
        raise
    except Exception as error:
        raise UserError(f"--predictor {path} cannot be loaded: {type(error).__name__}: {error}") from error
    return module


def open_predictor(
    text: str | None,
    model: Mapping[str, Any],
    *,
    predictor_options: Mapping[str, str] | None = None,
    captions: bool = False,
    ensemble: int = 1,
    batch_size: int = 8,
    sampling: Mapping[str, Any] | None = None,
) -> Predictor:
    """The predictor a user named.

    Args:
        text: None (our model), "constant", "mean", or ``FILE.py:NAME``.
        model: keyword arguments of ``Pipeline.from_pretrained``, used for our model only.
        predictor_options: arguments of a plug-in's class.
        captions: give our model the captions.
        ensemble: members; 1 is none.
        sampling: steps, guidance, size of our model.

    Raises:
        UserError: an unknown predictor, or an ensemble of one that draws nothing.
    """
    predictor: Predictor
    if text is None:
        predictor = PipelinePredictor(
            load_pipeline(model), captions=captions, batch_size=batch_size, **(sampling or {})
        )
    elif text in ("constant", "mean"):
        if ensemble > 1:
            raise UserError(f"--ensemble does not fit the predictor {text}: it draws nothing")
        predictor = ConstantDepth() if text == "constant" else MeanDepth.of_world()
    else:
        predictor = PluginPredictor(text, predictor_options)
    return Ensemble(predictor, ensemble) if ensemble > 1 else predictor
