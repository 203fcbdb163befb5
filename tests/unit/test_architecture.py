"""Who may import whom, what the base installation must be able to import, and what stays lazy.

The table is the one of docs/architecture.md; a test compares the two.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "modality_forcing"
NAME = "modality_forcing"

# Room -> rooms it may import. A room is a folder or a module directly below the package; itself is implied.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "presets": {"errors", "config"},
    "inputs": {"errors"},
    "devices": {"errors"},
    "types": set(),
    "flow": {"types", "config", "errors"},
    "losses": {"types", "config", "errors", "flow"},
    "geometry": {"types", "config", "errors"},
    "model": {"types", "config", "errors"},
    "viz": {"types", "errors", "geometry"},
    "io": {"types", "errors", "geometry", "viz"},
    "codecs": {"types", "config", "errors", "model", "checkpoint"},
    "checkpoint": {"config", "errors", "presets", "model", "io"},
    "data": {"types", "config", "errors", "geometry", "io"},
    "engine": {"types", "config", "errors", "inputs", "devices", "model", "codecs", "flow"},
    "editing": {
        "types", "config", "errors", "inputs", "devices", "engine", "model", "codecs", "flow", "geometry",
    },
    "pipeline": {
        "types", "config", "errors", "presets", "inputs", "devices", "engine", "editing", "model", "codecs",
        "flow", "checkpoint", "geometry", "io",
    },
    "training": {
        "types", "config", "errors", "presets", "model", "codecs", "flow", "losses", "data", "checkpoint",
        "io",
    },
    "evaluation": {"types", "errors", "geometry", "viz", "io", "data", "pipeline"},
    "studies": {
        "types", "config", "errors", "presets", "engine", "flow", "codecs", "checkpoint", "io", "data",
        "pipeline", "training", "evaluation",
    },
    "cli": {
        "types", "config", "errors", "presets", "inputs", "devices", "engine", "flow", "losses", "geometry",
        "model", "viz", "io", "codecs", "checkpoint", "data", "pipeline", "training", "evaluation", "studies",
        "server",
    },
    "server": {
        "types", "config", "errors", "presets", "inputs", "flow", "geometry", "viz", "io", "codecs",
        "pipeline",
    },
    "client": {"errors"},
    "__main__": {"cli"},
}  # fmt: skip
# What a value class may reach inside a method for convenience: written as an import in the method.
LAZY: dict[str, set[str]] = {"types": {"geometry", "io"}, "": {"pipeline", "types"}}
# Packages of the extras: a base installation lacks them.
NOT_IN_BASE = (
    "peft",
    "embreex",
    "diffusers",
    "accelerate",
    "matplotlib",
    "torch_fidelity",
    "ray",
    "torchvision",
    "pytest",
    "sklearn",
    "sentence_transformers",
    "tensorboard",
    "wandb",
    "h5py",
    "pyarrow",
    "fastapi",
    "uvicorn",
    "peewee",
    "limits",
    "prometheus_client",
    "gradio",
)
# Rooms that are an extra as a whole: ``cli`` imports them inside the verb that needs the extra.
EXTRA_ROOMS = ("server",)


def modules() -> list[Path]:
    """Every module of the package."""
    return sorted(path for path in PACKAGE.rglob("*.py") if "weights" not in path.parts)


def dotted(path: Path) -> str:
    """modality_forcing.io.images of .../io/images.py."""
    parts = [NAME, *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """ "io" of modality_forcing.io.images; "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> list[tuple[str, bool, int]]:
    """(module of ours that is imported, inside a function, line); imports for type checkers do not count."""
    found: list[tuple[str, bool, int]] = []

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.orelse:
                visit(child, inside)
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, inside, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = dotted(path).split(".")
                here = here if path.name == "__init__.py" else here[:-1]
                base = ".".join([*here[: len(here) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.append((full if is_module(full) else base, inside, node.lineno))
        for child in ast.iter_child_nodes(node):
            visit(child, inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))

    visit(ast.parse(path.read_text(encoding="utf-8")), False)
    return [item for item in found if item[0] == NAME or item[0].startswith(NAME + ".")]


def is_module(name: str) -> bool:
    """Whether a dotted name is a module of ours."""
    where = PACKAGE.joinpath(*name.split(".")[1:])
    return name.startswith(NAME + ".") and (where.with_suffix(".py").is_file() or where.is_dir())


def violations(path: Path) -> list[str]:
    """Imports of one module that the table does not allow."""
    module = dotted(path)
    room = room_of(module)
    allowed = ALLOWED.get(room, set()) | {room, ""}
    wrong: set[str] = set()
    for target, lazy, line in imports(path):
        other = room_of(target)
        if other in allowed or (lazy and other in LAZY.get(room, set())):
            continue
        wrong.add(f"{path.relative_to(ROOT)}:{line}: {room or 'the package'} may not import {other}")
    return sorted(wrong)


def test_every_room_is_in_the_table() -> None:
    rooms = {room_of(dotted(path)) for path in modules()} - {""}
    assert rooms <= ALLOWED.keys(), f"add to the table: {rooms - ALLOWED.keys()}"


def test_the_table_has_no_circle() -> None:
    done: set[str] = set()
    while len(done) < len(ALLOWED):
        free = {room for room, needs in ALLOWED.items() if room not in done and needs <= done}
        assert free, f"a circle among {sorted(ALLOWED.keys() - done)}"
        done |= free


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_import_directions(path: Path) -> None:
    assert violations(path) == []


def test_a_wrong_import_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "src" / NAME
    (package / "flow").mkdir(parents=True)
    (package / "io").mkdir()
    (package / "io" / "images.py").write_text("")
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", package)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    wrong = package / "flow" / "path.py"
    for text in (
        "from modality_forcing.io import images",
        "import modality_forcing.io.images",
        "from ..io import images",
        "def f():\n    from modality_forcing.io.images import read",
    ):
        wrong.write_text(text)
        assert violations(wrong), text
    for text in (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from modality_forcing.io import images",
        "from modality_forcing.types import Camera",
        "import modality_forcing",
    ):
        wrong.write_text(text)
        assert not violations(wrong), text


def test_the_documented_table_is_this_one() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    documented = {
        match[1]: set(re.findall(r"`(\w+)`", match[2]))
        for match in re.finditer(r"^\| `(\w+)` \| ([^|]*) \|$", text, flags=re.M)
    }
    assert documented == ALLOWED


def run(code: str) -> None:
    """Run Python in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_imports_with_the_base_dependencies() -> None:
    # An entry of None in sys.modules makes an import fail as if the package were not installed.
    names = [dotted(path) for path in modules() if path.name != "__main__.py"]
    names = [name for name in names if room_of(name) not in EXTRA_ROOMS]
    run(
        "import sys, importlib\n"
        f"for name in {NOT_IN_BASE!r}: sys.modules[name] = None\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
    )


@pytest.mark.parametrize(
    "code",
    [
        "import modality_forcing; modality_forcing.__version__",
        "import modality_forcing.config, modality_forcing.presets, modality_forcing.errors",
        "from modality_forcing.cli.main import main; main(['--help'])",
        "from modality_forcing.cli.main import main; main(['joint', '--steps', '0', '--prompt', ''])",
    ],
)
def test_torch_is_imported_late(code: str) -> None:
    run(f"{code}\nimport sys\nassert 'torch' not in sys.modules\nassert 'scipy' not in sys.modules")


def test_files_are_short() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {lines}"
        for path in modules()
        if (lines := path.read_text(encoding="utf-8").count("\n")) > 450
    ]
    assert long == []
