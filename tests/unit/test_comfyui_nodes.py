"""The ComfyUI nodes without ComfyUI: their interface, and what they compute with a tiny model."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from modality_forcing.errors import UserError

PACK = Path(__file__).parents[2] / "integrations" / "comfyui"
BUILT_IN = {"IMAGE", "MASK", "STRING", "INT", "FLOAT", "BOOLEAN"}


@pytest.fixture(scope="module")
def pack() -> ModuleType:
    """Loaded as ComfyUI loads a folder of ``custom_nodes``: under a name of its own."""
    spec = importlib.util.spec_from_file_location(
        "custom_nodes_under_test", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def node(pack: ModuleType, name: str) -> Any:
    return pack.NODE_CLASS_MAPPINGS[f"ModalityForcing{name}"]()


def defaults(made: Any) -> dict[str, Any]:
    """Widget values as ComfyUI fills them in."""
    found = {}
    for name, (kind, *more) in made.INPUT_TYPES()["required"].items():
        if isinstance(kind, list):
            found[name] = kind[0]
        elif more and "default" in more[0]:
            found[name] = more[0]["default"]
    return found


def test_every_node_has_what_comfyui_asks_for(pack: ModuleType) -> None:
    assert set(pack.NODE_CLASS_MAPPINGS) == set(pack.NODE_DISPLAY_NAME_MAPPINGS)
    made_by: set[str] = set()
    taken: set[str] = set()
    for kind in pack.NODE_CLASS_MAPPINGS.values():
        made = kind()
        inputs = kind.INPUT_TYPES()
        assert set(inputs) <= {"required", "optional"}
        names = [name for group in inputs.values() for name in group]
        assert list(inspect.signature(getattr(made, kind.FUNCTION)).parameters)[: len(names)] == names
        assert kind.CATEGORY
        assert len(getattr(kind, "RETURN_NAMES", ())) == len(kind.RETURN_TYPES)
        made_by |= set(kind.RETURN_TYPES)
        taken |= {
            entry[0] for group in inputs.values() for entry in group.values() if isinstance(entry[0], str)
        }
    assert taken - BUILT_IN <= made_by  # whatever a node takes, some node gives


def test_text_to_image_then_depth_then_image(
    pack: ModuleType, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pipeline,) = node(pack, "Load").load(str(tiny_model), "cpu")
    joint = node(pack, "Joint")
    given = defaults(joint) | {"prompt": "a lake", "seed": 3, "steps": 2}
    image, rgbd = joint.run(pipeline, **given)
    assert (image.dtype, tuple(image.shape)) == (torch.float32, (1, 64, 64, 3))
    expected = pipeline.joint("a lake", seed=3, steps=2, fov_x=65.0)[0]
    assert np.array_equal(np.rint(image[0].numpy() * 255), expected.rgb)
    assert np.array_equal(rgbd[0].depth, expected.depth)

    estimate = node(pack, "ImageToDepth")
    both = torch.cat([image, image.flip(2)])
    (found,) = estimate.run(pipeline, both, **defaults(estimate) | {"steps": 1})
    assert len(found) == 2
    assert np.array_equal(found[1].rgb, expected.rgb[:, ::-1])

    back = node(pack, "DepthToImage")
    given = defaults(back) | {"prompt": "night", "steps": 1}
    made, again = back.run(pipeline, **given, rgbd=found)
    assert tuple(made.shape) == (2, 64, 64, 3)
    assert np.array_equal(again[0].depth, np.where(found[0].mask, found[0].depth, 0))
    _, pulled = back.run(pipeline, **given, rgbd=found, guidance_depth=4.0)
    assert [item.provenance["guidance_depth"] for item in (again[0], pulled[0])] == [1.0, 4.0]
    with pytest.raises(UserError, match="connect rgbd or depth_image"):
        back.run(pipeline, **given)

    colours, valid = node(pack, "ShowDepth").show(found, "magma")
    assert tuple(colours.shape) == (2, 64, 64, 3)
    assert np.array_equal(valid.numpy() > 0, np.stack([item.mask for item in found]))
    monkeypatch.chdir(tmp_path)
    saved = node(pack, "Save").save(found, "../../evil name")["ui"]["text"]
    assert len(set(saved)) == 2
    for folder in saved:
        assert (tmp_path / folder).resolve().is_relative_to(tmp_path / "output")
        assert (tmp_path / folder / "depth.npy").is_file()


def test_gray_pictures_as_depth(pack: ModuleType) -> None:
    nodes = sys.modules[f"{pack.__name__}.nodes"]
    gray = torch.tensor([0.0, 0.25, 0.5, 1.0]).reshape(1, 2, 2, 1).repeat(1, 1, 1, 3)
    near_bright, far_bright = (nodes.gray_depth(gray, kind)[0] for kind in nodes.KINDS)
    assert np.isnan(near_bright[0, 0])
    assert near_bright.ravel()[1:].tolist() == [4.0, 2.0, 1.0]
    assert far_bright.ravel()[1:].tolist() == [0.25, 0.5, 1.0]


def test_cancel_and_progress_are_comfyuis(
    pack: ModuleType, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modality_forcing import Pipeline

    class Interrupted(Exception):
        pass

    told: list[tuple[int, int]] = []

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update_absolute(self, value: int, total: int) -> None:
            told.append((value, total))

    def check() -> None:
        if len(told) == 2:
            raise Interrupted

    comfy, utils, management = (
        ModuleType("comfy"),
        ModuleType("comfy.utils"),
        ModuleType("comfy.model_management"),
    )
    utils.ProgressBar = ProgressBar  # type: ignore[attr-defined]
    management.throw_exception_if_processing_interrupted = check  # type: ignore[attr-defined]
    for module in (comfy, utils, management):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    joint = node(pack, "Joint")
    with pytest.raises(Interrupted):
        joint.run(Pipeline.from_pretrained(tiny_model), **defaults(joint) | {"prompt": "", "steps": 5})
    assert told == [(1, 5), (2, 5)]


def test_width_without_height_is_refused(pack: ModuleType) -> None:
    joint = node(pack, "Joint")
    with pytest.raises(UserError, match="width and height go together"):
        joint.run(None, **defaults(joint) | {"width": 64})
