"""``mf data convert``: shards, a report and a sheet from one command; what is wrong in one clear line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_running import Result, tree
from PIL import Image

import reader_sources as sources
from modality_forcing.cli.data_convert import EDGE_COLOR, FORMAT_NAMES, overlay
from modality_forcing.data.readers.formats import FORMATS
from modality_forcing.data.shards import ShardSet

Run = Callable[..., Result]


def test_help_names_every_format(mf: Run) -> None:
    assert FORMAT_NAMES.split("|") == list(FORMATS)
    result = mf("data", "convert", "--help")
    assert result.code == 0 and "Usage" in result.out and "--max-side" in result.out


def test_a_folder(mf: Run, work: Path) -> None:
    sources.make_folder(work / "mine")
    sources.save_picture(work / "mine" / "images" / "alone.jpg")
    (work / "mine" / "images" / "view 1.jpg").write_bytes(b"no picture")
    result = mf("data", "convert", "mine", "--format", "folder", "--out", "set", "--workers", 1)
    assert result.code == 0, result.err
    assert result.out.startswith("set: 2 samples in 1 shards") and "(0 kept, 1 left out)" in result.out
    lines = dict(line.partition(": ")[::2] for line in result.out.splitlines())
    assert lines["size"] == "32x24 2" and lines["shape"] == "4:3 2" and lines["camera"] == "assumed 2"
    assert lines["left out"].startswith("1, first view 1: image view 1.jpg")
    assert lines["not used"] == "1, first images/alone.jpg: no depth map of the same name"
    assert lines["depth in metres (2 samples)"].startswith("1 to 4,")
    assert "read as millimetres" in result.err and "have no camera" in result.err
    assert len(ShardSet("set")) == 2
    report = json.loads((work / "set" / "report.json").read_text())
    assert report["skipped"]["count"] == 1 and report["problems"]["first"][0][0] == "images/alone.jpg"
    sheet = np.array(Image.open(work / "set" / "alignment.png"))
    assert sheet.shape[0] > 240 and sheet.shape[1] > 6 * 300 and sheet.std() > 20  # two samples in a row
    again = mf("data", "convert", "mine", "-f", "folder", "-o", "set", "--workers", 1)
    assert again.code == 0 and "(2 kept, 1 left out)" in again.out
    assert mf("data", "inspect", "set", "--verify").code == 0


def test_edges_and_points_over_the_picture() -> None:
    rgb = np.full((60, 80, 3), 200, np.uint8)
    depth = np.full((60, 80), 5.0, np.float32)
    depth[20:40, 30:50] = 2.0
    depth[30:34, 49:51] = 0  # a hole at the object's right side, and a large one without edges
    depth[:15] = 0
    drawn = overlay(rgb, depth)
    edges = (drawn == EDGE_COLOR).all(-1)
    assert edges[20, 30:50].all() and edges[25, 30] and not edges[25, 35:45].any() and not edges[:17].any()
    assert edges[30:34, 48:52].any(1).all() and (drawn[:15] == 170).all()
    points = np.zeros((60, 80), np.float32)
    points[30, 40], points[10, 10] = 2.0, 5.0
    drawn = overlay(rgb, points)
    assert (drawn[30, 40] != drawn[10, 10]).any() and (drawn[28:33, 38:43] == drawn[30, 40]).all()
    assert (drawn[50, 60] == 100).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("nowhere", "-f", "folder"), "nowhere does not exist; right is images/NAME.jpg"),
        (("mine", "-f", "photos"), "the format 'photos' is not known; right is one of folder, csv"),
        (("mine", "-f", "tartanair"), "holds nothing in the layout of tartanair; right is ENV/Easy"),
        (("mine", "-f", "scannet", "--unit", "m"), "--unit means nothing for the format scannet"),
        (("mine", "-f", "folder", "--max-side", 8), "--max-side is 8; right is 16"),
        (("mine", "-f", "folder", "--limit", 0), "--limit is 0; right is 1"),
        (("mine", "-f", "folder", "--depth-scale", 0), "--depth-scale is 0"),
        (("mine", "-f", "folder", "--depth-scale", "nan"), "--depth-scale is nan"),
        (("mine", "-f", "folder", "--depth-kind", "z"), "right is 'depth' or 'disparity'"),
        (("mine", "-f", "folder", "--unit", "feet"), "right is 'm' or 'relative'"),
        (("mine", "-f", "folder", "--fov-x", 180), "--fov-x is 180"),
        (("", "-f", "folder"), "SOURCE is ''"),
    ],
)
def test_bad_input(mf: Run, work: Path, options: tuple[object, ...], said: str) -> None:
    sources.make_folder(work / "mine")
    result = mf("data", "convert", *options, "--out", "set")
    assert result.code == 2 and len(result.errors) == 1 and said in result.errors[0], result.err
    assert not (work / "set").exists()


def test_missing_package(mf: Run, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "h5py" else find(name, *rest)
    )
    (work / "mine").mkdir()
    result = mf("data", "convert", "mine", "-f", "hypersim", "--out", "set")
    assert result.code == 2 and 'pip install "modality-forcing[data]"' in result.err
    assert tree(work) == set()
