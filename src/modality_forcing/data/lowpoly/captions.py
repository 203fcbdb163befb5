"""Captions from what is seen: a short, a middle and a long one, each at most 25 words."""

from __future__ import annotations

import numpy as np

from modality_forcing.data.lowpoly.scene import Scene, SceneObject

PLACE_NAMES = {
    "kitchen": ("kitchen",), "living room": ("living room", "living room", "lounge"), "bedroom": ("bedroom",),
    "bathroom": ("bathroom",), "office": ("office", "study"), "library": ("library",),
    "street": ("street", "street", "city street"), "park": ("park",), "forest": ("forest", "forest", "wood"),
    "desert": ("desert",), "mountains": ("mountain landscape", "mountain valley"), "village": ("village",),
    "castle": ("castle",), "beach": ("beach",), "harbour": ("harbour",),
}  # fmt: skip
INDOOR = {
    "sun": ("sunlit", "sunny", "bright"),
    "morning": ("warm, sunlit", "sunny"),
    "grey": ("softly lit", "calm"),
    "evening": ("cozy, lamp-lit", "cozy"),
    "night": ("dim, lamp-lit", "cozy, lamp-lit"),
}
INDOOR_AFTER = {
    "sun": ("in sunlight", "on a sunny day"),
    "morning": ("in the morning sun", "in the morning"),
    "grey": ("in soft daylight", "on a cloudy day"),
    "evening": ("in the evening",),
    "night": ("at night",),
}
OUTDOOR = {
    "sun": ("sunny", "bright"),
    "golden": ("golden", "warm"),
    "dusk": ("quiet",),
    "night": ("dark", "quiet"),
    "mist": ("misty", "foggy"),
    "grey": ("cloudy", "grey"),
}
OUTDOOR_AFTER = {
    "sun": ("on a sunny day", "under a blue sky", "in sunlight"),
    "golden": ("at sunset", "in golden light"),
    "dusk": ("at dusk", "at twilight"),
    "night": ("at night",),
    "mist": ("in the mist", "in fog"),
    "grey": ("on a cloudy day", "under a grey sky"),
}
_PLURALS = {
    "bench": "benches",
    "bush": "bushes",
    "bookshelf": "bookshelves",
    "box": "boxes",
    "cactus": "cacti",
}
MAX_WORDS = 25
_NUMBERS = {2: "two", 3: "three"}


def article(phrase: str) -> str:
    """``phrase`` with a or an."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _phrase(members: list[SceneObject], rng: np.random.Generator) -> str:
    first = members[0]
    looks = {m.looks for m in members}
    adjective = " ".join(first.looks[:1]) if len(looks) == 1 else ""
    if len(members) == 1:
        return article(f"{adjective} {first.name}".strip())
    plural = _PLURALS.get(first.name, first.name + "s")
    count = _NUMBERS.get(len(members), "many" if len(members) > 5 else "several")
    if (
        len(looks) > 1
        and first.name in ("house", "building", "chair", "car", "umbrella", "boat")
        and rng.random() < 0.6
    ):
        adjective = "colourful"
    if first.name in ("cabinet", "window", "picture") or (rng.random() < 0.4 and len(members) > 2):
        count = ""
    return f"{count} {adjective} {plural}".replace("  ", " ").strip()


def visible_groups(scene: Scene, object_ids: np.ndarray) -> list[tuple[float, list[SceneObject]]]:
    """Objects that are clearly seen, grouped by name, most eye-catching first."""
    counts = np.bincount(object_ids.ravel(), minlength=len(scene.objects) + 1) / object_ids.size
    groups: dict[str, list[tuple[float, SceneObject]]] = {}
    for thing in scene.objects:
        outside = "wall" in scene.facts and thing.name == "tree"  # seen through a window
        if counts[thing.id] >= 0.004 and thing.name != scene.place and not outside:
            groups.setdefault(thing.name, []).append((float(counts[thing.id]), thing))
    out = []
    for members in groups.values():
        total = sum(c for c, _ in members)
        if total >= 0.006:
            out.append((members[0][1].weight * min(total, 0.2) ** 0.5, [m for _, m in members]))
    return sorted(out, key=lambda g: -g[0])


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def captions(scene: Scene, object_ids: np.ndarray, rng: np.random.Generator) -> tuple[str, str, str]:
    """Short, middle and long caption of a rendered scene."""
    place = str(rng.choice(PLACE_NAMES[scene.place]))
    indoor, mood = "wall" in scene.facts, scene.facts["mood"]
    before = str(rng.choice((INDOOR if indoor else OUTDOOR)[mood]))
    after = str(rng.choice((INDOOR_AFTER if indoor else OUTDOOR_AFTER)[mood]))
    phrases = [_phrase(g, rng) for _, g in visible_groups(scene, object_ids)]
    extra = scene.facts.get("with")
    if indoor and rng.random() < 0.35:
        phrases.insert(int(rng.integers(1, 3)), f"{scene.facts['wall']} walls")
    if extra and rng.random() < 0.8:
        phrases.insert(int(rng.integers(0, 2)), extra)
    short = article(place)
    dark = not indoor and mood in ("dusk", "night")
    lead = rng.random() < 0.5
    mid = article(f"{before} {place}") if lead else article(place)
    if phrases:
        mid += " with " + _join(phrases[: int(rng.integers(1, 3))])
    if not lead or dark:
        mid += " " + after
    lead = rng.random() < 0.5
    long = article(f"{before} {place}") if lead else f"{article(place)} {after}"
    if lead and dark:
        long += " " + after
    chosen, bare = phrases[: int(rng.integers(3, 5))], long
    while chosen:
        long = f"{bare} with {_join(chosen)}"
        if len(long.split()) <= MAX_WORDS:
            break
        chosen.pop()
    return short, mid, long
