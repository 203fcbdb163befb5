"""One running service on the tiny model for all tests that do not break it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.importorskip("fastapi")

from fastapi.testclient import TestClient
from serving import settings

from modality_forcing.server.app import create_app


@pytest.fixture(scope="session")
def http(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of a running application; ``http.app.state.service`` is its service."""
    app = create_app(settings(tiny_model, tmp_path_factory.mktemp("server")))
    with TestClient(app, base_url="http://127.0.0.1:7860", raise_server_exceptions=False) as client:
        yield client
