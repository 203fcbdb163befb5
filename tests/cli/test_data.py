"""``mf data make`` and ``mf data inspect``: a killed run goes on, the same settings give the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_running import Result, tree
from PIL import Image

from modality_forcing.data.lowpoly import make_sample, split_seed
from modality_forcing.data.shards import ShardSet

Run = Callable[..., Result]
SMALL = ("--count", 24, "--size", 16, "--supersample", 1, "--shard-size", 2, "--split", "val")

needs_renderer = pytest.mark.skipif(importlib.util.find_spec("embreex") is None, reason="needs embreex")


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, hidden ones included."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in tree(folder)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``mf data make`` with the options ``SMALL`` gives in one go, in one process."""
    pytest.importorskip("embreex")
    from modality_forcing.cli.main import main

    folder = tmp_path_factory.mktemp("made") / "set"
    assert main(["data", "make", str(folder), *map(str, SMALL), "--workers", "1"]) == 0
    return folder


@needs_renderer
def test_samples_are_those_of_the_world(made: Path) -> None:
    shards = ShardSet(made)
    assert len(shards) == 24 and shards.keys == [f"{i:012d}" for i in range(24)]
    manifest = shards.manifest
    assert manifest.generator["name"] == "lowpoly" and len(manifest.shards) == 12
    assert manifest.settings == {
        "split": "val", "start": 0, "count": 24, "size": 16, "supersample": 1, "shard_size": 2
    }  # fmt: skip
    for index in (0, 11, 23):
        sample = make_sample(split_seed("val", index), 16, 16, supersample=1)
        read = shards.read(index, ("rgb", "depth", "ids"))
        np.testing.assert_array_equal(read.rgb, sample.rgb)
        np.testing.assert_array_equal(read.object_ids, sample.object_ids)
        np.testing.assert_allclose(read.depth, sample.depth, rtol=1e-4)
        assert read.captions == sample.captions and read.seed == sample.seed and read.camera == sample.camera
        assert read.meta["place"] == sample.meta["place"]


@needs_renderer
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "terminate"])
def test_a_stopped_run_goes_on(mf: Run, made: Path, work: Path, end: signal.Signals) -> None:
    command = [sys.executable, "-m", "modality_forcing.cli.main", "data", "make", "set", *map(str, SMALL)]
    process = subprocess.Popen(
        [*command, "--workers", "2"], start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    manifest = work / "set" / "manifest.json"
    try:
        for _ in range(20_000):
            if manifest.exists() and json.loads(manifest.read_text())["samples"]:
                break
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(end)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == (-9 if end == signal.SIGKILL else 130), errors
        for _ in range(10_000):  # the workers end too, though nobody tells them
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                break
            time.sleep(0.005)
        else:
            pytest.fail("processes were left")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    left = tree(work / "set")
    hidden = {name for name in left if name.startswith(".")}
    if end == signal.SIGTERM:
        assert errors.strip().splitlines()[-1].startswith("error: interrupted") and not hidden
    finished = ShardSet("set")
    assert 2 <= len(finished) < 24 and finished.verify() == []
    whole = digests(made)
    for name in left - hidden - {"manifest.json"}:  # what can be seen is whole
        assert digests(work / "set")[name] == whole[name]
    result = mf("data", "make", "set", *SMALL, "--workers", 1)
    assert result.code == 0, result.err
    assert " 0 kept" not in result.out
    assert digests(work / "set") == whole


@needs_renderer
def test_other_settings_and_other_files(mf: Run, made: Path, work: Path) -> None:
    before = digests(made)
    result = mf("data", "make", made, *SMALL, "--size", 32)
    assert result.code == 2 and "size=16 (now 32)" in result.err
    result = mf("data", "make", made, *SMALL, "--split", "train", "--start", 3)
    assert result.code == 2 and "split=val (now train), start=0 (now 3)" in " ".join(result.err.split())
    assert digests(made) == before
    (work / "notes.txt").write_text("mine")
    result = mf("data", "make", ".", "--count", 2)
    assert result.code == 2 and "notes.txt" in result.err
    assert tree(work) == {"notes.txt"}
    result = mf("data", "make", made, *SMALL)
    assert result.code == 0 and "24 samples in 12 shards" in result.out and "(0 made, 24 kept" in result.out


def test_without_renderer(mf: Run, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "embreex" else find(name, *rest)
    )
    result = mf("data", "make", "set", "--count", 2)
    assert result.code == 2 and "embreex" in result.err and "modality-forcing[train]" in result.err
    assert tree(work) == set()


@needs_renderer
def test_inspect(mf: Run, made: Path, work: Path) -> None:
    result = mf("data", "inspect", made, "--out", "sheet.png", "--count", 6, "--verify")
    assert result.code == 0, result.err
    lines = dict(line.partition(": ")[::2] for line in result.out.splitlines())
    assert result.out.startswith("24 samples of 16x16 in 12 shards")
    assert "lowpoly 24" in lines["source"] and "all 12 shards" in lines["checksums"]
    places = [part.rpartition(" ") for part in lines["place"].split(", ")]
    assert sum(int(number) for _, _, number in places) == 24 and len(places) > 5
    low, high = (float(lines["field of view"].split()[i]) for i in (0, 2))
    assert 39.9 <= low < high <= 90.1
    assert lines["depth of 24 samples"].endswith("0.0 % unknown")
    numbers = [float(part.split()[2]) for part in lines["depth in metres"].split(", ")]
    assert numbers == sorted(numbers) and numbers[0] > 0.05
    assert int(lines["caption 3"].split()[2]) > int(lines["caption 1"].split()[2])
    sheet = np.array(Image.open(work / "sheet.png"))
    assert sheet.shape[0] > 3 * 160 and sheet.std() > 30


@needs_renderer
def test_inspect_finds_damage(mf: Run, work: Path) -> None:
    assert mf("data", "make", "set", *SMALL, "--count", 4, "--workers", 1).code == 0
    path = work / "set" / "val-000001.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 255  # inside the picture of the third sample
    path.write_bytes(content)
    assert mf("data", "inspect", "set", "--out", "a.png").code == 0
    result = mf("data", "inspect", "set", "--verify")
    assert result.code == 2 and len(result.errors) == 1 and "val-000001.tar" in result.errors[0]
    path.write_bytes(content[:5000])
    result = mf("data", "inspect", "set")
    assert result.code == 0 and "lost: " in result.out and "val-000001.tar are lost" in result.err
    # Making it again repairs it.
    assert mf("data", "make", "set", *SMALL, "--count", 4, "--workers", 1).code == 0
    assert mf("data", "inspect", "set", "--verify").code == 0
