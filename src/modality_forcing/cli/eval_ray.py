"""``mf eval depth --ray N``: parts of one evaluation as tasks of a Ray cluster, joined when all are done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from modality_forcing.errors import UserError


def words_of(context: typer.Context, *, without: Sequence[str]) -> list[str]:
    """The options of a command line as words again: those that are not at their default.

    Args:
        context: of the running command.
        without: names of parameters to leave out.
    """
    words: list[str] = []
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if parameter.name in without or value is None or value == parameter.default:
            continue
        name = parameter.opts[0]
        if isinstance(value, bool):
            words += [name] if value else []
        elif isinstance(value, (list, tuple)):
            words += [word for item in value for word in (name, str(item))]
        else:
            words += [name, str(value)]
    return words


def on_ray(words: Sequence[str], parts: int, folder: Path, *, gpus: float = 0.0) -> dict[str, Any]:
    """Run ``mf eval depth`` once per part and merge them into ``folder/whole``.

    Uses the cluster of the environment (``RAY_ADDRESS``), else starts one on this machine. A part whose
    machine went away is run again by Ray and goes on from its rows.

    Args:
        words: options without --shard and --out; paths in them must mean the same on every machine.
        parts: how many.
        folder: on a file system that all machines see.
        gpus: that each part asks for.

    Returns:
        The content of the merged ``results.json``.

    Raises:
        UserError: ray is missing, or a part failed.
    """
    from modality_forcing.evaluation.report import merge

    try:
        import ray
    except ModuleNotFoundError:
        raise UserError("--ray needs the package ray; install it with: pip install ray") from None
    whole = folder.resolve() / "whole"
    if whole.exists():
        raise UserError(f"{whole} is taken; move it away or choose another --out")
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=2)(run_part)
    names = [folder.resolve() / f"part-{i}-of-{parts}" for i in range(1, parts + 1)]
    waiting = [
        task.remote([*words, "--shard", f"{i}/{parts}", "--out", str(name)])
        for i, name in enumerate(names, start=1)
    ]
    for name, (code, error) in zip(names, ray.get(waiting), strict=True):
        if code:
            raise UserError(f"the part in {name} failed: {error}")
    return merge(names, whole)


def run_part(words: Sequence[str]) -> tuple[int, str]:
    """One part: its exit code and what it said about an error."""
    import contextlib
    import io

    from modality_forcing.cli.main import main

    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main(["eval", "depth", *words])
    return code, said.getvalue().strip()[-400:]
