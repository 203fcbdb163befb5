"""Captions against pictures: the checker knows ids, depth, camera and claims, not how they were made."""

from __future__ import annotations

import colorsys
import re
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from multiprocessing import get_context

import numpy as np
import pytest

pytest.importorskip("embreex")

from modality_forcing.data.lowpoly import OBJECTS, make_sample, split_seed
from modality_forcing.data.lowpoly import words as vocabulary
from modality_forcing.data.lowpoly.captions import MAX_WORDS
from modality_forcing.data.lowpoly.scene import COLOUR_NAMES
from modality_forcing.types import Sample

NOUNS = {form: name for name in OBJECTS for noun in (*vocabulary.nouns(name), vocabulary.MASS.get(name, ""))
         for form in (noun, vocabulary.plural(noun) if noun else "") if form}  # fmt: skip
PATTERN = re.compile(r"\b(" + "|".join(sorted(map(re.escape, NOUNS), key=len, reverse=True)) + r")\b")
MATERIALS = {word: name for name, words in vocabulary.MATERIAL_WORDS.items() for word in words}
PLACES = [(w, place) for place, ws in vocabulary.PLACE_NAMES.items() for w in ws]
INVERSE = {"left of": "right of", "right of": "left of", "behind": "in front of", "in front of": "behind"}
HUES = {"red": 0, "orange": 28, "yellow": 50, "green": 122, "blue": 224, "purple": 277}


def level_axes(sample: Sample) -> np.ndarray:
    """Rows: right, ahead and up of the level frame in camera coordinates."""
    pose = sample.meta["camera"]
    pitch, roll = np.radians(pose["pitch"]), np.radians(pose["roll"])
    unroll = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, -np.sin(pitch), np.cos(pitch)], [0, -np.cos(pitch), -np.sin(pitch)]])
    return tilt @ unroll


def upright(sample: Sample) -> np.ndarray:
    """Points (H, W, 3) with z up, from depth, intrinsics and the recorded pitch and roll; NaN on sky."""
    k = sample.camera
    v, u = np.mgrid[: k.height, : k.width] + 0.5
    z = np.where(sample.valid, sample.depth, np.nan)
    camera = np.stack([(u - k.cx) / k.fx * z, (v - k.cy) / k.fy * z, z], -1)
    return camera @ level_axes(sample).T


def holds(sample: Sample, space: np.ndarray, subject: int, relation: str, other: int) -> bool:
    """Is the relation true, by a rougher reading of its definition?"""
    if relation in ("right of", "in front of"):
        return holds(sample, space, other, INVERSE[relation], subject)
    ids, width = sample.object_ids, sample.camera.width
    a, b = np.argwhere(ids == subject), np.argwhere(ids == other)
    p, q = space[ids == subject], space[ids == other]
    if relation == "left of":
        edge = np.quantile(b[:, 1], 0.05) + 0.035 * width
        return (a[:, 1] <= edge).mean() >= 0.93 and a[:, 1].mean() < b[:, 1].mean()
    shared = a[:, 1].min() <= b[:, 1].max() and b[:, 1].min() <= a[:, 1].max()
    if relation == "behind":
        near, far = sample.depth[ids == other], sample.depth[ids == subject]
        return shared and (far > np.median(near)).mean() > 0.89 and np.median(far) > np.median(near) + 0.29
    if relation == "above":
        apart = np.linalg.norm(np.median(p, 0)[:2] - np.median(q, 0)[:2])
        return shared and (p[:, 2] > np.quantile(q[:, 2], 0.97) - 0.05).mean() > 0.95 and apart <= 1.01
    gap = np.linalg.norm(p[:, None] - q[None], axis=-1)
    if relation == "next to":
        return bool(gap.min() <= (0.61 if sample.meta["walls"] else 1.51))
    assert relation == "on"
    things = {t["id"]: t for t in sample.meta["objects"]}
    bottom = p[:, 2] <= np.quantile(p[:, 2], 0.12)
    touch = gap[bottom].argmin(1)
    close = np.median(gap[bottom].min(1)) < 0.3 + 3 * sample.depth[ids == subject].max() / sample.camera.fx
    below = np.median(q[touch, 2]) <= np.median(p[bottom, 2]) + 0.12
    return things[subject]["support"] == other and bool(close and below)


def errors(sample: Sample, claims: list[dict] | None = None) -> list[str]:
    """Everything a caption says that the picture does not show."""
    out: list[str] = []
    ids, things = sample.object_ids, {t["id"]: t for t in sample.meta["objects"]}
    share = np.bincount(ids.ravel(), minlength=max(things, default=0) + 1) / ids.size
    space = upright(sample)
    sky = sample.rgb[~sample.valid]
    if not sample.meta["walls"] and len(sky) > 0.05 * ids.size:
        dark = sky.mean() < 100
        if dark != (sample.meta["light"] == "night") and sample.meta["light"] != "dusk":
            out.append(f"{sample.meta['light']}, but the sky is {sky.mean():.0f}")
    limits = (10, 24, MAX_WORDS)
    for text, claim, limit in zip(sample.captions, claims or sample.meta["claims"], limits, strict=True):
        if len(text.split()) > limit:
            out.append(f"{len(text.split())} words: {text}")
        if not any(re.search(rf"\b{w}\b", text) for w, place in PLACES if place == sample.meta["place"]):
            out.append(f"no place: {text}")
        rest = text.replace("lamp-lit", "")
        for w, _ in sorted(PLACES, key=lambda x: -len(x[0])):
            rest = re.sub(rf"\b{w}\b(?! lamp| chair)", "", rest)
        mentioned = {NOUNS[m] for m in PATTERN.findall(rest)}
        if mentioned != {o["name"] for o in claim["objects"]}:
            out.append(f"{mentioned} in text, claims {claim['objects']}: {text}")
        for o in claim["objects"]:
            members = [things[i] for i in o["ids"]]
            if any(share[i] < 0.004 for i in o["ids"]) or sum(share[i] for i in o["ids"]) < 0.0059:
                out.append(f"{o['name']} is hardly seen: {text}")
            if any(m["name"] != o["name"] for m in members) or len(members) != o["count"]:
                out.append(f"{o} names something else")
            for key in ("colour", "material"):
                if o[key] and any(m[key] != o[key] for m in members):
                    out.append(f"{o['name']} is not all {o[key]}")
            alike = [i for i, t in things.items() if t["name"] == o["name"] and share[i] >= 0.004]
            if o["count"] > 1 and set(alike) != set(o["ids"]):
                out.append(f"{len(alike)} of {o}")
        for number, count in (("two", 2), ("three", 3)):
            if re.search(rf"\b{number}\b", rest) and all(o["count"] != count for o in claim["objects"]):
                out.append(f"nothing is {number}: {text}")
        for m in re.finditer(rf"\b({'|'.join(COLOUR_NAMES)})\b((?: \S+){{1,6}})", rest):
            after = PATTERN.search(m.group(2))
            walls = m.group(2).startswith(" walls") and claim["walls"] == m.group(1)
            right = after and any(
                o["name"] == NOUNS[after.group(1)] and o["colour"] == m.group(1) for o in claim["objects"]
            )
            sky = m.group(0).startswith(("grey  ", "blue sky", "grey sky", "grey ,")) or not after
            if not (walls or right or sky):
                out.append(f"{m.group(0)}: no such colour: {text}")
        if claim["walls"]:
            face = np.abs((sample.normals @ level_axes(sample).T)[..., 2]) < 0.2
            high = space[..., 2] > 1.2 - sample.meta["camera"]["height"]
            painted = ((ids == 0) & face & sample.valid & high).mean()
            if sample.meta["walls"] != claim["walls"] or painted < 0.04:
                out.append(f"no {claim['walls']} walls ({painted:.3f})")
        spoken = sum(len(re.findall(rf"\b{w}\b", text)) for w in ("left", "right"))
        if spoken != sum(r["relation"] in ("left of", "right of") for r in claim["relations"]):
            out.append(f"left and right: {text}")
        for r in claim["relations"]:
            if not holds(sample, space, r["subject"], r["relation"], r["object"]):
                names = [things[r[k]]["name"] for k in ("subject", "object")]
                out.append(f"not true: {names[0]} {r['relation']} {names[1]}: {text}")
    return out


def _check(seed: int) -> tuple[list[str], Counter, int, int]:
    """Errors of a seed's sample, how often each relation is claimed, and colours claimed and seen."""
    sample = make_sample(seed, 96, 96, supersample=1)
    kinds = Counter(r["relation"] for c in sample.meta["claims"] for r in c["relations"])
    told = seen = 0
    if sample.meta["light"] == "sun":
        rgb = sample.rgb.astype(float) / 255
        for o in sample.meta["claims"][2]["objects"]:
            if o["colour"] in HUES and not o["material"] and o["name"] not in ("lighthouse", "tree", "plant"):
                part = rgb[np.isin(sample.object_ids, o["ids"])]
                hsv = np.array([colorsys.rgb_to_hsv(*c) for c in part])
                hues = 360 * hsv[(hsv[:, 1] > 0.35) & (hsv[:, 2] > 0.1), 0]
                away = np.abs((hues - HUES[o["colour"]] + 180) % 360 - 180)
                told, seen = told + 1, seen + bool(len(hues) and (away < 30).mean() > 0.3)
    return [f"seed {seed}: {e}" for e in errors(sample)], kinds, told, seen


def _report(answers: list[tuple[list[str], Counter, int, int]]) -> Counter:
    wrong = [e for a in answers for e in a[0]]
    assert not wrong, f"{len(wrong)} false claims:\n" + "\n".join(wrong[:20])
    told, seen = sum(a[2] for a in answers), sum(a[3] for a in answers)
    assert seen >= 0.9 * told, f"{seen} of {told} colours are seen"
    return sum((a[1] for a in answers), Counter())


def test_captions_are_true() -> None:
    _report([_check(split_seed(split, i)) for split in ("val", "close") for i in range(40)])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_captions_are_true_on_two_thousand() -> None:
    seeds = [split_seed("train", i) for i in range(1800)] + [split_seed("combination", i) for i in range(200)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        kinds = _report(list(pool.map(_check, seeds, chunksize=50)))
    assert set(kinds) == set(vocabulary.RELATION_WORDS) and min(kinds.values()) >= 20, kinds


def test_the_checker_notices_false_claims() -> None:
    """Relations turned round, wrong colours, counts and invisible things are all found."""
    found = Counter()
    for i in range(40):
        sample = make_sample(split_seed("test", i), 96, 96, supersample=1)
        for k, claim in enumerate(sample.meta["claims"]):
            for j, r in enumerate(claim["relations"]):
                if r["relation"] == "next to":
                    continue
                claims = deepcopy(sample.meta["claims"])
                claims[k]["relations"][j] = {**r, "subject": r["object"], "object": r["subject"]}
                assert any("not true" in e for e in errors(sample, claims)), r
                found["relation"] += 1
            for j, o in enumerate(claim["objects"]):
                claims = deepcopy(sample.meta["claims"])
                claims[k]["objects"][j]["colour"] = "teal" if o["colour"] != "teal" else "pink"
                assert errors(sample, claims)
                claims = deepcopy(sample.meta["claims"])
                claims[k]["objects"].pop(j)
                assert errors(sample, claims)
                found["object"] += 1
    assert found["relation"] > 20 and found["object"] > 60


def test_mirrored_words_stay_true() -> None:
    """A mirrored picture with left and right exchanged tells the truth, as the trainer assumes."""
    for i in range(25):
        sample = make_sample(split_seed("val", 100 + i), 96, 96, supersample=1)
        sample.rgb, sample.depth = sample.rgb[:, ::-1], sample.depth[:, ::-1]
        sample.object_ids, sample.normals = sample.object_ids[:, ::-1], sample.normals[:, ::-1]
        sample.meta["camera"]["roll"] *= -1
        for claim in sample.meta["claims"]:
            for r in claim["relations"]:
                r["relation"] = {"left of": "right of", "right of": "left of"}.get(
                    r["relation"], r["relation"]
                )
        assert not errors(sample)


def test_long_captions_say_more() -> None:
    lengths, relations, materials = [], 0, 0
    for i in range(40):
        sample = make_sample(split_seed("train", 300 + i), 96, 96, supersample=1)
        lengths.append([len(c.split()) for c in sample.captions])
        relations += bool(sample.meta["claims"][2]["relations"])
        materials += any(w in MATERIALS for w in sample.captions[2].replace(",", "").split())
    short, middle, long = np.mean(lengths, 0)
    assert short < 6 < middle < long and long > 15
    assert relations > 20 and materials > 8
