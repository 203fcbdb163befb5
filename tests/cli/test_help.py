"""Help, first steps, other verbs, and that documents show commands that exist."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
import typer
from cli_running import Result
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from modality_forcing import __version__
from modality_forcing.cli import options
from modality_forcing.cli.main import app, one_line

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "docs/cli.md", "docs/install.md", "docs/training.md")
Run = Callable[..., Result]


def test_plain_mf_shows_what_to_try(mf: Run) -> None:
    result = mf()
    assert result.code == 0
    assert "mf joint --prompt" in result.out
    assert result.err == ""


def test_version(mf: Run) -> None:
    assert mf("--version").out == f"modality-forcing {__version__}\n"


@pytest.mark.parametrize("verb", [[], ["joint"], ["i2d"], ["d2i"], ["train"], ["convert"], ["data", "make"]])
def test_help(verb: list[str], mf: Run) -> None:
    result = mf(*verb, "--help")
    assert result.code == 0
    assert "Usage" in result.out
    assert result.err == ""


def test_help_repeats_the_defaults_of_the_code() -> None:
    from modality_forcing.geometry import camera, cloud

    assert options.EDGE_RTOL == cloud.EDGE_RTOL
    assert options.MAX_POINTS == cloud.MAX_POINTS
    assert options.FOV_X == camera.DEFAULT_FOV_X
    assert cloud.SOR is False


def test_the_pipeline_has_the_options() -> None:
    from modality_forcing.pipeline import Pipeline

    shared = {"seed", "steps", "guidance", "size", "fov_x", "fov_y", "intrinsics", "on_step"}
    for method in (Pipeline.joint, Pipeline.image_to_depth, Pipeline.depth_to_image):
        assert shared <= inspect.signature(method).parameters.keys()


# What takes long at a start is imports (benchmarks/starting.py measures it), so they are what is looked at.
LOADED = """
import sys
{body}
print("loaded", *sorted({{name.partition(".")[0] for name in sys.modules}}))
"""
STARTS = {
    "import modality_forcing": "import modality_forcing",
    "mf --help": "from modality_forcing.cli.main import main; main(['--help'])",
    "mf": "from modality_forcing.cli.main import main; main([])",
    "mf joint --help": "from modality_forcing.cli.main import main; main(['joint', '--help'])",
}
LIGHT = {"typer", "pydantic", "rich"}


@pytest.mark.parametrize("name", STARTS)
def test_starts_with_light_packages_only(name: str) -> None:
    """Of the packages that the project asks for, all extras included."""
    code = LOADED.format(body=STARTS[name])
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    loaded = done.stdout.split("loaded")[-1].split()
    assert "modality_forcing" in loaded
    owners = metadata.packages_distributions()
    packages = {canonicalize_name(owner) for module in loaded for owner in owners.get(module, ())}
    lines = metadata.requires("modality-forcing") or ()
    asked = {canonicalize_name(Requirement(line).name) for line in lines}
    assert {"torch", "numpy", "gradio"} < asked - LIGHT
    assert packages & asked <= LIGHT


def test_models_are_counted(mf: Run) -> None:
    result = mf("models")
    assert result.code == 0
    for name, parameters in (
        ("flux_rgbd_9b_v2", "11,986,285,570"),
        ("flux_rgbd_9b_v1", "11,950,633,984"),
        ("flux2-klein-4b", "3,875,544,576"),
        ("flux2-klein-9b", "9,078,581,248"),
        ("flux2-dev", "32,223,281,152"),
        ("lowpoly", "1"),
    ):
        (line,) = (line for line in result.out.splitlines() if line.startswith(f"{name} "))
        assert parameters in line


def test_doctor_names_versions_and_devices(mf: Run) -> None:
    result = mf("doctor")
    assert result.code in (0, 1)  # 1 where something is missing, which is then listed
    assert ("Missing:" in result.out) == (result.code == 1)
    for word in ("modality-forcing", "python", "torch", "device cpu", "model lowpoly"):
        assert word in result.out


def test_doctor_says_how_to_get_what_is_missing(mf: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from modality_forcing.cli import doctor

    monkeypatch.setattr(
        doctor, "requirements",
        lambda: [("torch", ">=2.9", ""), ("numpy", ">=99", ""), ("embreex", "", "train")],
    )  # fmt: skip
    monkeypatch.setattr(doctor, "installed", lambda name: {"numpy": "1.0"}.get(name))
    result = mf("doctor")
    assert result.code == 1
    assert "pip install torch" in result.out
    assert "numpy 1.0 is installed, >=99 is needed" in result.out
    assert 'pip install "modality-forcing[train]"' in result.out


def test_convert_there_and_back(mf: Run, work: Path, tiny_model: Path) -> None:
    result = mf("convert", tiny_model, "copy", "--to", "ours")
    assert result.code == 0, result.err
    assert result.out == "copy\n"
    for name in ("transformer.safetensors", "autoencoder.safetensors"):
        assert (work / "copy" / name).read_bytes() == (tiny_model / name).read_bytes()


def test_data_make_and_inspect(mf: Run, work: Path) -> None:
    pytest.importorskip("embreex")
    result = mf("data", "make", "cache", "--count", 3, "--size", 32, "--workers", 1)
    assert result.code == 0, result.err
    result = mf("data", "inspect", "cache", "--out", "sheet.png")
    assert result.code == 0, result.err
    assert result.out.startswith("3 samples of 32x32")
    assert (work / "sheet.png").read_bytes()[:4] == b"\x89PNG"


def test_messages_are_one_readable_line() -> None:
    assert one_line("a\nb \x1b[31m\udcff") == "a b \\x1b[31m\\udcff"
    assert len(one_line("x" * 100_000)) < 700


def commands(text: str) -> Iterator[str]:
    """The ``mf`` lines of a document's shell blocks; a backslash continues a line."""
    for block in re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, flags=re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("mf "):
                yield line.partition("  #")[0].strip()


def parse(words: list[str]) -> None:
    """Parse a command line without running it; an unknown verb or option raises."""
    command = typer.main.get_command(app)
    context = command.make_context("mf", list(words))
    while hasattr(command, "resolve_command"):
        rest = (
            [*context._protected_args, *context.args] if hasattr(context, "_protected_args") else context.args
        )
        if not rest:
            return
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_show_commands_that_exist(document: str) -> None:
    found = list(commands((ROOT / document).read_text(encoding="utf-8")))
    if document != "docs/install.md":
        assert len(found) > 5
    for line in found:
        parse(shlex.split(line, comments=True)[1:])


def test_a_wrong_command_would_be_noticed() -> None:
    for words in (["joint", "--no-such-option"], ["data", "paint"], ["paint"]):
        with pytest.raises(Exception, match="No such"):
            parse(words)
