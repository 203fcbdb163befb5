"""Curated colours: which go together in a scene, by place and light."""

from __future__ import annotations

from modality_forcing.data.lowpoly.scene import Builder

PALETTES: dict[str, tuple[str, ...]] = {
    "meadow": ("green", "yellow", "white", "brown", "beige"),
    "coast": ("blue", "teal", "white", "beige", "orange"),
    "berry": ("red", "pink", "purple", "white", "beige"),
    "autumn": ("orange", "red", "yellow", "brown", "beige"),
    "ink": ("blue", "grey", "white", "black", "red"),
    "market": ("red", "yellow", "blue", "green", "white"),
    "candy": ("pink", "yellow", "teal", "purple", "white"),
    "night": ("blue", "purple", "orange", "yellow", "white"),
}
_INDOOR = ("meadow", "coast", "berry", "autumn", "ink", "market", "candy")
_COUNTRY = ("meadow", "autumn", "market", "berry")
_WATER = ("coast", "market", "candy", "ink")
_BY_PLACE = {
    "kitchen": ("meadow", "coast", "autumn", "market", "candy"), "bathroom": ("coast", "candy", "meadow"),
    "office": ("ink", "coast", "meadow", "market"), "library": ("autumn", "berry", "ink", "meadow"),
    "street": ("market", "ink", "autumn", "candy"), "park": (*_COUNTRY, "candy"), "forest": _COUNTRY,
    "desert": ("autumn", "coast", "market"), "mountains": (*_COUNTRY, "coast"), "village": _COUNTRY,
    "castle": ("berry", "ink", "market"), "beach": _WATER, "harbour": _WATER,
}  # fmt: skip
_BY_LIGHT = {
    "night": ("night", "autumn", "berry"), "evening": ("autumn", "berry", "night"),
    "dusk": ("night", "berry", "candy"), "golden": ("autumn", "market", "berry"),
}  # fmt: skip


def choose(b: Builder, mood: str) -> None:
    """Set the builder's palette: of the place, or one that suits low light."""
    names = _BY_PLACE.get(b.place, _INDOOR)
    if mood in _BY_LIGHT and b.p(0.5):
        names = _BY_LIGHT[mood]
    name = b.pick(names)
    b.palette, b.facts["palette"] = PALETTES[name], name
