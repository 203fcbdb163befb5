"""The user's own files as samples, sizes, the report, and conversions that can be stopped and repeated."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import reader_sources as sources
from modality_forcing.data.readers import base, folder
from modality_forcing.data.readers.alignment import SIDE, best_shift, shift_scores
from modality_forcing.data.readers.base import Loaded, Options
from modality_forcing.data.readers.convert import convert
from modality_forcing.data.readers.formats import FORMATS
from modality_forcing.data.readers.report import merge, sample_record
from modality_forcing.data.readers.resample import fit, shrink_depth
from modality_forcing.data.shards import ShardSet
from modality_forcing.errors import UserError
from modality_forcing.io.depth_files import write_depth_png16
from modality_forcing.types import Camera, Sample
from reader_sources import HEIGHT, WIDTH, picture, ramp, save_picture, save_png16, write_text


def load_folder(source: Path, **options: Any) -> dict[str, Loaded]:
    """Samples of format "folder" by name; all must be readable."""
    chosen = Options(**options)
    return {item.name: folder.load(item, chosen) for item in folder.find(source, chosen).items}


# -- folder, csv, index


def test_folder(tmp_path: Path) -> None:
    sources.make_folder(tmp_path)
    samples = load_folder(tmp_path)
    assert list(samples) == ["view 0", "view 1", "view 2"]
    for sample, notes in zip(
        samples.values(),
        ([base.READ_AS_MILLIMETRES], [base.READ_AS_METRES], [base.READ_AS_METRES]),
        strict=True,
    ):
        np.testing.assert_allclose(sample.depth, ramp(), atol=5.1e-4)
        assert sample.unit == "m" and sample.notes == notes and sample.camera_from == "assumed"
        assert sample.jpeg is not None  # stored as it came


def test_folder_beside_each_other_with_everything(tmp_path: Path) -> None:
    save_picture(tmp_path / "hall" / "a_rgb.png")
    save_png16(tmp_path / "hall" / "a_depth.png", np.full((HEIGHT, WIDTH), 1500))
    mask, sky = np.full((HEIGHT, WIDTH), 255, np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:] = 0
    sky[0] = 255
    Image.fromarray(mask).save(tmp_path / "hall" / "a_mask.png")
    Image.fromarray(sky).save(tmp_path / "hall" / "a-sky.png")
    write_text(tmp_path / "hall" / "a.txt", "a hall with a long red carpet\n\na hall\n")
    write_text(tmp_path / "intrinsics.json", "[[30, 0, 15], [0, 31, 12], [0, 0, 1]]")
    ((name, sample),) = load_folder(tmp_path).items()
    assert name == "hall/a" and sample.captions == ("a hall", "a hall with a long red carpet")
    assert np.isposinf(sample.depth[0]).all() and (sample.depth[1:10] == 1.5).all()
    assert (sample.depth[10:] == 0).all()
    assert sample.camera == Camera(30, 31, 15, 12, WIDTH, HEIGHT) and sample.camera_from == "given"


def test_what_a_depth_file_means(tmp_path: Path) -> None:
    save_picture(tmp_path / "images" / "a.png")
    depth = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    depth[0] = np.inf
    path = tmp_path / "depth" / "a.npy"
    path.parent.mkdir()
    np.save(path, depth)

    def read(**options: Any) -> tuple[float, float, str]:
        (sample,) = load_folder(tmp_path, **options).values()
        return float(sample.depth[0, 0]), float(sample.depth[5, 5]), sample.unit

    assert read() == (np.inf, 2.0, "m")
    assert read(unit="relative") == (np.inf, 2.0, "relative")
    assert read(depth_scale=0.5) == (np.inf, 1.0, "m")
    assert read(sky_beyond=1.5) == (np.inf, np.inf, "m")
    # Infinite disparity is no place at all; 1 / (2 x 0.1) = 5.
    assert read(depth_kind="disparity", depth_scale=0.1) == (0.0, 5.0, "m")
    assert read(depth_kind="disparity") == (0.0, 0.5, "relative")
    path.unlink()
    depth[0] = 0
    write_depth_png16(path.with_suffix(".png"), depth, depth > 0, unit="m")  # names its scale
    assert read() == (0.0, pytest.approx(2.0), "m")
    save_png16(path.with_suffix(".png"), np.full((HEIGHT, WIDTH), 300))
    assert read(unit="relative") == (300.0, 300.0, "relative")  # no millimetres where nothing is metric
    assert read(depth_kind="disparity")[1:] == (pytest.approx(1 / 300), "relative")


def test_folder_lists_what_does_not_fit(tmp_path: Path) -> None:
    sources.make_folder(tmp_path)
    save_picture(tmp_path / "images" / "alone.jpg")
    np.save(tmp_path / "depth" / "nobody.npy", ramp())
    write_text(tmp_path / "images" / "notes.md", "mine")
    save_picture(tmp_path / "rgb" / "view 0.png")
    found = folder.find(tmp_path, Options())
    assert dict(found.problems) == {
        "images/alone.jpg": "no depth map of the same name",
        "depth/nobody.npy": "no image of the same name",
        "images/notes.md": "neither an image nor a depth map, mask or caption",
        "rgb/view 0.png": "a second image for view 0; view 0.jpg is used",
    }
    assert len(found.items) == 3
    with_lone = load_folder(tmp_path, rgb_only=True)
    assert len(with_lone) == 4 and not with_lone["alone"].depth.any()


def test_csv(tmp_path: Path) -> None:
    sources.make_csv(tmp_path)
    table = tmp_path / "table.csv"
    with table.open("a") as stream:
        stream.write(
            "2.png,d1.png,,,,,,\n0.png,d0.png,again,,,,,\n1.png,,no depth,,,,,\n0.png,d0.png,,5,,,,x\n"
        )
    found = FORMATS["csv"].find(table, Options())
    first, second = (FORMATS["csv"].load(item, Options()) for item in found.items)
    np.testing.assert_allclose(first.depth, ramp(), atol=1.1e-4)
    assert first.captions == ("a hall, seen low",) and first.camera == Camera(30, 31, 15, 12, WIDTH, HEIGHT)
    assert second.camera_from == "assumed" and second.unit == "m"
    reasons = [reason for _, reason in found.problems]
    assert reasons[0] == "no file 2.png" and "names no depth" in reasons[1] and "could not" in reasons[2]
    assert reasons[3].startswith("the image comes twice")
    for text, wrong in (("image,deep\n", "'deep'"), ("picture,depth\n", "'picture'"), ("depth\n", "'image'")):
        table.write_text(text)
        with pytest.raises(UserError, match=wrong):
            FORMATS["csv"].find(table, Options())


def test_index(tmp_path: Path) -> None:
    sources.make_index(tmp_path)
    ((item),) = FORMATS["index"].find(tmp_path, Options()).items
    sample = FORMATS["index"].load(item, Options())
    np.testing.assert_allclose(sample.depth, ramp(), atol=5.1e-5)
    assert sample.camera.fy == 31 and sample.unit == "m" and sample.meta == {"origin": "a sensor"}
    for text in ("{}", "[1]", "nonsense"):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(UserError, match=r"index\.json"):
            FORMATS["index"].find(tmp_path, Options())


# -- sizes


def test_shrinking_keeps_measured_values_and_points() -> None:
    depth = np.zeros((8, 8), np.float32)
    depth[:4] = np.arange(1, 33).reshape(4, 8)
    depth[5, 6], depth[4, 7], depth[7, 0] = 99.0, 98.0, np.inf
    small = shrink_depth(depth, 4, 4)
    assert small.shape == (4, 4)
    np.testing.assert_array_equal(small[:2], depth[1:4:2, 1:8:2])  # the pixel at each centre
    assert small[2].tolist() == [0, 0, 0, 99.0]  # of both points as near to the centre the later one
    assert np.isposinf(small[3, 0]) and not small[3, 1:].any()
    thirds = np.zeros((6, 6), np.float32)
    thirds[0, 1], thirds[2, 2] = 2.0, 3.0  # one pixel from the centre of the first nine, and a corner
    assert shrink_depth(thirds, 2, 2)[0, 0] == 2.0
    points = np.zeros((60, 90), np.float32)
    points[30, 45] = 3.0
    assert (shrink_depth(points, 7, 5) > 0).sum() == 1
    assert shrink_depth(points, 90, 60) is points


def test_fitting_sizes() -> None:
    camera = Camera(100.0, 100.0, 60.0, 50.0, 128, 96)
    loaded = Loaded(picture(0, 128, 96), ramp(width=64, height=48), camera, jpeg=Path("a.jpg"))
    half = fit(loaded, None)  # the picture shrinks to the depth, never the other way round
    assert half.rgb.shape == (48, 64, 3) and half.depth is not None and half.jpeg is None
    assert half.camera == Camera(50.0, 50.0, 30.0, 25.0, 64, 48)
    quarter = fit(loaded, 32)
    assert quarter.rgb.shape == (24, 32, 3) and quarter.depth.shape == (24, 32)
    assert set(np.unique(quarter.depth)) <= set(np.unique(loaded.depth))
    same = fit(Loaded(picture(0, 64, 48), loaded.depth, camera.resized(64, 48), jpeg=Path("a.jpg")), 64)
    assert same.jpeg == Path("a.jpg")
    with pytest.raises(UserError, match="another shape"):
        fit(Loaded(picture(0, 48, 64), loaded.depth, camera.resized(48, 64)), None)


# -- report


def record(name: str, depth: np.ndarray, seed: int = 0, unit: str = "m") -> dict[str, Any]:
    """Line of the report of a made-up sample."""
    height, width = depth.shape
    sample = Sample(picture(seed, width, height), depth, Camera(30, 30, width / 2, height / 2, width, height))
    return sample_record(name, name, sample, "given", unit, [])


def report_of(records: list[dict[str, Any]]) -> Any:
    """The report of one shard."""
    return merge("folder", [("a.tar", {"samples": records, "skipped": []})], [])


def test_report_numbers() -> None:
    depth = ramp(2.0, 4.0)
    depth[0] = np.inf
    report = report_of([record("a", depth), record("b", ramp(), seed=1), record("c", ramp(), seed=1)])
    assert report.samples == 3 and report.sizes == {"32x24": 3} and report.aspects == {"4:3": 3}
    cells = HEIGHT * WIDTH
    assert report.sky == pytest.approx(WIDTH / cells / 3)
    assert report.measured == pytest.approx((23 * 31 + 2 * 24 * 31) / cells / 3)
    near, _, middle, _, far = report.depths["m"]
    assert (near, far) == (1.0, 4.0) and middle == pytest.approx(2.5)
    assert report.duplicates == [["b", "c"]] and any("b = c" in line for line in report.warnings)
    assert json.loads(report.to_json())["duplicates"] == {"count": 1, "first": [["b", "c"]]}


def test_report_sees_wrong_units() -> None:
    assert not report_of([record("a", ramp())]).warnings
    (line,) = report_of([record("a", 1000 * ramp())]).warnings
    assert "2.5e+03 m" in line and "millimetres would make it 2.5 m" in line
    (line,) = report_of([record("a", 0.001 * ramp())]).warnings
    assert "--unit relative" in line
    assert not report_of([record("a", 1000 * ramp(), unit="relative")]).warnings
    (line,) = report_of(
        [*(record(str(i), ramp(), i) for i in range(3)), record("x", 1000 * ramp(), 9)]
    ).warnings
    assert line.startswith("1 of 4 samples")


def test_report_sees_disparity_and_empty_depth() -> None:
    upright = [record(str(i), ramp(), i) for i in range(6)]
    assert not report_of(upright).warnings
    disparity = [record(str(i), 4.0 / np.maximum(ramp(), 0.1) * (ramp() > 0), i) for i in range(6)]
    (line,) = report_of(disparity).warnings
    assert "6 of 6" in line and "--depth-kind disparity" in line
    thin = np.zeros((60, 60), np.float32)
    thin[30, 30] = 2.0
    assert any("1 samples have depth at fewer" in line for line in report_of([record("t", thin)]).warnings)


@pytest.mark.parametrize("shift", [0, 5])
def test_alignment_finds_a_shift(shift: int) -> None:
    total = np.zeros(())
    for seed in range(3):
        rng = np.random.default_rng(seed)
        depth, rgb = np.full((120, 160), 9.0, np.float32), np.full((120, 160, 3), 90, np.uint8)
        for _ in range(6):
            y, x = rng.integers(15, 80), rng.integers(15, 120)
            depth[y : y + 20, x : x + 22] = rng.uniform(1, 5)
            rgb[y : y + 20, x : x + 22] = rng.integers(0, 255, 3)
        depth[:40, :40] = np.inf
        rgb[:40, :40] = (90, 140, 240)
        moved = np.roll(depth, shift, axis=1)
        moved[rng.random(depth.shape) < 0.2] = 0  # a sensor's holes
        scores = shift_scores(rgb, moved)
        assert scores is not None
        total = total + scores
    assert best_shift(total) == (shift / SIDE, 0.0, shift > 0)
    points = np.zeros((120, 160), np.float32)
    points[::9, ::9] = 2.0
    assert shift_scores(rgb, points) is None


# -- conversion


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_format_becomes_shards(name: str, tmp_path: Path) -> None:
    if name in sources.NEEDS:
        pytest.importorskip(sources.NEEDS[name])
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    sources.MAKERS[name](source)
    source = source / "table.csv" if name == "csv" else source
    made = convert(source, name, out)
    shards = ShardSet(out)
    assert len(shards) == made.manifest.samples == made.report.samples > 0 and shards.verify() == []
    read = shards.read(0)
    (first, *_) = FORMATS[name].find(source, Options()).items
    expected = FORMATS[name].load(first, Options())
    np.testing.assert_allclose(read.depth, expected.depth, rtol=1e-4)
    np.testing.assert_array_equal(read.rgb, expected.rgb)
    assert read.camera == expected.camera and read.meta["name"] == first.name
    assert read.meta["depth_unit"] == expected.unit and read.meta["source"] == name


def test_same_bytes_however_it_was_made(tmp_path: Path) -> None:
    sources.make_folder(tmp_path / "source")
    save_picture(tmp_path / "source" / "images" / "bad.jpg")
    write_text(tmp_path / "source" / "depth" / "bad.npy", "no numbers")
    first = convert(tmp_path / "source", "folder", tmp_path / "a", shard_size=1)
    assert first.manifest.samples == 3 and first.kept == 0
    assert [name for name, _ in first.report.skipped] == ["bad"]
    assert [shard.samples for shard in first.manifest.shards.values()] == [0, 1, 1, 1]
    assert len(ShardSet(tmp_path / "a")) == 3

    def content(name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())}

    whole = content("a")
    convert(tmp_path / "source", "folder", tmp_path / "b", shard_size=1, workers=2)
    assert content("b") == whole
    (tmp_path / "b" / "folder-000002.tar").unlink()  # as if it had been stopped
    again = convert(tmp_path / "source", "folder", tmp_path / "b", shard_size=1)
    assert content("b") == whole and again.kept == 2 and again.report.skipped == first.report.skipped
    for other in ({"max_side": 24}, {"limit": 3}, {"options": Options(depth_scale=0.01)}):
        with pytest.raises(UserError, match="made with other settings"):
            convert(tmp_path / "source", "folder", tmp_path / "b", shard_size=1, **other)
    save_picture(tmp_path / "source" / "images" / "new.jpg")
    np.save(tmp_path / "source" / "depth" / "new.npy", ramp())
    with pytest.raises(UserError, match="items=4 \\(now 5\\)"):
        convert(tmp_path / "source", "folder", tmp_path / "b", shard_size=1)


def test_limit_is_spread_and_pictures_shrink(tmp_path: Path) -> None:
    for number in range(7):
        save_picture(tmp_path / "s" / "rgb" / f"{number}.png", number, 64, 48)
        np.save(tmp_path / "s" / f"{number}_depth.npy", ramp(width=64, height=48))
    made = convert(tmp_path / "s", "folder", tmp_path / "o", limit=3, max_side=32)
    shards = ShardSet(tmp_path / "o")
    assert [shards.read(i).meta["name"] for i in range(3)] == ["0", "2", "4"]
    assert made.report.sizes == {"32x24": 3}


def test_nothing_to_convert_is_said_at_once(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    with pytest.raises(UserError, match="does not exist"):
        convert(source, "folder", out)
    source.mkdir()
    for name, form in FORMATS.items():
        if all(importlib.util.find_spec(package) for package in form.needs):
            with pytest.raises(UserError, match="right is"):
                convert(source, name, out)
    save_picture(source / "images" / "a.jpg")
    with pytest.raises(UserError, match=r"first of 1 problems: images/a\.jpg: no depth map"):
        convert(source, "folder", out)
    write_text(source / "depth" / "a.npy", "no numbers")
    with pytest.raises(
        UserError, match=r"none of 1 items that were tried can be read; the first, a: .*\.npy"
    ):
        convert(source, "folder", out)
    with pytest.raises(UserError, match="inside"):
        convert(source, "folder", source / "out")
    with pytest.raises(UserError, match="right is one of folder, csv"):
        convert(source, "photos", out)
    with pytest.raises(UserError, match="--depth-scale means nothing for the format tartanair"):
        convert(source, "tartanair", out, Options(depth_scale=2.0))
    assert not out.exists()


def test_names_of_any_bytes(tmp_path: Path) -> None:
    source = tmp_path / "s"
    try:
        save_picture(
            source / "images" / "caf\udce9 \u00e9.png"
        )  # a file name in Latin-1, as the system gives it
    except (OSError, UnicodeError):
        pytest.skip("the file system wants UTF-8")
    np.save(source / "images" / "caf\udce9 \u00e9_depth.npy", ramp())
    write_text(source / "images" / "\udcff.md", "mine")
    convert(source, "folder", tmp_path / "o")
    sample = ShardSet(tmp_path / "o").read(0)
    assert sample.meta["name"] == "caf? \u00e9" and sample.meta["key"] == "00000000-caf"
    json.loads((tmp_path / "o" / "report.json").read_bytes())
