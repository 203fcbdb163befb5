"""Is this data what it should be? Numbers about every sample, put together, and what looks wrong in them."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modality_forcing.data.readers.alignment import best_shift, shift_scores
from modality_forcing.types import Sample

LISTED = 1000  # entries of a list in report.json; all are counted
# Median depths outside are mostly a wrong unit: rooms lie around 2 m, streets around 20 m (our limits).
NEAREST_MEDIAN, FARTHEST_MEDIAN = 0.1, 200.0
FEW_MEASURED = 0.001  # share of the pixels
MANY = 0.5  # of the samples: what more than these show is said of the set
ENOUGH = 5  # samples before something is said of the set
OFFSET = 0.01  # of the picture's width
_SCALES = {"millimetres": 1e-3, "tenths of a millimetre": 1e-4, "1/5000 m": 1 / 5000, "1/256 m": 1 / 256}


def sample_record(
    key: str, name: str, sample: Sample, camera_from: str, unit: str, notes: list[str]
) -> dict[str, Any]:
    """What the report keeps of one sample: plain values."""
    depth, valid = sample.depth, sample.valid
    height, width = depth.shape
    known = depth[valid].astype(np.float64)
    record: dict[str, Any] = {
        "key": key, "name": name, "width": width, "height": height, "camera": camera_from, "unit": unit,
        "fov_x": round(sample.camera.fov_x, 3), "captions": len(sample.captions), "notes": sorted(set(notes)),
        "measured": float(valid.mean()), "sky": float(np.isposinf(depth).mean()),
        "pixels_sha256": hashlib.sha256(sample.rgb.tobytes()).hexdigest()[:32],
    }  # fmt: skip
    if known.size:
        record |= {"near": float(known.min()), "median": float(np.median(known)), "far": float(known.max())}
        for half, rows in (("upper", slice(None, height // 2)), ("lower", slice(height // 2, None))):
            part = depth[rows][valid[rows]]
            record[half] = float(np.median(part)) if part.size else None
    return record


class PartReport:
    """What the report keeps of one shard, gathered while it is made; plain values, the same every time."""

    def __init__(self) -> None:
        self.samples: list[dict[str, Any]] = []
        self.skipped: list[list[str]] = []
        self._scores: np.ndarray | None = None
        self._aligned = 0

    def add(self, record: dict[str, Any], sample: Sample) -> None:
        """Count a sample that was converted; ``record`` as of :func:`sample_record`."""
        self.samples.append(record)
        scores = shift_scores(sample.rgb, sample.depth)
        if scores is not None:
            self._scores = scores if self._scores is None else self._scores + scores
            self._aligned += 1

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        scores = [] if self._scores is None else self._scores.round(3).tolist()
        alignment = {"count": self._aligned, "scores": scores}
        return {"samples": self.samples, "skipped": self.skipped, "alignment": alignment}


@dataclass
class Report:
    """About a conversion.

    Attributes:
        format: the source's.
        samples: converted; problems: (file, reason) that ``find`` saw: mostly files without a partner.
        skipped: (item, reason) that could not be read.
        sizes, aspects, cameras, units, notes: how often each came.
        fields_of_view: smallest, median, largest in degrees, of known cameras.
        measured, sky: mean shares of the pixels. thin: samples with hardly a measured pixel.
        depths: for each unit smallest depth, percentiles 5, 50, 95 of the medians, largest depth.
        captions: samples that have one.
        duplicates: groups of names with the same pixels.
        offset: (right, down) by which depth stands beside the picture, in picture widths, of all samples
            together, and how many of them said something.
        missing: shards whose part of the report is lost.
        warnings: what looks wrong, one line each.
    """

    format: str
    samples: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    sizes: Counter[str] = field(default_factory=Counter)
    aspects: Counter[str] = field(default_factory=Counter)
    cameras: Counter[str] = field(default_factory=Counter)
    units: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    fields_of_view: tuple[float, ...] = ()
    measured: float = 0.0
    sky: float = 0.0
    thin: list[str] = field(default_factory=list)
    depths: dict[str, tuple[float, ...]] = field(default_factory=dict)
    captions: int = 0
    duplicates: list[list[str]] = field(default_factory=list)
    offset: tuple[float, float, int] | None = None
    missing: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> bytes:
        """``report.json``: long lists cut to ``LISTED`` entries, with their lengths."""
        from modality_forcing.data.shards.samples import json_bytes

        value = dict(vars(self))
        for name in ("problems", "skipped", "thin", "duplicates", "missing"):
            value[name] = {"count": len(value[name]), "first": value[name][:LISTED]}
        for name in ("sizes", "aspects", "cameras", "units", "notes"):
            value[name] = dict(value[name])
        return json_bytes(value, indent=1)

    def lines(self) -> list[str]:
        """What is printed."""
        lines = [
            f"size: {_counts(self.sizes)}",
            f"shape: {_counts(self.aspects)}",
            f"camera: {_counts(self.cameras)}" + (
                f"; field of view {self.fields_of_view[0]:.1f} to {self.fields_of_view[2]:.1f} degrees,"
                f" median {self.fields_of_view[1]:.1f}" if self.fields_of_view else ""
            ),
            f"measured: {100 * self.measured:.1f} % of the pixels, sky {100 * self.sky:.1f} %",
        ]  # fmt: skip
        for unit, (near, low, middle, high, far) in sorted(self.depths.items()):
            name = "metres" if unit == "m" else "relative units"
            lines.append(
                f"depth in {name} ({self.units[unit]} samples): {near:.3g} to {far:.3g}, medians of samples"
                f" {low:.3g} to {high:.3g}, middle one {middle:.3g}"
            )
        if self.captions:
            lines.append(f"captions: {self.captions} samples have one")
        if self.offset is not None:
            right, down, count = self.offset
            lines.append(
                f"alignment: depth stands {100 * right:+.1f} % of the width right of the picture,"
                f" {100 * down:+.1f} % below ({count} samples)"
            )
        for name, entries in (("left out", self.skipped), ("not used", self.problems)):
            if entries:
                reasons = Counter(reason for _, reason in entries)
                lines.append(f"{name}: {len(entries)}, first {entries[0][0]}: {entries[0][1]}")
                if len(reasons) > 1:
                    lines += [f"  {number} x {reason}" for reason, number in reasons.most_common(5)]
        return lines


def merge(form: str, parts: list[tuple[str, dict[str, Any]]], problems: list[tuple[str, str]]) -> Report:
    """Put the part reports of all shards together.

    Args:
        form: name of the format.
        parts: (shard, its part report) in order.
        problems: what ``find`` saw.
    """
    report = Report(form, problems=[(name, reason) for name, reason in problems])
    records: list[dict[str, Any]] = []
    for shard, part in parts:
        records += part["samples"]
        report.skipped += [(name, reason) for name, reason in part["skipped"]]
        if part.get("missing"):
            report.missing.append(shard)
    report.samples = len(records)
    by_pixels: dict[str, list[str]] = {}
    for record in records:
        report.sizes[f"{record['width']}x{record['height']}"] += 1
        report.aspects[_aspect(record["width"], record["height"])] += 1
        report.cameras[record["camera"]] += 1
        report.units[record["unit"]] += 1
        report.notes.update(record["notes"])
        report.captions += bool(record["captions"])
        by_pixels.setdefault(record["pixels_sha256"], []).append(record["name"])
    report.duplicates = [names for names in by_pixels.values() if len(names) > 1]
    with_depth = [record for record in records if "median" in record]
    if with_depth:
        report.measured = float(np.mean([record["measured"] for record in with_depth]))
        report.sky = float(np.mean([record["sky"] for record in with_depth]))
        report.thin = [record["name"] for record in with_depth if record["measured"] < FEW_MEASURED]
    angles = [record["fov_x"] for record in records if record["camera"] != "assumed"]
    if angles:
        report.fields_of_view = (min(angles), float(np.median(angles)), max(angles))
    for unit in sorted(report.units):
        own = [record for record in with_depth if record["unit"] == unit]
        if own:
            low, middle, high = np.percentile([record["median"] for record in own], (5, 50, 95))
            near, far = min(record["near"] for record in own), max(record["far"] for record in own)
            report.depths[unit] = (near, float(low), float(middle), float(high), far)
    alignments = [part["alignment"] for _, part in parts if part.get("alignment", {}).get("count")]
    clear = False
    if alignments:
        scores = np.sum([np.array(alignment["scores"]) for alignment in alignments], axis=0)
        right, down, clear = best_shift(scores)
        report.offset = (right, down, sum(int(alignment["count"]) for alignment in alignments))
    report.warnings = _warnings(report, with_depth, clear)
    return report


def _warnings(report: Report, records: list[dict[str, Any]], shifted: bool) -> list[str]:
    found = []
    metric = [record["median"] for record in records if record["unit"] == "m"]
    if metric:
        middle = float(np.median(metric))
        if not NEAREST_MEDIAN <= middle <= FARTHEST_MEDIAN:
            guess = [
                f"{name} would make it {middle * scale:.3g} m"
                for name, scale in _SCALES.items()
                if NEAREST_MEDIAN <= middle * scale <= FARTHEST_MEDIAN / 4
            ]
            found.append(
                f"the median depth is {middle:.3g} m: is the unit right?"
                f" {'; '.join(guess) or 'a depth without a scale takes --unit relative'}"
                + (" (--depth-scale)" if guess else "")
            )
        odd = sum(not NEAREST_MEDIAN <= median <= FARTHEST_MEDIAN for median in metric)
        if 0 < odd < MANY * len(metric):
            found.append(
                f"{odd} of {len(metric)} samples have a median depth outside {NEAREST_MEDIAN:g} to"
                f" {FARTHEST_MEDIAN:g} m"
            )
    sloped = [record for record in records if record["upper"] and record["lower"]]
    turned = sum(record["upper"] < record["lower"] for record in sloped)
    if len(sloped) >= ENOUGH and turned > 0.8 * len(sloped):
        found.append(
            f"in {turned} of {len(sloped)} samples the lower half is farther than the upper one:"
            " is it disparity (--depth-kind disparity), or upside down?"
        )
    if report.offset is not None and shifted and report.offset[2] >= ENOUGH:
        right, down, count = report.offset
        if max(abs(right), abs(down)) > OFFSET:
            found.append(
                f"depth stands beside the picture: {100 * right:+.1f} % of the width to the right,"
                f" {100 * down:+.1f} % down, over {count} samples; look at the alignment sheet"
            )
    if records and len(report.thin) > 0:
        found.append(
            f"{len(report.thin)} samples have depth at fewer than {100 * FEW_MEASURED:g} % of the pixels"
        )
    if report.duplicates:
        again = sum(len(names) - 1 for names in report.duplicates)
        found.append(f"{again} pictures are copies of others, first {' = '.join(report.duplicates[0][:2])}")
    if report.cameras["assumed"]:
        found.append(f"{report.cameras['assumed']} samples have no camera and got the usual field of view")
    if report.missing:
        found.append(f"the report lacks {len(report.missing)} shards, first {report.missing[0]}")
    found += [f"{number} samples: {note}" for note, number in sorted(report.notes.items())]
    return found


def _aspect(width: int, height: int) -> str:
    """ "4:3" for shapes near a common one, else the ratio."""
    for a, b in ((1, 1), (5, 4), (4, 3), (3, 2), (16, 10), (16, 9), (2, 1)):
        for x, y in ((a, b), (b, a)):
            if abs(width / height - x / y) < 0.02 * x / y:
                return f"{x}:{y}"
    return f"{width / height:.1f}:1"


def _counts(counter: Counter[str], most: int = 8) -> str:
    common = counter.most_common(most)
    rest = f", {len(counter) - most} more" if len(counter) > most else ""
    return ", ".join(f"{value} {number}" for value, number in common) + rest
