"""Plain values (JSON, ``key=value`` texts) to configuration dataclasses and back, strictly."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

from modality_forcing.errors import UserError

C = TypeVar("C")


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values of a (nested) configuration, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(cls: type[C], values: dict[str, Any], where: str = "config") -> C:
    """Build ``cls`` from plain values, strictly.

    Raises:
        UserError: an unknown key, or a value of the wrong kind; the message names ``where.key``.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where} is {values!r}; a table of keys and values is needed")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise UserError(f"unknown key {where}.{key}; known: {', '.join(sorted(known))}")
    kwargs = {key: _coerce(hints[key], value, f"{where}.{key}") for key, value in values.items()}
    return cls(**kwargs)


def override(config: C, assignments: list[str]) -> C:
    """Apply ``key=value`` texts (dots reach into nested tables) to a configuration.

    Raises:
        UserError: no "=", an unknown key, or a value that does not fit.
    """
    values = to_dict(config)
    for text in assignments:
        key, equals, raw = text.partition("=")
        if not equals:
            raise UserError(f"{text!r} is not of the form key=value")
        table = values
        *parents, last = key.split(".")
        for parent in parents:
            if not isinstance(table.get(parent), dict):
                raise UserError(f"unknown key {key}; there is no table {parent!r}")
            table = table[parent]
        if last not in table:
            raise UserError(f"unknown key {key}; known here: {', '.join(sorted(table))}")
        table[last] = raw
    return from_dict(type(config), values, "config")


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the annotated type ``hint``; texts (from the command line) are parsed."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            if type(None) in args:
                return None
            raise UserError(f"{where} may not be none")
        return _coerce(next(a for a in args if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        if isinstance(value, str) and hasattr(hint, "from_text"):
            return hint.from_text(value)
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        if isinstance(value, str):
            value = [part for part in value.strip("()[] ").split(",") if part.strip()]
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}={value!r} is not a list")
        return tuple(_coerce(args[0], part, where) for part in value)
    if origin is dict or hint is dict:
        return dict(value)
    try:
        if hint is bool:
            if isinstance(value, bool):
                return value
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                str(value).lower()
            ]
        if hint in (int, float) and isinstance(value, bool):
            raise TypeError
        if hint is int:
            if isinstance(value, float) and value != int(value):
                raise ValueError
            return int(value)
        if hint is float:
            return float(value)
        if hint is str:
            if not isinstance(value, str):
                raise TypeError
            return value
    except (ValueError, KeyError, TypeError, OverflowError):
        raise UserError(f"{where}={value!r} is not a valid {hint.__name__}") from None
    return value
