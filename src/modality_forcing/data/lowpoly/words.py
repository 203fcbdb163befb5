"""The vocabulary of the captions: synonyms, plurals, words for places, light and relations."""

from __future__ import annotations

PLACE_NAMES: dict[str, tuple[str, ...]] = {
    "kitchen": ("kitchen",), "living room": ("living room", "living room", "lounge"), "bedroom": ("bedroom",),
    "bathroom": ("bathroom", "bathroom", "washroom"), "office": ("office", "study"), "library": ("library",),
    "street": ("street", "street", "city street"), "park": ("park",),
    "forest": ("forest", "forest", "woodland"), "desert": ("desert",),
    "mountains": ("mountain landscape", "mountain valley"), "village": ("village",), "castle": ("castle",),
    "beach": ("beach", "beach", "seaside"), "harbour": ("harbour", "harbour", "port"),
}  # fmt: skip
PREPOSITIONS = {"street": "on", "beach": "on", "harbour": "at", "castle": "at", "seaside": "at", "port": "at"}
INDOOR = {
    "sun": ("sunlit", "sunny", "bright"), "morning": ("warm, sunlit", "sunny"),
    "grey": ("softly lit", "calm"),
    "evening": ("cozy, lamp-lit", "cozy"), "night": ("dim, lamp-lit", "cozy, lamp-lit"),
}  # fmt: skip
INDOOR_AFTER = {
    "sun": ("in sunlight", "on a sunny day"), "morning": ("in the morning sun", "in the morning"),
    "grey": ("in soft daylight", "on a cloudy day"), "evening": ("in the evening", "in lamplight"),
    "night": ("at night", "at night"),
}  # fmt: skip
OUTDOOR = {
    "sun": ("sunny", "bright"), "golden": ("golden", "warm"), "dusk": ("quiet",), "night": ("dark", "quiet"),
    "mist": ("misty", "foggy"), "grey": ("cloudy", "grey"),
}  # fmt: skip
OUTDOOR_AFTER = {
    "sun": ("on a sunny day", "under a blue sky", "in sunlight"), "golden": ("at sunset", "in golden light"),
    "dusk": ("at dusk", "at twilight"), "night": ("at night", "under the stars"),
    "mist": ("in the mist", "in fog"), "grey": ("on a cloudy day", "under a grey sky"),
}  # fmt: skip
SYNONYMS: dict[str, tuple[str, ...]] = {
    "sofa": ("sofa", "sofa", "couch"), "rug": ("rug", "carpet"), "fridge": ("fridge", "refrigerator"),
    "stove": ("stove", "cooker"), "cabinet": ("cabinet", "cabinet", "cupboard"),
    "wardrobe": ("wardrobe", "closet"),
    "bookshelf": ("bookshelf", "bookcase"), "picture": ("picture", "painting"),
    "plant": ("plant", "houseplant"),
    "computer": ("computer", "computer", "computer screen"), "television": ("television", "TV"),
    "sink": ("sink", "basin"), "bathtub": ("bathtub", "bath"), "nightstand": ("nightstand", "bedside table"),
    "stack of books": ("stack of books", "pile of books"), "mug": ("mug", "cup"),
    "teddy bear": ("teddy bear", "toy bear"),
    "hanging lamp": ("hanging lamp", "ceiling lamp"), "floor lamp": ("floor lamp", "standing lamp"),
    "lamp": ("lamp", "table lamp"), "pine tree": ("pine tree", "fir tree"), "bush": ("bush", "shrub"),
    "rock": ("rock", "boulder"), "street lamp": ("street lamp", "lamp post"), "bicycle": ("bicycle", "bike"),
    "bin": ("bin", "rubbish bin"), "boat": ("boat", "fishing boat"), "sailboat": ("sailboat", "sailing boat"),
    "umbrella": ("umbrella", "parasol"), "lifebuoy": ("lifebuoy", "life ring"),
    "pond": ("pond", "pool of water"),
    "ring": ("ring", "thick ring"), "barrel": ("barrel", "cask"),
    "deck chair": ("deck chair", "deck chair", "beach chair"), "house": ("house", "house", "cottage"),
    "ball": ("ball", "ball", "sphere"), "box": ("box", "box", "cube"), "pot": ("pot", "cooking pot"),
}  # fmt: skip
MATERIAL_WORDS: dict[str, tuple[str, ...]] = {
    "wooden": ("wooden",), "metal": ("metal", "steel"), "stone": ("stone",), "brick": ("brick",),
    "marble": ("marble",), "tiled": ("tiled",), "striped": ("striped",),
    "checked": ("checked", "chequered"), "wicker": ("wicker",),
}  # fmt: skip
_PLURALS = {
    "bench": "benches", "bush": "bushes", "bookshelf": "bookshelves", "box": "boxes", "cactus": "cacti",
    "couch": "couches", "church": "churches", "bus": "buses", "stack of books": "stacks of books",
    "pile of books": "piles of books", "pool of water": "pools of water", "flowers": "flowers",
    "torch": "torches",
}  # fmt: skip
MASS = {"sea": "the sea", "snow": "snow", "flowers": "flowers"}
"""Names without an article of their own."""
NUMBERS = {2: "two", 3: "three"}
RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "left of": ("to the left of", "left of"), "right of": ("to the right of", "right of"),
    "behind": ("behind",), "in front of": ("in front of",), "on": ("on", "on top of"),
    "above": ("above", "over"),    "next to": ("next to", "beside"),
}  # fmt: skip


def nouns(name: str) -> tuple[str, ...]:
    """All words for an object of this name, singular."""
    return SYNONYMS.get(name, (name,))


def plural(noun: str) -> str:
    """The plural of a noun of this vocabulary."""
    return _PLURALS.get(noun, noun + "s")


def article(phrase: str) -> str:
    """``phrase`` with a or an."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase
