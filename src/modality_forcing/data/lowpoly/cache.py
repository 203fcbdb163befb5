"""Rendered samples on disk as raw arrays that are memory-mapped: chunks of a fixed number of samples.

A chunk is a folder ``chunk-00000`` with ``rgb.npy`` uint8 (N, H, W, 3), ``depth.npy`` float32 (N, H, W) in
metres (+inf is sky), ``K.npy`` float32 (N, 4) as fx, fy, cx, cy, and ``samples.jsonl`` (seed, place, light,
captions per line). It is written aside and renamed when complete, so a chunk that exists is whole.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modality_forcing.data.lowpoly import make_sample, split_seed
from modality_forcing.errors import UserError

CHUNK = 1000


def _build_chunk(folder: str, split: str, start: int, count: int, size: int, number: int) -> int:
    final = Path(folder) / f"chunk-{number:05d}"
    aside = Path(folder) / f".making-{number:05d}-{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    rgb = np.empty((count, size, size, 3), np.uint8)
    depth = np.empty((count, size, size), np.float32)
    k = np.empty((count, 4), np.float32)
    lines = []
    for i in range(count):
        sample = make_sample(split_seed(split, start + i), size, size)
        camera = sample.camera
        rgb[i], depth[i], k[i] = sample.rgb, sample.depth, (camera.fx, camera.fy, camera.cx, camera.cy)
        lines.append(
            json.dumps(
                {
                    "seed": sample.seed,
                    "place": sample.meta["place"],
                    "light": sample.meta["light"],
                    "captions": list(sample.captions),
                }
            )
        )
    np.save(aside / "rgb.npy", rgb)
    np.save(aside / "depth.npy", depth)
    np.save(aside / "K.npy", k)
    (aside / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    aside.rename(final)
    return number


def build_cache(
    folder: str | Path, split: str, start: int, count: int, size: int = 128, workers: int = 1, *,
    chunk: int = CHUNK, progress: Callable[[int, int], None] | None = None,
) -> None:  # fmt: skip
    """Render samples ``start .. start + count`` of a split; finished chunks are kept and skipped.

    ``progress`` is called with (samples finished, samples in all); the default prints a line per chunk.

    Raises:
        UserError: the folder holds a cache made with other settings.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"split": split, "start": start, "size": size, "chunk": chunk}
    split_seed(split, start)
    note = folder / "cache.json"
    if note.exists():
        if json.loads(note.read_text(encoding="utf-8")) != settings:
            raise UserError(f"{folder} holds a cache made with other settings; choose an empty folder")
    else:
        aside = folder / f".cache-{os.getpid()}.json"
        aside.write_text(json.dumps(settings), encoding="utf-8")
        aside.rename(note)
    jobs = []
    for number, first in enumerate(range(0, count, chunk)):
        n = min(chunk, count - first)
        if not (folder / f"chunk-{number:05d}").exists():
            jobs.append((str(folder), split, start + first, n, size, number))
    done, began = count - sum(job[3] for job in jobs), time.monotonic()
    made = 0
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    with ProcessPoolExecutor(max(1, workers), mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(_build_chunk, *job): job[3] for job in jobs}
        for future in as_completed(futures):
            future.result()
            made += futures[future]
            done += futures[future]
            if progress is not None:
                progress(done, count)
            else:
                rate = made / (time.monotonic() - began)
                print(
                    f"{done}/{count} samples, {rate:.1f} per second, {(count - done) / rate:.0f} s left",
                    flush=True,
                )


@dataclass
class Cache:
    """The finished chunks of a cache, memory-mapped: (rgb, depth, K) each, and one record per sample."""

    chunks: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    records: list[dict]
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.records)

    @property
    def captions(self) -> list[list[str]]:
        """Captions of every sample, short to long."""
        return [record["captions"] for record in self.records]

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        """rgb (H, W, 3), depth (H, W), K (4,) and the captions of one sample."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        c = int(np.searchsorted(self.starts, index, side="right")) - 1
        rgb, depth, k = self.chunks[c]
        i = index - int(self.starts[c])
        return rgb[i], depth[i], k[i], self.records[index]["captions"]


def open_cache(folder: str | Path) -> Cache:
    """Map every finished chunk; call again to see chunks finished since.

    Raises:
        UserError: there is no finished chunk.
    """
    paths = sorted(Path(folder).glob("chunk-*"))
    if not paths:
        raise UserError(f"{folder} holds no finished chunk; build one with build_cache")
    chunks, records, starts = [], [], []
    for path in paths:
        starts.append(len(records))
        chunks.append(tuple(np.load(path / f"{name}.npy", mmap_mode="r") for name in ("rgb", "depth", "K")))
        records += [
            json.loads(line) for line in (path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
        ]
    return Cache(chunks, records, np.array(starts))
