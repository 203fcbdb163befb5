"""Shards: what goes in comes out, in any order, from any process, and damage harms one sample only."""

from __future__ import annotations

import hashlib
import io
import json
import math
import multiprocessing
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shard_samples import encoded, made_sample

from modality_forcing.data.shards import (
    CorruptSample,
    Job,
    ShardSet,
    build_shards,
    encode_sample,
    write_shard,
)
from modality_forcing.data.shards.samples import decode_record, decode_sample
from modality_forcing.data.shards.summary import summarise
from modality_forcing.errors import UserError
from modality_forcing.io.depth_files import read_depth
from modality_forcing.io.log_depth import depth_of_log_codes, log_codes
from modality_forcing.types import Sample
from sending import sent

ALL = ("rgb", "depth", "normals", "ids")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten samples in shards of four."""
    folder = tmp_path_factory.mktemp("shards") / "set"
    jobs = [Job(f"made-{i:06d}.tar", n, encoded, (4 * i, n)) for i, n in enumerate((4, 4, 2))]
    build_shards(folder, {"name": "made"}, {"count": 10}, jobs)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(original, tmp_path / "set"))


def same(read: Sample, sample: Sample) -> None:
    """The sample that was written; depth within 1e-4, the rest exact or to 8 bits."""
    np.testing.assert_array_equal(read.rgb, sample.rgb)
    np.testing.assert_array_equal(read.object_ids, sample.object_ids)
    np.testing.assert_array_equal(np.isinf(read.depth), np.isinf(sample.depth))
    np.testing.assert_array_equal(read.depth == 0, sample.depth == 0)
    np.testing.assert_array_equal(read.valid, sample.valid)
    np.testing.assert_allclose(read.depth[read.valid], sample.depth[read.valid], rtol=1e-4)
    cosine = (read.normals * sample.normals).sum(-1)
    sky = np.isinf(sample.depth)
    assert cosine[~sky].min() > math.cos(math.radians(0.5)) and not read.normals[sky].any()
    np.testing.assert_allclose(np.linalg.norm(read.normals[~sky], axis=-1), 1, atol=1e-6)
    assert read.camera == sample.camera and read.captions == sample.captions and read.seed == sample.seed
    assert read.rgb.dtype == np.uint8 and read.depth.dtype == np.float32 and read.object_ids.dtype == np.int32


def test_round_trip(original: Path) -> None:
    shards = ShardSet(original)
    assert len(shards) == 10 and shards.keys == [f"{i:06d}" for i in range(10)] and not shards.lost
    for index in (7, 0, 9, 3, 4):
        read = shards.read(index, ALL)
        same(read, made_sample(index))
        assert read.meta == {
            "place": f"place {index % 3}", "light": "sun", "objects": [{"id": 1, "at": [1.5, 2.0]}],
            "key": f"{index:06d}", "source": "made", "depth_unit": "m",
        }  # fmt: skip
    assert shards.verify() == [] and {shards.size(i) for i in range(10)} == {(20, 16)}
    with pytest.raises(IndexError):
        shards.read(10)
    with pytest.raises(IndexError):
        shards.read(-1)
    with pytest.raises(ValueError, match="unknown fields"):
        shards.read(0, ("rgb", "colour"))


def test_fields_not_asked_for_are_empty(original: Path) -> None:
    shards = ShardSet(original)
    read = shards.read(2, ("depth",))
    assert not read.rgb.any() and read.rgb.shape == (16, 20, 3)
    assert read.normals is None and read.object_ids is None and read.valid.any()
    read = shards.read(2, ("rgb",))
    assert read.rgb.any() and not read.depth.any() and not read.valid.any()
    assert read.captions == made_sample(2).captions


@pytest.mark.parametrize(("near", "far"), [(0.3, 0.3), (1.0, 1.001), (0.1, 1000.0), (0.01, 4900.0)])
def test_depth_error_stays_below_its_bound(near: float, far: float) -> None:
    depth = np.geomspace(near, far, 40_000).astype(np.float32).reshape(200, 200)
    codes, low, high = log_codes(depth)
    assert (low, high) == (float(depth.min()), float(depth.max()))
    assert codes.min() >= 1 and codes.max() <= 65534
    error = np.abs(depth_of_log_codes(codes, low, high).astype(np.float64) / depth - 1).max()
    assert error <= math.log(far / near) / 131066 * 1.001 + 1.5e-7
    assert error <= 1e-4


def test_depth_codes_of_what_is_no_depth() -> None:
    depth = np.array([[np.inf, np.nan, -np.inf, 0, -1, 2, 3]], np.float32)
    codes, near, far = log_codes(depth)
    assert codes.tolist() == [[65535, 0, 0, 0, 0, 1, 65534]] and (near, far) == (2, 3)
    np.testing.assert_array_equal(
        depth_of_log_codes(codes, near, far), np.array([[np.inf, 0, 0, 0, 0, 2, 3]], np.float32)
    )
    codes, near, far = log_codes(depth[:, :5])
    assert codes.tolist() == [[65535, 0, 0, 0, 0]] and (near, far) == (1, 1)
    for wrong in ((0.0, 1.0), (2.0, 1.0), (1.0, math.inf), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="near and far"):
            depth_of_log_codes(codes, *wrong)


def test_mask_and_depth_explain_themselves(original: Path, tmp_path: Path) -> None:
    sample = made_sample(5)
    members = dict(encode_sample(sample, "k", source="made"))
    mask = np.array(Image.open(io.BytesIO(members["mask.png"])))
    assert (mask[sample.valid] == 255).all() and (mask[:4] == 128).all() and (mask[8:10, 5:9] == 0).all()
    (tmp_path / "d.png").write_bytes(members["depth.png"])
    read = read_depth(tmp_path / "d.png")  # nothing needs to be said: the file tells kind, unit and scale
    assert read.unit == "m"
    np.testing.assert_array_equal(read.valid, sample.valid)
    np.testing.assert_array_equal(read.infinite, np.isinf(sample.depth))
    np.testing.assert_allclose(read.depth[read.valid], sample.depth[sample.valid], rtol=1e-4)
    codes = np.array(Image.open(tmp_path / "d.png"))
    Image.fromarray(codes).save(tmp_path / "bare.png")
    with pytest.raises(UserError, match="does not say"):
        read_depth(tmp_path / "bare.png")


def test_tar_holds_nothing_but_the_samples(original: Path) -> None:
    with tarfile.open(original / "made-000000.tar") as tar:
        infos = tar.getmembers()
    ends = ("rgb.png", "depth.png", "mask.png", "normals.png", "ids.png", "json")
    assert [info.name for info in infos] == [f"{i:06d}.{end}" for i in range(4) for end in ends]
    for info in infos:
        assert (info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) == (0, 0, 0, "", "", 0o644)
    assert (original / "made-000000.tar").read_bytes()[257:265] == b"ustar\x0000"


def test_the_webdataset_library_reads_it(original: Path) -> None:
    wds = pytest.importorskip("webdataset")
    urls = [str(original / f"made-{i:06d}.tar") for i in range(3)]
    rows = list(wds.WebDataset(urls, shardshuffle=False))
    assert [row["__key__"] for row in rows] == ShardSet(original).keys
    for index, row in enumerate(rows):
        picture = np.array(Image.open(io.BytesIO(row["rgb.png"])))
        np.testing.assert_array_equal(picture, made_sample(index).rgb)
        assert json.loads(row["json"])["captions"] == list(made_sample(index).captions)
    # And its samples are read here: what it wrote with its own headers, without our index.
    with wds.TarWriter(str(original.parent / "theirs.tar"), encoder=False) as writer:
        for row in rows:
            writer.write({key: value for key, value in row.items() if key in ("__key__",) or key[0] != "_"})
    theirs = original.parent / "theirs"
    theirs.mkdir()
    moved = shutil.move(original.parent / "theirs.tar", theirs / "theirs.tar")
    manifest = json.loads((original / "manifest.json").read_text())
    size = Path(moved).stat().st_size
    manifest["shards"] = [{"name": "theirs.tar", "samples": 10, "bytes": size, "sha256": ""}]
    (theirs / "manifest.json").write_text(json.dumps(manifest))
    same(ShardSet(theirs).read(6, ALL), made_sample(6))


def test_jpeg_and_relative_depth() -> None:
    sample = made_sample(1)
    stream = io.BytesIO()
    Image.fromarray(sample.rgb).save(stream, format="JPEG", quality=95)
    sample.rgb = np.array(Image.open(stream))
    sample.normals = sample.object_ids = None
    members = encode_sample(sample, "k", source="photos", unit="relative", rgb_jpeg=stream.getvalue())
    assert [ending for ending, _ in members] == ["rgb.jpg", "depth.png", "mask.png", "json"]
    content = dict(members)
    read = decode_sample(content, decode_record(content["json"], "k"))
    np.testing.assert_array_equal(read.rgb, sample.rgb)
    assert read.normals is None and read.object_ids is None and read.meta["depth_unit"] == "relative"


def test_same_bytes(original: Path, tmp_path: Path) -> None:
    info = write_shard(tmp_path, "made-000001.tar", encoded(4, 4))
    for name in ("made-000001.tar", "made-000001.index.json"):
        assert (tmp_path / name).read_bytes() == (original / name).read_bytes()
    content = (tmp_path / "made-000001.tar").read_bytes()
    assert (info.bytes, info.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert ShardSet(original).manifest.shards[info.name] == info


@pytest.mark.parametrize(
    "index", [None, "{", "[]", '{"version": 1, "bytes": 1, "samples": []}', "short", "of another file"]
)
def test_index_is_rebuilt(folder: Path, index: str | None) -> None:
    path = folder / "made-000001.index.json"
    if index is None:
        path.unlink()
    elif index in ("short", "of another file"):
        value = json.loads(path.read_text())
        if index == "short":
            value["samples"].pop()
        else:
            value["bytes"] += 512
            for sample in value["samples"]:
                sample["members"] = {name: [a + 512, b, c] for name, (a, b, c) in sample["members"].items()}
        path.write_text(json.dumps(value))
    else:
        path.write_text(index)
    shards = ShardSet(folder)
    assert len(shards) == 10 and shards.keys == [f"{i:06d}" for i in range(10)] and not shards.lost
    for i in range(4, 8):
        same(shards.read(i, ALL), made_sample(i))
        assert shards.size(i) == (20, 16)


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("ending", ["rgb.png", "depth.png", "normals.png", "ids.png", "json"])
def test_damage_harms_one_sample(folder: Path, ending: str, indexed: bool) -> None:
    places = json.loads((folder / "made-000001.index.json").read_text())["samples"][2]["members"]
    offset, size, _ = places[ending]
    if not indexed:
        (folder / "made-000001.index.json").unlink()
    with (folder / "made-000001.tar").open("r+b") as stream:
        stream.seek(offset + size // 2)
        stream.write(b"\xff\x00\xff\x00")
    shards = ShardSet(folder)
    with pytest.raises(CorruptSample, match=r"sample 000006 of shard made-000001\.tar") as caught:
        shards.read(6, ALL)
    assert (caught.value.shard, caught.value.key) == ("made-000001.tar", "000006") and caught.value.reason
    assert isinstance(caught.value, UserError)
    for i in set(range(10)) - {6}:
        same(shards.read(i, ALL), made_sample(i))
    (fault,) = shards.verify()
    assert fault.startswith("made-000001.tar: the content is not")
    assert len(summarise(shards).corrupt) == (ending in ("json", "depth.png"))
    copy = sent(caught.value)
    assert (str(copy), copy.key) == (str(caught.value), "000006")


def test_a_changed_letter_is_noticed(folder: Path) -> None:
    path = folder / "made-000001.tar"
    path.write_bytes(path.read_bytes().replace(b"a room with", b"a tomb with", 1))  # valid JSON all the same
    with pytest.raises(CorruptSample, match="json is not what was written"):
        ShardSet(folder).read(4)


@pytest.mark.parametrize("ending", ["ids.png", "json"])
@pytest.mark.parametrize("indexed", [True, False])
def test_truncated_shard_gives_its_whole_samples(folder: Path, indexed: bool, ending: str) -> None:
    path = folder / "made-000001.tar"
    places = json.loads((folder / "made-000001.index.json").read_text())["samples"][2]["members"]
    path.write_bytes(path.read_bytes()[: places[ending][0] + 10])
    if not indexed:
        (folder / "made-000001.index.json").unlink()
    shards = ShardSet(folder)
    assert shards.keys == [f"{i:06d}" for i in (0, 1, 2, 3, 4, 5, 8, 9)] and len(shards) == 8
    assert {lost.shard for lost in shards.lost} == {"made-000001.tar"}
    # Without the index the key of the sample that is cut is known, that of those behind it is not.
    assert [lost.key for lost in shards.lost] == (["000006", "000007"] if indexed else ["000006", ""])
    assert "the file ends" in shards.lost[0].reason
    for i, key in enumerate(shards.keys):
        same(shards.read(i, ALL), made_sample(int(key)))
    assert any("bytes instead of" in fault for fault in shards.verify())


def test_missing_shard(folder: Path) -> None:
    (folder / "made-000000.tar").unlink()
    shards = ShardSet(folder)
    assert len(shards) == 6 and [lost.key for lost in shards.lost] == ["000000", "000001", "000002", "000003"]
    same(shards.read(0, ALL), made_sample(4))
    (folder / "made-000002.tar").unlink()  # while it is in use
    with pytest.raises(CorruptSample, match=r"made-000002\.tar.*No such file"):
        shards.read(5)


def test_what_a_sample_says_is_checked() -> None:
    members = dict(encode_sample(made_sample(0), "k", source="made"))
    good = json.loads(members["json"])
    faults = {
        "no table": [], "says its key": good | {"key": "x"},
        "has no 'camera'": {"key": "k", "width": 1, "height": 1},
        "size is 0": good | {"width": 0}, "limit of": good | {"width": 10**6, "height": 10**6},
        "its camera": good | {"camera": good["camera"] | {"fx": -1}},
        "coding": good | {"depth": good["depth"] | {"coding": "linear"}},
        "captions": good | {"captions": [1]}, "json is wrong": good | {"meta": 3},
    }  # fmt: skip
    for message, value in faults.items():
        with pytest.raises(ValueError, match=message):
            decode_record(json.dumps(value).encode(), "k")
    other = decode_record(json.dumps(good | {"width": 21}).encode(), "k")
    with pytest.raises(ValueError, match="20x16 pixels instead of 21x16"):
        decode_sample(members, other)
    record = decode_record(json.dumps(good | {"depth": good["depth"] | {"near": -1}}).encode(), "k")
    with pytest.raises(ValueError, match="near and far"):
        decode_sample(members, record)
    gray = io.BytesIO()
    Image.fromarray(made_sample(0).rgb[..., 0]).save(gray, format="PNG")
    with pytest.raises(ValueError, match=r"rgb\.png: its mode is L"):
        decode_sample(members | {"rgb.png": gray.getvalue()}, good)
    with pytest.raises(ValueError, match=r"has no depth\.png"):
        decode_sample({"rgb.png": members["rgb.png"]}, good)


def test_writer_refuses_what_could_not_be_read(tmp_path: Path) -> None:
    for key in ("", "a.b", "../x", "a/b", "k" * 81, "ä"):
        with pytest.raises(ValueError, match="key"):
            encode_sample(made_sample(0), key, source="made")
    with pytest.raises(ValueError, match="comes twice"):
        write_shard(tmp_path, "a.tar", [*encoded(0, 2), *encoded(1, 1)])
    assert list(tmp_path.iterdir()) == []
    for change in ({"object_ids": np.full((16, 20), 65536)}, {"object_ids": np.full((16, 20), -1)},
                   {"normals": np.zeros((16, 20, 2))}, {"depth": np.ones((16, 21))}):  # fmt: skip
        sample = made_sample(0)
        vars(sample).update(change)
        with pytest.raises(ValueError, match="sample k"):
            encode_sample(sample, "k", source="made")
    with pytest.raises(ValueError, match="unit"):
        encode_sample(made_sample(0), "k", source="made", unit="mm")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "no manifest of shards"),
        ({"version": 2}, "format version 2"),
        ({"shards": [{"name": "../a.tar", "samples": 1, "bytes": 1, "sha256": ""}]}, "damaged"),
        ({"shards": [{"name": "a.tar", "samples": -1, "bytes": 1, "sha256": ""}]}, "damaged"),
        ({"shards": [{"name": "a.tar"}]}, "damaged"),
        (None, "cannot be read"),
    ],
)
def test_bad_manifest(folder: Path, change: dict | None, message: str) -> None:
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    path.write_text("{" if change is None else json.dumps(value | change))
    with pytest.raises(UserError, match=message):
        ShardSet(folder)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no manifest\.json"):
        ShardSet(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        ShardSet(tmp_path / "a")


def _read(job: tuple[ShardSet, int]) -> int:
    return int(job[0].read(job[1]).rgb.sum())


def test_other_processes_and_threads(original: Path) -> None:
    shards = ShardSet(original)
    expected = [int(made_sample(i).rgb.sum()) for i in range(10)]
    assert _read((shards, 9)) == expected[9]  # files are open from here on
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_read, [(shards, i) for i in range(10)]) == expected
    copy = sent(shards)
    assert [_read((copy, i)) for i in range(10)] == expected

    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(_read, [(shards, i % 10) for i in range(200)])) == expected * 20


def test_few_files_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modality_forcing.data.shards.reader.MAX_OPEN", 2)
    jobs = [Job(f"made-{i:06d}.tar", 1, encoded, (i, 1)) for i in range(5)]
    build_shards(tmp_path / "set", {"name": "made"}, {"count": 5}, jobs)
    shards = ShardSet(tmp_path / "set")
    for i in (0, 4, 2, 1, 3, 0):
        same(shards.read(i, ALL), made_sample(i))
        assert len(shards._files) <= 2


def test_summary(original: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = summarise(ShardSet(original), progress=lambda done, total: seen.append((done, total)))
    assert found.samples == found.looked_at == found.depth_looked_at == 10 and seen[-1] == (20, 20)
    assert found.sizes == {"20x16": 10} and found.sources == {"made": 10} and found.units == {"m": 10}
    assert found.facts["place"] == {"place 0": 4, "place 1": 3, "place 2": 3}
    assert found.words == [[2] * 10, [6] * 10, [1] * 10] and found.without_caption == 0
    np.testing.assert_allclose([found.sky, found.unknown], [80 / 320, 8 / 320])
    assert found.measured + found.sky + found.unknown == pytest.approx(1)
    assert found.fields_of_view[3] == pytest.approx(made_sample(3).camera.fov_x)
    every = np.concatenate([made_sample(i).depth[made_sample(i).valid] for i in range(10)])
    np.testing.assert_allclose(found.depths["m"], np.percentile(every, (1, 25, 50, 75, 99)), rtol=2e-4)
