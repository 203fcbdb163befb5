"""The container files name what exists: options, sources, ports. Nothing is built here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from modality_forcing.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The compose file with its merges done."""
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) of each logical line of the Dockerfile."""
    text = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def help_text(capsys: pytest.CaptureFixture[str]) -> str:
    """What `mf serve --help` says."""
    main(["serve", "--help"])
    return capsys.readouterr().out


def test_the_options_exist(compose: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    (entry,) = [rest for name, rest in instructions() if name == "ENTRYPOINT"]
    used = re.findall(r"--[a-z-]+", entry)
    for service in compose["services"].values():
        used += [word for word in service["command"] if word.startswith("--")]
    text = help_text(capsys)
    assert len(used) >= 5
    assert all(option in text for option in used), used


def test_the_sources_exist_and_are_let_in() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for name, rest in instructions():
        if name == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source.removeprefix("./")).exists(), source
                assert source.removeprefix("./") in let_in, source
    assert "modality_forcing" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_it_runs_without_rights_and_with_a_key(compose: dict[str, Any]) -> None:
    names = [name for name, _ in instructions()]
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert dict(instructions())["USER"] != "root"
    assert "--insecure" not in (DEPLOY / "Dockerfile").read_text() + (DEPLOY / "compose.yaml").read_text()
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["build"]["dockerfile"] == "deploy/Dockerfile", name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert service["secrets"] == ["api_keys"], name
    assert compose["secrets"]["api_keys"]["file"].removeprefix("./") == "api_keys.txt"
