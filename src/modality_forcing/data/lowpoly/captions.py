"""Captions from what is seen: a short, a middle and a long one, and what each of them claims.

Every claim is checked before it is written: named objects cover at least ``VISIBLE`` of the picture, counts
are the instances that do, and relations hold by ``relations``. The claims stand beside the texts as plain
values, so that tests and evaluation can check them without parsing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modality_forcing.data.lowpoly import relations as rel
from modality_forcing.data.lowpoly.scene import Scene, SceneObject
from modality_forcing.data.lowpoly.words import (
    INDOOR,
    INDOOR_AFTER,
    MASS,
    MATERIAL_WORDS,
    NUMBERS,
    OUTDOOR,
    OUTDOOR_AFTER,
    PLACE_NAMES,
    PREPOSITIONS,
    RELATION_WORDS,
    article,
    nouns,
    plural,
)
from modality_forcing.types import Camera

MAX_WORDS = 40
"""Words of the longest caption; the middle one has at most 24, the short one at most 10."""
VISIBLE = 0.004
"""Least share of the pixels of an instance that counts."""
CLEAR = 0.006
"""Least share of the pixels, all instances together, of a kind of object that is named."""
WALLS = 0.08
"""Least share of the pixels of painted walls whose colour is named."""
_MIXED = ("house", "building", "chair", "car", "umbrella", "boat", "cushion", "towel", "tent")


@dataclass
class Phrase:
    """A noun phrase for one or several objects of a kind, and what it claims."""

    name: str
    text: str
    noun: str
    ids: list[int]
    colour: str | None
    material: str | None
    weight: float

    def claim(self) -> dict[str, Any]:
        """The claim as plain values."""
        return {"name": self.name, "ids": self.ids, "colour": self.colour, "material": self.material,
                "count": len(self.ids)}  # fmt: skip


@dataclass
class Link:
    """A relation between two single objects."""

    subject: int
    relation: str
    object: int
    weight: float


@dataclass
class Facts:
    """Everything that may be said about a picture."""

    groups: list[Phrase]
    links: list[Link]
    things: dict[int, SceneObject]
    walls: str | None = None
    single: dict[int, Phrase] = field(default_factory=dict)


def _adjectives(
    thing: SceneObject, rng: np.random.Generator, chance: float
) -> tuple[str, str | None, str | None]:
    """Words for a look, and the colour and material they claim."""
    words, colour, material = [], None, None
    for look in thing.looks:
        if rng.random() > chance and not (look == thing.looks[0] and chance > 0.7):
            continue
        if look in MATERIAL_WORDS:
            material = look
            words.append(str(rng.choice(MATERIAL_WORDS[look])))
        else:
            colour = look if look == thing.colour else colour
            words.append(look)
    return " ".join(sorted(words, key=lambda w: w not in ("red", *thing.looks[:1]))), colour, material


def _phrase(name: str, members: list[SceneObject], weight: float, rng: np.random.Generator) -> Phrase:
    first, noun = members[0], str(rng.choice(nouns(name)))
    words, colour, material = "", None, None
    if len({m.looks for m in members}) == 1:
        words, colour, material = _adjectives(first, rng, 0.85)
    if name in MASS:
        text = f"{words} {noun}".strip() if name == "flowers" else MASS[name]
    elif len(members) == 1:
        text = article(f"{words} {noun}".strip())
    else:
        if not words and name in _MIXED and len({m.colour for m in members}) > 1 and rng.random() < 0.6:
            words = "colourful"
        count = NUMBERS.get(len(members), "many" if len(members) > 5 else "several")
        if name in ("cabinet", "window", "picture") or (rng.random() < 0.4 and len(members) > 2):
            count = ""
        text = f"{count} {words} {plural(noun)}".replace("  ", " ").strip()
    return Phrase(name, text, noun, [m.id for m in members], colour, material, weight)


def visible_groups(
    scene: Scene, object_ids: np.ndarray, rng: np.random.Generator
) -> tuple[list[Phrase], dict[int, float]]:
    """Objects that are clearly seen, grouped by name, most eye-catching first; each one's share."""
    counts = np.bincount(object_ids.ravel(), minlength=len(scene.objects) + 1) / object_ids.size
    groups: dict[str, list[SceneObject]] = {}
    shares = {}
    for thing in scene.objects:
        outside = "wall" in scene.facts and thing.name == "tree"  # seen through a window
        if counts[thing.id] >= VISIBLE and thing.name != scene.place and not outside:
            groups.setdefault(thing.name, []).append(thing)
            shares[thing.id] = float(counts[thing.id])
    out = []
    for name, members in groups.items():
        total = sum(shares[m.id] for m in members)
        if total >= CLEAR:
            weight = max(m.weight for m in members) * min(total, 0.2) ** 0.5
            out.append(_phrase(name, members, weight, rng))
    return sorted(out, key=lambda g: -g.weight), shares


def find_links(
    scene: Scene,
    ids: np.ndarray,
    depth: np.ndarray,
    points: np.ndarray,
    camera: Camera,
    shares: dict[int, float],
) -> list[Link]:
    """All relations that hold between the most visible single objects."""
    indoor = "wall" in scene.facts
    things = {t.id: t for t in scene.objects}
    weight = {i: things[i].weight * min(s, 0.15) ** 0.5 for i, s in shares.items() if s >= CLEAR}
    chosen = sorted(weight, key=lambda i: -weight[i])[:9]
    carried = [i for i in weight if things[i].support in weight][:4]
    carriers = [things[i].support for i in carried]
    chosen += [i for i in dict.fromkeys(carried + carriers) if i not in chosen]
    seen = rel.look_at(ids, depth, points, chosen)
    names = [things[i].name for i in chosen]
    close: dict[tuple[int, int], bool] = {}
    out: list[Link] = []
    for i in chosen:
        for j in chosen:
            a, b = things[i], things[j]
            if i == j or a.name == b.name or names.count(a.name) > 3 or names.count(b.name) > 3:
                continue
            pair = weight[i] * weight[j]
            if a.support == j and rel.on(seen[i], seen[j], ids, points, depth, camera):
                out.append(Link(i, "on", j, 5.0 * pair))
                continue
            if a.support == j or b.support == i or a.name in rel.FLAT or b.name in rel.FLAT:
                continue
            if rel.behind(seen[i], seen[j]):
                out.append(Link(i, "behind", j, 1.1 * pair))
                out.append(Link(j, "in front of", i, 1.3 * pair))
            if indoor and rel.above(seen[i], seen[j]):
                out.append(Link(i, "above", j, 2.5 * pair))
            if a.name in rel.HUGE or b.name in rel.HUGE:
                continue
            if rel.left_of(seen[i], seen[j], ids.shape[1]):
                near = 1.0 if seen[i].depth[0] < 2.5 * seen[j].depth[1] else 0.5
                out.append(Link(i, "left of", j, near * pair))
                out.append(Link(j, "right of", i, near * pair))
            pair_key = (min(i, j), max(i, j))  # the same both ways, and the dearest to compute
            if pair_key not in close:
                close[pair_key] = rel.next_to(seen[i], seen[j], ids.shape[1], indoor)
            if close[pair_key]:
                out.append(Link(i, "next to", j, 1.0 * pair))
    return out


def _wall_share(scene: Scene, ids: np.ndarray, depth: np.ndarray, points: np.ndarray) -> float:
    """Share of the picture that is painted wall: background from 1.25 m (above tiles) to the ceiling."""
    height = points[..., 2] + scene.view.position[2]
    painted = (ids == 0) & np.isfinite(depth) & (height > 1.25) & (height < scene.facts["room"] - 0.05)
    return float(painted.mean())


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


class _Writer:
    """Puts one caption together and keeps its claims."""

    def __init__(self, facts: Facts, rng: np.random.Generator) -> None:
        self.facts, self.rng = facts, rng
        self.objects: list[dict[str, Any]] = []
        self.links: list[dict[str, Any]] = []
        self.said: dict[int, str] = {}
        self.kinds: set[str] = set()
        self.walls: str | None = None

    def group(self, phrase: Phrase) -> str:
        """A group of objects, as a phrase of the list."""
        self.objects.append(phrase.claim())
        self.kinds.add(phrase.name)
        if len(phrase.ids) == 1:
            self.said[phrase.ids[0]] = phrase.noun
        return phrase.text

    def one(self, i: int) -> str:
        """One object: with its looks the first time, "the ..." after that."""
        thing = self.facts.things[i]
        if i in self.said:
            return "the " + self.said[i]
        if i not in self.facts.single:
            self.facts.single[i] = _phrase(thing.name, [thing], 1.0, self.rng)
        return self.group(self.facts.single[i])

    def link(self, link: Link) -> str:
        """A relation as words."""
        words = str(self.rng.choice(RELATION_WORDS[link.relation]))
        self.links.append({"subject": link.subject, "relation": link.relation, "object": link.object})
        return f"{self.one(link.subject)} {words} {self.one(link.object)}"

    def fits(self, link: Link) -> bool:
        """A relation that adds something: it talks of kinds not yet named in the plural, and not again."""
        for i in (link.subject, link.object):
            if self.facts.things[i].name in self.kinds and i not in self.said:
                return False
        pair = {link.subject, link.object}
        return all({x["subject"], x["object"]} != pair for x in self.links)

    def choose_link(self) -> Link | None:
        """One relation, drawn by weight."""
        links = [k for k in self.facts.links if self.fits(k)]
        if not links:
            return None
        weight = np.array([k.weight**1.5 for k in links])
        return links[int(self.rng.choice(len(links), p=weight / weight.sum()))]

    def claims(self) -> dict[str, Any]:
        """Everything this caption claims."""
        return {"objects": self.objects, "relations": self.links, "walls": self.walls}


def captions(
    scene: Scene, object_ids: np.ndarray, depth: np.ndarray, camera: Camera, rng: np.random.Generator
) -> tuple[tuple[str, str, str], list[dict[str, Any]]]:
    """Short, middle and long caption of a rendered scene, and the claims of each.

    Args:
        scene: the scene; its camera pose gives the upright direction.
        object_ids: int (H, W) and depth (H, W) in metres, of the rendered picture.
    """
    groups, shares = visible_groups(scene, object_ids, rng)
    points = rel.upright_points(depth, camera, scene.view.pitch, scene.view.roll)
    links = find_links(scene, object_ids, depth, points, camera, shares)
    walls = scene.facts.get("wall")
    if walls and _wall_share(scene, object_ids, depth, points) < WALLS:
        walls = None
    facts = Facts(groups, links, {t.id: t for t in scene.objects}, walls)
    indoor, mood = "wall" in scene.facts, scene.facts["mood"]
    place = str(rng.choice(PLACE_NAMES[scene.place]))
    if scene.facts.get("look"):
        place = f"close view of {article(place)}"
    before = str(rng.choice((INDOOR if indoor else OUTDOOR)[mood]))
    after = str(rng.choice((INDOOR_AFTER if indoor else OUTDOOR_AFTER)[mood]))
    dark = not indoor and mood in ("dusk", "night")
    texts, claims = [], []
    for length in (_short, _middle, _long):
        writer = _Writer(facts, rng)
        texts.append(length(writer, place, before, after, dark))
        claims.append(writer.claims())
    return (texts[0], texts[1], texts[2]), claims


def _short(w: _Writer, place: str, before: str, after: str, dark: bool) -> str:
    r = w.rng.random()
    if r < 0.25 and w.facts.groups:
        return f"{article(place)} with {w.group(w.facts.groups[0])}"
    if r < 0.45:
        return f"{article(place)} {after}" if dark else article(f"{before} {place}")
    return article(place)


def _middle(w: _Writer, place: str, before: str, after: str, dark: bool) -> str:
    link = w.choose_link() if w.rng.random() < 0.45 else None
    if link is not None:
        where = PREPOSITIONS.get(place, PREPOSITIONS.get(place.split()[-1], "in"))
        text = f"{w.link(link)} {where} {article(place if dark else f'{before} {place}')}"
        return f"{text} {after}" if dark else text
    lead = w.rng.random() < 0.5
    text = article(f"{before} {place}") if lead else article(place)
    if w.facts.groups:
        count = int(w.rng.integers(1, 3))
        text += " with " + _join([w.group(g) for g in w.facts.groups[:count]])
    return f"{text} {after}" if not lead or dark else text


def _long(w: _Writer, place: str, before: str, after: str, dark: bool) -> str:
    lead = w.rng.random() < 0.5
    text = article(f"{before} {place}") if lead else f"{article(place)} {after}"
    if lead and dark:
        text += " " + after
    room = MAX_WORDS - len(text.split()) - 1
    wanted = int(w.rng.integers(2, 5))
    parts: list[str] = []
    phrases = list(w.facts.groups)
    if w.facts.walls and w.rng.random() < 0.4:
        w.walls = w.facts.walls
        parts.append(f"{w.walls} walls")
    for phrase in phrases[:wanted]:
        if len(" ".join(parts).split()) + len(phrase.text.split()) + 1 <= room:
            parts.append(w.group(phrase))
    if parts:
        text += " with " + _join(parts)
    for _ in range(2 if w.rng.random() < 0.75 else 1):
        kept = (list(w.objects), list(w.links), dict(w.said), set(w.kinds))
        link = w.choose_link()
        if link is None:
            break
        clause = ", " + w.link(link)
        if len((text + clause).split()) > MAX_WORDS:
            w.objects, w.links, w.said, w.kinds = kept
            continue
        text += clause
    return text


__all__ = ["CLEAR", "MAX_WORDS", "VISIBLE", "captions", "find_links", "visible_groups"]
