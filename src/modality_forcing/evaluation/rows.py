"""Results of single pictures as lines of JSON: written one by one, read back after a crash."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modality_forcing.errors import UserError
from modality_forcing.evaluation.metrics import METRICS
from modality_forcing.io.atomic import atomic_file, write_errors
from modality_forcing.io.plain_json import plain

ROWS, SETTINGS, PICTURES = "rows.jsonl", "settings.json", "pictures"
FREE = ("shard", "limit", "predictor_device")
"""Settings that may differ between runs whose rows belong together."""


def read_rows(folder: Path) -> dict[int, dict[str, Any]]:
    """Rows by index; a later row of the same index takes the place of an earlier one.

    A last line that a crash cut short is dropped from the file, so that the next one starts on its own line.

    Raises:
        UserError: another line is no row.
    """
    path = folder / ROWS
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with write_errors(path), path.open("r+b") as stream:
            stream.truncate(len(whole))
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            rows[int(row["index"])] = row
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}, line {number} is no row of an evaluation") from None
    return rows


def row_line(row: Mapping[str, Any]) -> str:
    """One line of the file."""
    return json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n"


def begin(folder: Path, settings: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Take up a folder for rows: what it holds already, after a check that it belongs to the same settings.

    Raises:
        UserError: it holds rows of other settings.
    """
    settings = plain(settings)
    path = folder / SETTINGS
    if path.exists():
        compare(read_settings(folder), settings, f"{folder} holds", "choose another --out")
    with atomic_file(path) as aside:
        aside.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return read_rows(folder)


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a folder of rows.

    Raises:
        UserError: there are none, or they are damaged.
    """
    path = folder / SETTINGS
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no {SETTINGS}; right is a folder that mf eval wrote") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is no table of settings")
    return value


def compare(old: Mapping[str, Any], new: Mapping[str, Any], what: str, right: str) -> None:
    """Refuse two settings whose rows do not belong together.

    Raises:
        UserError: they differ in more than ``FREE``.
    """
    for name in sorted(old.keys() | new.keys()):
        if name not in FREE and old.get(name) != new.get(name):
            path, a, b = _first_difference(name, old.get(name), new.get(name))
            a, b = (json.dumps(value, ensure_ascii=False)[:80] for value in (a, b))
            raise UserError(f"{what} results of another {path} ({a}, not {b}); {right}")


def _first_difference(name: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """The innermost setting that differs, "predictor.steps", and both values; what is long would hide it."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                return _first_difference(f"{name}.{key}", old.get(key), new.get(key))
    return name, old, new


def scored(rows: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows that hold numbers, by index."""
    return [dict(rows[index]) for index in sorted(rows) if "error" not in rows[index]]


def failed(rows: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows that hold an error, by index."""
    return [dict(rows[index]) for index in sorted(rows) if "error" in rows[index]]


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """alignment -> measure -> mean, standard error of the mean and count of pictures, each counting alike.

    Pictures where a measure says nothing (no boundary in the reference) are left out of its mean.
    """
    summary: dict[str, dict[str, dict[str, float | int | None]]] = {}
    for alignment in rows[0]["scores"] if rows else ():
        table: dict[str, dict[str, float | int | None]] = {}
        for name in METRICS:
            values = [
                float(r["scores"][alignment][name]) for r in rows if r["scores"][alignment][name] is not None
            ]
            table[name] = mean_and_error(values)
        summary[alignment] = table
    return summary


def mean_and_error(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, its standard error (sample standard deviation / sqrt(n)) and n."""
    n = len(values)
    if n == 0:
        return {"mean": None, "error": None, "count": 0}
    mean = math.fsum(values) / n
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else None
    return {"mean": mean, "error": error, "count": n}
