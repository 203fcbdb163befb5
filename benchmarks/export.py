"""How long writing a point cloud takes, beside trimesh's writer: prints a table, optionally writes JSON.

python benchmarks/export.py [--points 1000000] [--repeats 3] [--json out.json]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import _report
import numpy as np
import trimesh

from modality_forcing.geometry.cloud import PointCloud, point_cloud
from modality_forcing.io.exports import write_glb, write_ply
from modality_forcing.types import RGBD, Camera


def scene(points: int) -> RGBD:
    """A smooth surface with random colours, a little more than ``points`` pixels."""
    height = int(np.ceil(np.sqrt(points * 3 / 4)))
    width = int(np.ceil(points / height))
    v, u = np.mgrid[:height, :width]
    depth = (3 + np.sin(u / 200) + np.cos(v / 150)).astype(np.float32)
    rgb = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return RGBD(rgb, depth, np.ones_like(depth, dtype=bool), Camera.from_fov(width, height, fov_x=65.0))


def best_time(function: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    rgbd = scene(arguments.points)
    full = point_cloud(rgbd, edge_rtol=0, max_points=2 * arguments.points)
    cloud = PointCloud(full.points[: arguments.points], full.colors[: arguments.points])
    seconds, megabytes = {}, {}
    seconds["make cloud"] = best_time(lambda: point_cloud(rgbd), arguments.repeats)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writers: dict[str, Callable[[Path], object]] = {
            "PLY": lambda path: write_ply(path, cloud),
            "GLB": lambda path: write_glb(path, cloud),
            "trimesh PLY": lambda path: trimesh.PointCloud(cloud.points, cloud.colors).export(path),
            "trimesh GLB": lambda path: trimesh.PointCloud(cloud.points, cloud.colors).export(path),
        }
        for title, write in writers.items():
            path = folder / f"cloud.{title[-3:].lower()}"
            seconds[title] = best_time(partial(write, path), arguments.repeats)
            megabytes[title] = path.stat().st_size / 1e6
    print(f"{len(cloud):,} points, best of {arguments.repeats}")
    print(f"{'step':<14}{'seconds':>9}{'MB':>8}")
    for title, value in seconds.items():
        print(f"{title:<14}{value:>9.3f}" + (f"{megabytes[title]:>8.1f}" if title in megabytes else ""))
    found = {
        "points": len(cloud), "repeats": arguments.repeats, "seconds": seconds, "megabytes": megabytes,
    }  # fmt: skip
    _report.write(arguments.json, found, packages=("trimesh",))


if __name__ == "__main__":
    main()
