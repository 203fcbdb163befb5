"""Evaluating a predictor picture by picture: resumable, and reading and measuring beside the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modality_forcing.errors import UserError
from modality_forcing.evaluation.datasets import EvalSet
from modality_forcing.evaluation.fitting import fit_depth
from modality_forcing.evaluation.metrics import check_pair, score_aligned
from modality_forcing.evaluation.pictures import save_strip
from modality_forcing.evaluation.predictors import Prediction, Predictor
from modality_forcing.evaluation.protocols import Prepared, Protocol, Rules
from modality_forcing.evaluation.rows import PICTURES, ROWS, begin, row_line
from modality_forcing.io.atomic import slug, write_errors

AHEAD = 2  # batches read before the model asks for them, and batches whose measuring may wait
ERROR_EDGES = np.concatenate([[0.0], np.geomspace(1e-3, 10.0, 41), [np.inf]])
"""Bins of the histogram of relative errors of single pixels."""
SPREAD_EDGES = np.concatenate([[0.0], np.geomspace(1e-3, 1.0, 13), [np.inf]])
"""Bins of the ensemble's spread, for the reliability diagram."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Shard:
    """Part ``number`` of ``count`` (from 1): pictures number - 1, number - 1 + count, ..."""

    number: int = 1
    count: int = 1

    def indices(self, total: int) -> list[int]:
        """The pictures of this part."""
        return list(range(self.number - 1, total, self.count))


@dataclass(frozen=True)
class Job:
    """What is evaluated.

    Attributes:
        data: the pictures.
        predictor: gives depth.
        protocol, rules: how they are compared.
        alignments: names of ``fitting.ALIGNMENTS``; the first ranks the pictures.
        seed: of picture i is ``seed + i``.
        limit: the first so many pictures; None: all.
    """

    data: EvalSet
    predictor: Predictor
    protocol: Protocol
    rules: Rules
    alignments: tuple[str, ...]
    seed: int = 0
    limit: int | None = None
    shard: Shard = field(default_factory=Shard)

    def settings(self) -> dict[str, Any]:
        """What the rows of one folder have in common; it goes into the report."""
        facts = dict(self.predictor.facts)
        return {
            "data": self.data.source,
            "kind": self.data.kind,
            "layout": self.data.layout,
            "protocol": self.protocol.name,
            "rules": {key: list(v) if isinstance(v, tuple) else v for key, v in vars(self.rules).items()},
            "alignments": list(self.alignments),
            "predictor_name": self.predictor.name,
            "promise": self.predictor.promise,
            "predictor_device": facts.pop("device", None),
            "predictor": facts,
            "seed": self.seed,
            "limit": self.limit,
            "shard": f"{self.shard.number}/{self.shard.count}",
        }


def check_promise(predictor: Predictor, alignments: Sequence[str]) -> None:
    """Refuse an alignment that asks more of a predictor than it promises.

    Raises:
        UserError: "none" for what is not metric, or another than "disparity" for disparity.
    """
    for alignment in alignments:
        if alignment == "none" and predictor.promise != "metric":
            raise UserError(
                f"--alignment none needs metres; {predictor.name} gives {predictor.promise} depth"
            )
        if predictor.promise == "disparity" and alignment != "disparity":
            raise UserError(
                f"{predictor.name} gives disparity; right is --alignment disparity, not {alignment}"
            )


def evaluate_depth(job: Job, folder: Path, progress: Progress | None = None) -> dict[int, dict[str, Any]]:
    """Measure every picture of a job that the folder does not hold yet.

    One thread reads ahead, the caller's thread runs the model, one thread aligns, measures and draws. Rows
    are appended as they are done, so a run that stops loses the pictures under way and nothing else. A
    picture that cannot be read, or has nothing to compare, gets a row with its error; such rows are tried
    again next time.

    Returns:
        All rows of the folder, by index.

    Raises:
        UserError: the folder holds rows of other settings, or cannot be written.
    """
    check_promise(job.predictor, job.alignments)
    total = len(job.data.names) if job.limit is None else min(job.limit, len(job.data.names))
    wanted = job.shard.indices(total)
    rows = begin(folder, job.settings())
    todo = [index for index in wanted if "error" in rows.get(index, {"error": ""})]
    done = len(wanted) - len(todo)
    if progress is not None:
        progress(done, len(wanted))
    with write_errors(folder / ROWS):
        (folder / PICTURES).mkdir(exist_ok=True)
        with (folder / ROWS).open("a", encoding="utf-8") as stream:
            for row in _rows(job, todo, folder):
                stream.write(row_line(row))
                stream.flush()
                rows[row["index"]] = row
                done += 1
                if progress is not None:
                    progress(done, len(wanted))
    return {index: rows[index] for index in sorted(rows) if index in set(wanted)}


def _rows(job: Job, todo: Sequence[int], folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of some pictures, in about their order."""
    size = max(1, job.predictor.batch_size)
    batches = [todo[i : i + size] for i in range(0, len(todo), size)]
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as measurer:
        reading: list[Future[list[Prepared | dict[str, Any]]]] = []
        measuring: list[Future[dict[str, Any]]] = []
        try:
            for number in range(len(batches)):
                while len(reading) <= min(number + AHEAD, len(batches) - 1):
                    reading.append(reader.submit(_read_all, job, batches[len(reading)]))
                items: list[tuple[int, Prepared]] = []
                for index, found in zip(batches[number], reading[number].result(), strict=True):
                    if isinstance(found, Prepared):
                        items.append((index, found))
                    else:
                        yield found
                reading[number] = Future()  # the pictures are let go
                for index, item, prediction, seconds in _predict(job, items):
                    if isinstance(prediction, dict):
                        yield prediction
                    else:
                        measuring.append(
                            measurer.submit(_measure, job, index, item, prediction, seconds, folder)
                        )
                while len(measuring) > AHEAD * size or (measuring and measuring[0].done()):
                    yield measuring.pop(0).result()
            while measuring:
                yield measuring.pop(0).result()
        finally:  # after an error or Ctrl-C nothing more is begun
            pending: list[Future[Any]] = [*reading, *measuring]
            for future in pending:
                future.cancel()


def _read_all(job: Job, indices: Sequence[int]) -> list[Prepared | dict[str, Any]]:
    found: list[Prepared | dict[str, Any]] = []
    for index in indices:
        try:
            found.append(job.protocol.prepare(job.data.read(index), job.rules))
        except UserError as error:
            found.append(_error_row(job, index, str(error)))
    return found


def _predict(
    job: Job, items: Sequence[tuple[int, Prepared]]
) -> Iterator[tuple[int, Prepared, Prediction | dict[str, Any], float]]:
    """Predictions of a batch; picture by picture where the batch is refused: one cannot spoil others."""
    if not items:
        return
    begun = time.perf_counter()
    try:
        answers: list[Prediction] = job.predictor.predict(
            [item.rgb for _, item in items],
            [item.caption for _, item in items],
            [job.seed + index for index, _ in items],
        )
    except UserError as error:
        if len(items) == 1:
            index, item = items[0]
            yield index, item, _error_row(job, index, str(error)), 0.0
        else:
            for pair in items:
                yield from _predict(job, [pair])
        return
    seconds = (time.perf_counter() - begun) / len(items)
    for (index, item), answer in zip(items, answers, strict=True):
        yield index, item, answer, seconds


def _measure(
    job: Job, index: int, item: Prepared, prediction: Prediction, seconds: float, folder: Path
) -> dict[str, Any]:
    """The row of one picture, and its strip of pictures on disk."""
    begun = time.perf_counter()
    try:
        valid = check_pair(prediction.depth, item.depth, item.mask)
        disparity = job.predictor.promise == "disparity"
        scores, first = {}, None
        for alignment in job.alignments:
            aligned = fit_depth(prediction.depth, item.depth, valid, alignment, disparity=disparity)
            scores[alignment] = vars(score_aligned(aligned, item.depth, valid, clip=item.clip))
            first = aligned if first is None else first
    except (UserError, ValueError) as error:
        return _error_row(job, index, str(error))
    assert first is not None
    if item.clip is not None:
        first = np.clip(first, *item.clip)
    relative = np.abs(first[valid] - item.depth[valid]) / item.depth[valid]
    row: dict[str, Any] = {
        "index": index,
        "name": item.name,
        "seed": job.seed + index,
        "width": item.rgb.shape[1],
        "height": item.rgb.shape[0],
        "scores": scores,
        "error_histogram": np.histogram(relative, ERROR_EDGES)[0].tolist(),
        "facts": item.facts,
    }
    if prediction.spread is not None:
        spread = prediction.spread[valid].astype(np.float64)
        bins = np.clip(np.searchsorted(SPREAD_EDGES, spread, side="right") - 1, 0, len(SPREAD_EDGES) - 2)
        count = len(SPREAD_EDGES) - 1
        row["spread"] = float(spread.mean())
        row["reliability"] = {
            "pixels": np.bincount(bins, minlength=count).tolist(),
            "spread": np.bincount(bins, spread, minlength=count).tolist(),
            "error": np.bincount(bins, relative, minlength=count).tolist(),
        }
    row["picture"] = f"{index:06d}-{slug(item.name, 60)}.jpg"
    save_strip(folder / PICTURES / row["picture"], item.rgb, item.depth, valid, first)
    row["seconds"] = {"predict": seconds, "measure": time.perf_counter() - begun}
    return row


def _error_row(job: Job, index: int, message: str) -> dict[str, Any]:
    return {"index": index, "name": job.data.names[index], "error": " ".join(message.split())[:500]}
