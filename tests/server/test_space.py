"""Spaces: their files, the page's service without worker processes, the transformer made ready ahead."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from modality_forcing.errors import UserError
from modality_forcing.server.settings import ServerSettings
from modality_forcing.server.space import main, space_files, write_space

COMMITTED = Path(__file__).parents[2] / "integrations" / "huggingface-space"


def test_the_committed_files_are_what_the_command_writes(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    paths = write_space(tmp_path)
    assert {path.name for path in paths} == {path.name for path in COMMITTED.iterdir()}
    for path in paths:
        theirs = (COMMITTED / path.name).read_text(encoding="utf-8").splitlines()
        # The page toolkit's version is that of the day it was written.
        ours = path.read_text(encoding="utf-8").splitlines()
        assert [a for a in ours if "sdk_version" not in a] == [b for b in theirs if "sdk_version" not in b]


def test_a_model_reaches_the_program_only_when_it_is_one(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("gradio")
    code = space_files("somebody/a-model")["app.py"]
    assert 'launch("somebody/a-model", spaces.GPU)' in code
    compile(code, "app.py", "exec")
    assert code.index("import spaces") < code.index("modality_forcing")
    for wrong in ('x"); import os', "a/b/c", "", "../x"):
        with pytest.raises(UserError, match="right is lowpoly or a Hub id"):
            space_files(wrong)
    assert main([str(tmp_path), "--model", "a b"]) == 2
    assert "error: the model is 'a b'" in capsys.readouterr().err


@pytest.fixture
def service(tiny_model: Path, tmp_path: Path) -> Any:
    from modality_forcing.server.zero import ZeroService

    calls: list[str] = []

    def gpu(duration: int) -> Any:
        def decorate(function: Any) -> Any:
            def lent(batch: Any) -> Any:
                calls.append(batch["task"])
                yield from function(batch)

            return lent

        return decorate

    settings = ServerSettings(models={"tiny": str(tiny_model)}, data=tmp_path, preview_every=0.0)
    made = ZeroService(settings, gpu, zero=False)
    made.start()
    yield SimpleNamespace(jobs=made, calls=calls)
    made.close()


def test_one_call_for_each_job_and_the_result_is_the_pipelines(service: Any, tiny_model: Path) -> None:
    from modality_forcing.pipeline import Pipeline

    fields = {"prompt": "a lake", "seed": 5, "steps": 3, "previews": True}
    job, _ = service.jobs.submit("joint", fields)
    assert service.calls == []  # nothing is computed before somebody watches
    events = list(service.jobs.stream(job.id))
    assert service.calls == ["joint"]
    assert [event.kind for event in events].count("step") == 3
    assert any(event.kind == "preview" for event in events)
    assert events[-1].data["state"] == "done"
    again = list(service.jobs.stream(job.id))
    assert [event.kind for event in again] == ["state"]
    assert service.calls == ["joint"]
    expected = Pipeline.from_pretrained(tiny_model).joint("a lake", seed=5, steps=3)[0]
    found = np.load(service.jobs.file(job.id, 0, "depth.npy"), allow_pickle=False)
    assert np.array_equal(found, np.where(expected.mask, expected.depth, 0))


def test_a_cancelled_job_gives_its_card_back(service: Any) -> None:
    job, _ = service.jobs.submit("joint", {"prompt": "slow", "steps": 100, "width": 256, "height": 256})
    last = None
    for event in service.jobs.stream(job.id):
        last = event
        if event.kind == "step" and event.data["step"] == 2:
            service.jobs.cancel(job.id)
    assert last is not None
    assert last.data["state"] == "cancelled"
    follow, _ = service.jobs.submit("joint", {"prompt": "next", "steps": 1})
    assert list(service.jobs.stream(follow.id))[-1].data["state"] == "done"


@pytest.mark.slow
def test_programs_made_ahead_are_the_same_and_are_kept(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs are real; saving and loading them stands for the compiler, which takes minutes on a CPU."""
    import torch

    from modality_forcing.pipeline import Pipeline
    from modality_forcing.server.ahead import ByShape, compile_ahead

    compiled: list[Path] = []

    def save(folder: Path, program: Any) -> None:
        (folder / "root").mkdir(parents=True)
        torch.export.save(program, folder / "root" / "package.pt2")
        compiled.append(folder)

    def put_in(module: Any, folder: str) -> None:
        module.forward = torch.export.load(Path(folder) / "root" / "package.pt2").module()

    stand_in = SimpleNamespace(aoti_compile_and_save=save, aoti_load_from_package_dir=put_in)
    monkeypatch.setitem(sys.modules, "spaces", stand_in)
    pipeline = Pipeline.from_pretrained(tiny_model)
    plain = pipeline.joint("a lake", seed=1)[0]
    compile_ahead(pipeline, tmp_path, lambda duration: lambda function: function)
    forward: Any = pipeline.engine.transformer.forward
    assert isinstance(forward, ByShape)
    assert len(forward.programs) == len(compiled) == 2  # with guidance and without

    def must_not_run(*_: Any) -> Any:
        raise AssertionError("not compiled")

    usual, forward.plain = forward.plain, must_not_run
    fast = pipeline.joint("a lake", seed=1)[0]
    assert np.abs(fast.rgb.astype(int) - plain.rgb).max() <= 1
    both = fast.mask & plain.mask
    assert both.mean() > 0.2
    assert np.median(np.abs(fast.depth - plain.depth)[both] / plain.depth[both]) < 1e-3
    forward.plain = usual
    assert pipeline.joint("a lake", seed=1, size=(96, 64), steps=1)[0].depth.shape == (64, 96)
    del pipeline.engine.transformer.forward
    compile_ahead(pipeline, tmp_path, lambda duration: lambda function: function)
    assert len(compiled) == 2  # found in the folder
