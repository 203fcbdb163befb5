"""How long measuring and augmenting one sample takes, and how dense the sensors are: prints tables,
optionally writes JSON and the picture of docs/sensors.md.

python benchmarks/sensors.py [--samples 30] [--size 128] [--json out.json] [--picture sensors.png]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _report
import numpy as np
from PIL import Image

from modality_forcing.config.training import AugmentConfig, SensorConfig
from modality_forcing.data.augment import augment
from modality_forcing.data.lowpoly import PLACES, make_sample, split_seed
from modality_forcing.data.sensors import KINDS, measure
from modality_forcing.types import Sample
from modality_forcing.viz import colorize, contact_sheet

RANGES = ((0.002, 0.05), (0.05, 0.5), (0.95, 0.95))
OFF = {"mirror": 0.0, "crop": 0.0, "colour": 0.0, "degrade": 0.0, "texture": 0.0, "light": 0.0}
AUGMENTATIONS = {
    **{name: AugmentConfig(**{**OFF, name: 1.0}) for name in OFF},
    "half of all": AugmentConfig(**dict.fromkeys(OFF, 0.5)),
    "all": AugmentConfig(**dict.fromkeys(OFF, 1.0)),
}


def cpu_times(function: Callable[[int], object], count: int) -> np.ndarray:
    """Milliseconds of processor time of each call (other processes do not count)."""
    times = []
    for index in range(count):
        start = time.process_time()
        function(index)
        times.append(time.process_time() - start)
    return np.array(times) * 1e3


def sensor_rows(samples: list[Sample]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        for low, high in RANGES:
            sensor = SensorConfig(kind, 1.0, low, high, noise=1.0)

            def one(index: int, sensor: SensorConfig = sensor) -> float:
                s, rng = samples[index], np.random.default_rng(index)
                mask = measure(s.depth, s.rgb, s.camera, sensor, rng, normals=s.normals)[1]
                return float(mask.mean())

            shares = [one(index) for index in range(len(samples))]
            rows.append(
                {
                    "kind": kind, "low": low, "high": high,
                    "ms": round(float(np.median(cpu_times(one, len(samples)))), 2),
                    "share_min": min(shares), "share_mean": float(np.mean(shares)), "share_max": max(shares),
                }
            )  # fmt: skip
    return rows


def augment_times(samples: list[Sample]) -> dict[str, float]:
    """Mean milliseconds per sample by the name of the change."""
    out = {}
    for name, config in AUGMENTATIONS.items():

        def one(index: int, config: AugmentConfig = config) -> Sample:
            return augment(samples[index], config, np.random.default_rng(index))

        out[name] = float(np.mean(cpu_times(one, len(samples))))
    return out


def picture(path: Path, samples: list[Sample]) -> None:
    """Each scene with every sensor at two densities and with every augmentation."""
    rows: list[list[np.ndarray]] = []
    texts: list[list[str]] = []
    for s in samples:
        near, far = (float(np.quantile(s.depth[s.valid], q)) for q in (0.02, 0.95))
        limits = (near, far)
        for share in (0.01, 0.6):
            line = [s.rgb, colorize(s.depth, s.valid, limits=limits)]
            text = ["image", "depth"]
            for kind in KINDS:
                sensor = SensorConfig(kind, 1.0, share, share, noise=1.0)
                found, mask = measure(
                    s.depth, s.rgb, s.camera, sensor, np.random.default_rng(5), normals=s.normals
                )
                colours = np.where(mask[..., None], colorize(found, mask, limits=limits), np.uint8(225))
                line.append(_grown(colours, mask) if share < 0.1 else colours)
                text.append(f"{kind} {100 * mask.mean():.1f} %")
            rows.append(line)
            texts.append(text)
        changed = [augment(s, c, np.random.default_rng(i)) for i, c in enumerate(AUGMENTATIONS.values())]
        more = [augment(s, AUGMENTATIONS["all"], np.random.default_rng(90 + i)) for i in range(2)]
        rows.append([*(a.rgb for a in changed), *(a.rgb for a in more)])
        texts.append([*AUGMENTATIONS, "all", "all"])
    Image.fromarray(contact_sheet(rows, texts, tile=160)).save(path, optimize=True)


def _grown(colours: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Each measured pixel as a cross of five, so that single ones are seen."""
    out = colours.copy()
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        moved = np.roll(mask, (dy, dx), (0, 1)) & ~mask
        out[moved] = np.roll(colours, (dy, dx), (0, 1))[moved]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=30)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()

    samples = [
        make_sample(split_seed("val", i), arguments.size, arguments.size, place=PLACES[i % len(PLACES)])
        for i in range(arguments.samples)
    ]
    rows = sensor_rows(samples)
    print(f"{len(samples)} samples of {arguments.size}x{arguments.size}, noise 1, median processor time")
    print(f"{'sensor':18s}{'asked for':>16s}{'ms':>8s}{'least':>8s}{'mean':>8s}{'most':>8s}  measured, %")
    for row in rows:
        asked = f"{100 * row['low']:g}..{100 * row['high']:g} %"
        shares = "".join(f"{100 * row[name]:8.2f}" for name in ("share_min", "share_mean", "share_max"))
        print(f"{row['kind']:18s}{asked:>16s}{row['ms']:8.2f}{shares}")
    changes = augment_times(samples)
    print(f"\n{'augmentation':18s}{'ms (mean)':>16s}")
    for name, value in changes.items():
        print(f"{name:18s}{value:16.2f}")
    if arguments.picture:
        places = ("living room", "street")
        picture(
            arguments.picture, [make_sample(split_seed("val", 40), 160, 160, place=place) for place in places]
        )
    found = {"size": arguments.size, "samples": len(samples), "sensors": rows, "augment_ms": changes}
    _report.write(arguments.json, found)


if __name__ == "__main__":
    main()
