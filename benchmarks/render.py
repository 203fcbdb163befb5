"""Pictures per second of the procedural world's renderer, against its floor.

python benchmarks/render.py [--sizes 64 128 256] [--primitives 25 100 400] [--backends embree torch]
                            [--devices cpu] [--processes 1 2] [--seconds 4] [--json out.json]

A picture has hard shadows, ambient occlusion, anti-aliasing, depth, normals and object ids.

"per CPU s" counts the processor time of the processes, so it also says something on a busy computer.

Floor: a process cannot be faster than its ray caster alone answers the picture's rays. Rays of a picture are
counted while it is rendered: one per pixel for depth and colour, two per solid pixel for occlusion, four per
pixel on an edge, one per sunlit or lamplit point for shadows, one per point of water. The caster's rate is
measured on the camera rays of the same scene, which is its best case.

The torch backend's floor on an accelerator is memory traffic: a ray-triangle test is 43 element-wise steps on
float32, about 430 bytes. "tests" counts them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from pathlib import Path

import _report
import torch

from modality_forcing.data.lowpoly import render as renderer
from modality_forcing.data.lowpoly.places import make_scene
from modality_forcing.data.lowpoly.raycast import RayCaster
from modality_forcing.data.lowpoly.raycast_torch import PACKET, TorchCaster
from modality_forcing.data.lowpoly.render import render_batch
from modality_forcing.data.lowpoly.scene import Scene

SEEDS = range(600)


def scenes_of(primitives: int, count: int) -> list[Scene]:
    """Scenes of so many primitives: the world's own, cut, or with small copies of their things added."""
    scenes = [make_scene(seed) for seed in SEEDS[: 20 * count]]
    scenes.sort(key=lambda scene: abs(len(scene.primitives) - primitives))
    chosen = scenes[:count]
    for scene in chosen:
        size, copies = len(scene.primitives), list(scene.primitives)
        while len(scene.primitives) < primitives:  # the same things again, a little to the side
            shift = 0.37 * (len(scene.primitives) // size)
            scene.primitives += [moved(p, shift) for p in copies[: primitives - len(scene.primitives)]]
        del scene.primitives[primitives:]
    return chosen


def moved(primitive: object, shift: float) -> object:
    """A copy of a primitive, ``shift`` metres to the side and a third of its size."""
    from dataclasses import replace

    x, y, z = primitive.position
    return replace(
        primitive, position=(x + shift, y + shift, z), size=tuple(0.33 * s for s in primitive.size)
    )


def work(job: tuple[list[Scene], int, str, str, float]) -> tuple[int, float, float]:
    """Render for some seconds: pictures made, seconds and processor seconds taken."""
    scenes, size, backend, device, seconds = job
    torch.set_num_threads(1)
    render_batch(scenes[:1], size, size, backend=backend, device=device)
    made, started, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - started < seconds:
        step = len(scenes) if device != "cpu" else 1
        render_batch(scenes[made % len(scenes) :][:step], size, size, backend=backend, device=device)
        made += step
    return made, time.perf_counter() - started, time.process_time() - cpu


class Counting:
    """A ray caster that counts the rays it is asked."""

    def __init__(self, caster: RayCaster) -> None:
        self.caster, self.rays = caster, 0

    def __getattr__(self, name: str) -> object:
        method = getattr(self.caster, name)

        def counted(origin: tuple, direction: tuple, *rest: object) -> object:
            self.rays += max(len(x) for x in (*origin, *direction))
            return method(origin, direction, *rest)

        return counted


def floor(scene: Scene, size: int, backend: str, device: str) -> tuple[int, int, float]:
    """Rays and ray-triangle tests of one picture, and the caster's rays per second."""
    place = torch.device(device)
    with torch.inference_mode():
        work_ = renderer._Renderer([scene], size, size, backend, place)
        counter = Counting(work_.caster)
        work_.caster = work_.surfaces.caster = counter
        tests = 0
        if isinstance(counter.caster, TorchCaster):
            found = counter.caster._candidates

            def count(*arguments: object) -> object:
                nonlocal tests
                result = found(*arguments)
                tests += len(result[0]) * PACKET
                return result

            counter.caster._candidates = count
        work_.pictures(2)
        middle = torch.tensor([0.5], dtype=torch.float64, device=place)
        d = tuple(x.float() for x in work_.rays(None, middle, middle))
        best = float("inf")
        for _ in range(5):
            clock = time.perf_counter if place.type == "cuda" else time.process_time
            started = clock()
            counter.caster.closest(work_.surfaces.eye(None), d, None)
            if place.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, clock() - started)
    return counter.rays, tests, size * size / best


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--primitives", type=int, nargs="+", default=[25, 100, 400])
    parser.add_argument("--backends", nargs="+", default=["embree", "torch"])
    parser.add_argument("--devices", nargs="+", default=["cpu"])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--scenes", type=int, default=8, help="scenes per row; on an accelerator one batch")
    parser.add_argument("--seconds", type=float, default=4.0, help="per row")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    scenes = {count: scenes_of(count, a.scenes) for count in a.primitives}
    triangles = {
        count: sum(len(renderer.Geometry([s], torch.device("cpu")).corners) for s in some) // len(some)
        for count, some in scenes.items()
    }
    print(
        f"{'size':>5}{'primitives':>11}{'triangles':>10} {'backend':<8}{'device':<7}{'processes':>9}"
        f"{'images/s':>10}{'per CPU s':>11}{'rays':>9}{'tests':>9}{'rays/s alone':>14}{'floor images/s':>15}"
    )
    report = []
    pool = multiprocessing.get_context("spawn").Pool(max(a.processes))
    combinations = [
        (s, p, b, d)
        for b in a.backends
        for d in a.devices
        for s in a.sizes
        for p in a.primitives
        if not (b == "embree" and d != "cpu")
    ]
    for size, count, backend, device in combinations:
        some = scenes[count]
        rays, tests, rate = floor(some[0], size, backend, device)
        for processes in a.processes if device == "cpu" else [1]:
            jobs = [(some[k:] + some[:k], size, backend, device, a.seconds) for k in range(processes)]
            done = pool.map(work, jobs, chunksize=1)
            speed = sum(made / seconds for made, seconds, _ in done)
            effort = sum(made for made, _, _ in done) / sum(cpu for _, _, cpu in done)
            row = {
                "size": size, "primitives": count, "triangles": triangles[count], "backend": backend,
                "device": device, "processes": processes, "images_per_second": speed,
                "images_per_cpu_second": effort, "rays": rays, "tests": tests, "rays_per_second_alone": rate,
                "floor_images_per_second": processes * rate / rays,
            }  # fmt: skip
            report.append(row)
            print(
                f"{size:>5}{count:>11}{triangles[count]:>10} {backend:<8}{device:<7}{processes:>9}"
                f"{speed:>10.1f}{effort:>11.1f}{rays:>9}{tests / 1e6:>8.1f}M{rate:>14.3g}"
                f"{processes * rate / rays:>15.1f}",
                flush=True,
            )
    pool.close()
    names = [torch.cuda.get_device_name(d) for d in a.devices if d.startswith("cuda")]
    _report.write(a.json, {"accelerators": names, "rows": report}, packages=("embreex",))


if __name__ == "__main__":
    main()
