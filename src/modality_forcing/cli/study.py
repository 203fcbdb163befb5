"""``mf study``: a claim of the paper under control, from its plan to a report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from modality_forcing.studies.cells import Cell
    from modality_forcing.studies.plan import Job
    from modality_forcing.studies.registry import Study
    from modality_forcing.studies.runner import State
    from modality_forcing.studies.settings import StudySettings

MAX_JOBS = 256
ON_ACCELERATOR = 4
"""Processes that share an accelerator where --jobs is not given."""
SETTINGS = "study.json"
STEP = 0.1  # share of the work between two lines where no bar is drawn


def study(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A study; --list shows them.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Change a setting (forcing_steps=400 seeds=5)."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="The study. Run the same command again to go on."),
    ] = None,
    scale: Annotated[
        str, typer.Option(metavar="toy|cpu|gpu", help="Minutes, two cores for about an hour, one large GPU.")
    ] = "toy",
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            metavar="N",
            show_default="one per core; 4 on a GPU",
            help="Processes of one thread each.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", metavar="N", help="The first N cells.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="PATTERN", help='Cells whose name fits, for example "w32-*".')
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="MODEL", help="What the trajectory study measures.")
    ] = "lowpoly",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Compute nothing; print the plan with sizes, cost and time.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="Print the studies and stop.")] = False,
) -> None:
    """The paper's claims under control: train and measure every cell, write a report with verdicts."""
    import os

    from modality_forcing.cli.inputs import whole_number, writable_folder
    from modality_forcing.errors import UserError
    from modality_forcing.studies.plan import choose, make_jobs
    from modality_forcing.studies.registry import STUDIES, find_study

    if list_:
        for found in STUDIES.values():
            print(f"{found.name.ljust(14)}{found.title}")
        return
    if name is None:
        raise UserError(f"which study? mf study NAME --out FOLDER, with NAME one of {', '.join(STUDIES)}")
    chosen = find_study(name)
    settings = chosen.settings(scale, assignments or [])
    if model != "lowpoly" and not chosen.takes_model:
        raise UserError(f"--model does not fit the study {name}, which trains its own")
    if limit is not None:
        whole_number("--limit", limit, 1, 10**6)
    cores = min(MAX_JOBS, os.cpu_count() or 1)
    processes = (
        jobs if jobs is not None else cores if settings.device == "cpu" else min(ON_ACCELERATOR, cores)
    )
    whole_number("--jobs", processes, 1, MAX_JOBS)
    plan = chosen.cells(settings, model)
    cells = choose(plan, only, limit)
    if dry_run:
        show_plan(cells, make_jobs(cells, settings), settings, processes)
        return
    if out is None:
        raise UserError("--out is missing; right is the folder of the study, new or begun before")
    folder = writable_folder(out)
    _check_machine(settings, model)
    _begin(folder, chosen, scale, settings, model)

    _run(chosen, scale, settings, plan, cells, folder, processes, _command(chosen, scale, assignments, model))


def _check_machine(settings: StudySettings, model: str) -> None:
    """Refuse at once what would fail after minutes.

    Raises:
        UserError: no renderer, no such model or autoencoder, or no accelerator.
    """
    import importlib.util
    from pathlib import Path

    from modality_forcing.cli.inputs import model_options
    from modality_forcing.errors import UserError

    if importlib.util.find_spec("embreex") is None:
        raise UserError('the renderer embreex is missing: pip install "modality-forcing[train]"')
    model_options(model, None, settings.device, None, False)
    if model != "lowpoly" and not Path(model).expanduser().exists():
        raise UserError(f"--model {model[:200]} does not exist; right is lowpoly or a model's folder")
    if settings.autoencoder != "lowpoly" and not Path(settings.autoencoder).expanduser().exists():
        raise UserError(f"autoencoder={settings.autoencoder} does not exist")
    if settings.device != "cpu":
        from modality_forcing.devices import resolve_device

        resolve_device(settings.device)


def _begin(folder: Path, chosen: Study, scale: str, settings: StudySettings, model: str) -> None:
    """Take up a folder: new, or of the same study.

    Raises:
        UserError: it holds another one; the message names the first difference.
    """
    import json

    from modality_forcing.errors import UserError
    from modality_forcing.io.atomic import atomic_file
    from modality_forcing.io.plain_json import plain

    values = plain({"study": chosen.name, "scale": scale, "model": model, **vars(settings)})
    path = folder / SETTINGS
    if path.exists():
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise UserError(f"{path} cannot be read; choose another --out") from None
        for key in sorted(values.keys() | before.keys()):
            if values.get(key) != before.get(key):
                was, now = before.get(key), values.get(key)
                raise UserError(f"{folder} holds a study with {key}={was}, not {now}; choose another --out")
    with atomic_file(path) as aside:
        aside.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _command(chosen: Study, scale: str, assignments: list[str] | None, model: str) -> str:
    words = ["mf", "study", chosen.name, "--scale", scale, "--out", f"runs/studies/{chosen.name}"]
    words += ["--model", model] if model != "lowpoly" else []
    return " ".join([*words, *(assignments or [])])


def _run(
    chosen: Study,
    scale: str,
    settings: StudySettings,
    plan: list[Cell],
    cells: list[Cell],
    folder: Path,
    processes: int,
    command: str,
) -> None:
    """Do what is missing, then write the report.

    Raises:
        TrainingError: a part failed; the others were done and are in the report.
    """
    from modality_forcing.errors import TrainingError
    from modality_forcing.studies.plan import make_jobs
    from modality_forcing.studies.report import write_report, write_rows
    from modality_forcing.studies.runner import run_jobs
    from modality_forcing.studies.work import Place, is_done, read_result

    place = Place(folder, settings, processes)

    def finished(among: list[Cell]) -> list[dict[str, Any]]:
        return [found for cell in among if (found := read_result(cell, place)) is not None]

    left = [cell for cell in cells if read_result(cell, place) is None]
    jobs = [job for job in make_jobs(left, settings) if not is_done(job, place)] if left else []
    failed: dict[str, str] = {}
    if jobs:
        with View(jobs) as view:
            view.say(f"{len(left)} of {len(cells)} cells to compute, {processes} processes")

            def report(state: State, ended: str) -> None:
                if ended and any(cell.name == ended for cell in cells):
                    write_rows(folder, chosen, scale, settings, finished(plan))
                view.show(state, ended)

            failed = run_jobs(jobs, place, processes, report).failed
    results = finished(plan)
    if results:
        write_rows(folder, chosen, scale, settings, results)
        print(write_report(folder, chosen, scale, settings, plan, results, command), flush=True)
    if failed:
        first, why = next(iter(failed.items()))
        raise TrainingError(f"{len(failed)} parts of the study failed; the first is {first}: {why}")


class View:
    """Progress: a bar on a terminal, else a line per finished part; all on stderr."""

    def __init__(self, jobs: list[Job]) -> None:
        from modality_forcing.cli.output import progress

        self.seconds = {job.name: job.seconds for job in jobs}
        self.bars = progress()
        self.plain = self.bars.disable
        self._bar: Any = None

    def __enter__(self) -> View:
        self.bars.__enter__()
        self._bar = self.bars.add_task("study", total=sum(self.seconds.values()))
        return self

    def __exit__(self, *error: Any) -> None:
        self.bars.__exit__(*error)

    def show(self, state: State, ended: str) -> None:
        """The state, and what just ended."""
        from modality_forcing.cli.train_view import duration

        left = "" if state.seconds_left is None else f"left {duration(state.seconds_left)}"
        if ended:
            text = state.failed.get(ended)
            count = f"{len(state.done) + len(state.failed)}/{state.total}"
            self.say(f"{count}  {ended}{': failed: ' + text if text else ''}  {left}".rstrip())
        if not self.plain:
            running = ", ".join(f"{name} {100 * share:.0f} %" for name, share in state.running.items())
            completed = sum(self.seconds[name] for name in [*state.done, *state.failed])
            completed += sum(self.seconds[name] * share for name, share in state.running.items())
            self.bars.update(self._bar, completed=completed, description=f"{running[:60]}  {left}")

    def say(self, text: str) -> None:
        """One line that stays."""
        import sys

        if self.plain:
            print(text, file=sys.stderr, flush=True)
        else:
            self.bars.console.print(text, highlight=False, markup=False)


def show_plan(cells: list[Cell], jobs: list[Job], settings: StudySettings, processes: int) -> None:
    """Cells with parameters, operations and time; then the shared work and the sum, on stdout."""
    from modality_forcing.cli.eval_options import print_table
    from modality_forcing.cli.train_view import duration
    from modality_forcing.studies.plan import CELL, facts, speed_of

    seconds = {job.name: job.seconds for job in jobs}
    table = [["cell", "parameters", "trainable", "TFLOP forcing", "TFLOP text to image", "time"]]
    for cell in cells:
        found = facts(cell)
        table.append([
            cell.name, f"{found['parameters']:,}", f"{found['trainable']:,}",
            f"{found['forcing_flops'] / 1e12:,.2f}", f"{found['text_to_image_flops'] / 1e12:,.2f}",
            duration(seconds[cell.name]),
        ])  # fmt: skip
    print_table(table)
    print()
    print_table(
        [["shared work, done once", "time"]]
        + [[job.name, duration(job.seconds)] for job in jobs if job.kind != CELL]
    )
    total = sum(seconds.values())
    longest = _chain(jobs)
    estimate = max(total / processes, longest)
    print(
        f"\n{len(cells)} cells, {len(jobs) - len(cells)} parts of shared work: {duration(total)} in one "
        f"process, about {duration(estimate)} in {processes}\nestimated for {speed_of(settings).text}"
    )


def _chain(jobs: list[Job]) -> float:
    """Seconds of the longest row of jobs that need each other."""
    ends: dict[str, float] = {}
    for job in jobs:  # needs come first
        ends[job.name] = job.seconds + max((ends.get(need, 0.0) for need in job.needs), default=0.0)
    return max(ends.values(), default=0.0)
