"""Filling a folder with shards: resuming, growing, refusing, several processes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from shard_samples import dying, encoded, endless, failing

from modality_forcing.data.shards import Job, ShardSet, build_shards
from modality_forcing.errors import OutOfMemoryError, UserError

MADE = {"name": "made", "world": 1}


def jobs(count: int = 10, size: int = 4, make=encoded) -> list[Job]:
    """Shards of ``size`` samples."""
    firsts = range(0, count, size)
    return [
        Job(f"made-{i:06d}.tar", min(size, count - first), make, (first, min(size, count - first)))
        for i, first in enumerate(firsts)
    ]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, hidden ones included."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def build(folder: Path, count: int = 10, **options) -> list[tuple[int, int | None]]:
    """Build and return what progress said."""
    seen: list[tuple[int, int | None]] = []
    settings = {"count": count, "size": options.pop("size", 20)}
    todo = options.pop("jobs", jobs(count))
    generator = options.pop("generator", MADE)
    build_shards(folder, generator, settings, todo, progress=lambda *now: seen.append(now), **options)
    return seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "set"
    build(folder)
    return digests(folder)


def test_only_shards_and_manifest_stay(whole: dict[str, str]) -> None:
    expected = {"manifest.json"} | {f"made-{i:06d}{end}" for i in range(3) for end in (".tar", ".index.json")}
    assert set(whole) == expected


def test_workers_do_not_change_a_byte(tmp_path: Path, whole: dict[str, str]) -> None:
    seen = build(tmp_path / "set", workers=2)
    assert digests(tmp_path / "set") == whole
    assert seen[0] == (0, 10) and seen[-1] == (10, 10) and seen == sorted(seen)


def test_finished_shards_are_kept(tmp_path: Path, whole: dict[str, str]) -> None:
    folder = tmp_path / "set"
    build(folder)
    before = (folder / "made-000000.tar").stat().st_mtime_ns
    (folder / "made-000001.tar").unlink()
    (folder / "made-000002.tar").write_bytes(b"cut")
    (folder / ".1234abcd.tmp.tar").write_bytes(b"left by a killed run")
    seen = build(folder)
    assert seen == [(4, 10), *((4 + i, 10) for i in range(1, 7))]
    assert (folder / "made-000000.tar").stat().st_mtime_ns == before
    assert digests(folder) == whole


def test_shard_finished_just_before_a_kill_is_taken_in(tmp_path: Path, whole: dict[str, str]) -> None:
    folder = tmp_path / "set"
    build(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["shards"][1]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert build(folder) == [(10, 10)]
    assert digests(folder) == whole
    # A tar that is not whole is not taken in.
    (folder / "manifest.json").write_text(json.dumps(manifest))
    content = (folder / "made-000001.tar").read_bytes()
    (folder / "made-000001.tar").write_bytes(content[:-1024])
    assert build(folder)[0] == (6, 10)
    assert digests(folder) == whole


def test_an_error_leaves_whole_shards(tmp_path: Path, whole: dict[str, str]) -> None:
    folder = tmp_path / "set"
    mixed = [*jobs()[:1], *jobs(make=failing)[1:]]
    with pytest.raises(UserError, match="disk is full"):
        build(folder, jobs=mixed)
    assert set(digests(folder)) == {"manifest.json", "made-000000.tar", "made-000000.index.json"}
    assert len(ShardSet(folder)) == 4
    build(folder)
    assert digests(folder) == whole


def test_killed_worker_and_failing_worker(tmp_path: Path, whole: dict[str, str]) -> None:
    folder = tmp_path / "set"
    with pytest.raises(OutOfMemoryError, match="fewer --workers"):
        build(folder, jobs=jobs(make=dying), workers=2)
    with pytest.raises(UserError, match="disk is full"):
        build(folder, jobs=jobs(make=failing), workers=2)
    build(folder)
    assert digests(folder) == whole


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [1, 2])
def test_interruption_does_not_wait_for_shards(tmp_path: Path, workers: int) -> None:
    def interrupt(done: int, total: int | None) -> None:
        if done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_shards(
            tmp_path / "set", MADE, {}, jobs(make=endless), workers=workers, progress=interrupt
        )  # fmt: skip
    assert set(digests(tmp_path / "set")) == {"manifest.json"}


def test_more_samples(tmp_path: Path, whole: dict[str, str]) -> None:
    folder = tmp_path / "set"
    assert build(folder, 6)[-1] == (6, 6)
    seen = build(folder, 10)  # the second shard was half full, so it is made again
    assert seen[0] == (4, 10) and digests(folder) == whole
    with pytest.raises(UserError, match=r"count=10 \(now 6\)"):
        build(folder, 6)
    assert digests(folder) == whole


def test_other_settings_are_refused(tmp_path: Path, whole: dict[str, str]) -> None:
    folder = tmp_path / "set"
    build(folder)
    with pytest.raises(UserError, match=r"other settings: size=20 \(now 40\)"):
        build(folder, size=40)
    with pytest.raises(UserError, match=r"world=1 \(now 2\)"):
        build(folder, generator={"name": "made", "world": 2}, same=("name", "world"))
    assert digests(folder) == whole
    build(folder, generator={"name": "made", "world": 2})  # versions that need not be the same


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=r"other files \(letter\.txt\)"):
        build(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    with pytest.raises(UserError, match="could not write"):
        build(tmp_path / "letter.txt")


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    folder = tmp_path / "set"

    def second(first: int, count: int):
        with pytest.raises(UserError, match="another run"):
            build(folder)
        yield from encoded(first, count)

    build(folder, 4, jobs=jobs(4, make=second))
    assert len(ShardSet(folder)) == 4
