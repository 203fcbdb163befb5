"""Samples that cannot be read are replaced, counted and listed; what cannot serve is refused at once."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from loading import BATCH, SIZE, config, index_of, joined, loader, one, same

from modality_forcing.config import DataConfig, SensorConfig
from modality_forcing.errors import TrainingError, UserError
from modality_forcing.training import data as module
from shard_folders import toy_sample, write_samples


def damage(folder: Path, target: Path, *keys: int, member: str = "rgb.png") -> Path:
    """A copy of a folder of shards with the pixels of some samples overwritten."""
    from modality_forcing.data.shards.index import load_index

    shutil.copytree(folder, target)
    for tar in sorted(target.glob("*.tar")):
        index = load_index(target, tar.name, tar.stat().st_size)
        content = bytearray(tar.read_bytes())
        for row, key in enumerate(index.keys):
            if int(key) in keys:
                offset, size, _ = index.places[row, index.endings.index(member)]
                content[offset + size // 2 : offset + size // 2 + 8] = b"\xff" * 8
        tar.write_bytes(content)
    return target


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_replaced_counted_and_listed(small_shards, tmp_path, workers):
    folder = damage(small_shards, tmp_path / "bad", 2, 7)
    data = config(folder, workers=workers)
    read = loader(data)
    told: list[module.Bad] = []
    read.listen(told.append)
    walk = read.steps(0)
    batches = [one(next(walk)) for _ in range(6)]
    walk.close()
    assert told == read.bad
    assert {bad.id for bad in read.bad} == {f"{folder}:000002", f"{folder}:000007"}
    assert all("rgb.png" in bad.reason for bad in read.bad)
    assert read.describe()["bad"] == 2
    assert not {2, 7} & {index_of(id) for batch in batches for id in batch.ids}
    clean = loader(config(small_shards))
    for step, batch in enumerate(batches):  # what could be read stands where it would have stood
        for mine, id in zip(batch.ids, one(clean.load(step)).ids, strict=True):
            assert index_of(id) in (2, 7) or index_of(mine) == index_of(id)
    halves = [loader(replace(data, workers=0), rank=rank, world=2) for rank in range(2)]
    parts = [one(half.load(1)) for half in halves]
    assert same(joined(parts), batches[1])


def test_a_run_lists_its_bad_samples(small_shards, tmp_path):
    from modality_forcing.config import TrainConfig
    from modality_forcing.presets import TINY
    from modality_forcing.training.trainer import Trainer

    folder = damage(small_shards, tmp_path / "bad", 2, 7)
    settings = TrainConfig(
        stage="autoencoder", steps=3, batch=4, image_size=SIZE, threads=1, model=TINY, data=config(folder)
    )
    said: list[str] = []
    Trainer(settings, tmp_path / "run").run(notice=said.append)
    assert sorted(line.split(" ")[1] for line in said) == [f"{folder}:000002", f"{folder}:000007"]
    lines = (tmp_path / "run" / "bad_samples.txt").read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in lines) == [f"{folder}:000002", f"{folder}:000007"]


def test_bad_depth_does_not_matter_where_none_is_needed(small_shards, tmp_path):
    folder = damage(small_shards, tmp_path / "bad", *range(12), member="depth.png")
    read = loader(config(folder), stage="t2i")
    assert len(one(read.load(0))) == BATCH
    assert read.bad == []


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_samples_stop_the_run_with_the_list(small_shards, tmp_path, workers):
    folder = damage(small_shards, tmp_path / "bad", 1, 4, 9)
    walk = loader(config(folder, max_bad=2, workers=workers)).steps(0)
    with pytest.raises(TrainingError, match="3 samples cannot be read") as error:
        [next(walk) for _ in range(6)]
    for key in ("000001", "000004", "000009"):
        assert f"{folder}:{key}: rgb.png" in str(error.value)


@pytest.mark.parametrize("max_bad", [3, 100])
def test_a_source_without_a_readable_sample_does_not_hang(small_shards, tmp_path, max_bad, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 40)
    folder = damage(small_shards, tmp_path / "bad", *range(12))
    with pytest.raises(TrainingError, match=r"no readable sample|cannot be read"):
        loader(config(folder, max_bad=max_bad)).load(0)


def test_a_cut_shard_gives_what_is_whole_and_lists_the_rest(small_shards, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(small_shards, folder)
    tar = sorted(folder.glob("*.tar"))[1]
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    read = loader(config(folder))
    lost = {index_of(bad.id) for bad in read.bad}
    assert lost and lost < set(range(6, 12))
    told: list[module.Bad] = []
    read.listen(told.append)
    assert told == read.bad
    seen = {index_of(id) for step in range(6) for id in one(read.load(step)).ids}
    assert seen == set(range(12)) - lost
    with pytest.raises(UserError, match=r"are lost, more than data\.max_bad=1"):
        loader(config(folder, max_bad=1))


def empty_folder(tmp_path: Path) -> Path:
    return write_samples(tmp_path / "empty", [])


def lacking_folder(tmp_path: Path) -> Path:
    folder = write_samples(tmp_path / "lacking", [toy_sample(i) for i in range(12)])
    (folder / "toy-000001.tar").unlink()
    return folder


def wrong_folder(tmp_path: Path) -> Path:
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "manifest.json").write_text('{"format": "photographs"}')
    return tmp_path / "wrong"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tmp: tmp / "nowhere", "nowhere is no folder of shards"),
        (empty_folder, "holds no sample"),
        (lacking_folder, "lacks 1 of its 2 shards, toy-000001.tar first"),
        (wrong_folder, "no manifest of shards"),
    ],
)
def test_a_folder_that_cannot_serve_is_refused_at_once(make, message, tmp_path):
    with pytest.raises(UserError, match=message):
        loader(config(make(tmp_path)))


@pytest.mark.parametrize(
    ("data", "changes", "message"),
    [
        ({}, {"batch": 6, "world": 4}, "batch=6 is no multiple of 4 processes x 1"),
        ({}, {"batch": 6, "world": 2, "accumulate": 2}, "no multiple of 2 processes x 2"),
        ({}, {"size": 40}, "image_size 40 does not fit the model; .* multiple of 16"),
        ({}, {"seed": -1}, "seed is -1"),
        ({}, {"stage": "sleep"}, "stage is 'sleep'"),
        ({"buckets": ("64x40",)}, {}, "'64x40' does not fit the model"),
        ({"buckets": ("0x32",)}, {}, "'0x32' does not fit the model"),
        ({"buckets": ("large",)}, {}, "right is WIDTHxHEIGHT"),
        ({"buckets": ("32x32", "32 x 32")}, {}, "twice"),
        ({"buckets": ("32x32", "128x16")}, {}, "bucket 128x16"),
        ({"sensors": (SensorConfig("sonar"),)}, {}, "unknown sensor 'sonar'"),
        ({"depth": "none"}, {}, "at least one with depth"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(small_shards, data, changes, message):
    with pytest.raises(UserError, match=message):
        loader(config(small_shards, **data), **changes)


def test_no_source_is_refused():
    with pytest.raises(UserError, match="give data=FOLDER"):
        loader(DataConfig())
