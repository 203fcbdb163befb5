"""The load benchmark in small: the real command, real clients, nothing lost. Speed is not judged here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import serve_load
from serving import until


@pytest.mark.slow
def test_nothing_is_lost_under_load(tmp_path: Path) -> None:
    found = serve_load.measure(tmp_path, jobs=60, clients=12, batch_size=8)
    assert found["faults"] == []
    assert found["jobs"] == 60
    assert found["kept"] == 8
    assert found["exit_codes"] == [0, 0]
    assert found["jobs_per_batch"] > 1.2
    assert not found["memory_growth"] > 0.1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_server_that_is_killed_leaves_no_process_and_loses_no_job(tmp_path: Path, tiny_model: Path) -> None:
    server = serve_load.Server(tiny_model, tmp_path / "data")
    jobs = [server.client.submit("joint", prompt="a", seed=n, steps=100)["id"] for n in range(2)]
    until(lambda: server.client.job(jobs[0])["progress"]["step"] > 0, "it computed")
    tasks = Path(f"/proc/{server.process.pid}/task").iterdir()
    children = [Path(f"/proc/{pid}") for task in tasks for pid in (task / "children").read_text().split()]
    assert children
    server.process.kill()
    server.process.wait()
    until(lambda: not any(running(child) for child in children), "its processes ended")
    again = serve_load.Server(tiny_model, tmp_path / "data")
    assert [again.client.wait(job)["state"] for job in jobs] == ["done", "done"]
    assert again.stop()[0] == 0


def running(process: Path) -> bool:
    """Whether a process is there and no zombie that waits for a parent to look."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
