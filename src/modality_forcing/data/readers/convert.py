"""From a source to a folder of shards with a report: what a reader finds, read in several processes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from modality_forcing.data.readers.base import Item, Options
from modality_forcing.data.readers.formats import Format, format_named
from modality_forcing.data.readers.report import PartReport, Report, merge, sample_record
from modality_forcing.data.readers.resample import fit
from modality_forcing.errors import UserError
from modality_forcing.io.atomic import atomic_file
from modality_forcing.types import Sample

if TYPE_CHECKING:
    from modality_forcing.data.shards import Manifest

T = TypeVar("T")
Encoded = tuple[str, list[tuple[str, bytes]]]
SHARD_SIZE = 500
REPORT = "report.json"
PROBES = 16  # items tried before anything is written


@dataclass(frozen=True)
class Converted:
    """What a conversion made.

    Attributes:
        manifest: of the shards.
        report: everything worth knowing about them.
        kept: samples of shards that were there before.
    """

    manifest: Manifest
    report: Report
    kept: int


def convert(
    source: str | Path,
    format_name: str,
    out: str | Path,
    options: Options | None = None,
    *,
    limit: int | None = None,
    max_side: int | None = None,
    shard_size: int = SHARD_SIZE,
    workers: int = 1,
    progress: Callable[[int, int | None], None] | None = None,
) -> Converted:
    """Make shards of a source, and ``report.json`` beside them.

    Items that cannot be read are left out, counted and listed. Finished shards are kept: a run that was
    stopped goes on. The same source and settings give the same bytes, whatever the number of workers.

    Args:
        source: folder or file in the layout of the format.
        format_name: one of ``formats.FORMATS``.
        out: new, empty, or made with the same settings from the same files; not inside the source.
        options: what the format cannot know.
        limit: at most so many items, spread evenly over the source.
        max_side: larger pictures are reduced to so many pixels on their longer side.
        shard_size: items per shard.
        workers: processes.
        progress: called with (samples finished, items in all).

    Raises:
        UserError: unknown format, nothing in the source in its layout, none of it readable, a missing
            package, or as of :func:`modality_forcing.data.shards.build_shards`.
        OutOfMemoryError: a worker was killed.
    """
    from modality_forcing.data.shards import build_shards

    source, out = Path(source), Path(out)
    options = options or Options()
    form = format_named(format_name)
    form.check(options)
    if not source.exists():
        raise UserError(f"{source} does not exist; right is {form.layout}")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{out} lies inside {source}; choose a folder outside the source")
    found = form.find(source, options)
    if not found.items:
        why = (
            f" (first of {len(found.problems)} problems: {': '.join(found.problems[0])})"
            if found.problems
            else ""
        )
        raise UserError(f"{source} holds nothing in the layout of {form.name}{why}; right is {form.layout}")
    items = [replace(item, name=_printable(item.name)) for item in spread(found.items, limit)]
    problems = [(_printable(name), reason) for name, reason in found.problems]
    _probe(form, items, options, max_side)
    settings, jobs = _plan(form, source, items, options, limit, max_side, shard_size, out)
    generator = {
        "name": "convert",
        "package": importlib.metadata.version("modality-forcing"),
        "pillow": importlib.metadata.version("pillow"),
    }
    kept: list[int] = []

    def report_progress(done: int, _: int | None) -> None:
        kept.append(done) if not kept else None
        if progress is not None:
            progress(done, len(items))

    manifest = build_shards(out, generator, settings, jobs, workers=workers, progress=report_progress)
    parts = [(job.name, _read_part(out / _part_name(job.name))) for job in jobs]
    report = merge(form.name, parts, problems)
    with atomic_file(out / REPORT) as aside:
        aside.write_bytes(report.to_json())
    if not manifest.samples:
        raise UserError(f"none of {len(items)} items could be converted; {out / REPORT} says why")
    return Converted(manifest, report, kept[0] if kept else 0)


def encoded_samples(
    format_name: str, items: Sequence[Item], options: Options, max_side: int | None, first: int, report: str
) -> Iterator[Encoded]:
    """(key, members) of the items that can be read; the part report ``report`` is written after the last.

    Args:
        format_name, options, max_side: as of :func:`convert`.
        items: those of one shard.
        first: number of the first one in the source; keys begin with it.
        report: path of the part report.
    """
    form = format_named(format_name)
    part = PartReport()
    for number, item in enumerate(items, start=first):
        try:
            key, members, record, sample = encode_item(form, item, options, max_side, number)
            part.add(record, sample)
        except MemoryError:
            raise
        except Exception as error:  # a set of millions always holds a file that breaks in a new way
            part.skipped.append([item.name, _reason(error, item)])
            continue
        yield key, members
    with atomic_file(report) as aside:
        text = json.dumps(part.to_dict(), sort_keys=True, ensure_ascii=False)
        aside.write_text(text + "\n", encoding="utf-8")


def encode_item(
    form: Format, item: Item, options: Options, max_side: int | None, number: int
) -> tuple[str, list[tuple[str, bytes]], dict[str, Any], Sample]:
    """Key, members, line of the report, and the sample of one item.

    Raises:
        Exception: whatever is wrong with its files.
    """
    from modality_forcing.data.shards import encode_sample

    loaded = fit(form.load(item, options), max_side)
    if not (loaded.depth > 0).any() and not options.rgb_only:
        raise UserError("no pixel of its depth is known")
    key = f"{number:08d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', item.name)[-60:].strip('_')}".rstrip("-")
    meta = {"name": item.name, "camera": loaded.camera_from, **loaded.meta}
    sample = Sample(loaded.rgb, loaded.depth, loaded.camera, loaded.captions, meta=meta)
    jpeg = None if loaded.jpeg is None else loaded.jpeg.read_bytes()
    members = encode_sample(sample, key, source=form.name, unit=loaded.unit, rgb_jpeg=jpeg)
    record = sample_record(key, item.name, sample, loaded.camera_from, loaded.unit, loaded.notes)
    return key, members, record, sample


def _reason(error: Exception, item: Item) -> str:
    text = str(error)
    for path in item.paths.values():  # the report reads the same wherever the source lies
        text = text.replace(str(path), path.name)
    text = " ".join(text.split())[:300]
    return text if isinstance(error, UserError) and text else f"{type(error).__name__}: {text}"


def spread(items: Sequence[T], count: int | None) -> list[T]:
    """At most ``count`` of the items, evenly over all; None: all."""
    if count is None or count >= len(items):
        return list(items)
    return [items[number * len(items) // count] for number in range(count)]


def _printable(name: str) -> str:
    """A file name as text; bytes that are no UTF-8 become question marks."""
    return name.encode("utf-8", "replace").decode("utf-8")


def _probe(form: Format, items: list[Item], options: Options, max_side: int | None) -> None:
    """Refuse a source of which nothing can be read before anything slow is done."""
    first = ""
    tried = spread(items, PROBES)
    for item in tried:
        try:
            encode_item(form, item, options, max_side, 0)
            return
        except MemoryError:
            raise
        except Exception as error:
            first = first or f"{item.name}: {_reason(error, item)}"
    raise UserError(f"none of {len(tried)} items that were tried can be read; the first, {first}")


def _part_name(shard: str) -> str:
    return f"{shard.removesuffix('.tar')}.report.json"


def _read_part(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return {**value, "samples": list(value["samples"]), "skipped": list(value["skipped"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"samples": [], "skipped": [], "missing": True}


def _plan(
    form: Format, source: Path, items: list[Item], options: Options, limit: int | None, max_side: int | None,
    shard_size: int, out: Path,
) -> tuple[dict[str, Any], list]:  # fmt: skip
    """Settings for the manifest, which tell one conversion from another, and one job for each shard."""
    from modality_forcing.data.shards import Job

    names = hashlib.sha256("\n".join(item.name for item in items).encode("utf-8"))
    settings: dict[str, Any] = {
        "format": form.name, "source": source.resolve().name, "items": len(items),
        "names_sha256": names.hexdigest(), "limit": limit, "max_side": max_side, "shard_size": shard_size,
        **{name: value for name, value in vars(options).items() if name in form.options},
    }  # fmt: skip
    jobs = []
    for number, first in enumerate(range(0, len(items), shard_size)):
        name = f"{form.name}-{number:06d}.tar"
        part = tuple(items[first : first + shard_size])
        arguments = (form.name, part, options, max_side, first, str(out / _part_name(name)))
        jobs.append(Job(name, None, encoded_samples, arguments))
    return settings, jobs
